"""Y-net: one encoder, an organ decoder and an anomaly decoder, organ features flowing one way into the
anomaly decoder.

EXACT in small (EXACT §1.2): the same Y, the same two scales of anomaly maps and the same seg -> abn fusion,
with convolutions where the paper has Mamba layers. What differs and why:

* the stem folds 2x2x2 voxels into channels instead of a strided 7x7x7 convolution: nothing small is lost, and
  every convolution runs at half resolution or below, so that two CPU cores train it;
* full-resolution maps are unfolded from half-resolution features (sub-voxel convolution) for the same reason;
* the anomaly decoder is local (`model.local`), and with `abn_stem` it looks at the scan itself: boxes of a
  scan then teach it, without the rest of the network;
* the anomaly half also reads what the scan says without any convolution (`model.bands`): a scan's label is
  too weak to teach a network Hounsfield units.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import nn
from torch.nn import functional as F

from hilum.model.bands import CellReader
from hilum.model.fold import fold, rows, unfold, unrows
from hilum.model.local import REACH, WHOLE, LocalDecoder, LocalStem, Sides, trimmed
from hilum.model.outline import Outliner, windows
from hilum.tensors import (
    AnomalyLogits,
    FineAnomalyLogits,
    FineLogits,
    FoldedLogits,
    HalfFeatures,
    OrganLogits,
    OrganRows,
    OrganShares,
    ScanBatch,
)

ORGAN_GAIN = 5.0
"""Factor of the organ logits. A soft Dice wants background logits near -7; Adam's steps are of one size
whatever the gradient, so without a gain a head needs hundreds of steps to get there."""

BOX_REACH = 2 * REACH
"""Cells around a box that its cells see: `model.bands` sees as far as `model.local`."""

ANOMALY_START = -3.0
"""First anomaly logit everywhere: findings are small, and most voxels have none."""


@dataclass(frozen=True)
class YNetConfig:
    """A preset's numbers.

    Args:
        windows_hu: (low, high) of each input window; the scan enters once per window, clipped and scaled to
            [-1, 1].
        widths: channels at 1/2, 1/4, 1/8, 1/16 of the grid. depth: residual blocks per encoder stage.
        abn_width: channels of the anomaly decoder at 1/2. abn_stem: channels of its own stem;
            0 gives it the encoder's and the organ decoder's features instead, as the paper does.
        organs, findings: output channels.
        bands_hu, contrast_hu: knots of `model.bands`. reader: width of its perceptron.
        outline: width of `model.outline.Outliner`, 0 for none.
        deep: organ heads at 1/8 and 1/4 too, used in training only: the decoder learns
            where organs are before it learns their borders. detach: anomaly gradients stop at the organ
            decoder's features (the paper lets them through).
    """

    windows_hu: tuple[tuple[float, float], ...] = ((-1000.0, -300.0), (-200.0, 300.0), (100.0, 1500.0))
    widths: tuple[int, int, int, int] = (16, 48, 96, 160)
    depth: tuple[int, int, int, int] = (1, 2, 2, 2)
    abn_width: int = 32
    abn_stem: int = 0
    bands_hu: tuple[float, ...] = (-1000.0, -900.0, -700.0, -300.0, 0.0, 100.0, 300.0, 1000.0)
    contrast_hu: tuple[float, ...] = (-100.0, 0.0, 100.0, 300.0)
    reader: int = 64
    organs: int = 7
    findings: int = 18
    outline: int = 0
    deep: bool = False
    detach: bool = False


@dataclass(frozen=True)
class YNetOutput:
    """Logits: organs at full resolution; anomalies at half (`low`) and full (`high`) resolution."""

    organs: OrganLogits
    low: AnomalyLogits
    high: FineAnomalyLogits


@dataclass(frozen=True)
class OrganFeatures:
    """The half of the network that knows of organs, and what the other half starts from.

    Args:
        logits: organ logits at half resolution, eight voxels of the full grid folded into channels
            (organ-major).
        coarse: organ logits at 1/8 and 1/4 of a `deep` network.
        encoder, decoder: features of the encoder and of the organ decoder at 1/2.
    """

    logits: FoldedLogits
    coarse: tuple[torch.Tensor, ...]
    encoder: HalfFeatures
    decoder: HalfFeatures

    def crop(self, start: Sequence[int], size: Sequence[int]) -> OrganFeatures:
        """A box of it, given in half-resolution voxels; without `coarse`."""
        x, y, z = (slice(a, a + n) for a, n in zip(start, size, strict=True))
        logits, encoder, decoder = (f[..., x, y, z] for f in (self.logits, self.encoder, self.decoder))
        return OrganFeatures(logits, (), encoder, decoder)

    def rows(self) -> OrganRows:
        """Organ logits of each half-resolution voxel's eight voxels."""
        return rows(self.logits).unflatten(2, (-1, 8))

    def shares(self) -> OrganShares:
        """How much of each half-resolution voxel is in each organ. Carries no gradient: anomalies never teach
        organs to hide."""
        return torch.sigmoid(self.logits.detach()).unflatten(1, (-1, 8)).mean(2)


