"""What an encoder says of a scan, with where each patch lies, and the way back onto the scan's own voxels."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from hilum.cohort.pipeline import PipelineTrace
from hilum.errors import RunError
from hilum.geometry import Geometry
from hilum.read.encoder_windows import Windows, box
from hilum.types import (
    AffineRas,
    EmbeddingVector,
    FeatureVector,
    PatchBits,
    PatchFeatures,
    PatchValues,
    PointMm,
    ProbabilityMap,
    SliceHeights,
    SliceNumbers,
    SlicePatches,
    SliceVectors,
)


@dataclass(frozen=True, eq=False)
class VolumeFeatures:
    """Features of a scan, or of its middle.

    Args:
        cls: of the whole; the mean over windows. patches: of each patch; the mean where windows overlap.
        embedding: in the space of texts, length 1; None without reports.
        geometry: the grid of patches: index -> centre, mm RAS+. windows: how the scan was seen.
        trace: how it was prepared.
    """

    cls: FeatureVector
    patches: PatchFeatures
    embedding: EmbeddingVector | None
    geometry: Geometry
    windows: Windows
    trace: PipelineTrace

    @property
    def grid(self) -> tuple[int, int, int]:
        """Patches per axis, on the axes of the preparation."""
        return self.geometry.shape

    @property
    def affine(self) -> AffineRas:
        """Index of a patch -> its centre, mm RAS+."""
        return self.geometry.affine_ras

    @property
    def inside(self) -> PatchBits:
        """Patches whose centre lies in the scan; the others see padding, at least half."""
        return self.trace.source.covers(self.geometry).reshape(-1)

    def maps(self) -> np.ndarray:
        """The patches where they lie: float32 [W, *grid]."""
        return np.ascontiguousarray(self.patches.T).reshape(-1, *self.grid)

    def patch_at(self, point_mm: PointMm) -> int | None:
        """The row of `patches` that covers a point (mm RAS+); None outside the grid."""
        index = np.floor(self.geometry.to_vox(np.asarray(point_mm))[0] + 0.5).astype(int)
        if (index < 0).any() or (index >= self.grid).any():
            return None
        return int(np.ravel_multi_index(tuple(index), self.grid))

    def on_scan(self, values: PatchValues) -> ProbabilityMap:
        """One number per patch -> on the scan's voxels (`CTVolume.geometry`), the same within a patch; 0
        where nothing was seen. Any numbers, not only probabilities.

        Raises:
            RunError: `GRID_MISMATCH` for another number of values than patches.
        """
        if values.shape != (len(self.patches),):
            raise RunError(
                "GRID_MISMATCH", "a patch has one value", expected=(len(self.patches),), got=values.shape
            )
        fine = values.reshape(self.grid)
        for axis, size in enumerate(self.windows.patch):
            fine = fine.repeat(size, axis=axis)
        low = [-start for start in self.windows.start]
        placed = box(torch.from_numpy(fine), low, self.trace.grid.shape, 0.0)
        return self.trace.invert(placed.numpy())


@dataclass(frozen=True, eq=False)
class SliceFeatures:
    """Features of axial slices.

    Args:
        cls: of each slice. patches: of each of its patches. grid: patches along its two axes.
        index: which slice of the prepared scan each is, from the feet where the third letter of its axes is
            S. z_mm: height of its centre, mm RAS+.
        geometry: patches of all slices: index along both axes and number of the slice -> centre, mm RAS+.
    """

    cls: SliceVectors
    patches: SlicePatches
    grid: tuple[int, int]
    index: SliceNumbers
    z_mm: SliceHeights
    geometry: Geometry

    @property
    def affine(self) -> AffineRas:
        """Index along both axes and number of a slice -> centre, mm RAS+."""
        return self.geometry.affine_ras

    def maps(self) -> np.ndarray:
        """The patches where they lie: float32 [S, W, *grid]."""
        return np.ascontiguousarray(self.patches.transpose(0, 2, 1)).reshape(len(self.cls), -1, *self.grid)
