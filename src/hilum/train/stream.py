"""Samples of a run, as ranks share them; sample k is a function of seed and k alone.

Sample k belongs to step ``k // batch``; ranks take every `ranks`-th sample of a step, so that a step sees the
same samples on any number of them, and a run that stopped goes on with the next one.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import numpy as np
import torch
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from hilum.errors import UsageError

SampleT = TypeVar("SampleT")


def generator_of(seed: int, *what: int | str) -> torch.Generator:
    """Random numbers for one purpose: equal for equal arguments, unrelated otherwise."""
    words = [zlib.crc32(w.encode()) if isinstance(w, str) else w for w in what]
    state = np.random.SeedSequence([seed, *words]).generate_state(2, np.uint64)
    return torch.Generator().manual_seed(int(state[0] >> 1))


class SampleStream(IterableDataset[SampleT]):
    """An endless stream of one rank's samples.

    Args:
        batch: samples of a step, on all ranks together. start: first step. rank, ranks: of this process.

    Raises:
        UsageError: `CONFIG_VALUE` for a batch that ranks cannot share.
    """

    def __init__(self, batch: int, *, start: int = 0, rank: int = 0, ranks: int = 1) -> None:
        super().__init__()
        if batch % ranks:
            raise UsageError(
                "CONFIG_VALUE", "ranks share a batch evenly", expected=f"a multiple of {ranks}", got=batch
            )
        self.batch, self.start, self.rank, self.ranks = batch, start, rank, ranks

    def sample(self, k: int) -> SampleT:
        """Sample k of the whole run."""
        raise NotImplementedError

    def __iter__(self) -> Iterator[SampleT]:
        info = get_worker_info()
        worker, workers = (0, 1) if info is None else (info.id, info.num_workers)
        step = self.start + worker
        while True:
            # a worker makes whole batches, so that batches do not depend on their number
            for place in range(self.rank, self.batch, self.ranks):
                yield self.sample(step * self.batch + place)
            step += workers

    def loader(self, workers: int, collate: Callable[[list[SampleT]], Any]) -> DataLoader:
        """This rank's batch of every step.

        Args:
            workers: processes that make samples; 0 is the run itself. collate: samples -> batch.
        """
        return DataLoader(
            self,
            batch_size=self.batch // self.ranks,
            num_workers=workers,
            collate_fn=collate,
            # fork and thread pools do not mix
            multiprocessing_context="forkserver" if workers else None,
            persistent_workers=workers > 0,
        )
