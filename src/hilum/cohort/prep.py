"""One preparation for training, exam, API and demo: HU on any grid -> a grid of the chest in millimetres, and
back.

The grid keeps the volume's own axis directions (nearest RAS+), is isotropic, is cropped to the chest around
the lungs (to the body where no lung is seen) and padded with air to a multiple the network can halve.
Unlike EXACT §1.3, nothing is squashed: a millimetre stays a millimetre.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

import cc3d
import numpy as np
import torch

from hilum.cohort.resample import resample
from hilum.errors import RunError, UsageError
from hilum.geometry import Geometry
from hilum.tensors import ScanBatch
from hilum.types import GridMap, MaskVolume, ProbabilityMap
from hilum.volume import CTVolume

VoxelBox = tuple[tuple[int, int], tuple[int, int], tuple[int, int]]
"""First and last voxel along each axis."""

AIR_HU = -1024.0
LUNG_HU = -500.0
LEAST_LUNG_ML = 300.0
AROUND_LUNGS_MM = ((28.0, 28.0), (44.0, 28.0), (80.0, 60.0))
"""Kept beyond the lungs: left and right (ribs), behind (vertebrae) and in front, below (effusions under the
lung, upper abdomen) and above."""


@dataclass(frozen=True)
class PrepTrace:
    """What was done, and the way back.

    Args:
        source: grid of the volume (nearest RAS+ axes). grid: grid of the prepared tensor. prep: the settings.
    """

    source: Geometry
    grid: Geometry
    prep: Prep

    def invert(self, values: GridMap) -> ProbabilityMap:
        """A map on `grid` -> linear interpolation on `source`; 0 outside the prepared field."""
        if values.shape != self.grid.shape:
            raise RunError(
                "GRID_MISMATCH", "a map lies on its grid", expected=self.grid.shape, got=values.shape
            )
        tensor = torch.from_numpy(np.ascontiguousarray(values, dtype=np.float32))
        return resample(tensor, self.grid, self.source, outside="zero").numpy()

    def as_dict(self) -> dict:
        """For receipts."""
        return {
            "prep": asdict(self.prep),
            "source_shape": self.source.shape,
            "source_spacing_mm": [round(s, 5) for s in self.source.spacing_mm],
            "grid_shape": self.grid.shape,
            "grid_affine_ras": np.round(self.grid.affine_ras, 4).tolist(),
        }


@dataclass(frozen=True)
class Prep:
    """Settings of the preparation; part of a model's preset.

    Args:
        spacing_mm: of the isotropic grid. multiple: each axis is padded to a multiple of this, in voxels.
        margin_mm: kept around the body where no lung is seen.
        max_extent_mm: longest body axis accepted (memory plan, G01).
    """

    spacing_mm: float = 3.0
    multiple: int = 16
    margin_mm: float = 6.0
    max_extent_mm: float = 900.0

    def apply(self, volume: CTVolume) -> tuple[ScanBatch, PrepTrace]:
        """HU -> tensor [1, 1, X, Y, Z] of HU / 1000 and the trace that undoes the grid.

        Raises:
            UsageError: `MEMORY_PLAN` when the body is longer than `max_extent_mm`.
        """
        coarse = self._whole_grid(volume.geometry)
        low = self._coarse_hu(volume, coarse)
        return self._crop(volume, low, coarse, self._chest_grid(coarse, low.numpy()))

    def apply_like(self, volume: CTVolume, other: PrepTrace) -> tuple[ScanBatch, PrepTrace]:
        """The same on the grid of another scan of the same field, so that the two lie voxel on voxel."""
        if not np.allclose(volume.geometry.affine_ras, other.source.affine_ras):
            raise RunError("GRID_MISMATCH", "two scans have one field", expected="equal affines", got="two")
        coarse = self._whole_grid(volume.geometry)
        return self._crop(volume, self._coarse_hu(volume, coarse), coarse, other.grid)

    def finer(self, volume: CTVolume, trace: PrepTrace) -> tuple[ScanBatch, PrepTrace]:
        """The field of `trace` at half its voxel: each voxel of its grid holds 2x2x2 of this one."""
        shape = 2 * np.array(trace.grid.shape)
        grid = subgrid(trace.grid, np.full(3, -0.25), np.full(3, 0.5), shape)
        above_air = torch.from_numpy(np.clip(volume.hu, AIR_HU, 3071.0) - np.float32(AIR_HU))
        hu = resample(above_air, volume.geometry, grid, outside="zero") + AIR_HU
        return (hu / 1000.0)[None, None], PrepTrace(volume.geometry, grid, self)

    def _coarse_hu(self, volume: CTVolume, coarse: Geometry) -> torch.Tensor:
        return resample(torch.from_numpy(np.clip(volume.hu, AIR_HU, 3071.0)), volume.geometry, coarse)

    def _crop(
        self, volume: CTVolume, hu: torch.Tensor, coarse: Geometry, grid: Geometry
    ) -> tuple[ScanBatch, PrepTrace]:
        tensor = resample_window(hu, coarse, grid)
        return (tensor / 1000.0)[None, None], PrepTrace(volume.geometry, grid, self)

    def _whole_grid(self, source: Geometry) -> Geometry:
        extent = np.array(source.extent_mm)
        if extent.max() > self.max_extent_mm:
            raise UsageError(
                "MEMORY_PLAN",
                "a chest CT fits the memory plan",
                expected=f"<= {self.max_extent_mm:.0f} mm",
                got=f"{extent.max():.0f} mm",
                hint="Crop the scan to the chest first.",
            )
        shape = np.maximum(1, np.round(extent / self.spacing_mm)).astype(int)
        # centred, so that no border of the field is favoured
        start = (
            (np.array(source.shape) - 1) - (shape - 1) * self.spacing_mm / np.array(source.spacing_mm)
        ) / 2
        return subgrid(source, start, self.spacing_mm / np.array(source.spacing_mm), shape)

    def _chest_grid(self, coarse: Geometry, hu: np.ndarray) -> Geometry:
        body = body_mask(hu)
        box = chest_box(hu, body, self.spacing_mm) or body_box(body, round(self.margin_mm / self.spacing_mm))
        sizes = [-(-(high - low + 1) // self.multiple) * self.multiple for low, high in box]
        starts = [low - (size - (high - low + 1)) // 2 for (low, high), size in zip(box, sizes, strict=True)]
        return subgrid(coarse, np.array(starts), np.ones(3), np.array(sizes))


def subgrid(grid: Geometry, start_vox: np.ndarray, step_vox: np.ndarray, shape: np.ndarray) -> Geometry:
    """The grid that starts at `start_vox` of `grid` and steps `step_vox` of its voxels."""
    affine = grid.affine_ras.copy()
    affine[:3, 3] = grid.to_mm(start_vox)[0]
    affine[:3, :3] = grid.affine_ras[:3, :3] * step_vox[None]
    return Geometry((int(shape[0]), int(shape[1]), int(shape[2])), affine, grid.frame_uid)


def resample_window(values: torch.Tensor, source: Geometry, window: Geometry) -> torch.Tensor:
    """Copy the integer-aligned `window` out of `source`, air outside."""
    start = np.round(source.to_vox(window.affine_ras[:3, 3])[0]).astype(int)
    out = torch.full(window.shape, AIR_HU, dtype=values.dtype)
    into, taken = [], []
    for axis in range(3):
        low = max(0, -start[axis])
        high = min(window.shape[axis], source.shape[axis] - start[axis])
        into.append(slice(low, high))
        taken.append(slice(low + start[axis], high + start[axis]))
    out[tuple(into)] = values[tuple(taken)]
    return out


def body_mask(hu: np.ndarray, threshold_hu: float = -400.0) -> MaskVolume:
    """Largest connected piece denser than `threshold_hu`: the body with walls of the chest, without a thin
    table."""
    dense = hu > threshold_hu
    labels, count = cc3d.connected_components(dense, connectivity=6, return_N=True)
    if count == 0:
        return np.zeros(hu.shape, dtype=bool)
    sizes = np.bincount(labels.ravel())
    sizes[0] = 0
    return labels == int(sizes.argmax())


def body_box(body: MaskVolume, margin_vox: int) -> VoxelBox:
    """The body with a margin, over the whole scanned length."""
    sides = [_span(body, axis, margin_vox, margin_vox) for axis in (0, 1)]
    return (sides[0], sides[1], (0, body.shape[2] - 1))


def chest_box(hu: np.ndarray, body: MaskVolume, spacing_mm: float) -> VoxelBox | None:
    """The chest around the air of the lungs (axes nearest RAS+); None with less air than a lung has.

    Left to right it is symmetric about the body, so that a lung without air is kept as well.
    """
    air, count = cc3d.connected_components(hu < LUNG_HU, connectivity=6, return_N=True)
    inside = np.ones(count + 1, dtype=bool)
    for face in (air[0], air[-1], air[:, 0], air[:, -1]):
        inside[np.unique(face)] = False
    sizes_ml = np.bincount(air.ravel()) * spacing_mm**3 / 1000
    inside &= sizes_ml > LEAST_LUNG_ML / 10
    inside[0] = False
    if sizes_ml[inside].sum() < LEAST_LUNG_ML:
        return None
    lungs = inside[air]
    (left, right), back_front, below_above = (
        _span(lungs, axis, *(round(mm / spacing_mm) for mm in AROUND_LUNGS_MM[axis])) for axis in range(3)
    )
    middle = float(np.median(np.nonzero(body.any(axis=1))[0]))
    half = max(middle - left, right - middle)
    sides = max(0, int(middle - half)), min(hu.shape[0] - 1, int(middle + half + 0.5))
    return sides, back_front, below_above


def _span(mask: MaskVolume, axis: int, before: int, after: int) -> tuple[int, int]:
    """First and last index of `mask` along an axis, widened but kept within the array."""
    used = np.flatnonzero(mask.any(axis=tuple(a for a in range(3) if a != axis)))
    low, high = (0, mask.shape[axis] - 1) if used.size == 0 else (int(used[0]), int(used[-1]))
    return max(0, low - before), min(mask.shape[axis] - 1, high + after)
