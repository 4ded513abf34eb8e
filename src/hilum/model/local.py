"""The anomaly half's own eyes: what it says of a cell it has seen there.

A decoder that sees the whole scan learns to answer wherever it likes: pooled over an organ, any cell that
lights up is as good as the right one.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import nn
from torch.nn import functional as F

from hilum.model.fold import fold
from hilum.model.running import learn
from hilum.tensors import HalfFeatures

REACH = 3
"""Cells to each side that a `LocalStem` and a `LocalDecoder` see together."""

Sides = tuple[int, int, int, int, int, int]
"""For each axis its lower and its upper side: 1 where a crop ends with the scan, 0 where the scan goes on."""
WHOLE: Sides = (1, 1, 1, 1, 1, 1)


def trimmed(x: torch.Tensor, sides: Sides, by: int = 1) -> torch.Tensor:
    """(B, C, X, Y, Z) without `by` layers on the sides where the scan goes on."""
    ends = [(by * (1 - sides[2 * a]), x.shape[2 + a] - by * (1 - sides[2 * a + 1])) for a in range(3)]
    return x[:, :, *(slice(a, b) for a, b in ends)]


def convolved(layer: nn.Conv3d, x: torch.Tensor, sides: Sides) -> torch.Tensor:
    """A convolution of 3x3x3 with zeros beyond the scan alone: where the scan goes on, what a crop cannot
    know is not computed, so that a crop costs no more than what is asked of it."""
    closed = [side for axis in (2, 1, 0) for side in sides[2 * axis : 2 * axis + 2]]
    return F.conv3d(F.pad(x, closed), layer.weight, layer.bias)


class RunningNorm(nn.Module):
    """Each channel to mean 0 and variance 1 over all cells seen in training, then a learned scale and shift.

    What a cell is given depends on nothing else in its scan, so that boxes and whole scans agree. A norm
    across the channels of a cell would do that too, but all cells of a chest have most of their features in
    common: channels that are the same everywhere grew in training, and what tells one cell from another was
    divided by their length until nothing was left of it. Per channel, what all cells share falls out.
    Statistics carry no gradient, as in batch renormalisation (Ioffe, NeurIPS 2017) when it runs long.
    """

    mean: torch.Tensor
    variance: torch.Tensor
    seen: torch.Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(width)), nn.Parameter(torch.zeros(width))
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("variance", torch.ones(width))
        self.register_buffer("seen", torch.zeros(1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, C, U, V, W) -> the same shape."""
        if self.training:
            variance, mean = torch.var_mean(x.detach().float(), dim=(0, 2, 3, 4), correction=0)
            learn(self.seen, self.mean, self.variance, mean, variance)
        scale = self.weight * (self.variance + 1e-5).rsqrt()
        # a copy: the next box of a step changes the statistics before the gradient is taken
        shift = self.bias - self.mean.clone() * scale
        scale, shift = (part[:, None, None, None].to(x) for part in (scale, shift))
        return x * scale + shift


class LocalStem(nn.Module):
    """One convolution of cells, each with its eight voxels apart: 6x6x6 voxels are seen before anything is
    pooled.

    Args:
        windows: input channels. width: output channels.
    """

    def __init__(self, windows: int, width: int) -> None:
        super().__init__()
        self.first = nn.Conv3d(8 * windows, width, 3, padding=1)

    def forward(self, windows: torch.Tensor, sides: Sides = WHOLE) -> HalfFeatures:
        """(B, windows, X, Y, Z) -> (B, width, U, V, W): half of each axis, less a cell on every side where
        the scan goes on."""
        return torch.relu(convolved(self.first, fold(windows), sides))


class LocalDecoder(nn.Module):
    """Two convolutions at half resolution."""

    def __init__(self, skips: int, width: int) -> None:
        super().__init__()
        self.mix = nn.Conv3d(skips, width, 1)
        self.first = nn.Conv3d(width, width, 3, padding=1)
        self.second = nn.Conv3d(width, width, 3, padding=1)
        self.norms = nn.ModuleList(RunningNorm(width) for _ in range(3))

    def forward(self, skips: torch.Tensor, sides: Sides = WHOLE) -> torch.Tensor:
        """Features (B, C, U, V, W) -> (B, width, U, V, W), normed, less two cells on every side where the
        scan goes on."""
        x = torch.relu(self.norms[0](self.mix(skips)))
        y = convolved(self.second, torch.relu(self.norms[1](convolved(self.first, x, sides))), sides)
        return cast(torch.Tensor, self.norms[2](trimmed(x, sides, by=2) + y))
