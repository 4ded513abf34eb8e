"""Which part of a prepared scan a backbone sees at once: the middle, or windows that cover all of it.

A window is a whole number of patches and starts at a whole number of patches, so that all windows of a scan
share one grid of patches. What lies beyond the scan is padded as the scan's preset pads.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch.nn import functional as F

from hilum.cohort.pipeline import PipelineTrace
from hilum.cohort.prep import subgrid
from hilum.cohort.prep_presets import Pipeline
from hilum.errors import InputRefused, UsageError
from hilum.geometry import Geometry
from hilum.tensors import GridTensor, VoxelTensor

Sizes = tuple[int, ...]
OVERLAP = 0.25
"""Least share of a window that the next one sees again."""


@dataclass(frozen=True)
class Windows:
    """Windows of a prepared grid.

    Args:
        patch: voxels of the prepared scan that a patch covers. size: of a window. grid: patches of all
            windows together.
        start: first voxel of that grid; negative where it begins before the scan.
        starts: per axis, first patch of each window.
    """

    patch: Sizes
    size: Sizes
    grid: Sizes
    start: Sizes
    starts: tuple[Sizes, ...]

    def __len__(self) -> int:
        return math.prod(len(axis) for axis in self.starts)

    def __iter__(self) -> Iterator[Sizes]:
        """First patch of each window."""
        return iter(itertools.product(*self.starts))

    def patches(self, at: Sizes) -> tuple[slice, ...]:
        """Where the patches of the window at `at` lie in `grid`."""
        spans = zip(at, self.size, self.patch, strict=True)
        return tuple(slice(a, a + size // patch) for a, size, patch in spans)

    def show(self, scan: VoxelTensor, at: Sizes, fill: float, patch: Sizes) -> GridTensor:
        """The window at `at` of a prepared scan, `fill` beyond it; resized, as training resizes a field,
        where a patch of the model has another size than what it covers.

        Args:
            patch: voxels of a patch of the model.
        """
        low = [s + a * p for s, a, p in zip(self.start, at, self.patch, strict=True)]
        shown = box(scan, low, self.size, fill)
        if patch == self.patch:
            return shown
        wanted = [n // own * p for n, own, p in zip(self.size, self.patch, patch, strict=True)]
        return F.interpolate(shown[None, None], wanted, mode="trilinear")[0, 0]

    def stacked(self, slices: int) -> Windows:
        """The same in each of so many slices, which lie across a third axis."""
        grid, start = (*self.grid, slices), (*self.start, 0)
        return Windows((*self.patch, 1), (*self.size, slices), grid, start, (*self.starts, (0,)))

    def geometry(self, grid: Geometry) -> Geometry:
        """Where patch centres are, mm RAS+; `grid` is the prepared scan's."""
        patch = np.array(self.patch)
        return subgrid(grid, np.array(self.start) + (patch - 1) / 2, patch, np.array(self.grid))


