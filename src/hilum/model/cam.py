"""The baseline: a globally pooled classifier of the same size with class-activation maps.

The same encoder; a decoder brings features to half resolution; the same `CellReader` reads them beside the
bands of the scan; one linear head reads their global average (logit-mean) for the scan and the same weights
read every cell for the map (Zhou et al., CVPR 2016). It sees no organs.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from hilum.model.bands import CellReader
from hilum.model.fold import rows, unrows
from hilum.model.ynet import Encoder, InstanceNorm, Up, YNetConfig, channels_last, start_head
from hilum.tensors import AnomalyLogits, ScanBatch


@dataclass(frozen=True)
class CamOutput:
    """`scan`: logits (B, D). `maps`: logits of the same head at every voxel of the half-resolution grid."""

    scan: torch.Tensor
    maps: AnomalyLogits


class CamNet(nn.Module):
    """Encoder, decoder, global average pooling, linear head."""

    def __init__(self, config: YNetConfig) -> None:
        super().__init__()
        a, b, c, d = config.widths
        # a decoder wide enough that the baseline has no fewer parameters than the Y-net
        self.encoder = Encoder(config)
        wide = 11 * c // 10
        self.up = nn.ModuleList([Up(d, c, wide), Up(wide, b, b), Up(b, a, config.abn_width)])
        self.norm = InstanceNorm(config.abn_width)
        self.reader = CellReader(config.abn_width, 0, config.bands_hu, config.contrast_hu, config.reader)
        self.head = nn.Linear(self.reader.out_width, config.findings)
        start_head(self.head, -1.5)
        channels_last(self)

    def forward(self, scan: ScanBatch) -> CamOutput:
        """HU / 1000 with axes divisible by 16 -> scan logits and voxel logits."""
        e1, e2, e3, e4 = self.encoder(scan)
        x = self.norm(self.up[2](self.up[1](self.up[0](e4, e3), e2), e1))
        context = self.reader.context(scan, None)
        features, _, _ = self.reader(rows(x).flatten(0, 1), rows(context).flatten(0, 1))
        maps = unrows(self.head(features).float().unflatten(0, (len(scan), -1)), x.shape[2:])
        return CamOutput(maps.mean((2, 3, 4)), maps)
