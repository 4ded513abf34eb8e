"""Which patches a student does not see: blocks of slices, cut-out regions of volumes, to the exact count.

Source: blocks, Bao et al., BEiT, ICLR 2022, algorithm 1, as iBOT and DINOv2 use them; regions, FlexiCT §2
("Region Collaborative Cutout": 4 × 4 × 4 cells, a box in each, volume 0.02 to 0.05, aspect 0.5 to 2). That
the volume is a share of the whole scan, and that cells are visited in random order until enough is hidden, is
inferred.

The public code hides more than it is asked for (spec §2: .1 gives .124, .3 gives .356). Here the box that is
too large is cut to what is left, so that a view hides exactly round(ratio · patches): batches have one shape,
which compilers like, and ranks have equal work.

Grids in patches per axis. Everything is drawn from one `torch.Generator` on the CPU.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product

import torch

from hilum.errors import UsageError
from hilum.tensors import GridMask, ViewMasks

Box = tuple[slice, ...]


@dataclass(frozen=True)
class MaskPlan:
    """How much is hidden and in what shapes.

    Args:
        hidden_views: share of views with a mask. ratios: of their patches, spaced evenly over the masked
        views. block_patches: smallest block of a slice. block_aspect: a block's sides differ by at most this
        factor. cells: regions of a volume per axis. volumes: a region's box as a share of the volume.
        box_aspect: as above.
    """

    hidden_views: float = 0.5
    ratios: tuple[float, float] = (0.1, 0.5)
    block_patches: int = 4
    block_aspect: float = 1 / 0.3
    cells: int = 4
    volumes: tuple[float, float] = (0.02, 0.05)
    box_aspect: float = 2.0

    def __post_init__(self) -> None:
        wrong = [
            (name, shares)
            for name, shares in (
                ("hidden_views", (self.hidden_views,)),
                ("ratios", self.ratios),
                ("volumes", self.volumes),
            )
            if not all(0 <= share <= 1 for share in shares) or list(shares) != sorted(shares)
        ]
        wrong += [(n, getattr(self, n)) for n in ("block_patches", "cells") if getattr(self, n) < 1]
        wrong += [(n, getattr(self, n)) for n in ("block_aspect", "box_aspect") if not getattr(self, n) >= 1]
        if wrong:
            raise UsageError(
                "CONFIG_VALUE",
                f"{wrong[0][0]} of a mask plan is a share (lower one first), a count or a factor",
                expected="shares from 0 to 1, counts and factors from 1 on",
                got=wrong[0][1],
            )


def view_masks(
    grid: Sequence[int], views: int, generator: torch.Generator, plan: MaskPlan | None = None
) -> ViewMasks:
    """A mask per view, in random order: some views whole, the others with evenly spaced ratios.

    Args:
        grid: patches per axis, two axes of a slice or three of a volume. views: of the batch.

    Raises:
        UsageError: ``CONFIG_VALUE``, a grid of another rank or without patches.
    """
    plan = plan or MaskPlan()
    ratios = view_ratios(views, plan)
    order = torch.randperm(views, generator=generator).tolist()
    masks = torch.zeros((views, *grid), dtype=torch.bool)
    for view, ratio in zip(order, ratios, strict=False):
        masks[view] = patch_mask(grid, ratio, generator, plan)
    return masks


def view_ratios(views: int, plan: MaskPlan) -> list[float]:
    """Ratios of the views that are masked: half of them (rounded up) from .1 to .5 by default."""
    masked = math.floor(views * plan.hidden_views + 0.5)
    low, high = plan.ratios
    if masked == 1:
        return [(low + high) / 2]
    return [low + (high - low) * i / (masked - 1) for i in range(masked)]


def patch_mask(
    grid: Sequence[int], ratio: float, generator: torch.Generator, plan: MaskPlan | None = None
) -> GridMask:
    """One view's mask with exactly round(ratio · patches) hidden.

    Raises:
        UsageError: ``CONFIG_VALUE``, a grid of another rank or without patches, a ratio outside 0..1.
    """
    plan = plan or MaskPlan()
    if len(grid) not in (2, 3) or min(grid) < 1 or not 0 <= ratio <= 1:
        raise UsageError(
            "CONFIG_VALUE",
            "masks hide a share of a slice or a volume of patches",
            expected="a grid of 2 or 3 axes, a ratio from 0 to 1",
            got=(tuple(grid), ratio),
        )
    mask = torch.zeros(tuple(grid), dtype=torch.bool)
    left = round(ratio * mask.numel())
    draw = _blocks if len(grid) == 2 else _regions
    for _ in range(ROUNDS):
        for box in draw(grid, left, generator, plan):
            left -= _hide(mask, box, left, generator)
            if left == 0:
                return mask
    # nearly full: boxes find the last few patches too seldom
    _hide(mask, tuple(slice(0, side) for side in grid), left, generator)
    return mask


ROUNDS = 32
"""Rounds of boxes before what is left is hidden in order."""


def _blocks(grid: Sequence[int], left: int, generator: torch.Generator, plan: MaskPlan) -> Iterator[Box]:
    """One block anywhere, of a size between the smallest and all that is left."""
    least = min(plan.block_patches, max(left, 1))
    area = least + (left - least) * _uniform(generator)
    stretch = (2 * _uniform(generator) - 1) * math.log(plan.block_aspect) / 2
    sides = box_sides(grid, area / math.prod(grid), (stretch, -stretch))
    starts = [round((total - side) * _uniform(generator)) for total, side in zip(grid, sides, strict=True)]
    yield tuple(slice(a, a + side) for a, side in zip(starts, sides, strict=True))


def _regions(grid: Sequence[int], left: int, generator: torch.Generator, plan: MaskPlan) -> Iterator[Box]:
    """A box around a place in each cell, cells in random order."""
    cells = list(product(*(range(min(plan.cells, side)) for side in grid)))
    low, high = plan.volumes
    for which in torch.randperm(len(cells), generator=generator).tolist():
        draws = [_uniform(generator) for _ in range(7)]
        logs = [math.log(plan.box_aspect) * u for u in draws[:3]]
        stretch = [log - sum(logs) / 3 for log in logs]
        sides = box_sides(grid, low + (high - low) * draws[3], stretch)
        box = []
        for total, side, cell, u in zip(grid, sides, cells[which], draws[4:], strict=True):
            centre = (cell + u) * total / min(plan.cells, total)
            start = min(max(round(centre - side / 2), 0), total - side)
            box.append(slice(start, start + side))
        yield tuple(box)


def box_sides(grid: Sequence[int], share: float, stretch: Sequence[float]) -> list[int]:
    """Sides in patches of a box of about `share` of the grid; `stretch` is the logarithm of each side over
    its share of the grid, so that patches of any aspect make boxes of the same shape in the scan."""
    side = share ** (1 / len(grid))
    return [
        min(max(round(total * side * math.exp(s)), 1), total) for total, s in zip(grid, stretch, strict=True)
    ]


def _hide(mask: GridMask, box: Box, left: int, generator: torch.Generator) -> int:
    """Hide what is not yet hidden of a box, at most `left` patches: then a slab of it, cut along an axis
    drawn at random. Returns how many."""
    axis = int(torch.randint(mask.dim(), (1,), generator=generator))
    free = (~mask[box]).movedim(axis, 0).contiguous()
    places = free.flatten().nonzero().flatten()[:left]
    hidden = torch.zeros(free.numel(), dtype=torch.bool)
    hidden[places] = True
    mask[box] |= hidden.view(free.shape).movedim(0, axis)
    return len(places)


def _uniform(generator: torch.Generator) -> float:
    return float(torch.rand((), generator=generator))
