"""What was found and where: the records that sentences rest on."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

PointMm = tuple[float, float, float]
SliceAxis = Literal[0, 1, 2]
Side = Literal["right", "left", "both", "midline"]
LobeBasis = Literal["lobe masks", "lung height"]
Probability = Annotated[float, Field(ge=0.0, le=1.0)]


class Record(BaseModel):
    """Frozen, and closed: an unknown field is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class ImageRef(Record):
    """The stored DICOM image nearest to a point."""

    series_uid: str | None
    series_number: int | None
    instance_number: int | None
    sop_uid: str


class Where(Record):
    """Where a finding is. Centroid and box are those of the piece that holds the map's peak.

    Args:
        box_mm_ras: (low corner, high corner) of the piece, voxel edges included. Same for LPS.
        peak_voxel: voxel of the peak on the input's own array, 0-based.
        slice_index: its index on `scan.grid.slice_axis`, 0-based.
        image: for DICOM, the stored image nearest to the peak.
        lobe_estimate: lobe, or third of the lung where no lobes were given (`lobe_basis` says which).
        pieces: connected pieces above the threshold. extent_mm: longest edge of the box.
        above_threshold: False when no voxel of the map reaches its threshold; then only the peak means
        anything.
    """

    peak_mm_ras: PointMm
    peak_mm_lps: PointMm
    centroid_mm_ras: PointMm
    centroid_mm_lps: PointMm
    box_mm_ras: tuple[PointMm, PointMm]
    box_mm_lps: tuple[PointMm, PointMm]
    extent_mm: float
    peak_voxel: tuple[int, int, int]
    slice_index: int
    image: ImageRef | None
    side: Side | None
    lobe_estimate: str | None
    lobe_basis: LobeBasis | None
    pieces: int
    above_threshold: bool

    @property
    def z_mm(self) -> float:
        """Height of the peak, mm (superior positive, the same in RAS and LPS)."""
        return self.peak_mm_ras[2]


class FindingReading(Record):
    """One of the 18 findings.

    Args:
        threshold: scan probability from which it counts as present. map_threshold: voxel probability of
        `volume_ml`.
        volume_ml: voxels of the map above its threshold, on the model's grid; None when not present.
        where: None when not present. map: file of its map inside the output folder, None when not written.
    """

    slug: str
    name: str
    probability: Probability
    threshold: Probability
    map_threshold: Probability
    calibrated: bool
    present: bool
    organ: str
    volume_ml: float | None = None
    where: Where | None = None
    map: str | None = None
