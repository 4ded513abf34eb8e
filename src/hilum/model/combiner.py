"""Windows of a scan -> one answer for the scan, and one for each of its depths.

A scan is a grid of windows that a window encoder has read one by one. A small transformer lets them see each
other: the combiner. It reads each window as [CLS; mean of its patches], or each depth of each window (its
patches' mean over the plane) with the same blocks, so that what it learnt of whole scans serves for depths.

Source: RadFinder §1.2 (and SPECTRE, §2.2): 4 blocks of width 1080, axial RoPE with base 100, its own CLS,
masks for grids of different sizes.

What differs: in the public code depths keep the windows' step, so that a scan of 2 windows with 8 depths each
reaches from -1 to 15 where its windows reach from -1 to 1 (`frame = "published"`, which imported weights
need). In `frame = "shared"` a depth lies where it lies between the windows' borders.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, NamedTuple, cast

import torch
from torch import nn

from hilum.model.fresh import cut_normal, fresh_linear
from hilum.model.rope import Rotation, rotation
from hilum.model.vit_block import Block
from hilum.model.vit_config import ViTConfig
from hilum.tensors import DepthTokens, ScanDepthMask, WindowDepths, WindowFeatures, WindowMask

Frame = Literal["published", "shared"]


def combiner_vit(width: int = 1080, depth: int = 4, heads: int = 12) -> ViTConfig:
    """The blocks' numbers as published."""
    return ViTConfig(
        width=width, depth=depth, heads=heads, slices=False, registers=0, qkv_bias=True, layer_scale=1.0,
        drop_path=0.0, rope_base=100.0, rope_full=True, rescale=2.0,
    )  # fmt: skip


@dataclass(frozen=True)
class CombinerConfig:
    """Numbers of a combiner.

    Args:
        window_width: features of a window's CLS, and of its patches. vit: of the blocks; its patch is unused.
        frame: where depths lie.
    """

    window_width: int = 1080
    vit: ViTConfig = field(default_factory=combiner_vit)
    frame: Frame = "published"


class Combined(NamedTuple):
    """What the combiner says of scans.

    Args:
        cls: (B, W). tokens: (B, U, V, W', W) on the padded grid; those of windows that are not there mean
            nothing.
    """

    cls: torch.Tensor
    tokens: torch.Tensor


class Combiner(nn.Module):
    """See the module's docstring."""

    def __init__(self, config: CombinerConfig) -> None:
        super().__init__()
        self.config, width = config, config.vit.width
        self.window_proj = nn.Linear(2 * config.window_width, width)
        self.depth_proj = nn.Linear(config.window_width, width)
        self.cls = nn.Parameter(torch.empty(1, 1, width))
        self.blocks = nn.ModuleList([Block(config.vit) for _ in range(config.vit.depth)])
        self.norm = nn.LayerNorm(width, eps=config.vit.norm_eps)
        self.reset()

    @torch.no_grad()
    def reset(self, generator: torch.Generator | None = None) -> None:
        """Fresh parameters; depths begin as the mean of patches is read."""
        fresh_linear(self.window_proj, generator)
        for block in self.blocks:
            cast(Block, block).reset(generator)
        self.norm.reset_parameters()
        cut_normal(self.cls, generator)
        self.start_depths()

    @torch.no_grad()
    def start_depths(self) -> None:
        """Depths are read as windows' means are: once, when weights without depths are loaded."""
        self.depth_proj.weight.copy_(self.window_proj.weight[:, self.config.window_width :])
        self.depth_proj.bias.copy_(self.window_proj.bias)

    def forward(
        self, windows: WindowFeatures, present: WindowMask, rescale: torch.Tensor | None = None
    ) -> Combined:
        """Scans from the features [CLS; mean of patches] of their windows.

        Args:
            present: which windows each scan has. rescale: of all coordinates, in training (`draw_rescale`).
        """
        return self._combined(self.window_proj(windows), present, 1, rescale)

    def depths(
        self, windows: WindowDepths, present: WindowMask, rescale: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, DepthTokens, ScanDepthMask]:
        """Scans from the depths of their windows.

        Returns:
            CLS (B, W); the mean over the plane of each depth's tokens (B, D, W), 0 where the scan has no such
            depth; which it has (B, D).
        """
        per = windows.shape[4]
        tokens = self.depth_proj(windows).flatten(3, 4)
        there = present.repeat_interleave(per, dim=3)
        found = self._combined(tokens, there, per, rescale)
        kept = found.tokens * there[..., None]
        count = there.sum((1, 2))
        return found.cls, kept.sum((1, 2)) / count.clamp_min(1)[..., None], count > 0

    def _combined(
        self, tokens: torch.Tensor, present: torch.Tensor, per: int, rescale: torch.Tensor | None
    ) -> Combined:
        batch, grid = len(tokens), tokens.shape[1:4]
        table = self._table(present, per, tokens, rescale)
        x = torch.cat([self.cls.expand(batch, -1, -1).to(tokens), tokens.flatten(1, 3)], dim=1)
        seen = torch.cat([present.new_ones(batch, 1), present.flatten(1)], dim=1)
        for block in self.blocks:
            x = block(x, table, seen=seen)
        x = self.norm(x)
        return Combined(x[:, 0], x[:, 1:].unflatten(1, grid))

    def _table(
        self, present: torch.Tensor, per: int, tokens: torch.Tensor, rescale: torch.Tensor | None
    ) -> Rotation:
        """Places of every token of every scan, each axis from -1 to 1 over the scan's own windows."""
        dtype = torch.promote_types(tokens.dtype, torch.float32)
        lines = []
        for axis in range(3):
            others = tuple(a for a in (1, 2, 3) if a != axis + 1)
            count = present.any(others).sum(1, keepdim=True)
            windows = count if axis < 2 or self.config.frame == "shared" else count / per
            centres = torch.arange(present.shape[axis + 1], device=tokens.device, dtype=dtype) + 0.5
            shape = [len(present), 1, 1, 1]
            shape[axis + 1] = -1
            lines.append((2 * centres / windows.clamp_min(1) - 1).view(shape).expand(present.shape))
        places = torch.stack(lines, dim=-1).flatten(0, 3)
        places = places if rescale is None else places * rescale.to(places)
        vit = self.config.vit
        table = rotation(places, vit.head, vit.rope_base, vit.rope_full)
        return Rotation(*(rows.unflatten(0, (len(present), 1, -1)) for rows in table))
