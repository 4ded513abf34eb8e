"""CT-RATE: `dataset/{train,valid}[_fixed]/train_1/train_1_a/train_1_a_1.nii.gz` and its tables.

A name is split, patient, scan letter, reconstruction. `_fixed` volumes hold HU and a right affine and are
never
rescaled. The others hold stored values and no place: slope, intercept and place come from the metadata table
(ImagePositionPatient and ImageOrientationPatient are those of the first slice, DICOM's LPS).

Source: the data set's card and files (Hamamci et al., arXiv 2403.17834); broken volumes as found by its users
(CT-CLIP issue 22; RadFinder's list). The three protocols are those of RadFinder's exam (dup, first) and of
COLIPRI (one volume of each distinct report, the one with the smallest voxel in the plane).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from hilum.cohort.records import MaskRef, ScanRecord
from hilum.cohort.report_hash import group_of
from hilum.cohort.sources.base import Source, SourceOptions, stem, volumes
from hilum.errors import ContainerError, ReportError
from hilum.geometry import LPS_FROM_RAS
from hilum.io.confine import relative_to
from hilum.io.limits import Answers, Placement
from hilum.io.table import Row, read_table, said, tri_state
from hilum.text.vocabulary import FINDINGS

NAME = re.compile(r"(?P<patient>(?P<split>train|valid)_\d+)_(?P<scan>[a-z]+)_(?P<recon>\d+)")
SPLITS = {"train": "train", "valid": "val"}
TABLES = {"train": "train", "valid": "validation"}
"""Reports and metadata say "validation", labels and volumes say "valid"."""
SECTION_OF = {
    "Findings_EN": "findings",
    "Impressions_EN": "impression",
    "Technique_EN": "technique",
    "ClinicalInformation_EN": "history",
}
_SINGULAR, _NARROW = "its affine cannot be inverted", "a field of view that holds no chest"
BROKEN = {
    "train_11755_a_2": _SINGULAR,
    "train_11755_a_3": _SINGULAR,
    "train_11755_a_4": _SINGULAR,
    "train_1267_a_4": _SINGULAR,
    "train_3821_a_5": _NARROW,
    "train_9792_a_1": _NARROW,
    "train_9792_a_2": _NARROW,
    "train_9792_a_3": _NARROW,
    "train_9792_a_4": _NARROW,
}


def base_of(root: Path) -> Path:
    """The folder that holds volumes and tables: `dataset/` below the root, or the root itself."""
    return root / "dataset" if (root / "dataset").is_dir() else root


def _detect(root: Path) -> bool:
    base = base_of(root)
    return any(
        NAME.fullmatch(stem(path))
        for split in SPLITS
        for folder in (f"{split}_fixed", split)
        for path in (base / folder).glob(f"{split}_*/{split}_*_*/*.nii.gz")
    )


def _records(root: Path, options: SourceOptions) -> Iterator[ScanRecord]:
    for split in SPLITS:
        found = _volumes(base_of(root), split)
        if found:
            tables = Tables(base_of(root), split)
            yield from _chosen([_record(root, path, tables) for path in found], tables, options)


def _volumes(base: Path, split: str) -> list[Path]:
    """Volumes of a split, by name; where a volume is there twice, the fixed one."""
    held: dict[str, Path] = {}
    for folder in (split, f"{split}_fixed"):
        for path in volumes(base / folder, f"{split}_*/{split}_*_*/*.nii.gz"):
            if NAME.fullmatch(stem(path)):
                held[stem(path)] = path
    return [held[name] for name in sorted(held, key=_order)]


def _order(name: str) -> tuple[int, str, int]:
    _, number, scan, recon = name.split("_")
    return int(number), scan, int(recon)


class Tables:
    """The tables of one split, by volume; a table that is not there is empty.

    Args:
        base: folder of the tables. split: ``train`` or ``valid``.
    """

    def __init__(self, base: Path, split: str) -> None:
        said_as = TABLES[split]
        self.meta_path = base / "metadata" / f"{said_as}_metadata.csv"
        labels = base / "multi_abnormality_labels" / f"{split}_predicted_labels.csv"
        reports = base / "radiology_text_reports" / f"{said_as}_reports.csv"
        self.meta = _by_volume(self.meta_path, ())
        self.labels = _by_volume(labels, [f.name for f in FINDINGS])
        self.reports = _by_volume(reports, ("Findings_EN", "Impressions_EN"))
        listed = base / "metadata" / f"no_chest_{split}.txt"
        self.no_chest = {stem(n) for n in listed.read_text().split()} if listed.is_file() else set()

    def placement(self, name: str) -> Placement:
        """Place and rescale of a volume that is not fixed.

        Raises:
            ContainerError: there is no metadata table (`NOT_FOUND`).
            ReportError: it lacks the volume or a number (`COLUMN_MISSING`).
        """
        row = self.meta.get(name)
        if row is None:
            raise ContainerError(
                "NOT_FOUND", "a volume that is not fixed has its row of metadata", expected=name, got="none",
                path=self.meta_path, hint="Download the metadata, or use the _fixed volumes.",
            )  # fmt: skip
        return placement_of(row, name)


def placement_of(row: Row, name: str) -> Placement:
    """A row of the metadata table as place and rescale.

    Args:
        row: XYSpacing (mm, as ``[x, y]``), ZSpacing (mm), ImagePositionPatient, ImageOrientationPatient
            (LPS), RescaleSlope, RescaleIntercept; Rows, Columns, NumberofSlices. name: for errors.

    Raises:
        ReportError: a number is missing (`COLUMN_MISSING`).
    """
    spacing = _numbers(row, "XYSpacing", 2, name)
    step = _numbers(row, "ZSpacing", 1, name)[0]
    position = _numbers(row, "ImagePositionPatient", 3, name)
    cosines = np.array(_numbers(row, "ImageOrientationPatient", 6, name)).reshape(2, 3)
    affine = np.eye(4)
    affine[:3, 0], affine[:3, 1] = cosines[0] * spacing[0], cosines[1] * spacing[1]
    affine[:3, 2] = np.cross(cosines[0], cosines[1]) * step
    affine[:3, 3] = position
    ras = LPS_FROM_RAS @ affine
    sizes = [said(row.get(column)) for column in ("Columns", "Rows", "NumberofSlices")]
    whole = [int(float(size)) for size in sizes if size]
    return Placement(
        tuple(float(v) for v in ras[:3].ravel()),
        _numbers(row, "RescaleSlope", 1, name)[0],
        _numbers(row, "RescaleIntercept", 1, name)[0],
        (whole[0], whole[1], whole[2]) if len(whole) == 3 else None,
        "CT-RATE's metadata",
    )


def _numbers(row: Row, column: str, count: int, name: str) -> list[float]:
    try:
        values = [float(part) for part in row.get(column, "").strip("[]() ").split(",")]
    except ValueError:
        values = []
    if len(values) != count or not np.isfinite(values).all():
        raise ReportError(
            "COLUMN_MISSING", "the metadata of a volume give its place and rescale",
            expected=f"{count} numbers in {column}", got=row.get(column, "no such column")[:60], path=name,
        )  # fmt: skip
    return values


def _by_volume(path: Path, needed: Iterable[str]) -> dict[str, Row]:
    if not path.is_file():
        return {}
    return {stem(row["VolumeName"]): row for row in read_table(path, ("VolumeName", *needed))}


def _record(root: Path, path: Path, tables: Tables) -> ScanRecord:
    name = stem(path)
    parts = NAME.fullmatch(name)
    if parts is None:
        raise ReportError("RECORD_DUPLICATE", "a volume's name has four parts", got=name)
    fixed = path.parents[2].name.endswith("_fixed")
    labels, report = tables.labels.get(name, {}), tables.reports.get(name, {})
    broken, answers = BROKEN.get(name, ""), Answers()
    if not fixed and not broken:
        try:
            answers = Answers(placement=tables.placement(name))
        except (ReportError, ContainerError) as error:
            broken = f"no place: {error.rule}; got {error.got}"
    return ScanRecord(
        key=name,
        path=relative_to(root, path),
        patient=f"ct-rate:{parts['patient']}",
        study=f"{parts['patient']}_{parts['scan']}",
        series=parts["recon"],
        split=SPLITS[parts["split"]],
        labels=labels_in(labels),
        text={section: said(report.get(column)) for column, section in SECTION_OF.items()} if report else {},
        masks=tuple(_masks(root, name)),
        answers=answers,
        scaling="hu" if fixed else "table",
        broken=broken,
        notes=("listed as no chest",) if name in tables.no_chest else (),
    )


def labels_in(row: Row) -> dict[str, int | None]:
    """Tri-state labels of a row of the table of labels; none for an empty one."""
    return {f.slug: tri_state(row.get(f.name)) for f in FINDINGS} if row else {}


def _masks(root: Path, name: str) -> Iterator[MaskRef]:
    """The label map of TotalSegmentator that the data set ships for a volume."""
    patient, scan = name.rsplit("_", 2)[0], name.rsplit("_", 1)[0]
    split = name.split("_")[0]
    for folder in (f"ts_seg/ts_total/{split}_fixed", f"ts_seg/{split}_fixed", f"ts_seg/{split}"):
        path = base_of(root) / folder / patient / scan / f"{name}.nii.gz"
        if path.is_file():
            yield MaskRef("totalsegmentator", relative_to(root, path), "labels")
            return


def _chosen(records: list[ScanRecord], tables: Tables, options: SourceOptions) -> Iterator[ScanRecord]:
    """The records of a protocol. Broken ones are passed on always, to be listed; they are nobody's first."""
    yield from (r for r in records if r.broken)
    fit = [r for r in records if not r.broken]
    if options.protocol == "dup_all":
        yield from fit
        return
    if options.protocol == "dedup":
        fit.sort(key=lambda r: (_voxel_mm(tables, r.key), _order(r.key)))
    seen: set[str] = set()
    for record in fit:
        group = record.study if options.protocol == "first_all" else group_of(record.report()) or record.study
        if group not in seen:
            seen.add(group)
            yield record


def _voxel_mm(tables: Tables, name: str) -> float:
    return _numbers(tables.meta.get(name, {}), "XYSpacing", 2, name)[0]


SOURCE = Source(
    "ct-rate",
    "CT-RATE",
    "`_fixed` volumes hold HU and are never rescaled; the others take slope and intercept from the metadata",
    _detect,
    _records,
)
