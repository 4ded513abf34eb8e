"""Scans of a run of EXACT with their organ masks and labels; sample k is a function of seed and k alone.

Every epoch is a fresh order of all scans; `train.stream` says how ranks share it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from hilum.cohort.loader import stored_values
from hilum.cohort.store import ScanRow, Store
from hilum.cohort.store_chunks import Three
from hilum.errors import UsageError
from hilum.objective.dense import Given
from hilum.tensors import KnownChannels, Labels, PackedOrgans, ScanBatch, ScanVolumes
from hilum.text.vocabulary import ORGAN_CHANNELS, SLUGS
from hilum.train.exact_recipe import DenseRecipe, ExactAugment
from hilum.train.stream import SampleStream, generator_of


@dataclass(frozen=True)
class ExactScans:
    """Scans to learn from or to choose on.

    Args:
        keys: of every scan; where: its store, masks: that of its masks, None without.
        labels: float32 [N, 18], NaN unknown. patients: of each scan.
    """

    keys: tuple[str, ...]
    where: tuple[Store, ...]
    masks: tuple[Store | None, ...]
    labels: torch.Tensor
    patients: tuple[str, ...] = ()
    channels: tuple[str, ...] = ORGAN_CHANNELS
    _known: dict[tuple[int, str], torch.Tensor] = field(default_factory=dict, compare=False)

    def __len__(self) -> int:
        return len(self.keys)

    def pick(self, wanted: Sequence[int]) -> ExactScans:
        """Some of them."""
        return replace(
            self,
            keys=tuple(self.keys[i] for i in wanted),
            where=tuple(self.where[i] for i in wanted),
            masks=tuple(self.masks[i] for i in wanted),
            labels=self.labels[list(wanted)],
            patients=tuple(self.patients[i] for i in wanted),
        )

    def row(self, index: int) -> ScanRow:
        """Of the store."""
        return self.where[index].row(self.keys[index])

    def masked(self, index: int) -> bool:
        """Whether organs of a scan are outlined."""
        return self.masks[index] is not None

    def known(self, index: int) -> torch.Tensor:
        """Bool [O]: channels that are outlined."""
        store = self.masks[index]
        if store is None:
            return torch.zeros(len(self.channels), dtype=torch.bool)
        place = (id(store), self.keys[index])
        if place not in self._known:
            told = json.loads(store.row(self.keys[index]).trace)["known"]
            self._known[place] = torch.tensor([channel in told for channel in self.channels])
        return self._known[place]

    def prevalence(self) -> tuple[float, ...]:
        """Share of positives among the labels that are known, per finding; half where none is."""
        known = ~torch.isnan(self.labels)
        positive = torch.nan_to_num(self.labels).sum(0)
        return tuple(((positive + 0.5) / (known.sum(0) + 1.0)).tolist())

    def sample(self, index: int, shape_vox: Three | None) -> ExactSample:
        """One scan, whole or cropped and padded about its middle."""
        row, store = self.row(index), self.where[index]
        size = shape_vox or (row.shape[0], row.shape[1], row.shape[2])
        start = [(n - wanted) // 2 for n, wanted in zip(row.shape, size, strict=True)]
        scan = stored_values(store, row, start, size)
        beside = self.masks[index]
        bits = torch.zeros(size, dtype=torch.int16)
        if beside is not None:
            _same_grid(row, beside.row(self.keys[index]), beside)
            bits = _box_of_bits(beside, beside.row(self.keys[index]), start, size)
        voxel_ml = float(abs(np.linalg.det(row.affine[:3, :3]))) / 1000.0
        return ExactSample(
            self.keys[index], scan[None], bits, self.known(index), self.labels[index], voxel_ml
        )


@dataclass(frozen=True)
class ExactSample:
    """One scan of a step, as `ExactBatch`."""

    key: str
    scan: torch.Tensor
    bits: torch.Tensor
    known: torch.Tensor
    labels: torch.Tensor
    voxel_ml: float


@dataclass(frozen=True)
class ExactBatch:
    """A rank's scans of a step, in groups of one shape.

    Args:
        scan: values of the preset. bits: bit o of a voxel is organ o. known: organs that were outlined.
        labels: NaN unknown. voxel_ml: of the grid of each scan.
    """

    keys: tuple[str, ...]
    scan: ScanBatch
    bits: PackedOrgans
    known: KnownChannels
    labels: Labels
    voxel_ml: ScanVolumes

    def __len__(self) -> int:
        return len(self.keys)

    @property
    def given(self) -> Given:
        """What the data set outlines."""
        return Given(self.bits, self.known)

    def to(self, device: torch.device) -> ExactBatch:
        """The same with its tensors there."""
        moved: dict[str, Any] = {n: v.to(device) for n, v in vars(self).items() if torch.is_tensor(v)}
        return replace(self, **moved)

    def parts(self, scans: int | None) -> list[ExactBatch]:
        """So many scans at a time; None for all at once."""
        size = scans or len(self)
        return [self._part(slice(first, first + size)) for first in range(0, len(self), size)]

    def _part(self, rows: slice) -> ExactBatch:
        return ExactBatch(**{name: value[rows] for name, value in vars(self).items()})


Groups = tuple[ExactBatch, ...]
"""A rank's scans of a step: one batch where all have one shape, else one each."""


