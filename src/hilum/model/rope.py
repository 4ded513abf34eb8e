"""Where a patch lies, as a rotation of queries and keys: axial rotary encoding of slices and volumes.

Every axis turns channels of its own, at periods of its own, so that the product of a query and a key depends
on how far apart two patches are and not on where they are. Nothing is learned and nothing is stored: any grid
has its table.

Source: FlexiCT §1, which has it from DINOv3 (Siméoni et al., 2025); the idea is RoFormer's (Su et al., 2021).
Kept as published: in 3D the exponents of the periods step as in 2D, 2 i / (head / 2), and so stop early (for
a head of 72 channels the longest period is 16.7, in 2D 77.4). ``full`` goes up to the base in 3D as well, as
SPECTRE has it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch

from hilum.tensors import Coordinates, HeadTokens, RotaryTable


class Rotation(NamedTuple):
    """Cosine and sine of every patch's angles. Channel j turns together with channel j + head / 2.

    Args:
        cos, sin: (N, head / 2), axis by axis; (B, 1, N, head / 2) where every scan has its own places.
    """

    cos: RotaryTable
    sin: RotaryTable


def periods(head: int, axes: int, base: float, like: torch.Tensor, full: bool = False) -> torch.Tensor:
    """Periods of one axis, in units of half a field: (head / (2 axes),), of the kind of `like`."""
    steps = torch.arange(head // (2 * axes), device=like.device, dtype=like.dtype)
    return base ** (2 * steps / (head // (axes if full else 2)))


def coordinates(grid: Sequence[int], *, device: torch.device, dtype: torch.dtype) -> Coordinates:
    """Patch centres of a grid, each axis on its own from -1 to 1: (N, axes), last axis fastest.

    A crop of half the width has the same coordinates: they are relative to what is seen.
    """
    lines = [2 * torch.arange(0.5, n, device=device, dtype=dtype) / n - 1 for n in grid]
    return torch.stack(torch.meshgrid(*lines, indexing="ij"), dim=-1).flatten(0, -2)


def coordinates_mm(
    grid: Sequence[int],
    patch_mm: Sequence[float],
    extent_mm: float,
    *,
    device: torch.device,
    dtype: torch.dtype,
) -> Coordinates:
    """The same from millimetres: 0 in the middle of the crop, ±1 half of `extent_mm` away: (N, axes).

    A distance is then the same number in every crop.

    Args:
        grid: patches per axis. patch_mm: width of a patch per axis. extent_mm: a width, e.g. of a chest.
    """
    lines = [
        (2 * torch.arange(n, device=device, dtype=dtype) + 1 - n) * (size / extent_mm)
        for n, size in zip(grid, patch_mm, strict=True)
    ]
    return torch.stack(torch.meshgrid(*lines, indexing="ij"), dim=-1).flatten(0, -2)


def rotation(places: Coordinates, head: int, base: float, full: bool = False) -> Rotation:
    """Angles of patches at `places` for heads of `head` channels, a multiple of 2 · axes."""
    axis = periods(head, places.shape[1], base, places, full)
    angles = (2 * math.pi * places[:, :, None] / axis).flatten(1)
    return Rotation(angles.cos(), angles.sin())


def rotate(tokens: HeadTokens, table: Rotation) -> HeadTokens:
    """Turns the last N tokens by the table's N rows; tokens before them (CLS, registers) have no place and
    stay. Computed in the table's precision, given back in the tokens'.
    """
    exact = tokens.to(table.cos.dtype)
    prefix = tokens.shape[2] - table.cos.shape[-2]
    first, second = exact[:, :, prefix:].chunk(2, dim=-1)
    turned = [first * table.cos - second * table.sin, second * table.cos + first * table.sin]
    return torch.cat([exact[:, :, :prefix], torch.cat(turned, dim=-1)], dim=2).to(tokens.dtype)


def draw_rescale(limit: float, generator: torch.Generator | None = None) -> torch.Tensor:
    """A factor for all coordinates of a step, log-uniform between 1 / limit and limit (train time only): ()
    on the generator's device.

    Args:
        limit: 1 or more; 1 gives 1.
    """
    device = "cpu" if generator is None else generator.device
    span = math.log(limit)
    return ((2 * torch.rand((), generator=generator, device=device) - 1) * span).exp()