class InstanceNorm(nn.Module):
    """Each channel of each scan to mean 0 and variance 1, then a learned scale and shift (EXACT §1.2).

    One scan is a batch of one: batch statistics are then the instance's own, and torch's kernel for them
    keeps the channels-last layout, which its instance norm does not.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(width)), nn.Parameter(torch.zeros(width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, C, U, V, W) -> the same shape."""
        if x.shape[0] == 1:
            return F.batch_norm(x, None, None, self.weight, self.bias, training=True)
        return F.instance_norm(x, weight=self.weight, bias=self.bias)


class Block(nn.Module):
    """Two convolutions with one norm, and a skip."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = nn.Conv3d(width, width, 3, padding=1)
        self.norm = InstanceNorm(width)
        self.second = nn.Conv3d(width, width, 3, padding=1)
        nn.init.zeros_(self.second.weight)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, C, U, V, W) -> the same shape."""
        return x + self.second(torch.relu(self.norm(self.first(x))))


class Up(nn.Module):
    """Twice as fine: transposed convolution, then the skips beside it, then a convolution and a block."""

    def __init__(self, below: int, skips: int, width: int) -> None:
        super().__init__()
        self.up = nn.ConvTranspose3d(below, width, 2, stride=2)
        self.mix = nn.Conv3d(width + skips, width, 3, padding=1)
        self.norm = InstanceNorm(width)
        self.block = Block(width)

    def forward(self, below: torch.Tensor, *skips: torch.Tensor) -> torch.Tensor:
        """`below` at half the resolution of every one of `skips`."""
        x = torch.cat([self.up(below), *skips], dim=1)
        return self.block(torch.relu(self.norm(self.mix(x))))


class Encoder(nn.Module):
    """Windows -> folded stem -> four stages; returns the features of each."""

    low: torch.Tensor
    high: torch.Tensor

    def __init__(self, config: YNetConfig) -> None:
        super().__init__()
        low, high = torch.tensor(config.windows_hu).T / 1000.0
        self.register_buffer("low", low[None, :, None, None, None], persistent=False)
        self.register_buffer("high", high[None, :, None, None, None], persistent=False)
        widths, stages, steps = config.widths, [], []
        for i, (width, depth) in enumerate(zip(widths, config.depth, strict=True)):
            stages.append(nn.Sequential(*(Block(width) for _ in range(depth))))
            before = 8 * len(config.windows_hu) if i == 0 else widths[i - 1]
            step = nn.Conv3d(before, width, 3, padding=1) if i == 0 else nn.Conv3d(before, width, 2, stride=2)
            steps.append(nn.Sequential(step, InstanceNorm(width)))
        self.steps, self.stages = nn.ModuleList(steps), nn.ModuleList(stages)

    def windows(self, scan: ScanBatch) -> torch.Tensor:
        """The scan once per input window."""
        return windows(scan, self.low, self.high)

    def forward(self, scan: ScanBatch) -> list[torch.Tensor]:
        """Features at 1/2, 1/4, 1/8, 1/16."""
        x = fold(self.windows(scan)).contiguous(memory_format=torch.channels_last_3d)
        features = []
        for step, stage in zip(self.steps, self.stages, strict=True):
            x = stage(step(x))
            features.append(x)
        return features


