"""Primus, the backbone of COLIPRI: a vision transformer of volumes with blocks as of EVA-02 and no CLS token.

Source: Wald et al., arXiv:2503.01835, as COLIPRI (arXiv:2510.15042) takes it; EVA-02 is Fang et al.,
arXiv:2303.11331. Against `model.vit`: a perceptron with a gate (SwiGLU) and a norm inside, a norm before the
last map of attention, keys without bias, and places that count patches. Only the distance of two patches
matters, since every token has a place.

It is here for reading: it has neither masks nor the noise of training.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F

from hilum.errors import InputRefused, WeightsError
from hilum.model.fresh import fresh_linears
from hilum.model.patch import PatchEmbed, patch_sizes
from hilum.model.rope import Rotation, rotate, rotation
from hilum.model.vit import ViTOutput
from hilum.tensors import AllTokens


@dataclass(frozen=True)
class PrimusConfig:
    """Its numbers.

    Args:
        width: channels of a token. depth: blocks. heads: of attention; width / heads is a multiple of 6, so
            that three axes share a head. hidden: width of the perceptron. patch: base size, in voxels.
        channels: of the picture. layer_scale: first value of every branch's scale. norm_eps: of the norms.
        rope_base: of the periods, in patches of the base size over 2 π.

    Raises:
        WeightsError: `CONFIG_VALUE` for a number that makes no network, NaN included.
    """

    width: int = 864
    depth: int = 16
    heads: int = 12
    hidden: int = 2304
    patch: int = 8
    channels: int = 1
    layer_scale: float = 0.1
    norm_eps: float = 1e-5
    rope_base: float = 10000.0

    def __post_init__(self) -> None:
        for name in ("width", "depth", "heads", "hidden", "patch", "channels"):
            value = getattr(self, name)
            whole = isinstance(value, int) and not isinstance(value, bool) and value >= 1
            self._must(name, whole, "a whole number from 1")
        self._must("heads", self.width % (6 * self.heads) == 0, f"6 · heads divides {self.width}")
        for name, low, high in (
            ("layer_scale", 0.0, math.inf), ("norm_eps", 0.0, 1.0), ("rope_base", 1.0, math.inf)
        ):  # fmt: skip
            value = getattr(self, name)
            number = isinstance(value, int | float) and not isinstance(value, bool)
            self._must(name, number and low < value < high, f"above {low:g}, below {high:g}")

    @property
    def head(self) -> int:
        """Channels of a head."""
        return self.width // self.heads

    def patch_base(self, axes: int) -> tuple[int, ...]:
        """Base size of a patch along each axis, in voxels."""
        return (self.patch,) * axes

    def _must(self, name: str, holds: bool, expected: str) -> None:
        if not holds:
            raise WeightsError(
                "CONFIG_VALUE",
                f"preset.net.{name} makes a network",
                expected=expected,
                got=repr(getattr(self, name)),
            )


class PrimusAttention(nn.Module):
    """Every token asks every token; what it hears is normed before the last map."""

    def __init__(self, config: PrimusConfig) -> None:
        super().__init__()
        self.heads = config.heads
        self.query = nn.Linear(config.width, config.width)
        self.key = nn.Linear(config.width, config.width, bias=False)
        self.value = nn.Linear(config.width, config.width)
        self.norm = nn.LayerNorm(config.width, eps=config.norm_eps)
        self.proj = nn.Linear(config.width, config.width)

    def forward(self, x: AllTokens, table: Rotation) -> AllTokens:
        """(B, T, W) -> the same shape; the table has a row for each token."""
        q, k, v = (
            layer(x).unflatten(2, (self.heads, -1)).transpose(1, 2)
            for layer in (self.query, self.key, self.value)
        )
        mixed = F.scaled_dot_product_attention(rotate(q, table), rotate(k, table), v)
        return self.proj(self.norm(mixed.transpose(1, 2).flatten(2)))


class GatedPerceptron(nn.Module):
    """SwiGLU (Shazeer, arXiv:2002.05202) with a norm before the last map."""

    def __init__(self, config: PrimusConfig) -> None:
        super().__init__()
        self.gate = nn.Linear(config.width, config.hidden)
        self.up = nn.Linear(config.width, config.hidden)
        self.norm = nn.LayerNorm(config.hidden, eps=config.norm_eps)
        self.down = nn.Linear(config.hidden, config.width)

    def forward(self, x: AllTokens) -> AllTokens:
        """(B, T, W) -> the same shape."""
        return self.down(self.norm(F.silu(self.gate(x)) * self.up(x)))


class PrimusBlock(nn.Module):
    """Two residual branches, attention and perceptron, each with its norm before and its scale behind."""

    def __init__(self, config: PrimusConfig) -> None:
        super().__init__()
        self.norm_attention = nn.LayerNorm(config.width, eps=config.norm_eps)
        self.attention = PrimusAttention(config)
        self.scale_attention = nn.Parameter(torch.full((config.width,), config.layer_scale))
        self.norm_mlp = nn.LayerNorm(config.width, eps=config.norm_eps)
        self.mlp = GatedPerceptron(config)
        self.scale_mlp = nn.Parameter(torch.full((config.width,), config.layer_scale))

    def forward(self, x: AllTokens, table: Rotation) -> AllTokens:
        """(B, T, W) -> the same shape."""
        x = x + self.attention(self.norm_attention(x), table) * self.scale_attention
        return x + self.mlp(self.norm_mlp(x)) * self.scale_mlp


class Primus(nn.Module):
    """The backbone; see the module's docstring. Parameters are drawn from torch's own generator."""

    def __init__(self, config: PrimusConfig) -> None:
        super().__init__()
        self.config = config
        self.patch_3d = PatchEmbed(config.width, config.channels, config.patch_base(3), axes=3)
        self.blocks = nn.ModuleList([PrimusBlock(config) for _ in range(config.depth)])
        self.norm = nn.LayerNorm(config.width, eps=config.norm_eps)
        if not self.patch_3d.weight.is_meta:
            with torch.no_grad():
                self.patch_3d.reset()
                fresh_linears(self.blocks)

    def forward(
        self,
        image: torch.Tensor,
        *,
        patch: int | Sequence[int] | None = None,
        spacing_mm: Sequence[float] | None = None,
    ) -> ViTOutput:
        """Tokens of volumes (B, C, X, Y, Z) after the last norm. It has no CLS token: the mean patch stands
        in for one, and there are no registers.

        Args:
            image: prepared values. patch: size of a patch in voxels, one for all axes or one each; None takes
                the base size. spacing_mm: unused, places count voxels.

        Raises:
            InputRefused: `MODEL_INPUT`, `PATCH_GRID` for a picture that does not fit.
            UsageError: `CONFIG_VALUE` for a patch that is none.
        """
        if image.dim() != 5:
            raise InputRefused(
                "MODEL_INPUT",
                "a picture has the axes that the model reads",
                expected="(B, C, X, Y, Z)",
                got=tuple(image.shape),
            )
        sizes = patch_sizes(self.config.patch if patch is None else patch, 3)
        grid = self.patch_3d.grid(image, sizes)
        x = self.patch_3d(image, sizes)
        table = self._table(grid, sizes, x)
        for block in self.blocks:
            x = block(x, table)
        x = self.norm(x)
        return ViTOutput(x.mean(1), x[:, :0], x, grid)

    def _table(self, grid: Sequence[int], sizes: Sequence[int], tokens: torch.Tensor) -> Rotation:
        """Angles: what an axis counts, in patches of the base size, times a rate per channel."""
        kind = torch.promote_types(tokens.dtype, torch.float32)
        lines = [
            torch.arange(n, device=tokens.device, dtype=kind) * (size / self.config.patch / (2 * math.pi))
            for n, size in zip(grid, sizes, strict=True)
        ]
        places = torch.stack(torch.meshgrid(*lines, indexing="ij"), dim=-1).flatten(0, -2)
        return rotation(places, self.config.head, self.config.rope_base, full=True)
