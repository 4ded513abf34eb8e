"""Boxes in which siblings are compared: mostly where they differ, in the gate of a finding that came or went;
the rest anywhere in that gate, so that ordinary tissue is seen too.

A box is drawn, turned and given a look by itself. So the boxes of a step come from as many patients: siblings
tell of the two or three findings that came or went between them, and steps of one patient would pull the
weights to and fro between findings.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce

import numpy as np
import torch
from torch.nn import functional as F

from hilum.cohort.samples import Sample
from hilum.model.bands import around
from hilum.model.fold import fold, rows
from hilum.model.ynet import BOX_REACH
from hilum.tensors import Labels, ScanBatch
from hilum.text.vocabulary import GATES
from hilum.train.augment import augment_siblings, moved, random_affine
from hilum.train.recipe import AugmentRecipe

SIDE = 8
"""Cells of a box along each axis."""
DIFFERS_HU = 15.0
"""Mean difference over 3x3x3 voxels from which two scans look different; noise of one scan stays below."""
SHARPLY = 0.4
"""Least difference of a voxel that looks different, as a share of the largest beside it: a mean over 3x3x3
voxels sees a nodule of four voxels as one of six."""
WHERE_DIFFERENT = 0.7
"""Share of boxes that are drawn where siblings differ."""


@dataclass(frozen=True)
class Box:
    """What `YNet.anomaly_box` and `objective.siblings` need of one.

    Args:
        scan: (S, 1, ...) HU / 1000, with what is around. shares: of its cells, (S, O, ...). labels: (S, D).
        inner: the box's own cells. gates: bool (N, D, 8) and differs: bool (N, 8), of the box's own cells.
    """

    scan: ScanBatch
    shares: torch.Tensor
    labels: Labels
    inner: tuple[slice, ...]
    gates: torch.Tensor
    differs: torch.Tensor


@dataclass(frozen=True)
class Boxes:
    """What a step that compares siblings sees: fewer boxes than asked where nothing came or went.

    Args:
        keys: of the scans that they were drawn from.
    """

    boxes: tuple[Box, ...]
    keys: tuple[str, ...]


@dataclass(frozen=True)
class Seats:
    """Where boxes of some scans of one patient may lie: a function of the scans alone, worked out once.

    Args:
        labels: (S, D), NaN where siblings can say nothing. cells: of a scan along each axis.
        opened, different: of each finding that came or went and has a gate, the cells of its gate, and those
            of them where siblings differ (all, if they differ in none): bits of a mask, packed.
    """

    labels: Labels
    cells: tuple[int, int, int]
    opened: dict[int, np.ndarray]
    different: dict[int, np.ndarray]

    def draw(self, generator: torch.Generator) -> tuple[int, int, int]:
        """A voxel that a box will hold; one of them must have a gate."""
        finding = list(self.opened)[_below(len(self.opened), generator)]
        where_different = float(torch.rand((), generator=generator)) < WHERE_DIFFERENT
        bits = (self.different if where_different else self.opened)[finding]
        at = np.flatnonzero(np.unpackbits(bits, count=math.prod(self.cells)))
        x, y, z = np.unravel_index(at[_below(len(at), generator)], self.cells)
        return 2 * int(x), 2 * int(y), 2 * int(z)


def seats_of(siblings: Sequence[Sample], unknown: torch.Tensor) -> Seats:
    """Of scans on one grid.

    Args:
        unknown: bool (D,), findings that siblings can say nothing of.
    """
    labels = torch.stack([one.labels for one in siblings]).masked_fill(unknown, torch.nan)
    organs = reduce(torch.maximum, [one.organs for one in siblings])
    opened = fold(organs[None])[0].unflatten(0, (-1, 8)).amax(1) >= 128
    x, y, z = opened.shape[1:]
    gates = {f: gate for f in told(labels) if (gate := opened[list(GATES[f])].any(0)).any()}
    if not gates:
        return Seats(labels, (x, y, z), {}, {})
    scans = torch.stack([one.scan for one in siblings])[:, None].float() / 1000
    different = fold(differ(scans))[0].any(0)
    both = {f: gate & different if (gate & different).any() else gate for f, gate in gates.items()}
    return Seats(labels, (x, y, z), _packed(gates), _packed(both))


def _packed(masks: dict[int, torch.Tensor]) -> dict[int, np.ndarray]:
    return {f: np.packbits(mask.cpu().numpy()) for f, mask in masks.items()}


def draw_box(
    siblings: Sequence[Sample],
    seats: Seats,
    spacing_mm: float,
    recipe: AugmentRecipe,
    generator: torch.Generator,
) -> Box | None:
    """A box of some scans of one patient; None if no finding came or went, or none of them has a gate.

    Args:
        seats: of these scans.
    """
    if not seats.opened:
        return None
    seat, shape = seats.draw(generator), siblings[0].grid.shape
    theta = random_affine(shape, spacing_mm, recipe, generator)
    own = [_side(at // 2, n, generator) for at, n in zip(moved(seat, theta, shape), seats.cells, strict=True)]
    # `model.bands` pools pairs of cells: crops begin and end as the whole scan's pairs do
    near = [
        slice(max(0, at.start - BOX_REACH) // 2 * 2, min(n, at.stop + BOX_REACH + 1) // 2 * 2)
        for at, n in zip(own, seats.cells, strict=True)
    ]
    voxels = tuple(slice(2 * at.start, 2 * at.stop) for at in near)
    inner = tuple(slice(at.start - by.start, at.stop - by.start) for at, by in zip(own, near, strict=True))
    scans, shares = augment_siblings(siblings, theta, voxels, recipe, generator)  # type: ignore[arg-type]
    return box_of(scans, shares, seats.labels, inner)


def told(labels: Labels) -> list[int]:
    """Findings that came or went."""
    return ((labels == 1).any(0) & (labels == 0).any(0)).nonzero().flatten().tolist()


def box_of(scan: ScanBatch, organs: torch.Tensor, labels: Labels, inner: tuple[slice, ...]) -> Box:
    """The cells `inner` of a crop.

    Args:
        scan: (S, 1, X, Y, Z), augmented alike. organs: (1, O, X, Y, Z), the largest share in any of them.
    """
    shares = F.avg_pool3d(organs, 2).expand(len(scan), -1, -1, -1, -1)
    held, differs = (rows(fold(x)[:, :, *inner])[0] for x in (organs, differ(scan)))
    opened = (held >= 0.5).unflatten(1, (-1, 8))
    gates = torch.stack([opened[:, list(organs_of)].any(1) for organs_of in GATES], 1)
    return Box(scan, shares, labels, inner, gates, differs)


def differ(scan: ScanBatch) -> torch.Tensor:
    """Where siblings (S, 1, X, Y, Z) look different: bool (1, 1, X, Y, Z)."""
    smooth = around(scan)
    apart, surely = (x.amax(0, keepdim=True) - x.amin(0, keepdim=True) for x in (scan, smooth))
    return (surely > DIFFERS_HU / 1000) & (apart >= SHARPLY * largest_around(apart))


def largest_around(x: torch.Tensor) -> torch.Tensor:
    """Largest of 3x3x3, one axis after the other: on a CPU `max_pool3d` takes ten times as long."""
    for axis in (2, 3, 4):
        n, whole = x.shape[axis] - 1, x.clone()
        for here, there in ((0, 1), (1, 0)):
            part = whole.narrow(axis, here, n)
            torch.maximum(part, x.narrow(axis, there, n), out=part)
        x = whole
    return x


def _side(at: int, cells: int, generator: torch.Generator) -> slice:
    """A box's cells along an axis that hold the cell `at`, anywhere in it."""
    start = min(max(0, at - _below(SIDE, generator)), max(0, cells - SIDE))
    return slice(start, start + min(SIDE, cells))


def _below(count: int, generator: torch.Generator) -> int:
    return int(torch.randint(count, (), generator=generator))
