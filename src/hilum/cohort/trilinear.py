"""Linear interpolation between parallel grids, plane by plane, with two precomputed taps per axis.

One plane of the first axis at a time goes through all three interpolations while it lies in the cache, so the
scan is read once and nothing of its size is written in between. `resample.py` holds the smoothing filter.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from hilum.tensors import GridTensor
from hilum.types import VolumeHU

Taps = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
"""Index of the lower and of the upper neighbour, and the share of the upper one, per output voxel."""


@dataclass(frozen=True)
class Axis:
    """Where the voxels of one output axis sit: output i at input index ``start + i * step``."""

    start: float
    step: float
    n: int

    def cut(self, low: int, n: int) -> Axis:
        """Only `n` voxels from `low` on."""
        return Axis(self.start + low * self.step, self.step, n)

    def taps(self, n_in: int) -> Taps:
        """Neighbours and shares; positions beyond the input take its border value."""
        where = np.clip(self.start + self.step * np.arange(self.n), 0, n_in - 1)
        lower = np.minimum(np.floor(where), max(n_in - 2, 0)).astype(np.int64)
        upper = np.minimum(lower + 1, n_in - 1)
        share = (where - lower).astype(np.float32)
        return torch.from_numpy(lower), torch.from_numpy(upper), torch.from_numpy(share)


def trilinear(
    volume: VolumeHU,
    axes: tuple[Axis, Axis, Axis],
    *,
    clip_before: tuple[float, float] | None = None,
    clip_after: tuple[float, float] | None = None,
) -> GridTensor:
    """`volume` at the voxels of `axes`.

    Args:
        volume: float32 [X, Y, Z]; may be read-only.
        axes: one per axis of `volume`, in its voxel indices.
        clip_before, clip_after: lowest and highest value, cut before or after the interpolation.
    """
    (xs, nxs, xw), (ys, nys, yw), (zs, nzs, zw) = (
        axis.taps(n) for axis, n in zip(axes, volume.shape, strict=True)
    )
    # rows and columns that no output voxel touches are not even read
    y0, z0 = int(ys.min()), int(zs.min())
    window = volume[:, y0 : int(nys.max()) + 1, z0 : int(nzs.max()) + 1]
    ys, nys, zs, nzs, yw = ys - y0, nys - y0, zs - z0, nzs - z0, yw[:, None]
    planes: dict[int, torch.Tensor] = {}
    # NumPy asks the system for huge pages and torch does not: far fewer page faults on fresh memory
    out = torch.from_numpy(np.empty((len(xs), len(ys), len(zs)), dtype=np.float32))
    for target, low, high, share in zip(out, xs.tolist(), nxs.tolist(), xw.tolist(), strict=True):
        planes = {x: planes[x] if x in planes else _plane(window[x], clip_before) for x in (low, high)}
        flat = torch.lerp(planes[low], planes[high], share)
        flat = torch.lerp(flat.index_select(0, ys), flat.index_select(0, nys), yw)
        torch.lerp(flat.index_select(1, zs), flat.index_select(1, nzs), zw, out=target)
        if clip_after is not None:
            target.clamp_(*clip_after)
    return out


def _plane(values: np.ndarray, clip: tuple[float, float] | None) -> torch.Tensor:
    """A copy that lies in the cache, cut where asked."""
    if clip is None:
        return torch.from_numpy(np.array(values, order="C"))
    return torch.from_numpy(values.clip(np.float32(clip[0]), np.float32(clip[1])))