def stack(samples: Sequence[ExactSample]) -> Groups:
    """Samples of a step."""
    alike = len({s.scan.shape for s in samples}) == 1
    groups = [samples] if alike else [[s] for s in samples]
    return tuple(_batch(group) for group in groups)


def _batch(samples: Sequence[ExactSample]) -> ExactBatch:
    return ExactBatch(
        tuple(s.key for s in samples),
        torch.stack([s.scan for s in samples]),
        torch.stack([s.bits for s in samples]),
        torch.stack([s.known for s in samples]),
        torch.stack([s.labels for s in samples]),
        torch.tensor([s.voxel_ml for s in samples]),
    )


class ExactStream(SampleStream[ExactSample]):
    """One rank's samples of a run.

    Raises:
        UsageError: `CONFIG_VALUE` for a batch that ranks cannot share.
    """

    def __init__(
        self, recipe: DenseRecipe, scans: ExactScans, *, start: int = 0, rank: int = 0, ranks: int = 1
    ) -> None:
        super().__init__(recipe.batch, start=start, rank=rank, ranks=ranks)
        self.recipe, self.scans = recipe, scans
        self._order: tuple[int, list[int]] = (-1, [])

    def index(self, k: int) -> int:
        """Which scan sample k is."""
        epoch, place = divmod(k, len(self.scans))
        if self._order[0] != epoch:
            drawn = torch.randperm(len(self.scans), generator=generator_of(self.recipe.seed, "epoch", epoch))
            self._order = (epoch, drawn.tolist())
        return self._order[1][place]

    def sample(self, k: int) -> ExactSample:
        """Sample k of the whole run."""
        sample = self.scans.sample(self.index(k), self.recipe.shape_vox)
        return varied(sample, self.recipe.augment, generator_of(self.recipe.seed, "augment", k))


def varied(sample: ExactSample, augment: ExactAugment, generator: torch.Generator) -> ExactSample:
    """The sample with other values and moved a little; itself where nothing is asked for."""
    scan, bits = sample.scan, sample.bits
    drawn = 2 * torch.rand(5, generator=generator) - 1
    if augment.shift_vox:
        shifts = (drawn[2:] * augment.shift_vox).round().long().tolist()
        scan, bits = _moved(scan[0], shifts, float(scan.min()))[None], _moved(bits, shifts, 0)
    if augment.gain or augment.offset:
        scan = scan * (1 + augment.gain * float(drawn[0])) + augment.offset * float(drawn[1])
    if augment.noise:
        scan = scan + augment.noise * torch.randn(scan.shape, generator=generator)
    return replace(sample, scan=scan, bits=bits)


def _moved(values: torch.Tensor, shifts: Sequence[int], fill: float) -> torch.Tensor:
    for axis, shift in enumerate(shifts):
        values = values.roll(shift, axis)
        index = range(shift) if shift > 0 else range(values.shape[axis] + shift, values.shape[axis])
        values = values.index_fill(axis, torch.tensor(list(index), dtype=torch.int64), fill)
    return values


def mean_organs(scans: ExactScans, edge: int = 32, most: int = 200) -> torch.Tensor:
    """Mean organ masks of the scans that have them, float32 [O, edge, edge, edge] over the whole field.

    Args:
        edge: voxels of the mean. most: scans that are looked at, evenly spaced.

    Raises:
        UsageError: `CONFIG_VALUE`, no scan has masks.
    """
    masked = [i for i in range(len(scans)) if scans.masked(i)]
    if not masked:
        raise UsageError("CONFIG_VALUE", "losses.prior needs scans with organ masks", got="none")
    total, count = torch.zeros((len(scans.channels), edge, edge, edge)), torch.zeros(len(scans.channels))
    for i in masked[:: -(-len(masked) // most)]:
        sample = scans.sample(i, None)
        masks = Given(sample.bits[None], sample.known[None]).masks()
        total += F.adaptive_avg_pool3d(masks, edge)[0] * sample.known[:, None, None, None]
        count += sample.known
    return total / count.clamp_min(1)[:, None, None, None]


def labels_of(labels: Sequence[Mapping[str, int | None]]) -> torch.Tensor:
    """Tri-state labels by slug -> float32 [N, 18], NaN unknown."""
    rows = [[float("nan") if (v := of.get(slug)) is None else float(v) for slug in SLUGS] for of in labels]
    return torch.tensor(rows, dtype=torch.float32).reshape(-1, len(SLUGS))


def _box_of_bits(store: Store, row: ScanRow, start: Sequence[int], size: Sequence[int]) -> torch.Tensor:
    low = [max(0, s) for s in start]
    high = [min(n, s + wanted) for n, s, wanted in zip(row.shape, start, size, strict=True)]
    x, y, z = (h - s for s, h in zip(low, high, strict=True))
    stored = torch.from_numpy(store.read(row.key, (low[0], low[1], low[2]), (x, y, z)))
    out = torch.zeros(tuple(size), dtype=torch.int16)
    out[tuple(slice(low[i] - start[i], high[i] - start[i]) for i in range(3))] = stored
    return out


def _same_grid(scan: ScanRow, masks: ScanRow, store: Store) -> None:
    if scan.shape != masks.shape or not np.allclose(scan.affine, masks.affine, atol=1e-3):
        raise UsageError(
            "GRID_MISMATCH", "masks lie on the grid of their scan", expected=scan.shape, got=masks.shape,
            path=store.root, hint="Prepare scans and masks with the same preset.",
        )  # fmt: skip
