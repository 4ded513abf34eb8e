"""One phantom as a folder: image, masks, reports, truth. All or nothing, and SYNTHETIC in every text.

ct.nii.gz or dicom/        the scan (whole HU; DICOM with the series and image numbers of the reports)
organs.nii.gz              label map of the nine regions (1..9 in the vocabulary's order)
organs/<channel>.nii.gz    the seven organ channels as masks; they may overlap
lesions/<slug>.nii.gz      one mask per finding
report.en.txt, report.de.txt
truth.json                 plan, labels, lesions with their places, sentences with their claims
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int16

import hilum
from hilum.geometry import AxisMap, Geometry
from hilum.io.atomic import atomic_folder
from hilum.io.dicom_write import SeriesHeader, write_ct_series
from hilum.io.hashing import sha256_of, sha256_of_parts
from hilum.io.nifti import write_nifti
from hilum.phantom.make import Phantom
from hilum.phantom.narrator import narrate_facts
from hilum.phantom.narrator_facts import LesionFact, lesion_facts, lesion_mask
from hilum.text.vocabulary import ORGAN_CHANNELS, REGIONS, SLUGS
from hilum.types import LabelVolume, MaskVolume
from hilum.volume import SliceRef

NOTICE = "SYNTHETIC: a computer-generated phantom. It shows and describes no person. Research use only."
FORMAT = 1
"""Version of the folder's layout and of truth.json."""

PAINT_ORDER = (
    "pleura", "lung", "mediastinum", "abdomen", "bone", "thyroid", "heart", "oesophagus", "airways",
)  # fmt: skip
"""Where regions overlap, the later one owns the voxel of the label map."""


@dataclass(frozen=True)
class WriteOptions:
    """How phantoms are written.

    Args:
        dicom: a DICOM series instead of a NIfTI file. languages: of the reports.
    """

    dicom: bool = False
    languages: tuple[str, ...] = ("en",)


