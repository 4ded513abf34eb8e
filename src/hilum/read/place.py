"""From a map on the model's grid to a place a person can go to: mm, side, lobe, slice, image number.

Source: EXACT §1.8 (organ-gated map); where is ours.
"""

from __future__ import annotations

from dataclasses import dataclass

import cc3d
import numpy as np

from hilum.geometry import LPS_FROM_RAS, Geometry
from hilum.read.found import ImageRef, PointMm, Side, SliceAxis, Where
from hilum.read.sides import Frame
from hilum.types import MaskVolume, OtherPointsMm, PointsMm, ProbabilityMap
from hilum.volume import CTVolume

MIDLINE_BAND_MM = {"mediastinum": 15.0, "heart": 15.0, "oesophagus": 25.0, "global": 15.0}
"""A finding of these organs whose middle is this close to the midline has no side. Lungs, pleura, airways
always have one."""
MIN_PIECE_ML = 0.05


@dataclass(frozen=True)
class Place:
    """`where`, and the volume above the threshold (all pieces), ml."""

    where: Where
    volume_ml: float


def slice_axis_of(volume: CTVolume) -> SliceAxis:
    """Array axis of the input that counts its slices: the third for DICOM, else the one nearest to
    foot-head."""
    axis = 2 if volume.provenance.kind == "dicom" else volume.axes.order[2]
    return 2 if axis == 2 else 1 if axis == 1 else 0


def place(
    heat: ProbabilityMap, grid: Geometry, threshold: float, volume: CTVolume, frame: Frame, organ: str
) -> Place:
    """Where the finding of `heat` is.

    Args:
        heat: probabilities on `grid`, 0 outside the field of view.
        threshold: voxel probability from which a voxel belongs to the finding.
        frame: of the lungs. organ: channel the map is confined to (decides whether "midline" is a side).
    """
    peak = peak_voxel(heat)
    above = heat >= max(threshold, 1e-6)
    found = bool(above[peak])
    if found:
        main, pieces = _main_piece(above, peak, grid.voxel_ml)
        volume_ml = float(np.count_nonzero(above)) * grid.voxel_ml
    else:
        main, pieces, volume_ml = np.zeros(heat.shape, dtype=bool), 0, 0.0
        main[peak] = True
    index = np.argwhere(main)
    points = grid.to_mm(index)
    weights = np.maximum(heat[main].astype(np.float64), 1e-6)
    centroid = (points * weights[:, None]).sum(axis=0) / weights.sum()
    everywhere = grid.to_mm(np.argwhere(above)) if found else points
    where = _describe(
        grid.to_mm(np.array([peak]))[0], centroid, points, everywhere, grid, volume, frame, organ
    )
    return Place(where.model_copy(update={"pieces": pieces, "above_threshold": found}), round(volume_ml, 3))


def peak_voxel(heat: ProbabilityMap) -> tuple[int, int, int]:
    """The highest voxel; of a plateau (within 0.001) the one nearest to the plateau's middle, ties to the
    first."""
    top = np.argwhere(heat >= float(heat.max()) - 1e-3)
    distance = ((top - top.mean(axis=0)) ** 2).sum(axis=1)
    a, b, c = top[int(distance.argmin())]
    return int(a), int(b), int(c)


def _main_piece(above: MaskVolume, peak: tuple[int, int, int], voxel_ml: float) -> tuple[MaskVolume, int]:
    labels = cc3d.connected_components(above, connectivity=26)
    sizes = np.bincount(labels.ravel())[1:] * voxel_ml
    main = labels == labels[peak]
    pieces = max(1, int((sizes >= MIN_PIECE_ML).sum()))
    return main, pieces


def _describe(
    peak: np.ndarray,
    centroid: np.ndarray,
    points: PointsMm,
    everywhere: OtherPointsMm,
    grid: Geometry,
    volume: CTVolume,
    frame: Frame,
    organ: str,
) -> Where:
    half = np.abs(grid.affine_ras[:3, :3]).sum(axis=1) / 2
    low, high = points.min(axis=0) - half, points.max(axis=0) + half
    voxel = nearest_voxel(volume.source, peak)
    lobe, basis = frame.lobe_of(points) if organ in ("lung", "airways", "pleura") else (None, None)
    side = _with_lobe(
        frame.side_of(everywhere, MIDLINE_BAND_MM.get(organ, 0.0)), lobe, len(everywhere) > len(points)
    )
    box_lps = (
        _point(_lps(np.array([high[0], high[1], low[2]]))),
        _point(_lps(np.array([low[0], low[1], high[2]]))),
    )
    return Where(
        peak_mm_ras=_point(peak),
        peak_mm_lps=_point(_lps(peak)),
        centroid_mm_ras=_point(centroid),
        centroid_mm_lps=_point(_lps(centroid)),
        box_mm_ras=(_point(low), _point(high)),
        box_mm_lps=box_lps,
        extent_mm=round(float((high - low).max()), 1),
        peak_voxel=voxel,
        slice_index=voxel[slice_axis_of(volume)],
        image=image_at(volume, peak),
        side=side,
        lobe_estimate=lobe,
        lobe_basis=basis,
        pieces=0,
        above_threshold=False,
    )


def _with_lobe(side: Side, lobe: str | None, scattered: bool) -> Side:
    """The side, such that the main piece's lobe lies on it: the main piece may lie in one lung, and most of
    what is `scattered` beside it in the other."""
    of_lobe: Side | None = None if lobe is None else "right" if "right" in lobe else "left"
    if of_lobe is None or side in (of_lobe, "both"):
        return side
    return "both" if scattered else of_lobe


def nearest_voxel(grid: Geometry, point_mm: np.ndarray) -> tuple[int, int, int]:
    """The voxel of `grid` nearest to a point, inside the grid."""
    index = np.clip(np.rint(grid.to_vox(point_mm)[0]), 0, np.array(grid.shape) - 1)
    return int(index[0]), int(index[1]), int(index[2])


def image_at(volume: CTVolume, point_mm: np.ndarray) -> ImageRef | None:
    """The stored DICOM image nearest to a point, or None without DICOM."""
    ref = volume.nearest_slice(np.asarray(point_mm, dtype=np.float64))
    if ref is None:
        return None
    known = volume.provenance
    return ImageRef(
        series_uid=known.series_uid,
        series_number=known.series_number,
        instance_number=ref.instance_number,
        sop_uid=ref.sop_uid,
    )


def _lps(point: np.ndarray) -> np.ndarray:
    return point @ LPS_FROM_RAS[:3, :3]


def _point(values: np.ndarray) -> PointMm:
    # adding 0.0 turns -0.0 into 0.0
    x, y, z = (round(float(v), 2) + 0.0 for v in values)
    return x, y, z
