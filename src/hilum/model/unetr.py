"""The convolutional blocks of UNETR (arXiv:2103.10504) with residual units and instance norms without
parameters, as EXACT uses them (EXACT §1.2)."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

EPS = 1e-5
SLOPE = 0.01


def instance_norm(x: Tensor) -> Tensor:
    """Each channel of each scan to mean 0 and variance 1: (B, C, U, V, W)."""
    return F.instance_norm(x, eps=EPS)


class ResBlock(nn.Module):
    """Two convolutions of 3x3x3 beside a skip, through a 1x1x1 convolution where widths differ."""

    def __init__(self, before: int, width: int) -> None:
        super().__init__()
        self.first = nn.Conv3d(before, width, 3, padding=1, bias=False)
        self.second = nn.Conv3d(width, width, 3, padding=1, bias=False)
        self.skip = nn.Conv3d(before, width, 1, bias=False) if before != width else None

    def forward(self, x: Tensor) -> Tensor:
        """(B, before, U, V, W) -> (B, width, U, V, W)."""
        y = F.leaky_relu(instance_norm(self.first(x)), SLOPE)
        y = instance_norm(self.second(y))
        skip = x if self.skip is None else instance_norm(self.skip(x))
        return F.leaky_relu(y + skip, SLOPE)


class UpBlock(nn.Module):
    """Twice as fine by a transposed convolution, then a `ResBlock` with the skip beside."""

    def __init__(self, below: int, width: int) -> None:
        super().__init__()
        self.up = nn.ConvTranspose3d(below, width, 2, stride=2, bias=False)
        self.block = ResBlock(2 * width, width)

    def forward(self, below: Tensor, skip: Tensor) -> Tensor:
        """(B, below, U, V, W) and (B, width, 2U, 2V, 2W) -> the skip's shape."""
        return cast(Tensor, self.block(torch.cat([self.up(below), skip], dim=1)))
