"""`CTVolume`: the one thing every reader makes and every method takes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import IntEnum
from types import MappingProxyType

import numpy as np

from hilum.errors import UsageError
from hilum.geometry import AxisMap, Geometry, axis_map
from hilum.types import MaskVolume, PointMm, VolumeHU


class Level(IntEnum):
    """How much a finding about the input weighs. ASK and REFUSE stop a reading."""

    NOTE = 10
    REPAIR = 20
    ASK = 30
    REFUSE = 40


@dataclass(frozen=True)
class Finding:
    """One thing a check found in an input.

    Args:
        code: stable catalogue code.
        level: what it means for the reading.
        rule: what must hold.
        expected: with unit. got: with unit.
        hint: what the user can do next (for ASK: the flag that answers).
        where: file or slice concerned, never a patient name.
    """

    code: str
    level: Level
    rule: str
    expected: str = ""
    got: str = ""
    hint: str = ""
    where: str = ""

    def as_dict(self) -> dict[str, str]:
        """For `--json` and the receipt."""
        return {
            "code": self.code,
            "level": self.level.name.lower(),
            "rule": self.rule,
            "expected": self.expected,
            "got": self.got,
            "hint": self.hint,
            "where": self.where,
        }


@dataclass(frozen=True)
class SliceRef:
    """One stored image of a DICOM series: what a viewer calls "series 3, image 87".

    Args:
        sop_uid: SOP Instance UID.
        instance_number: (0020,0013), None if absent.
        position_mm: centre of the slice, mm RAS+.
    """

    sop_uid: str
    instance_number: int | None
    position_mm: tuple[float, float, float]


@dataclass(frozen=True)
class Provenance:
    """Where a volume came from. Holds no name, date of birth or path.

    Args:
        kind: ``dicom``, ``nifti``, ``nrrd``, ``npz`` or ``phantom``.
        sha256: of the input bytes (for a series: of the sorted per-file hashes).
        study_uid, series_uid, series_number: DICOM only.
        slices: one per source slice, in the order of the source array's slice axis; DICOM only.
        info: what a score should be read beside: kernel, contrast, patient_position, thickness_mm, kvp,
            manufacturer.
        findings: what the checks found.
    """

    kind: str
    sha256: str
    study_uid: str | None = None
    series_uid: str | None = None
    series_number: int | None = None
    slices: tuple[SliceRef, ...] = ()
    info: Mapping[str, str] = field(default_factory=dict)
    findings: tuple[Finding, ...] = ()


@dataclass(frozen=True, eq=False)
class CTVolume:
    """HU + geometry + provenance, immutable. Axes `[X, Y, Z]`, nearest RAS+.

    Args:
        hu: float32 HU on `geometry`, read-only.
        geometry: grid of `hu`, axes nearest to RAS+.
        source: grid of the input as stored (its own axis order); maps are written on it.
        axes: how source axes became RAS+ axes.
        provenance: where it came from.
        valid_mask: False where the scanner saw nothing (padding), or None when all was seen.

    Build one with `CTVolume.from_source`. Spacing comes from geometry only.
    """

    hu: VolumeHU
    geometry: Geometry
    source: Geometry
    axes: AxisMap
    provenance: Provenance
    valid_mask: MaskVolume | None = None

    def __post_init__(self) -> None:
        if self.hu.shape != self.geometry.shape:
            raise UsageError(
                "GRID_MISMATCH", "HU lie on their grid", expected=self.geometry.shape, got=self.hu.shape
            )
        self.hu.setflags(write=False)
        if self.valid_mask is not None:
            self.valid_mask.setflags(write=False)
        object.__setattr__(self.provenance, "info", MappingProxyType(dict(self.provenance.info)))

    @classmethod
    def from_source(
        cls, hu: VolumeHU, source: Geometry, provenance: Provenance, valid_mask: MaskVolume | None = None
    ) -> CTVolume:
        """A volume from an array on its stored axes; reorders them to RAS+ without interpolation."""
        axes = axis_map(source)
        ras = np.ascontiguousarray(axes.apply(hu), dtype=np.float32)
        mask = None if valid_mask is None else np.ascontiguousarray(axes.apply(valid_mask))
        return cls(ras, axes.geometry(source), source, axes, provenance, mask)

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """Distance between voxel centres along X, Y, Z, mm."""
        return self.geometry.spacing_mm

    @property
    def shape(self) -> tuple[int, int, int]:
        """Voxels along X, Y, Z."""
        return self.geometry.shape

    def to_source(self, array: np.ndarray) -> np.ndarray:
        """An array on `geometry` (last three axes) -> the same on the input's own grid."""
        return np.ascontiguousarray(self.axes.undo(array))

    def nearest_slice(self, point_mm: PointMm) -> SliceRef | None:
        """The stored image whose plane is nearest to `point_mm` (RAS+), or None without DICOM."""
        slices = self.provenance.slices
        if not slices:
            return None
        normal = np.cross(self.source.affine_ras[:3, 0], self.source.affine_ras[:3, 1])
        normal /= np.linalg.norm(normal)
        offsets = np.array([np.dot(s.position_mm, normal) for s in slices]) - float(np.dot(point_mm, normal))
        return slices[int(np.abs(offsets).argmin())]

    def with_findings(self, *findings: Finding) -> CTVolume:
        """The same volume with more findings in its provenance."""
        known = replace(self.provenance, findings=(*self.provenance.findings, *findings))
        return replace(self, provenance=known)

    def __repr__(self) -> str:
        size = "×".join(str(n) for n in self.shape)
        spacing = "×".join(f"{s:.2f}" for s in self.spacing_mm)
        low, high = float(self.hu.min()), float(self.hu.max())
        span = f"HU {low:.0f}…{high:.0f}"
        stored = f"stored {self.source.axcodes}"
        return f"CTVolume({size} · {spacing} mm · {stored} · {span} · {self.provenance.kind})"
