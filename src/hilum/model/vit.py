"""One backbone for slices and volumes: a vision transformer with a patch embedding for each, chosen by the
picture's rank, and everything after it shared.

FlexiCT §1: blocks as of DINOv3 (`model.vit_block`), a CLS token and registers, axial rotary encoding
(`model.rope`), patches of any size at run time (`model.patch`). What differs:

* nothing is switched on the model: patch size, mask, voxel size and randomness are arguments of a call;
* the noise of training (which scans a branch leaves out, how coordinates are stretched) is drawn before the
  call from a generator of the caller's. A step can be repeated, activations can be computed again, and a
  compiler sees no randomness;
* rotary tables are computed when needed: the state holds parameters and nothing else.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, cast

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from hilum.errors import InputRefused, UsageError
from hilum.model.fresh import cut_normal
from hilum.model.patch import Inflation, PatchEmbed, inflate_kernel, patch_sizes
from hilum.model.rope import Rotation, coordinates, coordinates_mm, draw_rescale, rotation
from hilum.model.vit_block import Block
from hilum.model.vit_config import ViTConfig
from hilum.tensors import ClsToken, KeptRows, PatchMap, PatchTokens, RegisterTokens


class TrainNoise(NamedTuple):
    """What is random in a training step, drawn by `ViT.draw`.

    Args:
        batch: scans it was drawn for. kept: which of them each of the two branches of each block works on.
        rescale: factor of all coordinates, a tensor without axes.
    """

    batch: int
    kept: KeptRows
    rescale: torch.Tensor


class ViTOutput(NamedTuple):
    """Tokens of a batch.

    Args:
        cls, registers, patches: after the last layer norm unless asked otherwise. grid: patches per axis.
    """

    cls: ClsToken
    registers: RegisterTokens
    patches: PatchTokens
    grid: tuple[int, ...]

    def maps(self) -> PatchMap:
        """Patch tokens on their grid: (B, W, *grid)."""
        return self.patches.transpose(1, 2).unflatten(2, self.grid)


class ViT(nn.Module):
    """The backbone; see the module's docstring. Parameters are drawn from torch's own generator; `reset`
    draws them again from another."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.config = config
        flat, deep = config.patch_base(2), config.patch_base(3)
        self.patch_2d = PatchEmbed(config.width, config.channels, flat, axes=2) if config.slices else None
        self.patch_3d = PatchEmbed(config.width, config.channels, deep, axes=3)
        self.cls = nn.Parameter(torch.empty(1, 1, config.width))
        self.registers = nn.Parameter(torch.empty(1, config.registers, config.width))
        self.mask_token = nn.Parameter(torch.empty(config.width))
        self.blocks = nn.ModuleList([Block(config) for _ in range(config.depth)])
        self.norm = nn.LayerNorm(config.width, eps=config.norm_eps)
        self.reset()

    @torch.no_grad()
    def reset(self, generator: torch.Generator | None = None) -> None:
        """Fresh parameters: linear maps and tokens from a normal of 0.02 cut at two deviations, biases and
        the mask token zero. Of a model on the meta device there is nothing to fill yet."""
        if self.cls.is_meta:
            return
        for embed in (self.patch_2d, self.patch_3d):
            if embed is not None:
                embed.reset(generator)
        for block in self.blocks:
            cast(Block, block).reset(generator)
        self.norm.reset_parameters()
        cut_normal(self.cls, generator)
        cut_normal(self.registers, generator)
        self.mask_token.zero_()

    @torch.no_grad()
    def inflate(self, how: Inflation = "average") -> None:
        """The 3D patch embedding from the 2D one (`patch.inflate_kernel`). Once, when a model leaves slices
        for volumes: what the 3D embedding has learned is gone.

        Raises:
            UsageError: `CONFIG_VALUE` for a model without slices.
        """
        if self.patch_2d is None:
            raise UsageError(
                "CONFIG_VALUE", "what is inflated read slices", expected="slices: true", got="slices: false"
            )
        depth = self.config.patch_base(3)[2]
        self.patch_3d.weight.copy_(inflate_kernel(self.patch_2d.weight, depth, how))
        self.patch_3d.bias.copy_(self.patch_2d.bias)

    def draw(self, batch: int, generator: torch.Generator | None = None) -> TrainNoise:
        """The noise of one training step, on the generator's device; a call moves it to its own.

        Each branch works on round(batch · (1 - drop_path)) scans, one at least, drawn without replacement.
        """
        count = max(1, round(batch * (1 - self.config.drop_path)))
        device = torch.device("cpu") if generator is None else generator.device
        # first, so that it does not depend on how many scans there are: parts of a batch see one factor
        rescale = draw_rescale(self.config.rescale, generator)
        rows = [
            torch.randperm(batch, generator=generator, device=device)[:count]
            for _ in range(2 * self.config.depth)
        ]
        kept = torch.stack(rows).unflatten(0, (self.config.depth, 2))
        return TrainNoise(batch, kept, rescale)

    def forward(
        self,
        image: torch.Tensor,
        *,
        patch: int | Sequence[int] | None = None,
        mask: torch.Tensor | None = None,
        noise: TrainNoise | None = None,
        spacing_mm: Sequence[float] | None = None,
    ) -> ViTOutput:
        """Tokens of slices (B, C, X, Y) or volumes (B, C, X, Y, Z).

        Args:
            image: prepared values. patch: size of a patch in voxels, one for all axes or one each; None takes
                the base size. mask: patches (B, N) that are replaced by the mask token.
            noise: what `draw` gave for this batch. Needed in training, unused in evaluation.
            spacing_mm: voxel size per axis, for a model whose coordinates are in mm; unused by others.

        Raises:
            InputRefused: `MODEL_INPUT`, `PATCH_GRID` for a picture or mask that does not fit.
            UsageError: `CONFIG_VALUE` for a patch that is none, or in training without noise.
            InputRefused: `SPACING_INVALID` where voxel sizes are needed and not there, or not positive.
        """
        last = [self.config.depth - 1]
        return self.intermediate(image, last, patch=patch, mask=mask, noise=noise, spacing_mm=spacing_mm)[0]

    def intermediate(
        self,
        image: torch.Tensor,
        layers: Sequence[int],
        *,
        norm: bool = True,
        patch: int | Sequence[int] | None = None,
        mask: torch.Tensor | None = None,
        noise: TrainNoise | None = None,
        spacing_mm: Sequence[float] | None = None,
    ) -> list[ViTOutput]:
        """Tokens after some of the blocks, in the order of `layers`; `ViTOutput.maps` puts them on the grid.

        Args:
            image: as of a call. layers: numbers of blocks from 0. norm: through the last layer norm.
            patch, mask, noise, spacing_mm: as of a call.

        Raises:
            UsageError: `CONFIG_VALUE` for a block that is not there. Others as of a call.
        """
        wrong = [n for n in layers if not 0 <= n < self.config.depth]
        if wrong or not layers:
            expected = f"0 to {self.config.depth - 1}, one at least"
            raise UsageError("CONFIG_VALUE", "layers are blocks of the model", expected=expected, got=layers)
        tokens, grid, sizes = self._embedded(image, patch, mask)
        noise = self._noise(noise, len(image))
        table = self._table(grid, sizes, spacing_mm, tokens, noise)
        states = self.encode(tokens, table, layers, noise)
        return [self._output(states[n], grid, norm) for n in layers]

    def encode(
        self, tokens: PatchTokens, table: Rotation, layers: Sequence[int], noise: TrainNoise | None = None
    ) -> dict[int, torch.Tensor]:
        """Patch tokens and where they lie -> all tokens (B, T, W) after each of `layers`, without norm."""
        batch = len(tokens)
        x = torch.cat([self.cls.expand(batch, -1, -1), self.registers.expand(batch, -1, -1), tokens], dim=1)
        kept = None if noise is None else noise.kept.to(x.device)
        again = self.config.checkpoint and torch.is_grad_enabled()
        found = {}
        for n, block in enumerate(self.blocks):
            if n > max(layers):
                break
            rows = None if kept is None or kept.shape[2] == batch else kept[n]
            if again:
                # no block draws anything: there is no random state to keep
                x = checkpoint(block, x, table, rows, use_reentrant=False, preserve_rng_state=False)
            else:
                x = block(x, table, rows)
            if n in layers:
                found[n] = x
        return found

    def _embedded(
        self, image: torch.Tensor, patch: int | Sequence[int] | None, mask: torch.Tensor | None
    ) -> tuple[torch.Tensor, tuple[int, ...], tuple[int, ...]]:
        embed = {4: self.patch_2d, 5: self.patch_3d}.get(image.dim())
        if embed is None:
            expected = "(B, C, X, Y) or (B, C, X, Y, Z)" if self.config.slices else "(B, C, X, Y, Z)"
            raise InputRefused(
                "MODEL_INPUT",
                "a picture has the axes that the model reads",
                expected=expected,
                got=tuple(image.shape),
            )
        sizes = patch_sizes(self.config.patch_base(embed.axes) if patch is None else patch, embed.axes)
        grid = embed.grid(image, sizes)
        tokens = embed(image, sizes)
        if mask is None:
            return tokens, grid, sizes
        if mask.shape != tokens.shape[:2] or mask.dtype != torch.bool:
            got = f"{mask.dtype} {tuple(mask.shape)}"
            raise InputRefused(
                "MODEL_INPUT",
                "a mask has one bit per patch",
                expected=f"torch.bool {tuple(tokens.shape[:2])}",
                got=got,
            )
        return torch.where(mask[..., None], self.mask_token.to(tokens.dtype), tokens), grid, sizes

    def _noise(self, noise: TrainNoise | None, batch: int) -> TrainNoise | None:
        if not self.training:
            return None
        if noise is None:
            fits, got = self.config.drop_path == 0 and self.config.rescale == 1, "None"
        else:
            fits = noise.batch == batch and len(noise.kept) == self.config.depth
            got = f"noise of {noise.batch} scans and {len(noise.kept)} blocks"
        if not fits:
            raise UsageError(
                "CONFIG_VALUE",
                "training has its noise",
                expected=f"noise=model.draw({batch}, generator)",
                got=got,
                hint="Call model.eval() if this is no training.",
            )
        return noise

    def _table(
        self,
        grid: tuple[int, ...],
        sizes: tuple[int, ...],
        spacing_mm: Sequence[float] | None,
        tokens: torch.Tensor,
        noise: TrainNoise | None,
    ) -> Rotation:
        # angles in bfloat16 are wrong by degrees: only where a model was trained so
        precise = torch.promote_types(tokens.dtype, torch.float32)
        device, dtype = tokens.device, torch.bfloat16 if self.config.rope_bf16 else precise
        if self.config.extent_mm is None:
            places = coordinates(grid, device=device, dtype=dtype)
        else:
            patch_mm = _patch_mm(sizes, spacing_mm)
            places = coordinates_mm(grid, patch_mm, self.config.extent_mm, device=device, dtype=dtype)
        if noise is not None:
            places = places * noise.rescale.to(places)
        if self.config.rope_reversed:
            places = places.flip(-1)
        return rotation(places, self.config.head, self.config.rope_base, self.config.rope_full)

    def _output(self, x: torch.Tensor, grid: tuple[int, ...], norm: bool) -> ViTOutput:
        x = self.norm(x) if norm else x
        prefix = self.config.prefix
        return ViTOutput(x[:, 0], x[:, 1:prefix], x[:, prefix:], grid)


def _patch_mm(sizes: Sequence[int], spacing_mm: Sequence[float] | None) -> list[float]:
    given = () if spacing_mm is None else tuple(spacing_mm)
    if len(given) != len(sizes) or not all(0 < s < float("inf") for s in given):
        expected = f"{len(sizes)} sizes in mm above 0"
        raise InputRefused(
            "SPACING_INVALID", "coordinates in mm need voxel sizes", expected=expected, got=spacing_mm
        )
    return [size * s for size, s in zip(sizes, given, strict=True)]
