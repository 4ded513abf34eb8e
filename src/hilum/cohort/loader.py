"""Random crops and slices out of stores. Sample k is a pure function of seed and k, so a run that stopped
before sample k goes on with sample k, on any number of ranks and workers.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.utils.data import IterableDataset, get_worker_info

from hilum.cohort.pipeline import letters_axis, zscore_slices
from hilum.cohort.store import ScanRow, Store
from hilum.cohort.store_chunks import Three
from hilum.errors import RunError, UsageError
from hilum.tensors import ScanCrop, VoxelTensor


@dataclass(frozen=True)
class Part:
    """A cohort in the mixture.

    Args:
        store: where its scans are. weight: its share of samples, relative to the other parts.
        keys: which scans (one split of a manifest); None takes all.
    """

    store: Store
    weight: float = 1.0
    keys: tuple[str, ...] | None = None

    @property
    def scans(self) -> tuple[str, ...]:
        """Keys of every scan in it."""
        return self.store.keys if self.keys is None else self.keys


class Crop(NamedTuple):
    """One sample.

    Args:
        image: float32 [1, U, V, W] (slices: [1, H, W]) on the axes of the store, scaled as its preset says.
        key: of the scan. part: index of its cohort. k: which sample.
        start_vox: first voxel in the scan, int64 (3,); negative where the crop is padded.
    """

    image: ScanCrop
    key: str
    part: int
    k: int
    start_vox: torch.Tensor


class CropLoader(IterableDataset[Crop]):
    """An endless stream of crops, or its part for one rank; give it to `torch.utils.data.DataLoader`.

    Args:
        parts: cohorts with weights. shape_vox: of a crop on the axes of the store, None for whole scans; in
            a slice store, or with `slices`, the size across the axial axis is ignored and one slice is taken.
        seed: of everything. slices: 2D axial slices instead of 3D crops.
        start: first sample of the whole stream (all ranks together); a multiple of `ranks`.
        stop: sample at which the stream ends; None never.
        rank, ranks: sample k belongs to rank ``k % ranks``.
        block: batch size of the DataLoader; its workers then take whole batches in turn, so that batches do
            not depend on their number.

    Raises:
        UsageError: `CONFIG_VALUE` for weights, keys, shapes or ranks that make no sense.
    """

    def __init__(
        self,
        parts: Sequence[Part],
        *,
        shape_vox: Three | None,
        seed: int,
        slices: bool = False,
        start: int = 0,
        stop: int | None = None,
        rank: int = 0,
        ranks: int = 1,
        block: int = 1,
    ) -> None:
        super().__init__()
        self.parts, self.shape_vox, self.seed, self.slices = tuple(parts), shape_vox, seed, slices
        self.start, self.stop, self.rank, self.ranks, self.block = start, stop, rank, ranks, block
        self._keys = [part.scans for part in self.parts]
        self._check()
        weights = np.array([part.weight for part in self.parts], dtype=np.float64)
        self._edges = np.cumsum(weights / weights.sum())

    def sample(self, k: int) -> Crop:
        """Sample k of the whole stream.

        Raises:
            ContainerError: `STORE_DAMAGED` when a chunk that it needs is not what was written.
        """
        rng = np.random.default_rng([self.seed, k])
        drawn = np.searchsorted(self._edges, rng.random(), side="right")
        part = min(int(drawn), len(self.parts) - 1)
        store, keys = self.parts[part].store, self._keys[part]
        row = store.row(keys[int(rng.integers(len(keys)))])
        flat = letters_axis(store.prep["axes"], "S") if self.slices else None
        size = [1 if axis == flat else n for axis, n in enumerate(self.shape_vox or row.shape)]
        start = [_start(rng, n, wanted) for n, wanted in zip(row.shape, size, strict=True)]
        image = stored_values(store, row, start, size, flat)
        image = image if flat is None else image.squeeze(flat)
        return Crop(image[None], row.key, part, k, torch.tensor(start))

    def __iter__(self) -> Iterator[Crop]:
        info = get_worker_info()
        worker, workers = (0, 1) if info is None else (info.id, info.num_workers)
        index = 0
        while True:
            k = self.start + index * self.ranks + self.rank
            if self.stop is not None and k >= self.stop:
                return
            if index // self.block % workers == worker:
                yield self.sample(k)
            index += 1

    def state_dict(self, taken: int) -> dict[str, Any]:
        """Where to go on.

        Args:
            taken: samples that this rank has used since `start` (batches times batch size).
        """
        return {"seed": self.seed, "next": self.start + taken * self.ranks}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on where `state` says.

        Raises:
            RunError: `RESUME_CHANGED` for a state of another seed.
        """
        if state["seed"] != self.seed:
            raise RunError(
                "RESUME_CHANGED", "a stream goes on with its seed", expected=self.seed, got=state["seed"]
            )
        self.start = int(state["next"])

    def _check(self) -> None:
        weights = [part.weight for part in self.parts]
        wrong: tuple[str, object] | None = None
        if not weights or min(weights) < 0 or not np.isfinite(weights).all() or sum(weights) <= 0:
            wrong = ("weights are finite, not negative and not all 0", weights)
        elif any(not of_part for of_part in self._keys):
            wrong = ("every part has scans", [len(of_part) for of_part in self._keys])
        elif min(self.shape_vox or (1,)) < 1 or self.block < 1:
            wrong = ("crops and blocks have a size", (self.shape_vox, self.block))
        elif not 0 <= self.rank < self.ranks or self.start < 0 or self.start % self.ranks:
            wrong = ("0 <= rank < ranks, start a multiple of ranks", (self.rank, self.ranks, self.start))
        elif not self.slices and any(part.store.prep["values"] == "zscore-slice" for part in self.parts):
            wrong = ("a store scaled by slice gives slices", "3D crops")
        if wrong is not None:
            raise UsageError("CONFIG_VALUE", wrong[0], got=wrong[1])
        for part, of_part in zip(self.parts, self._keys, strict=True):
            for key in of_part:
                part.store.row(key)


