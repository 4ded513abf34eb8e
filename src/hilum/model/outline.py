"""Organ borders at half the voxel of the model's grid.

What an organ is, the Y-net says on its grid; where exactly it ends, the scan itself says more finely. A small
network reads the finer scan, folded onto the grid, beside the organ logits and the organ decoder's features,
and corrects the interpolated logits. It sees 10 mm around a voxel, so it moves borders and invents no organs.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from hilum.model.fold import fold, unfold
from hilum.tensors import FineLogits, FineScan, GridLogits, HalfFeatures, ScanBatch

GAIN = 5.0
"""Factor of the corrections, as of the Y-net's organ logits."""


def windows(scan: ScanBatch, low: torch.Tensor, high: torch.Tensor) -> torch.Tensor:
    """HU / 1000 clipped to each window and scaled to [-1, 1], one channel per window."""
    return (scan.clamp(low, high) - low) / (high - low) * 2 - 1


class Outliner(nn.Module):
    """Two convolutions on the model's grid, eight voxels of the finer grid in each of its voxels.

    Args:
        inputs: windows of the scan. features: channels of the organ decoder at 1/2. organs: channels out.
        width: channels between.
    """

    def __init__(self, inputs: int, features: int, organs: int, width: int) -> None:
        super().__init__()
        self.up = nn.ConvTranspose3d(features, width, 2, stride=2)
        self.first = nn.Conv3d(8 * inputs + organs + width, width, 3, padding=1)
        self.second = nn.Conv3d(width, width, 3, padding=1)
        self.head = nn.Conv3d(width, 8 * organs, 1)
        for parameter in self.head.parameters():
            nn.init.zeros_(parameter)

    def forward(self, fine: FineScan, logits: GridLogits, decoder: HalfFeatures) -> FineLogits:
        """Windows of the finer scan, organ logits on the grid and decoder features at 1/2 -> logits on the
        finer grid."""
        known = [fold(fine), logits / GAIN, self.up(decoder)]
        x = torch.cat([part.to(decoder) for part in known], dim=1)
        x = torch.relu(self.first(x.contiguous(memory_format=torch.channels_last_3d)))
        x = x + torch.relu(self.second(x))
        coarse = F.interpolate(logits, scale_factor=2.0, mode="trilinear")
        return coarse + GAIN * unfold(self.head(x).float())
