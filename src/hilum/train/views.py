"""Several looks at one slice or volume, for self-supervision: a few large crops, many small ones.

What is random is drawn from a generator on the CPU, in one order, whatever device the picture is on: a step's
views are a function of its seed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch.nn import functional as F

from hilum.tensors import ScanCrop, ScanView, ViewBatch, ViewStack

Range = tuple[float, float]


@dataclass(frozen=True)
class Box:
    """A part of a picture, in its voxels.

    Args:
        start, size: per axis. flipped: axes that the view shows the other way round.
    """

    start: tuple[int, ...]
    size: tuple[int, ...]
    flipped: tuple[int, ...] = ()


@dataclass(frozen=True)
class Views:
    """Views of one scan [V, 1, ...], or of a batch [V, B, 1, ...].

    Args:
        whole: large crops. parts: small ones.
        anchor: the large ones again for a Gram teacher, undistorted and perhaps finer; None without.
        boxes: of `whole`, then of `parts`, for one scan; empty for a batch.
    """

    whole: ViewStack | ViewBatch
    parts: ViewStack | ViewBatch
    anchor: ViewStack | ViewBatch | None = None
    boxes: tuple[Box, ...] = ()


def stack_views(scans: Sequence[Views]) -> Views:
    """Views of a batch, views first as the losses want them."""
    anchors = [views.anchor for views in scans]
    return Views(
        torch.stack([views.whole for views in scans], 1),
        torch.stack([views.parts for views in scans], 1),
        None if any(a is None for a in anchors) else torch.stack([a for a in anchors if a is not None], 1),
    )


def whole_number(low: int, high: int, generator: torch.Generator) -> int:
    """One of low..high."""
    return int(torch.randint(low, high + 1, (), generator=generator))


def happens(chance: float, generator: torch.Generator) -> bool:
    """True with `chance`."""
    return float(torch.rand((), generator=generator)) < chance


def show(image: ScanCrop, box: Box, side: int) -> ScanView:
    """The part of a picture in `box`, resized to `side` voxels along each axis.

    Slices: bicubic, smoothed where they shrink; volumes: trilinear.
    """
    inner = tuple(slice(a, a + n) for a, n in zip(box.start, box.size, strict=True))
    part = image[:, *inner][None]
    size = [side] * len(box.size)
    if len(size) == 2:
        part = F.interpolate(part, size, mode="bicubic", antialias=True)
    else:
        part = F.interpolate(part, size, mode="trilinear")
    return part[0].flip([axis + 1 for axis in box.flipped]) if box.flipped else part[0]


def show_all(image: ScanCrop, boxes: Sequence[Box], side: int) -> ViewStack:
    """One view per box."""
    return torch.stack([show(image, box, side) for box in boxes])
