"""A perceptual hash of a chest CT: two small cubes of HU, anchored on the lungs and not on the header.

The same scan under another format, spacing, dtype, storage order or origin, or with a border cut off, gives
nearly the same cubes; another person's does not. Both cubes are 16^3 values of 16 mm: one hangs from the top
of the lungs, the other stands on their base, so that a scan cut short at one end still matches at the other.
A value is HU clipped to [-1000, 300], in 250 steps of 5.2 HU; 255 stands for what was not scanned.

Chosen and measured by `benchmarks/audit_phantoms.py`; the way of comparing is in `audit_voxels.py`.
"""

from __future__ import annotations

import cc3d
import numpy as np

from hilum.types import GridMap
from hilum.volume import CTVolume

SIDE, CELL_MM = 16, 16.0
COARSE_MM = 4.0
LOW_HU, HIGH_HU, STEPS = -1000.0, 300.0, 250
UNKNOWN = 255
LUNG_HU, LEAST_LUNG_ML, LEAST_AREA_MM2 = -500.0, 100.0, 1000.0
SLAB_MM = 120.0
ABOVE_MM = 40.0
"""How far the first cube reaches beyond the top of the lungs, and the second below their base."""


def fingerprint(volume: CTVolume) -> tuple[bytes, bytes]:
    """The two cubes as bytes (4096 each); empty for a volume narrower than three coarse cells.

    Args:
        volume: on axes nearest RAS+; a rotation of a few degrees against them is ignored.
    """
    spacing = volume.geometry.spacing_mm
    low, scanned = coarse(volume.hu, spacing)
    if min(low.shape[:2]) < 3:
        return b"", b""
    lungs = lungs_of(low)
    area = lungs.sum(axis=(0, 1)) * COARSE_MM**2
    filled = np.flatnonzero(area >= LEAST_AREA_MM2)
    if filled.size == 0:
        # No lungs, or none that are closed: hung from and stood on the ends of the scan, round its body.
        lungs, filled = low >= LUNG_HU, np.arange(low.shape[2])
        top, base = COARSE_MM * low.shape[2], 0.0
    else:
        top, base = _edge(area, int(filled[-1]), 1), _edge(area, int(filled[0]), -1)
    slab = round(SLAB_MM / COARSE_MM)
    upper = _middle(lungs[:, :, max(0, int(filled[-1]) - slab) : int(filled[-1]) + 1])
    lower = _middle(lungs[:, :, int(filled[0]) : int(filled[0]) + slab])
    half = (SIDE - 1) * CELL_MM / 2
    reach = (SIDE - 1) * CELL_MM - ABOVE_MM
    hung = (upper[0] - half, upper[1] - half, top - reach)
    stood = (lower[0] - half, lower[1] - half, base - ABOVE_MM)
    return _cube(low, scanned, hung), _cube(low, scanned, stood)


def coarse(
    hu: np.ndarray, spacing_mm: tuple[float, float, float]
) -> tuple[GridMap, tuple[float, float, float]]:
    """HU clipped, averaged over cells of about 4 mm, and the scanned extent in mm.

    Returns:
        float32 [U, V, W], cell i centred at `COARSE_MM` * (i + 1/2) mm from the first voxel's edge.
    """
    extent = tuple(n * s for n, s in zip(hu.shape, spacing_mm, strict=True))
    small = np.clip(hu, LOW_HU, HIGH_HU)
    for axis in sorted(range(3), key=lambda a: spacing_mm[a]):
        weights = _box_weights(hu.shape[axis], spacing_mm[axis], max(1, int(extent[axis] / COARSE_MM)))
        small = np.moveaxis(np.moveaxis(small, axis, -1) @ weights.T, -1, axis)
    return np.ascontiguousarray(small, dtype=np.float32), (extent[0], extent[1], extent[2])


