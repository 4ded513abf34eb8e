"""What a phantom will be, as plain numbers: drawn once from a seed, before any voxel exists.

A plan is data: equal plans give equal phantoms. Everything that varies between patients or scanners stands
here.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Literal

Degree = Literal["mild", "moderate", "severe"]
DEGREES: tuple[Degree, ...] = ("mild", "moderate", "severe")
ContrastPhase = Literal["none", "arterial", "venous"]


@dataclass(frozen=True)
class Patient:
    """The body. Factors are relative to an average adult (1.0).

    Args:
        sex: changes breast tissue, size and heart.
        size: overall scale of the trunk. fat_mm: subcutaneous fat thickness. muscle: muscle thickness factor.
        breathing: 0 expiration, 1 full inspiration (lung height, diaphragm, lung density).
        rotation_deg: turn about the long axis. heart_size: scale of the heart (cardiomegaly above about
            1.18).
        kyphosis: forward curve of the spine, 0..1. age_years: drives calcification of cartilage and the
            report's words.
        shape_seed: seed of every further anatomical detail (vessel tree, ribs, fissures).
    """

    sex: Literal["female", "male"] = "male"
    size: float = 1.0
    fat_mm: float = 15.0
    muscle: float = 1.0
    breathing: float = 0.8
    rotation_deg: float = 0.0
    heart_size: float = 1.0
    kyphosis: float = 0.3
    age_years: int = 60
    shape_seed: int = 0


@dataclass(frozen=True)
class FindingPlan:
    """One abnormality to insert: `slug` of `text.vocabulary.FINDINGS`, how bad, and its own seed."""

    slug: str
    degree: Degree
    seed: int


@dataclass(frozen=True)
class TumourPlan:
    """A nodule or tumour with stage-like attributes, truth for ordinal tests. Counts as `lung_nodule`.

    Args:
        diameter_mm: longest axis. t_stage: T1a, T1b, T1c, T2a, T2b, T3, T4 by size, invasion and satellites
            (TNM-8 sizes).
        invades: ``""``, ``pleura``, ``chest wall``, ``mediastinum``. satellites: extra nodules, same lobe
            (T3) or other lobe (T4).
    """

    diameter_mm: float
    t_stage: str
    invades: str
    satellites: int
    seed: int


@dataclass(frozen=True)
class Scanner:
    """How the scene is scanned.

    Args:
        spacing_mm: x, y, z of the written volume. fov_mm: reconstruction circle; outside it is padding.
        kernel: ``smooth`` (soft tissue), ``standard`` or ``sharp`` (lung). noise_hu: noise SD in water at
            standard kernel.
        phase: contrast phase. tilt_deg: gantry tilt. motion_mm: breathing blur amplitude near the diaphragm.
        padding_hu: value outside the circle (-1024, -2000, -3024 occur). z_cover: share of the chest
            scanned, 1.0 = whole.
        table: patient table visible. seed: of the noise.
    """

    spacing_mm: tuple[float, float, float] = (0.8, 0.8, 2.0)
    fov_mm: float = 380.0
    kernel: Literal["smooth", "standard", "sharp"] = "standard"
    noise_hu: float = 15.0
    phase: ContrastPhase = "none"
    tilt_deg: float = 0.0
    motion_mm: float = 0.0
    padding_hu: int = -1024
    z_cover: float = 1.0
    table: bool = True
    seed: int = 0


@dataclass(frozen=True)
class PhantomPlan:
    """Everything about one phantom. `PhantomPlan.as_dict()` is written beside the images as truth."""

    key: str
    seed: int
    patient: Patient = field(default_factory=Patient)
    findings: tuple[FindingPlan, ...] = ()
    tumour: TumourPlan | None = None
    scanner: Scanner = field(default_factory=Scanner)

    def as_dict(self) -> dict:
        """JSON-ready."""
        return asdict(self)
