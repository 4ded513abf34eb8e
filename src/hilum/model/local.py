"""The anomaly half's own eyes: what it says of a cell it has seen there.

A decoder that sees the whole scan learns to answer wherever it likes: pooled over an organ, any cell that
lights up is as good as the right one.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import nn

from hilum.model.fold import fold
from hilum.tensors import HalfFeatures

REACH = 3
"""Cells to each side that a `LocalStem` and a `LocalDecoder` see together."""


class LocalStem(nn.Module):
    """Two convolutions on the full grid, folded to half of it: small things are seen before they are folded.

    Args:
        windows: input channels. width: channels on the full grid. out: channels at half resolution.
    """

    def __init__(self, windows: int, width: int, out: int) -> None:
        super().__init__()
        self.first = nn.Conv3d(windows, width, 3, padding=1)
        self.second = nn.Conv3d(width, width, 3, padding=1)
        self.mix = nn.Conv3d(8 * width, out, 1)

    def forward(self, windows: torch.Tensor) -> HalfFeatures:
        """(B, windows, X, Y, Z) -> (B, out, X / 2, Y / 2, Z / 2)."""
        x = torch.relu(self.first(windows))
        x = x + torch.relu(self.second(x))
        return cast(torch.Tensor, self.mix(fold(x)))


class LocalDecoder(nn.Module):
    """Two convolutions at half resolution, norms within each cell."""

    def __init__(self, skips: int, width: int) -> None:
        super().__init__()
        self.mix = nn.Conv3d(skips, width, 1)
        self.first = nn.Conv3d(width, width, 3, padding=1)
        self.second = nn.Conv3d(width, width, 3, padding=1)
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(3))

    def forward(self, *skips: torch.Tensor) -> torch.Tensor:
        """Features of one resolution -> (B, width, U, V, W), normed."""
        x = torch.relu(self._norm(0, self.mix(torch.cat(skips, dim=1))))
        x = x + self.second(torch.relu(self._norm(1, self.first(x))))
        return self._norm(2, x)

    def _norm(self, which: int, x: torch.Tensor) -> torch.Tensor:
        return cast(torch.Tensor, self.norms[which](x.movedim(1, -1))).movedim(-1, 1)