def lungs_of(low: GridMap) -> np.ndarray:
    """The inner air of the body on a coarse grid, one cell in from its walls.

    Pieces that touch no side face and hold 100 ml and more. Without the step inwards the lungs of a thin
    person join the air outside, where a coarse cell averages a wall away.
    """
    core = _shrunk(low < LUNG_HU)
    air, count = cc3d.connected_components(core, connectivity=6, return_N=True)
    sizes_ml = np.bincount(air.ravel(), minlength=count + 1) * COARSE_MM**3 / 1000
    inside = sizes_ml >= LEAST_LUNG_ML
    # One cell in: the outermost layer has no neighbour on one side and is never core.
    for face in (air[1], air[-2], air[:, 1], air[:, -2]):
        inside[np.unique(face)] = False
    inside[0] = False
    return inside[air]


def _shrunk(mask: np.ndarray) -> np.ndarray:
    """True where a cell and its four neighbours in the image plane are."""
    core = np.zeros_like(mask)
    core[1:-1, 1:-1] = mask[1:-1, 1:-1] & mask[:-2, 1:-1] & mask[2:, 1:-1] & mask[1:-1, :-2] & mask[1:-1, 2:]
    return core


def _box_weights(count: int, spacing_mm: float, cells: int) -> np.ndarray:
    """Rows (cells, count): the share of each voxel in each cell of 4 mm."""
    low_mm = COARSE_MM * np.arange(cells)[:, None]
    edge_mm = spacing_mm * np.arange(count)[None]
    shared = np.minimum(low_mm + COARSE_MM, edge_mm + spacing_mm) - np.maximum(low_mm, edge_mm)
    shared = np.clip(shared, 0.0, None)
    return (shared / shared.sum(axis=1, keepdims=True)).astype(np.float32)


def _edge(area: np.ndarray, last: int, step: int) -> float:
    """Where the area crosses its threshold beyond slice `last`, in mm, linearly between slices."""
    beyond = last + step
    outside = float(area[beyond]) if 0 <= beyond < len(area) else 0.0
    share = (float(area[last]) - LEAST_AREA_MM2) / max(float(area[last]) - outside, 1.0)
    return COARSE_MM * (last + 0.5 + step * min(share, 1.0))


def _middle(lungs: np.ndarray) -> tuple[float, float]:
    """Centre of gravity of the lungs in the image plane, mm."""
    share = lungs.sum(axis=2).astype(np.float64)
    total = max(float(share.sum()), 1.0)
    x = float(np.arange(share.shape[0]) @ share.sum(axis=1)) / total
    y = float(np.arange(share.shape[1]) @ share.sum(axis=0)) / total
    return COARSE_MM * (x + 0.5), COARSE_MM * (y + 0.5)


def _cube(low: GridMap, extent_mm: tuple[float, float, float], start_mm: tuple[float, float, float]) -> bytes:
    """Means of 16 mm cells (a triangle of 32 mm, so that a shift of a millimetre hardly shows)."""
    cube, known = low, []
    for axis in range(3):
        centres = start_mm[axis] + CELL_MM * np.arange(SIDE)
        at = COARSE_MM * (np.arange(low.shape[axis]) + 0.5)
        weights = np.clip(1 - np.abs(at[None] - centres[:, None]) / CELL_MM, 0.0, None)
        total = weights.sum(axis=1, keepdims=True)
        inside = (centres >= CELL_MM / 2) & (centres <= extent_mm[axis] - CELL_MM / 2)
        known.append(inside & (total[:, 0] > 0))
        cube = np.moveaxis(np.moveaxis(cube, axis, -1) @ (weights / np.maximum(total, 1e-6)).T, -1, axis)
    scanned = known[0][:, None, None] & known[1][None, :, None] & known[2][None, None, :]
    steps = np.round((np.clip(cube, LOW_HU, HIGH_HU) - LOW_HU) * (STEPS / (HIGH_HU - LOW_HU)))
    return np.where(scanned, steps, UNKNOWN).astype(np.uint8).tobytes()
