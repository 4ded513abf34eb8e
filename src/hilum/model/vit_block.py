"""The block of a vision transformer: pre-norm, no bias on queries, keys and values unless asked for,
LayerScale, and branches that leave out part of a batch (DINOv2: Oquab et al., TMLR 2024).
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from hilum.model.fresh import fresh_linears
from hilum.model.rope import Rotation, rotate
from hilum.model.vit_config import ViTConfig
from hilum.tensors import AllTokens, SeenTokens


class Attention(nn.Module):
    """Every token asks every token, by torch's fused kernels."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.heads = config.heads
        self.qkv = nn.Linear(config.width, 3 * config.width, bias=config.qkv_bias)
        self.proj = nn.Linear(config.width, config.width)

    def forward(self, x: AllTokens, table: Rotation, seen: SeenTokens | None = None) -> AllTokens:
        """(B, T, W) -> the same shape; the table has a row for each of the last N tokens. `seen`: which
        tokens are asked, all where None."""
        q, k, v = self.qkv(x).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        mask = None if seen is None else seen[:, None, None]
        mixed = F.scaled_dot_product_attention(rotate(q, table), rotate(k, table), v, attn_mask=mask)
        return self.proj(mixed.transpose(1, 2).flatten(2))


class Perceptron(nn.Module):
    """Two linear maps around a GELU."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.up = nn.Linear(config.width, config.mlp * config.width)
        self.down = nn.Linear(config.mlp * config.width, config.width)

    def forward(self, x: AllTokens) -> AllTokens:
        """(B, T, W) -> the same shape."""
        return self.down(F.gelu(self.up(x)))


class Block(nn.Module):
    """Two residual branches, attention and perceptron, each with its norm before and its scale behind."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.norm_attention = nn.LayerNorm(config.width, eps=config.norm_eps)
        self.attention = Attention(config)
        self.scale_attention = nn.Parameter(torch.empty(config.width))
        self.norm_mlp = nn.LayerNorm(config.width, eps=config.norm_eps)
        self.mlp = Perceptron(config)
        self.scale_mlp = nn.Parameter(torch.empty(config.width))
        self.layer_scale = config.layer_scale

    @torch.no_grad()
    def reset(self, generator: torch.Generator | None = None) -> None:
        """Fresh parameters: linear maps as of `fresh_linear`, norms that change nothing, branches as the
        configuration scales them."""
        fresh_linears(self, generator)
        for norm in (self.norm_attention, self.norm_mlp):
            norm.reset_parameters()
        for scale in (self.scale_attention, self.scale_mlp):
            scale.fill_(self.layer_scale)

    def forward(
        self,
        x: AllTokens,
        table: Rotation,
        kept: torch.Tensor | None = None,
        seen: SeenTokens | None = None,
    ) -> AllTokens:
        """(B, T, W) -> the same shape.

        Args:
            x: tokens. table: of the patches among them. kept: scans of each branch (2, K); None: all.
            seen: tokens that others ask, of a batch in which no branch leaves out a scan; None: all.
        """
        rows = (None, None) if kept is None else kept.unbind(0)
        some = x if rows[0] is None else x[rows[0]]
        branch = self.attention(self.norm_attention(some), table, seen) * self.scale_attention
        x = _added(x, branch, rows[0])
        some = x if rows[1] is None else x[rows[1]]
        return _added(x, self.mlp(self.norm_mlp(some)) * self.scale_mlp, rows[1])


def _added(x: torch.Tensor, branch: torch.Tensor, rows: torch.Tensor | None) -> torch.Tensor:
    """A branch on its rows, scaled so that its mean over draws is that of a branch on all."""
    if rows is None:
        return x + branch
    return x.index_add(0, rows, branch.to(x.dtype), alpha=len(x) / len(branch))