def start_head(head: nn.Conv3d | nn.Linear, logit: float, std: float = 0.01) -> None:
    """Small weights and one starting logit for every channel of a head."""
    nn.init.normal_(head.weight, std=std)
    nn.init.constant_(cast(torch.Tensor, head.bias), logit)


def channels_last(network: nn.Module) -> None:
    """Put every 5-D weight into the layout that CPU kernels are fast in."""
    for parameter in network.parameters():
        if parameter.dim() == 5:
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last_3d)


@dataclass(frozen=True)
class AnomalyCells:
    """What is known of the cells of one scan.

    Args:
        decoded: features (N, C) of the anomaly decoder. context: what `CellReader.context` says of them.
    """

    decoded: torch.Tensor
    context: torch.Tensor

    def pick(self, where: torch.Tensor) -> AnomalyCells:
        """Some of them."""
        return AnomalyCells(self.decoded.index_select(0, where), self.context.index_select(0, where))


class AnomalyHeads(nn.Module):
    """Linear readings of a `CellReader`: one logit per cell, and eight refined ones for the full grid, which
    differ by the cell's decoder features and by each voxel's own bands."""

    def __init__(self, config: YNetConfig) -> None:
        super().__init__()
        self.reader = CellReader(
            config.abn_width, config.organs, config.bands_hu, config.contrast_hu, config.reader
        )
        findings = config.findings
        self.cell = nn.Linear(self.reader.out_width, findings)
        self.corner = nn.Linear(2 * config.abn_width, 8 * findings, bias=False)
        self.voxel = nn.Parameter(torch.zeros(findings, self.reader.count))
        start_head(self.cell, ANOMALY_START)
        nn.init.zeros_(self.corner.weight)

    def rows(self, cells: AnomalyCells) -> tuple[torch.Tensor, torch.Tensor]:
        """Chosen cells -> logits (N, F) and (N, F, 8)."""
        features, signs, voxels = self.reader(cells.decoded, cells.context)
        low = self.cell(features).float()
        corner = self.corner(signs).float().unflatten(1, (-1, 8))
        own = F.linear(voxels, self.voxel).float().transpose(1, 2)
        return low, low[:, :, None] + corner + own


