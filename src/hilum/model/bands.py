"""What the scan itself says of a cell and of its neighbourhood, before any convolution.

A cell is 2x2x2 voxels. Convolutions with instance norms forget the absolute scale of a scan, and a scan label
is too weak to teach them HU again; here the scale is given. Every voxel's value is spread over fixed bands of
HU (linear interpolation between knots: windows side by side), and so is what sticks out of its surroundings,
which no contrast phase and no offset of the scanner changes.

With scan labels alone these features find bright, dark and diffuse things within a few hundred scans: calcium
is a band, emphysema a share of a band, a nodule a contrast.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.nn import functional as F

from hilum.model.fold import fold, rows, unrows
from hilum.tensors import HalfFeatures, OrganShares, ScanBatch

GAIN = 3.0
"""Factor of what is known of a cell. Shares are small numbers, and Adam's steps are of one size whatever the
gradient: without it the heads learn a third as fast."""

VALUES = 3 * 8
"""Channels of `voxel_values`: three numbers of each of a cell's eight voxels."""


def banded(values: torch.Tensor, knots: Sequence[torch.Tensor], dtype: torch.dtype) -> torch.Tensor:
    """Each value's share of each band, by linear interpolation between knots: (..., kinds) -> (..., bands of
    every kind). The shares of a kind sum to 1; beyond its outer knots the outer band takes all."""
    index, share, start = [], [], 0
    for value, own in zip(values.unbind(-1), knots, strict=True):
        right = torch.bucketize(value.contiguous(), own[1:-1]) + 1
        part = ((value - own[right - 1]) / (own[right] - own[right - 1])).clamp(0, 1)
        index += [start + right - 1, start + right]
        share += [1 - part, part]
        start += len(own)
    bands = values.new_zeros(*values.shape[:-1], start, dtype=dtype)
    return bands.scatter_(-1, torch.stack(index, -1), torch.stack(share, -1).to(dtype))


def twice(x: torch.Tensor) -> torch.Tensor:
    """(B, C, U, V, W) -> every axis twice as long, values repeated."""
    return F.interpolate(x, scale_factor=2.0, mode="nearest")


def around(x: torch.Tensor) -> torch.Tensor:
    """Mean over 3x3x3; the border counts what is there. One axis after the other: on a CPU the same sums by
    `avg_pool3d` take far longer."""
    for axis in (2, 3, 4):
        n = x.shape[axis]
        total, count = x.clone(), x.new_full([n], 3.0)
        total.narrow(axis, 1, n - 1).add_(x.narrow(axis, 0, n - 1))
        total.narrow(axis, 0, n - 1).add_(x.narrow(axis, 1, n - 1))
        count[0] -= 1
        count[-1] -= 1
        x = total / count.view([-1 if axis == a else 1 for a in range(5)])
    return x


def voxel_values(scan: ScanBatch) -> HalfFeatures:
    """HU / 1000 -> (B, 24, U, V, W): of each of the eight voxels its value, its contrast to the 24 mm
    around it and the contrast of the 12 mm around it (on a 4 mm grid)."""
    # metal would drown its whole neighbourhood
    tamed = scan.clamp(-1.0, 1.0)
    surroundings = twice(around(F.avg_pool3d(tamed, 2)))
    return torch.cat([fold(x) for x in (scan, tamed - surroundings, around(tamed) - surroundings)], dim=1)


def neighbourhood(scan: ScanBatch, organs: OrganShares | None, knots: torch.Tensor) -> HalfFeatures:
    """How much of 24 mm and of 48 mm around each cell is in each band, and in each organ if given."""
    folded = fold(scan)
    cell = unrows(banded(rows(folded)[..., None], [knots], folded.dtype).mean(2), folded.shape[2:])
    cell = cell if organs is None else torch.cat([cell, organs], dim=1)
    return torch.cat([around(cell), twice(around(F.avg_pool3d(cell, 2)))], dim=1)


class CellReader(torch.nn.Module):
    """Everything known of a cell -> features that a linear head reads: both signs of its decoder features
    (CReLU), bands of its voxels and of the highest of them, its neighbourhood, and a small perceptron over
    all of it.

    Args:
        width: decoder features per cell. organs: organ channels it is told of, 0 for none.
        bands_hu, contrast_hu: knots. hidden: width of the perceptron.
    """

    bands: torch.Tensor
    contrasts: torch.Tensor

    def __init__(
        self, width: int, organs: int, bands_hu: Sequence[float], contrast_hu: Sequence[float], hidden: int
    ) -> None:
        super().__init__()
        self.organs = organs
        self.register_buffer("bands", torch.tensor(bands_hu) / 1000.0, persistent=False)
        self.register_buffer("contrasts", torch.tensor(contrast_hu) / 1000.0, persistent=False)
        self.count = len(bands_hu) + 2 * len(contrast_hu)
        known = 2 * width + 2 * self.count + 2 * len(bands_hu) + 3 * organs
        self.hidden = torch.nn.Sequential(
            torch.nn.Linear(known, hidden), torch.nn.ReLU(), torch.nn.Linear(hidden, hidden), torch.nn.ReLU()
        )
        self.out_width = known + hidden

    @property
    def context_width(self) -> int:
        """Channels of `context`."""
        return 2 * len(self.bands) + 3 * self.organs + VALUES

    @torch.no_grad()
    def context(self, scan: ScanBatch, organs: OrganShares | None) -> HalfFeatures:
        """What is known of each cell without the decoder: organ shares if given, neighbourhood, voxel
        values."""
        own = [] if organs is None else [organs]
        return torch.cat([*own, neighbourhood(scan, organs, self.bands), voxel_values(scan)], dim=1)

    def forward(
        self, decoded: torch.Tensor, context: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Decoder features (N, width) and context (N, C) of cells -> features (N, `out_width`), CReLU
        features (N, 2 width), and the bands of each of the eight voxels (N, 8, `count`)."""
        rest, values = context.tensor_split([context.shape[1] - VALUES], dim=1)
        values = values.unflatten(1, (3, 8)).transpose(1, 2)
        knots = (self.bands, self.contrasts, self.contrasts)
        voxels = GAIN * banded(values, knots, decoded.dtype)
        highest = GAIN * banded(values.amax(1), knots, decoded.dtype)
        signs = torch.cat([torch.relu(decoded), torch.relu(-decoded)], dim=1)
        known = torch.cat([signs, voxels.mean(1), highest, GAIN * rest.to(decoded)], dim=1)
        return torch.cat([known, self.hidden(known)], dim=1), signs, voxels
