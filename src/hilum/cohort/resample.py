"""Separable, antialiased resampling between grids whose axes are parallel.

A triangle filter as wide as the coarser of the two spacings: plain linear interpolation when going finer, an
antialiased one when going coarser. Positions are exact: the output grid may start anywhere.
"""

from __future__ import annotations

import numpy as np
import torch

from hilum.geometry import Geometry
from hilum.tensors import GridTensor, VoxelTensor


def axis_weights(
    n_in: int, start_vox: float, step_vox: float, n_out: int, *, outside: str = "edge"
) -> torch.Tensor:
    """Rows of weights (n_out, n_in): output i sits at input index `start_vox + i * step_vox`.

    Args:
        outside: ``edge`` repeats the border value, ``zero`` gives 0 beyond half a step outside the input.
    """
    where = start_vox + step_vox * torch.arange(n_out, dtype=torch.float64)
    width = max(1.0, abs(step_vox))
    clamped = where.clamp(0, n_in - 1)
    index = torch.arange(n_in, dtype=torch.float64)
    weights = (1 - (index[None] - clamped[:, None]).abs() / width).clamp_min(0)
    weights /= weights.sum(1, keepdim=True)
    if outside == "zero":
        weights[(where < -0.5 * width) | (where > n_in - 1 + 0.5 * width)] = 0
    return weights.float()


def apply_axes(volume: VoxelTensor, weights: tuple[torch.Tensor, torch.Tensor, torch.Tensor]) -> GridTensor:
    """Contract each axis with its weights, the strongest reduction first (least work and memory)."""
    order = sorted(range(3), key=lambda a: weights[a].shape[0] / weights[a].shape[1])
    for axis in order:
        moved = volume.movedim(axis, -1)
        volume = torch.matmul(moved, weights[axis].to(volume).T).movedim(-1, axis)
    return volume.contiguous()


def between(source: Geometry, target: Geometry) -> list[tuple[float, float]]:
    """(start, step) in source voxels of every axis of `target`; both grids must share axis directions."""
    step = np.array(target.spacing_mm) / np.array(source.spacing_mm)
    start = source.to_vox(target.affine_ras[:3, 3])[0]
    return [(float(a), float(b)) for a, b in zip(start, step, strict=True)]


def resample(volume: VoxelTensor, source: Geometry, target: Geometry, *, outside: str = "edge") -> GridTensor:
    """`volume` on `source` -> the same on `target` (parallel axes, any origin and spacing)."""
    weights = tuple(
        axis_weights(n_in, start, step, n_out, outside=outside)
        for n_in, n_out, (start, step) in zip(
            source.shape, target.shape, between(source, target), strict=True
        )
    )
    return apply_axes(volume, (weights[0], weights[1], weights[2]))
