"""Boxes in which a step compares siblings: mostly where they differ, in the gate of a finding that came or
went; the rest anywhere in that gate, so that ordinary tissue is seen too."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch.nn import functional as F

from hilum.model.fold import fold, rows
from hilum.model.ynet import BOX_REACH
from hilum.tensors import Labels, ScanBatch
from hilum.text.vocabulary import GATES

SIDE = 12
"""Cells of a box along each axis."""
DIFFERS_HU = 15.0
"""Mean difference over 3x3x3 voxels from which two scans look different; noise of one scan stays below."""
WHERE_DIFFERENT = 0.7
"""Share of boxes that are drawn where siblings differ."""


@dataclass(frozen=True)
class Siblings:
    """Scans of one patient on one grid, as a step compares them.

    Args:
        scan: (S, 1, X, Y, Z) HU / 1000. organs: (1, O, X, Y, Z), the largest share in any of them.
        labels: (S, D). gates: bool (D, U, V, W, 8), where each finding may lie. differs: bool (U, V, W, 8).
    """

    scan: ScanBatch
    organs: torch.Tensor
    labels: torch.Tensor
    gates: torch.Tensor
    differs: torch.Tensor

    @classmethod
    def of(cls, scan: ScanBatch, organs: torch.Tensor, labels: Labels) -> Siblings:
        """Augmented alike; `organs`: the largest shares of any of them."""
        smooth = F.avg_pool3d(scan, 3, stride=1, padding=1, count_include_pad=False)
        differs = (smooth.amax(0) - smooth.amin(0) > DIFFERS_HU / 1000)[None]
        half = tuple(n // 2 for n in scan.shape[2:])
        open_ = rows(fold(organs) >= 0.5)[0].unflatten(1, (-1, 8))
        gates = torch.stack([open_[:, list(organs_of)].any(1) for organs_of in GATES])
        cells = rows(fold(differs))[0]
        return cls(scan, organs, labels, gates.unflatten(1, half), cells.unflatten(0, half))

    @property
    def told(self) -> list[int]:
        """Findings that came or went."""
        return ((self.labels == 1).any(0) & (self.labels == 0).any(0)).nonzero().flatten().tolist()

    def box(self, start: Sequence[int]) -> Box:
        """The box that begins at a cell."""
        half = self.differs.shape[:3]
        side = [min(SIDE, n) for n in half]
        # `model.bands` pools pairs of cells: crops begin and end as the whole scan's pairs do
        low = [max(0, a - BOX_REACH) // 2 * 2 for a in start]
        high = [min(n, a + b + BOX_REACH + 1) // 2 * 2 for a, b, n in zip(start, side, half, strict=True)]
        voxels = [slice(2 * a, 2 * b) for a, b in zip(low, high, strict=True)]
        own = [slice(a, a + b) for a, b in zip(start, side, strict=True)]
        inner = tuple(slice(at.start - a, at.stop - a) for at, a in zip(own, low, strict=True))
        organs = F.avg_pool3d(self.organs[:, :, *voxels], 2).expand(len(self.scan), -1, -1, -1, -1)
        gates, differs = self.gates[:, *own].flatten(1, 3), self.differs[*own].flatten(0, 2)
        return Box(self.scan[:, :, *voxels], organs, inner, gates.transpose(0, 1), differs)


@dataclass(frozen=True)
class Box:
    """What `YNet.anomaly_box` and `objective.siblings` need of one.

    Args:
        scan: (S, 1, ...) with what is around. shares: of its cells, (S, O, ...). inner: the box's own cells.
        gates: bool (N, D, 8) and differs: bool (N, 8), of the box's own cells.
    """

    scan: ScanBatch
    shares: torch.Tensor
    inner: tuple[slice, ...]
    gates: torch.Tensor
    differs: torch.Tensor


def draw_boxes(siblings: Siblings, count: int, generator: torch.Generator) -> Iterator[Box]:
    """`count` boxes; none if no finding came or went, or none of them has a gate."""
    differs = siblings.differs.any(-1)
    places = {f: siblings.gates[f].any(-1) for f in siblings.told}
    places = {f: place for f, place in places.items() if bool(place.any())}
    told = list(places)
    for _ in range(count if told else 0):
        place = places[told[_below(len(told), generator)]]
        different = place & differs
        if float(torch.rand((), generator=generator)) < WHERE_DIFFERENT and bool(different.any()):
            place = different
        cells = place.nonzero()
        cell = cells[_below(len(cells), generator)].tolist()
        yield siblings.box([_start(at, n, generator) for at, n in zip(cell, place.shape, strict=True)])


def _start(at: int, cells: int, generator: torch.Generator) -> int:
    """Where a box begins that holds the cell, anywhere in it."""
    return min(max(0, at - _below(SIDE, generator)), max(0, cells - SIDE))


def _below(count: int, generator: torch.Generator) -> int:
    return int(torch.randint(count, (), generator=generator))
