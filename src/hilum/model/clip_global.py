"""A baseline that learns from whole reports: one globally pooled embedding per scan, as CLIP and CT-CLIP have
it.

The encoder, decoder and cell reader of `model.cam`, widened to the Y-net's number of parameters. It sees no
organs. What differs from CT-CLIP: a convolutional trunk instead of CT-ViT, the mean of all cells instead of a
linear map of all tokens, a frozen sentence encoder instead of a trained CXR-BERT.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import nn

from hilum.model.align import AlignConfig, AlignedOutput, PooledLinear, TextSide, contributions
from hilum.model.bands import CellReader
from hilum.model.fold import rows, unrows
from hilum.model.ynet import Encoder, InstanceNorm, Up, channels_last
from hilum.tensors import HalfFeatures, ScanBatch


class ClipNet(nn.Module):
    """Encoder, decoder, cell reader, linear map into the space, global mean."""

    def __init__(self, config: AlignConfig) -> None:
        super().__init__()
        a, b, c, d = config.widths
        self.config = config
        self.encoder = Encoder(config)
        wide = config.wide or c
        self.up = nn.ModuleList([Up(d, c, wide), Up(wide, b, b), Up(b, a, config.abn_width)])
        self.norm = InstanceNorm(config.abn_width)
        self.reader = CellReader(config.abn_width, 0, config.bands_hu, config.contrast_hu, config.reader)
        self.project = PooledLinear(1, self.reader.out_width, config.size)
        self.text = TextSide(config)
        channels_last(self)

    def features(self, scan: ScanBatch) -> HalfFeatures:
        """HU / 1000 with axes divisible by 16 -> features at 1/2."""
        e1, e2, e3, e4 = self.encoder(scan)
        return cast(torch.Tensor, self.norm(self.up[2](self.up[1](self.up[0](e4, e3), e2), e1)))

    def read(self, scan: ScanBatch) -> torch.Tensor:
        """One scan -> what is known of its cells (N, C)."""
        x, context = self.features(scan), self.reader.context(scan, None)
        return cast(torch.Tensor, self.reader(rows(x)[0], rows(context)[0])[0])

    def embedding(self, read: torch.Tensor) -> torch.Tensor:
        """Cells of one scan -> its embedding (E,), not of length 1: that of their mean."""
        return cast(torch.Tensor, self.project(read.float().mean(0, keepdim=True)))[0]

    def forward(self, scan: ScanBatch, cosine: bool = False) -> AlignedOutput:
        """One scan, HU / 1000 -> scores and similarity maps."""
        read, directions = self.read(scan), self.text.directions()
        whole = self.embedding(read)
        maps = contributions(self.project.cells(read)[:, 0], whole, directions, cosine=cosine)
        score = (whole / whole.norm().clamp_min(1e-6)) @ directions.T
        shape = [n // 2 for n in scan.shape[2:]]
        return AlignedOutput(score[None], unrows(maps[None], shape))
