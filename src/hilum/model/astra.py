"""Astra's image encoder: a residual network of 152 layers, inflated from pictures to volumes.

Sources: He et al., "Deep residual learning", CVPR 2016, table 1 (bottleneck blocks 3, 8, 36, 3; the stride in
the 3 x 3 convolution, as is usual since); Carreira and Zisserman, "Quo vadis", CVPR 2017 (inflation); as
Merlin (Blankemeier et al., 2024) and Astra have it: the first kernel is 7 x 7 in the axial plane and 3 along
the body with a stride of 1 there, every other 3 x 3 kernel is 3 x 3 x 3.

It is for inference: batch norms are folded into the convolutions before them, in double precision. Axes stay
as volumes have them, [X, Y, Z] in RAS+, where the published code moves the last one to the front; and the
three equal channels of its input are one here, with the sum of their kernels.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import cast

import torch
from torch import nn
from torch.nn import functional as F

from hilum.errors import WeightsError
from hilum.tensors import AstraMap, ScanBatch

EPS = 1e-5
"""Of the published batch norms."""

EXPANSION = 4


@dataclass(frozen=True)
class AstraConfig:
    """Sizes.

    Args:
        blocks: of each stage. width: channels behind the first convolution.
    """

    blocks: tuple[int, ...] = (3, 8, 36, 3)
    width: int = 64

    @property
    def out_width(self) -> int:
        """Channels of a feature."""
        return self.width * EXPANSION * 2 ** (len(self.blocks) - 1)

    @property
    def strides(self) -> tuple[int, int, int]:
        """Voxels from one feature to the next, along X, Y, Z."""
        plane = 4 * 2 ** (len(self.blocks) - 1)
        return plane, plane, plane // 2


class AstraBlock(nn.Module):
    """Three convolutions beside a shortcut, which is a convolution where channels or strides change."""

    def __init__(self, wide: int, narrow: int, stride: int, *, changes: bool) -> None:
        super().__init__()
        out = EXPANSION * narrow
        self.reduce = nn.Conv3d(wide, narrow, 1)
        self.spread = nn.Conv3d(narrow, narrow, 3, stride=stride, padding=1)
        self.expand = nn.Conv3d(narrow, out, 1)
        self.shortcut = nn.Conv3d(wide, out, 1, stride=stride) if changes else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, wide, X, Y, Z) -> (B, 4 · narrow, ...)."""
        short = x if self.shortcut is None else self.shortcut(x)
        x = torch.relu(self.reduce(x))
        x = torch.relu(self.spread(x))
        return torch.relu(self.expand(x) + short)


class Astra(nn.Module):
    """The encoder; see the module's docstring."""

    def __init__(self, config: AstraConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or AstraConfig()
        self.stem = nn.Conv3d(1, config.width, (7, 7, 3), stride=(2, 2, 1), padding=(3, 3, 1))
        stages, wide = [], config.width
        for stage, count in enumerate(config.blocks):
            narrow, stride = config.width * 2**stage, 1 if stage == 0 else 2
            blocks = [AstraBlock(wide, narrow, stride, changes=True)]
            wide = EXPANSION * narrow
            blocks += [AstraBlock(wide, narrow, 1, changes=False) for _ in range(count - 1)]
            stages.append(nn.Sequential(*blocks))
        self.stages = nn.ModuleList(stages)

    def forward(self, scan: ScanBatch) -> AstraMap:
        """(B, 1, X, Y, Z), HU as `astra_values` has them -> features (B, W, ceil(X / 32), ceil(Y / 32),
        ceil(Z / 16)). Feature i lies at voxel 32 i (16 i along Z), where its stack of kernels is centred."""
        x = F.max_pool3d(torch.relu(self.stem(scan)), 3, stride=2, padding=1)
        for stage in self.stages:
            x = stage(x)
        return x


def astra_values(hu: torch.Tensor) -> torch.Tensor:
    """HU -1000..200 as 0..1."""
    return ((hu + 1000.0) / 1200.0).clamp(0.0, 1.0)


def fold_published(
    tensors: Mapping[str, torch.Tensor], config: AstraConfig | None = None
) -> dict[str, torch.Tensor]:
    """The published tensors (names of a residual network: ``layer3.7.conv2.weight``, ``bn2.running_var``) as
    the state of `Astra`, float32.

    Raises:
        WeightsError: `WEIGHTS_KEYS` for a tensor that is missing, left over or of another shape.
    """
    left = {n: t for n, t in tensors.items() if not n.endswith("num_batches_tracked")}
    with torch.device("meta"):
        shapes = {name: tuple(t.shape) for name, t in Astra(config).state_dict().items()}
    state: dict[str, torch.Tensor] = {}
    for own, kernel, norm in _published(shapes):
        try:
            weight = left.pop(f"{kernel}.weight").double()
            scale, shift, mean, variance = (
                left.pop(f"{norm}.{part}").double()
                for part in ("weight", "bias", "running_mean", "running_var")
            )
        except KeyError as error:
            raise _unfit(f"no {error.args[0]}") from None
        if own == "stem" and weight.dim() == 5:
            weight = weight.sum(1, keepdim=True)
        gain = scale / (variance + EPS).sqrt()
        if weight.dim() != 5 or len(gain) != len(weight):
            raise _unfit(f"{kernel}.weight {tuple(weight.shape)} with {norm} of {len(gain)}")
        # published kernels run along Z, X, Y
        state[f"{own}.weight"] = (weight * gain[:, None, None, None, None]).permute(0, 1, 3, 4, 2).float()
        state[f"{own}.bias"] = (shift - mean * gain).float()
        if tuple(state[f"{own}.weight"].shape) != shapes[f"{own}.weight"]:
            raise _unfit(f"{kernel}.weight {tuple(weight.shape)}")
    if left:
        raise _unfit(f"also {sorted(left)[:5]}")
    return {name: tensor.contiguous() for name, tensor in state.items()}


_PARTS = {"reduce": ("conv1", "bn1"), "spread": ("conv2", "bn2"), "expand": ("conv3", "bn3")}
_PARTS |= {"shortcut": ("downsample.0", "downsample.1")}


def _published(names: Mapping[str, tuple[int, ...]]) -> Iterator[tuple[str, str, str]]:
    """Own convolution, published kernel, published norm."""
    for name in names:
        own = name.removesuffix(".weight")
        if own == name:
            continue
        if own == "stem":
            yield own, "conv1", "bn1"
            continue
        stage, block, part = cast(re.Match, re.fullmatch(r"stages\.(\d+)\.(\d+)\.(\w+)", own)).groups()
        before = f"layer{int(stage) + 1}.{block}."
        kernel, norm = _PARTS[part]
        yield own, before + kernel, before + norm


def _unfit(got: str) -> WeightsError:
    return WeightsError(
        "WEIGHTS_KEYS",
        "published tensors are those of Astra's encoder",
        expected="kernels and norms",
        got=got,
    )