class YNet(nn.Module):
    """The whole network; see the module's docstring."""

    def __init__(self, config: YNetConfig) -> None:
        super().__init__()
        self.config = config
        a, b, c, d = config.widths
        self.encoder = Encoder(config)
        self.seg = nn.ModuleList([Up(d, c, c), Up(c, b, b), Up(b, a, a)])
        self.organ_head = nn.Conv3d(a, 8 * config.organs, 1)
        self.coarse_heads = nn.ModuleList(
            [nn.Conv3d(n, config.organs, 1) for n in (c, b)] if config.deep else []
        )
        # most voxels are no organ: starting there saves the first hundred steps
        for head in (self.organ_head, *self.coarse_heads):
            start_head(cast(nn.Conv3d, head), -2.0 / ORGAN_GAIN, 0.05)
        self.anomaly_heads = AnomalyHeads(config)
        self.abn_stem = LocalStem(len(config.windows_hu), config.abn_stem) if config.abn_stem else None
        # else it sees the encoder's skip and the organ decoder's features of the same resolution
        skips = config.abn_stem or 2 * a
        self.abn = LocalDecoder(skips + self.anomaly_heads.reader.context_width, config.abn_width)
        self.outliner = (
            Outliner(len(config.windows_hu), a, config.organs, config.outline) if config.outline else None
        )
        channels_last(self)

    def organ_features(self, scan: ScanBatch) -> OrganFeatures:
        """HU / 1000 with axes divisible by 16 -> organ logits and the features behind them."""
        e1, e2, e3, e4 = self.encoder(scan)
        s3 = self.seg[0](e4, e3)
        s2 = self.seg[1](s3, e2)
        s1 = self.seg[2](s2, e1)
        coarse = tuple(
            head(x).float() * ORGAN_GAIN for head, x in zip(self.coarse_heads, (s3, s2), strict=False)
        )
        return OrganFeatures(self.organ_head(s1).float() * ORGAN_GAIN, coarse, e1, s1)

    def outlines(self, fine: ScanBatch, organs: OrganFeatures) -> FineLogits | None:
        """Organ logits at half the voxel, from the scan there (HU / 1000); None for a network without."""
        if self.outliner is None:
            return None
        logits, decoder = unfold(organs.logits.detach()), organs.decoder.detach()
        return cast(torch.Tensor, self.outliner(self.encoder.windows(fine), logits, decoder))

    def anomaly_cells(self, scan: ScanBatch, organs: OrganFeatures) -> AnomalyCells:
        """What `anomaly_heads` reads of one scan (a batch of one)."""
        context = self.anomaly_heads.reader.context(scan, organs.shares())
        if self.abn_stem is None:
            decoder = organs.decoder.detach() if self.config.detach else organs.decoder
            decoded = self.abn(torch.cat([organs.encoder, decoder, context.to(decoder)], 1))
        else:
            decoded = self._local(scan, context)
        return AnomalyCells(rows(decoded)[0], rows(context)[0])

    def anomaly_box(self, scan: ScanBatch, shares: OrganShares, inner: Sequence[slice]) -> list[AnomalyCells]:
        """The same of the cells `inner` of a box alone, for each of its scans; of networks with `abn_stem`.

        Args:
            scan: HU / 1000 of the box and of what `BOX_REACH` cells around it see. shares: of its cells.
            inner: the cells to be read, three slices. With that much around them (or the scan's border) they
                are what they are in the whole scan.
        """
        context = self.anomaly_heads.reader.context(scan, shares)
        near, kept, sides = [], [], []
        for at, cells in zip(inner, context.shape[2:], strict=True):
            low, high = at.start < REACH, at.stop + REACH > cells
            near.append(slice(0 if low else at.start - REACH, cells if high else at.stop + REACH))
            begin = at.start if low else 0
            kept.append(slice(begin, begin + at.stop - at.start))
            sides += [int(low), int(high)]
        voxels = [slice(2 * at.start, 2 * at.stop) for at in near]
        decoded = self._local(scan[:, :, *voxels], context[:, :, *near], cast(Sides, tuple(sides)))
        both = (rows(decoded[:, :, *kept]), rows(context[:, :, *inner]))
        return [AnomalyCells(*one) for one in zip(*both, strict=True)]

    def _local(self, scan: ScanBatch, context: HalfFeatures, sides: Sides = WHOLE) -> torch.Tensor:
        assert self.abn_stem is not None, "a network with abn_stem"
        windows = self.encoder.windows(scan).contiguous(memory_format=torch.channels_last_3d)
        own = self.abn_stem(windows, sides)
        return cast(torch.Tensor, self.abn(torch.cat([own, trimmed(context, sides).to(own)], 1), sides))

    def anomaly_maps(self, scan: ScanBatch, organs: OrganFeatures) -> tuple[AnomalyLogits, FineAnomalyLogits]:
        """Logits of one scan's whole maps at half and at full resolution."""
        low, high = self.anomaly_heads.rows(self.anomaly_cells(scan, organs))
        shape = organs.logits.shape[2:]
        return unrows(low[None], shape), unfold(unrows(high.flatten(1)[None], shape))

    def forward(self, scan: ScanBatch) -> YNetOutput:
        """One scan, HU / 1000 with axes divisible by 16 -> logits of whole maps."""
        organs = self.organ_features(scan)
        return YNetOutput(unfold(organs.logits), *self.anomaly_maps(scan, organs))