def write_phantom(
    phantom: Phantom,
    folder: str | Path,
    options: WriteOptions | None = None,
    *,
    request: Mapping[str, Any] | None = None,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Write the folder and return its truth.

    Args:
        phantom: what to write. folder: final name; its parent must exist.
        options: what is written.
        request: how it was asked for; kept in truth.json so that a later run can compare.
        overwrite: replace an existing folder.

    Raises:
        OutputError: the folder exists (`OUTPUT_EXISTS`) or cannot be written (`OUTPUT_UNWRITABLE`).
    """
    options = options or WriteOptions()
    with atomic_folder(folder, overwrite=overwrite) as temp:
        image, slices = _write_image(phantom, temp, options.dicom)
        facts = lesion_facts(phantom, slices)
        truth: dict[str, Any] = {
            "synthetic": True,
            "notice": NOTICE,
            "format": FORMAT,
            "code_version": hilum.__version__,
            "key": phantom.plan.key,
            "request": dict(request or {}),
            "plan": phantom.plan.as_dict(),
            "image": image,
            "labels": {slug: int(v) for slug, v in zip(SLUGS, phantom.labels, strict=True)},
            "organs": _write_organs(phantom, temp),
            "lesions": _write_lesions(phantom, temp, facts),
            "reports": _write_reports(phantom, temp, options.languages, facts),
        }
        (temp / "truth.json").write_text(
            json.dumps(truth, indent=1, ensure_ascii=False) + "\n", encoding="utf-8"
        )
    return truth


def read_truth(folder: str | Path) -> dict[str, Any] | None:
    """The truth of a complete phantom folder of this layout, or None."""
    path = Path(folder) / "truth.json"
    try:
        truth = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    known = isinstance(truth, dict) and truth.get("synthetic") is True and truth.get("format") == FORMAT
    return truth if known else None


def series_number_of(seed: int) -> int:
    """Series number of a phantom's DICOM and its report: 2 to 6, so that it cannot be guessed."""
    return 2 + seed % 5


def stored_hu(phantom: Phantom) -> Int16[np.ndarray, "X Y Z"]:
    """The scan as whole HU, as both formats store it."""
    hu = phantom.scan.hu.detach().cpu().numpy()
    return np.clip(np.rint(hu), -32768, 32767).astype(np.int16)


def dicom_axes(geometry: Geometry) -> AxisMap:
    """How RAS+ axes become the usual DICOM ones: columns to the left, rows to posterior, slices upward."""
    return AxisMap((0, 1, 2), (True, True, False), geometry.shape)


def label_map(masks: Mapping[str, MaskVolume]) -> LabelVolume:
    """Nine regions in one volume, painted in `PAINT_ORDER`; 0 is none of them."""
    labels = np.zeros(next(iter(masks.values())).shape, dtype=np.uint8)
    for name in PAINT_ORDER:
        labels[masks[name]] = REGIONS.index(name) + 1
    return labels


def _write_image(phantom: Phantom, folder: Path, dicom: bool) -> tuple[dict[str, Any], list[SliceRef] | None]:
    """The scan, and what truth.json says about it."""
    hu, geometry, plan = stored_hu(phantom), phantom.scan.geometry, phantom.plan
    number = series_number_of(plan.seed)
    about: dict[str, Any] = {
        "format": "dicom" if dicom else "nifti",
        "path": "dicom" if dicom else "ct.nii.gz",
        "shape": list(geometry.shape),
        "spacing_mm": [round(s, 6) for s in geometry.spacing_mm],
        "affine_ras": geometry.affine_ras.tolist(),
        "series_number": number,
        "numbering": "image 1 is the uppermost slice",
    }
    if not dicom:
        write_nifti(folder / "ct.nii.gz", hu, geometry, "SYNTHETIC chest CT phantom")
        return about | {"sha256": sha256_of(folder / "ct.nii.gz")}, None
    axes = dicom_axes(geometry)
    header = SeriesHeader(
        seed=f"hilum phantom {plan.key} {plan.seed}",
        patient_id=f"SYNTHETIC-{plan.seed:06d}",
        series_number=number,
        description="SYNTHETIC chest CT phantom",
        kernel=plan.scanner.kernel.upper(),
        contrast="" if plan.scanner.phase == "none" else f"SYNTHETIC {plan.scanner.phase}",
        sex="F" if plan.patient.sex == "female" else "M",
        age_years=plan.patient.age_years,
        padding_hu=float(plan.scanner.padding_hu),
    )
    pixels = np.ascontiguousarray(axes.apply(hu), dtype=np.float32)
    slices = write_ct_series(folder / "dicom", pixels, axes.geometry(geometry), header=header)
    files = sorted((folder / "dicom").glob("*.dcm"))
    about["sop_uids"] = {str(s.instance_number): s.sop_uid for s in slices}
    return about | {"sha256": sha256_of_parts(sha256_of(f) for f in files)}, slices


def _write_organs(phantom: Phantom, folder: Path) -> dict[str, Any]:
    """The label map of the nine regions and the seven channels."""
    masks = {name: phantom.scan.mask(name).cpu().numpy() for name in REGIONS}
    grid = phantom.scan.geometry
    write_nifti(folder / "organs.nii.gz", label_map(masks), grid, "SYNTHETIC nine regions")
    masks["global"] = np.logical_or.reduce([masks[name] for name in REGIONS])
    (folder / "organs").mkdir()
    for channel in ORGAN_CHANNELS:
        write_nifti(
            folder / "organs" / f"{channel}.nii.gz", masks[channel], grid, f"SYNTHETIC mask {channel}"
        )
    return {
        "path": "organs.nii.gz",
        "labels": {str(i + 1): name for i, name in enumerate(REGIONS)},
        "overlap": "later wins: " + ", ".join(PAINT_ORDER),
        "channels": {channel: f"organs/{channel}.nii.gz" for channel in ORGAN_CHANNELS},
    }


def _write_lesions(phantom: Phantom, folder: Path, facts: Mapping[str, LesionFact]) -> list[dict[str, Any]]:
    """One mask per finding, and where it lies."""
    (folder / "lesions").mkdir()
    told = []
    for truth in phantom.lesions:
        name, fact = f"lesions/{truth.slug}.nii.gz", facts[truth.slug]
        mask = lesion_mask(phantom, truth)
        write_nifti(folder / name, mask, phantom.scan.geometry, f"SYNTHETIC lesion {truth.slug}")
        told.append(fact.as_dict() | {"path": name})
    return told


def _write_reports(
    phantom: Phantom, folder: Path, languages: Sequence[str], facts: Mapping[str, LesionFact]
) -> dict[str, Any]:
    """One report per language, and the claims of its sentences."""
    plan, series = phantom.plan, series_number_of(phantom.plan.seed)
    reports: dict[str, Any] = {}
    for language in languages:
        story = narrate_facts(facts, plan.scanner, language, series=series, seed=plan.seed)
        name = f"report.{language}.txt"
        (folder / name).write_text(story.text, encoding="utf-8")
        reports[language] = {
            "path": name,
            "findings": story.findings,
            "impression": story.impression,
            "sentences": [s.as_dict() for s in story.sentences],
        }
    return reports