def middle(shape: Sizes, field: Sizes, patch: Sizes) -> Windows:
    """One window: the field in the middle of a scan, as a model of whole fields was trained.

    Args:
        shape: voxels of the prepared scan. field: voxels that a model sees at once; 0 for all there are.
        patch: voxels of a patch.

    Raises:
        InputRefused: `PATCH_GRID` for patches larger than the field.
    """
    size = window(shape, field, patch)
    start = tuple(_centred(n, w) for n, w in zip(shape, size, strict=True))
    grid = tuple(w // p for w, p in zip(size, patch, strict=True))
    return Windows(patch, size, grid, start, ((0,),) * len(size))


def cover(shape: Sizes, field: Sizes, patch: Sizes, overlap: float = OVERLAP) -> Windows:
    """Windows that cover a scan, evenly spread, as few as overlap by `overlap` of their width.

    Args:
        shape, field, patch: as of `middle`. overlap: 0 or more, below 1.

    Raises:
        InputRefused: `PATCH_GRID` for patches larger than the field. UsageError: `CONFIG_VALUE`.
    """
    if not 0 <= overlap < 1:
        raise UsageError(
            "CONFIG_VALUE", "windows overlap by a share", expected="0 or more, below 1", got=overlap
        )
    size = window(shape, field, patch)
    grid, start, starts = [], [], []
    for n, w, p in zip(shape, size, patch, strict=True):
        whole = max(w, -(-n // p) * p)
        grid.append(whole // p)
        start.append(_centred(n, whole))
        starts.append(_starts(whole // p, w // p, overlap))
    return Windows(patch, size, tuple(grid), tuple(start), tuple(starts))


def window(shape: Sizes, field: Sizes, patch: Sizes) -> Sizes:
    """Voxels of a window: the field, or the scan where it has none, rounded up to whole patches."""
    if any(0 < f < p for f, p in zip(field, patch, strict=True)):
        raise InputRefused(
            "PATCH_GRID",
            "a patch is smaller than what a model sees at once",
            expected=f"at most {field} voxels",
            got=patch,
            hint="Choose a smaller patch.",
        )
    return tuple(-(-(f or n) // p) * p for n, f, p in zip(shape, field, patch, strict=True))


def covered(patch: Sizes, field: Sizes, view: Sizes | None) -> Sizes:
    """Voxels of the prepared scan that a patch covers, where a field is shown with `view` voxels.

    Raises:
        InputRefused: `PATCH_GRID` where that is no whole number.
    """
    if view is None:
        return patch
    if any(f and p * f % v for p, f, v in zip(patch, field, view, strict=True)):
        raise InputRefused(
            "PATCH_GRID",
            "a patch covers whole voxels of the prepared scan",
            expected=f"patches for which patch · {field} / {view} is whole",
            got=patch,
            hint="Choose another patch, such as the config's.",
        )
    return tuple(p * f // v if f else p for p, f, v in zip(patch, field, view, strict=True))


def box(values: torch.Tensor, low: Sequence[int], size: Sequence[int], fill: float) -> torch.Tensor:
    """`size` voxels of the last axes from `low` on; `fill` beyond the array."""
    lead = values.dim() - len(size)
    out = values.new_full((*values.shape[:lead], *size), fill)
    into, taken = [], []
    for start, n, have in zip(low, size, values.shape[lead:], strict=True):
        first, last = max(0, start), max(0, start, min(have, start + n))
        into.append(slice(first - start, last - start))
        taken.append(slice(first, last))
    leading = [slice(None)] * lead
    out[tuple(leading + into)] = values[tuple(leading + taken)]
    return out


def field_of(pipeline: Pipeline, field_vox: Sizes | None) -> Sizes:
    """Voxels that a model sees at once: as its config says, else what scans are padded to, else all (0)."""
    if field_vox is not None:
        return field_vox
    return pipeline.fit_vox if pipeline.fit in ("shape", "at-least") else (0, 0, 0)


def uncropped(pipeline: Pipeline) -> Pipeline:
    """The same preparation, but nothing of the scan is cut away."""
    if pipeline.fit == "shape":
        return replace(pipeline, fit="at-least", fit_vox=_at_least_one(pipeline.fit_vox))
    return replace(pipeline, fit="keep") if pipeline.fit == "crop-multiple" else pipeline


def padding(trace: PipelineTrace, scan: torch.Tensor) -> float:
    """What padding holds, in the values of a prepared scan or slice."""
    pipeline = trace.pipeline
    if pipeline.pad == "min" or pipeline.values == "zscore-slice":
        return float(scan.min())
    low_hu = 0.0 if pipeline.values == "clahe" or pipeline.clip_hu is None else pipeline.clip_hu[0]
    return low_hu * trace.slope + trace.intercept


def _centred(n: int, size: int) -> int:
    """As presets and training do: the same is cut off or missing on both sides, or one less before."""
    return (n - size) // 2 if size <= n else -((size - n) // 2)


def _starts(patches: int, width: int, overlap: float) -> Sizes:
    step = max(1, math.floor(width * (1 - overlap) + 1e-9))
    last = patches - width
    count = 1 + math.ceil(last / step)
    return tuple(round(i * last / max(1, count - 1)) for i in range(count))


def _at_least_one(shape: tuple[int, int, int]) -> tuple[int, int, int]:
    x, y, z = (max(1, n) for n in shape)
    return x, y, z