def _start(rng: np.random.Generator, n: int, wanted: int) -> int:
    """Anywhere inside; a scan that is too short lies in the middle."""
    return int(rng.integers(n - wanted + 1)) if n >= wanted else -((wanted - n) // 2)


def stored_values(
    store: Store, row: ScanRow, start: Sequence[int], size: Sequence[int], flat: int | None = None
) -> VoxelTensor:
    """Values of a box of a scan, scaled as its preset says; beyond the scan its smallest value.

    Args:
        start: first voxel, negative before the scan. size: voxels. flat: axis across a single slice, which a
            store scaled by slice needs.
    """
    low = [max(0, s) for s in start]
    high = [min(n, s + wanted) for n, s, wanted in zip(row.shape, start, size, strict=True)]
    per_slice = store.prep["values"] == "zscore-slice" and flat is not None
    if per_slice:
        # mean and deviation are those of the whole slice, whatever part of it is shown
        box_low = [s if axis == flat else 0 for axis, s in enumerate(low)]
        box_high = [h if axis == flat else n for axis, (h, n) in enumerate(zip(high, row.shape, strict=True))]
    else:
        box_low, box_high = low, high
    x, y, z = (h - s for s, h in zip(box_low, box_high, strict=True))
    stored = store.read(row.key, (box_low[0], box_low[1], box_low[2]), (x, y, z))
    values = torch.from_numpy(stored.astype(np.float32)).mul_(row.slope).add_(row.intercept)
    pad = row.pad * row.slope + row.intercept
    if per_slice and flat is not None:
        values = zscore_slices(values, flat)
        pad = float(values.min())
        inner = tuple(slice(s - b, h - b) for s, h, b in zip(low, high, box_low, strict=True))
        values = values[inner]
    if tuple(values.shape) == tuple(size):
        return values.contiguous()
    out = torch.full(tuple(size), pad, dtype=torch.float32)
    out[tuple(slice(low[i] - start[i], high[i] - start[i]) for i in range(3))] = values
    return out
