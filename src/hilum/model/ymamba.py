"""Y-Mamba: EXACT's network (EXACT §1.2). A Mamba encoder, a decoder of organs and a decoder of anomalies,
organ features flowing one way into the anomalies'.

The arithmetic is that of the published model. What differs, and why:

* it returns logits, the published model probabilities: losses are exact in logits only;
* the encoder may be recomputed in the backward pass (`checkpoint`), and anomaly gradients may stop at the
  organ decoder (`detach`); neither is so in the published model, nor here by default;
* the ``tri`` mixer, which the paper's drawing has and its code has not;
* any size divisible by 16 goes in, not 64 x 128 x 128 alone;
* convolutions that an instance norm follows keep their biases, which the norm takes away again: they are
  among the published weights.

Axes are those of the preparation: ``exact`` gives [S, R, A] as published.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from hilum.errors import InputRefused, WeightsError
from hilum.model.mamba import MIXERS, MambaLayer, Mixer
from hilum.model.unetr import ResBlock, UpBlock, instance_norm
from hilum.model.ynet import YNetOutput
from hilum.tensors import ScanBatch

MULTIPLE = 16
"""Every axis of a scan is a multiple of it."""


@dataclass(frozen=True)
class YMambaConfig:
    """A preset's numbers; the defaults are the published model's.

    Args:
        widths: channels at 1/2, 1/4, 1/8, 1/16 of the grid. hidden: after the last stage.
        depth: Mamba layers per stage. d_state, d_conv, expand: of each (`model.mamba.Mamba`).
        mixer: ``mamba`` one order of tokens, ``tri`` three.
        organs, findings: output channels.
        detach: anomaly gradients stop at the organ decoder's features. checkpoint: stages of the encoder are
            computed again in the backward pass instead of kept.

    Raises:
        WeightsError: `CONFIG_VALUE` for numbers that make no network.
    """

    widths: tuple[int, int, int, int] = (48, 96, 192, 384)
    hidden: int = 768
    depth: tuple[int, int, int, int] = (2, 2, 2, 2)
    d_state: int = 16
    d_conv: int = 4
    expand: int = 2
    mixer: str = "mamba"
    organs: int = 7
    findings: int = 18
    detach: bool = False
    checkpoint: bool = False

    def __post_init__(self) -> None:
        single = (self.hidden, self.d_state, self.d_conv, self.expand, self.organs, self.findings)
        whole = all(isinstance(n, int) and n > 0 for n in (*self.widths, *self.depth, *single))
        if not whole or len(self.widths) != 4 or len(self.depth) != 4 or self.mixer not in MIXERS:
            raise WeightsError(
                "CONFIG_VALUE", "preset.net makes a network",
                expected=f"whole numbers above 0, four widths and depths, mixer of {', '.join(MIXERS)}",
                got=self,
            )  # fmt: skip


class Mixture(nn.Module):
    """Gated spatial convolution: what 3x3x3 convolutions see, plus what a 1x1x1 convolution sees, mixed,
    beside a skip (SegMamba's GSC; EXACT §1.2)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = nn.Conv3d(width, width, 3, padding=1)
        self.second = nn.Conv3d(width, width, 3, padding=1)
        self.point = nn.Conv3d(width, width, 1)
        self.mix = nn.Conv3d(width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, U, V, W) -> the same shape."""
        near = _normed(self.second, _normed(self.first, x))
        return x + _normed(self.mix, near + _normed(self.point, x))


def _normed(conv: nn.Module, x: Tensor) -> Tensor:
    return F.relu(instance_norm(conv(x)))


class Stage(nn.Module):
    """One resolution of the encoder: step down, mixture, Mamba layers; and what the decoders get of it."""

    def __init__(self, config: YMambaConfig, level: int) -> None:
        super().__init__()
        width = config.widths[level]
        self.first = level == 0
        self.step = (
            nn.Conv3d(1, width, 7, stride=2, padding=3)
            if self.first
            else nn.Conv3d(config.widths[level - 1], width, 2, stride=2)
        )
        self.mixture = Mixture(width)
        numbers = (config.d_state, config.d_conv, config.expand, cast(Mixer, config.mixer))
        self.layers = nn.Sequential(*(MambaLayer(width, *numbers) for _ in range(config.depth[level])))
        self.up, self.down = nn.Conv3d(width, 2 * width, 1), nn.Conv3d(2 * width, width, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """What the next stage gets, and what the decoders get."""
        x = self.layers(self.mixture(self.step(x if self.first else instance_norm(x))))
        return x, self.down(F.gelu(self.up(instance_norm(x))))


class Encoder(nn.Module):
    """Four stages at 1/2, 1/4, 1/8, 1/16; returns what each gives the decoders."""

    def __init__(self, config: YMambaConfig) -> None:
        super().__init__()
        self.again = config.checkpoint
        self.stages = nn.ModuleList(Stage(config, level) for level in range(4))

    def forward(self, scan: ScanBatch) -> list[Tensor]:
        """(B, 1, U, V, W) -> four features, fine to coarse."""
        x, found = scan, []
        for stage in self.stages:
            x, given = self._run(stage, x)
            found.append(given)
        return found

    def _run(self, stage: Callable[[Tensor], tuple[Tensor, Tensor]], x: Tensor) -> tuple[Tensor, Tensor]:
        if not (self.again and torch.is_grad_enabled()):
            return stage(x)
        again = checkpoint(stage, x, use_reentrant=False, preserve_rng_state=False)
        return cast(tuple[Tensor, Tensor], again)


class YMamba(nn.Module):
    """The whole network; see the module's docstring."""

    def __init__(self, config: YMambaConfig) -> None:
        super().__init__()
        self.config = config
        a, b, c, d = config.widths
        self.encoder = Encoder(config)
        pairs = [(1, a), (a, b), (b, c), (c, d), (d, config.hidden)]
        self.skips = nn.ModuleList(ResBlock(before, width) for before, width in pairs)
        self.seg = nn.ModuleList([UpBlock(config.hidden, d), UpBlock(d, c), UpBlock(c, b), UpBlock(b, a)])
        self.seg_last = ResBlock(a, a)
        # each anomaly block but the first reads its own features and the organs' of the same resolution
        self.abn = nn.ModuleList(
            [UpBlock(config.hidden, d), UpBlock(2 * d, c), UpBlock(2 * c, b), UpBlock(2 * b, a)]
        )
        self.abn_last = ResBlock(2 * a, a)
        self.organ_head = nn.Conv3d(a, config.organs, 1)
        self.low_head = nn.Conv3d(b, config.findings, 1)
        self.high_head = nn.Conv3d(a, config.findings, 1)

    def skip_features(self, scan: ScanBatch) -> list[Tensor]:
        """Features at 1/1, 1/2, 1/4, 1/8 and 1/16, which both decoders read.

        Raises:
            InputRefused: `MODEL_INPUT` for an axis that is not a multiple of 16, or no axis above 16: an
                instance norm needs two voxels.
        """
        if any(n % MULTIPLE for n in scan.shape[2:]) or max(scan.shape[2:]) <= MULTIPLE:
            raise InputRefused(
                "MODEL_INPUT", "every axis of a scan is a multiple of 16, one is more",
                expected="multiples of 16",
                got=tuple(scan.shape[2:]),
            )  # fmt: skip
        inputs = [scan, *self.encoder(scan)]
        return [skip(x) for skip, x in zip(self.skips, inputs, strict=True)]

    def forward(self, scan: ScanBatch) -> YNetOutput:
        """Values 0..1 of `exact` -> logits: organs, anomalies at half and at full resolution."""
        *skips, x = self.skip_features(scan)
        seg, abn = x, x
        for level, (up_seg, up_abn) in enumerate(zip(self.seg, self.abn, strict=True)):
            skip = skips[3 - level]
            seg, abn = up_seg(seg, skip), up_abn(abn, skip)
            if level == 2:
                low = self.low_head(abn)
            abn = torch.cat([abn, seg.detach() if self.config.detach else seg], dim=1)
        organs = self.organ_head(self.seg_last(seg))
        return YNetOutput(organs.float(), low.float(), self.high_head(self.abn_last(abn)).float())
