"""How much of the lungs was scanned (catalogue row C21): not a chest is refused, half a chest is noted with
its fraction.

What lies outside the field cannot be measured. The fraction compares the lungs' height seen with the height
expected from their width (a chest is about 0.9 times as high as wide between the outer lung borders, in
inspiration); it is an estimate and is called one. It is 1.0 where no end slice cuts a lung.
"""

from __future__ import annotations

import numpy as np
from scipy.ndimage import binary_opening

from hilum.errors import HeaderError, InputRefused, SeriesError
from hilum.geometry import Geometry
from hilum.read.organ_masks import OrganMasks, mm_of
from hilum.read.reading import Coverage
from hilum.read.sampling import sample_nearest
from hilum.types import PointsMm
from hilum.volume import CTVolume, Finding, Level

LUNG_HU = (-1010.0, -350.0)
"""Aerated lung, with noise: pure air and soft tissue are outside."""
MIN_LUNG_ML = 100.0
"""Less is no lung: bowel gas, a sinus, a mistake. Both adult lungs hold 2500 to 7000 ml."""
PLAUSIBLE_ML = (1000.0, 9000.0)
HEIGHT_PER_WIDTH = 0.9
CUT_SHARE = 0.08
"""An end slice cuts the lungs when its lung area is this share of the largest lung area."""


def refuse_airless(volume: CTVolume) -> None:
    """Before any model runs: refuse what holds no piece of lung-like density at all.

    Raises:
        InputRefused: `COVERAGE`.
    """
    step = [max(1, round(4.0 / s)) for s in volume.spacing_mm]
    hu = volume.hu[:: step[0], :: step[1], :: step[2]]
    voxel_ml = volume.geometry.voxel_ml * step[0] * step[1] * step[2]
    # opening removes the skin and the rims of air, whose partial volume has the density of lung
    lung_like = binary_opening(
        (hu > LUNG_HU[0] + 50) & (hu < LUNG_HU[1]), np.ones((3, 3, min(3, hu.shape[2])))
    )
    found_ml = float(lung_like.sum()) * voxel_ml
    if found_ml < MIN_LUNG_ML:
        raise refusal(volume, f"{found_ml:.0f} ml of lung density")


def refusal(volume: CTVolume, got: str) -> InputRefused:
    """The error for a scan without lungs."""
    kind = SeriesError if volume.provenance.kind == "dicom" else HeaderError
    return kind(
        "COVERAGE",
        "the scan shows a chest",
        expected=f"lungs of at least {MIN_LUNG_ML:.0f} ml in the field of view",
        got=got,
        hint="Give a chest CT in Hounsfield units. If this is one, check its orientation with `hilum check`, "
        "or bring lung masks with --organs.",
    )


def judge(volume: CTVolume, organs: OrganMasks) -> Coverage:
    """Coverage from the lung mask.

    Raises:
        InputRefused: `COVERAGE` when there are no lungs.
    """
    grid, lung = organs.grid, organs.masks["lung"]
    hu = sample_nearest(volume.hu, volume.geometry, grid, -1024.0)
    lung_ml = organs.volume_ml("lung")
    aerated = lung & (hu > LUNG_HU[0]) & (hu < LUNG_HU[1])
    aerated_ml = float(np.count_nonzero(aerated)) * grid.voxel_ml
    if aerated_ml < MIN_LUNG_ML:
        raise refusal(
            volume, f"{lung_ml:.0f} ml called lung, {aerated_ml:.0f} ml of it with the density of lung"
        )
    index = volume.geometry.to_vox(mm_of(grid, lung))
    bottom, top = _cut_ends(volume.geometry, grid, index)
    sides = _cut_sides(volume.geometry, grid, index)
    fraction = _fraction(grid, lung) if bottom or top else 1.0
    return Coverage(
        lung_ml=round(lung_ml, 1),
        aerated_ml=round(aerated_ml, 1),
        fraction=round(fraction, 2),
        cut_top=top,
        cut_bottom=bottom,
        cut_sides=sides,
        complete=not (top or bottom or sides),
        notes=_notes(lung_ml, fraction, top, bottom, sides),
    )


def as_finding(coverage: Coverage) -> Finding | None:
    """The NOTE for the checks, or None when the lungs are whole and plausible."""
    if not coverage.notes:
        return None
    return Finding(
        "COVERAGE",
        Level.NOTE,
        "the whole of both lungs is in the field of view",
        expected="fraction 1.0, no lung cut",
        got=f"fraction about {coverage.fraction:.2f}; " + "; ".join(coverage.notes),
        hint="Absence of a finding counts only for the part that was scanned.",
    )


def _cut_ends(field: Geometry, grid: Geometry, index: PointsMm) -> tuple[bool, bool]:
    """(bottom, top): lung area near the first and last slice against the largest area."""
    height = index[:, 2] * field.spacing_mm[2]
    step = max(grid.spacing_mm[2], field.spacing_mm[2])
    last = (field.shape[2] - 1) * field.spacing_mm[2]
    bins = np.bincount(np.clip(np.rint(height / step), 0, None).astype(int))
    limit = CUT_SHARE * bins.max()
    bottom = (height < 1.5 * step).sum() / 2 > limit
    top = (height > last - 1.5 * step).sum() / 2 > limit
    return bool(bottom), bool(top)


def _cut_sides(field: Geometry, grid: Geometry, index: PointsMm) -> bool:
    index = index[:, :2]
    margin = np.array(grid.spacing_mm[:2]) / np.array(field.spacing_mm[:2])
    at_border = ((index < margin) | (index > np.array(field.shape[:2]) - 1 - margin)).any(axis=1)
    return bool(at_border.mean() > 0.01)


def _fraction(grid: Geometry, lung: np.ndarray) -> float:
    points = mm_of(grid, lung)
    low, high = np.percentile(points, (0.5, 99.5), axis=0)
    expected = max(HEIGHT_PER_WIDTH * (high[0] - low[0]), 1.0)
    return float(np.clip((high[2] - low[2]) / expected, 0.05, 0.95))


def _notes(lung_ml: float, fraction: float, top: bool, bottom: bool, sides: bool) -> list[str]:
    notes = []
    if top or bottom:
        ends = " and ".join(name for name, cut in (("first", bottom), ("last", top)) if cut)
        notes.append(
            f"lungs cut by the {ends} slice (counted from the feet), about {fraction:.0%} of them scanned"
        )
    if sides:
        notes.append("lungs cut by the border of the picture")
    low, high = PLAUSIBLE_ML
    if not low <= lung_ml <= high:
        notes.append(f"lung volume {lung_ml:.0f} ml, outside {low:.0f} to {high:.0f} ml")
    return notes
