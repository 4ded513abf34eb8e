"""Stored bytes -> float32 HU, a few slices at a time (row B17: no integer ever wraps)."""

from __future__ import annotations

from typing import Literal, Protocol, runtime_checkable

import numpy as np

from hilum.types import VolumeHU

SLAB_SLICES, SLAB_BYTES = 16, 64 * 1024 * 1024


@runtime_checkable
class Reader(Protocol):
    """Anything with `read(count) -> bytes`."""

    def read(self, count: int, /) -> bytes:
        """Up to `count` bytes; fewer only at the end."""
        ...


def read_voxels(
    stream: Reader,
    shape: tuple[int, int, int],
    dtype: np.dtype,
    slope: float | None = None,
    intercept: float = 0.0,
    order: Literal["C", "F"] = "F",
) -> VolumeHU | None:
    """Float32 HU on stored axes, C-contiguous, or None when the stream ends before the last voxel.

    Args:
        stream: at the first voxel.
        shape: voxels along the stored axes; already within the budget.
        dtype: of stored values, with byte order.
        slope, intercept: stored value -> HU; slope None: stored values are HU.
        order: ``F`` when the first axis runs fastest in the file (NIfTI, NRRD), ``C`` when the last does.
    """
    # In Fortran order a slab is some last indices; in C order some first ones.
    axis = 2 if order == "F" else 0
    plane = shape[0] * shape[1] if order == "F" else shape[1] * shape[2]
    slab = max(1, min(SLAB_SLICES, SLAB_BYTES // (plane * dtype.itemsize)))
    hu = np.empty(shape, dtype=np.float32)
    for start in range(0, shape[axis], slab):
        count = min(slab, shape[axis] - start)
        wanted = count * plane * dtype.itemsize
        block = stream.read(wanted)
        if len(block) != wanted:
            return None
        part = (*shape[:2], count) if order == "F" else (count, *shape[1:])
        stored = np.frombuffer(block, dtype).reshape(part, order=order)
        if order == "C":
            hu[start : start + count] = to_hu(stored, slope, intercept)
            continue
        # Row by row: turning a whole slab at once misses the cache at every voxel.
        for row in range(shape[1]):
            hu[:, row, start : start + count] = to_hu(stored[:, row], slope, intercept)
    return hu


def to_hu(stored: np.ndarray, slope: float | None = None, intercept: float = 0.0) -> np.ndarray:
    """Stored values -> float32 HU. The arithmetic is float64, so neither integers nor large offsets wrap."""
    with np.errstate(over="ignore", invalid="ignore"):
        if slope is None:
            return stored.astype(np.float32)
        return (stored.astype(np.float64) * slope + intercept).astype(np.float32)
