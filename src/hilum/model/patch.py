"""Pictures into tokens: one linear map per patch, whose kernel is resized to the patch size asked for.

FlexiViT (Beyer et al., CVPR 2023): a kernel w made for patches of 8 is used on patches of 16 as w' = (B⁺)ᵀ w,
where B is the matrix that enlarges a patch. Then <B x, w'> = <x, w> for every patch x: an enlarged picture
gives the tokens of the picture. Parameters stay what they are. B is bicubic with antialiasing in 2D and
trilinear in 3D (FlexiCT §1).

Both interpolations work axis by axis, so that B is a Kronecker product, and so is its pseudo-inverse: three
small matrices instead of one of 512 × 4096.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache
from typing import Literal

import torch
from torch import nn
from torch.nn import functional as F

from hilum.errors import InputRefused, UsageError
from hilum.tensors import PatchTokens, PatchWeight, ResizedWeight, SliceKernel, VolumeKernel

Inflation = Literal["average", "centre"]
Kind = Literal["bicubic", "linear"]

LARGEST = 256
"""Patches are not wider: a typing error should not become a matrix that fills the memory."""


def resize_matrix(old: int, new: int, kind: Kind) -> torch.Tensor:
    """What resizes one axis from `old` to `new` samples: float64 (new, old)."""
    unit = torch.eye(old, dtype=torch.float64)
    if kind == "linear":
        return F.interpolate(unit[:, None], size=new, mode="linear")[:, 0].T
    # bicubic is made for pictures: of stripes, which stay stripes, one column says all. (A picture one pixel
    # wide comes out wrong in torch 2.13.)
    stripes = unit[:, None, :, None].repeat(1, 1, 1, 2)
    return F.interpolate(stripes, size=(new, 2), mode="bicubic", antialias=True)[:, 0, :, 0].T


@cache
def _pinv(old: int, new: int, kind: Kind) -> tuple[tuple[float, ...], ...]:
    # plain numbers: they belong to no device, no autograd mode and no compiler
    with torch.inference_mode(False):
        inverse = torch.linalg.pinv(resize_matrix(old, new, kind))
    return tuple(tuple(row) for row in inverse.tolist())


@torch.compiler.assume_constant_result
def pinv_rows(old: int, new: int, kind: Kind) -> tuple[tuple[float, ...], ...]:
    """Pseudo-inverse (old, new) of `resize_matrix`, kept for every pair of sizes seen."""
    return _pinv(old, new, kind)


def resize_kernel(weight: PatchWeight, size: Sequence[int]) -> ResizedWeight:
    """(W, C, *old) -> (W, C, *size) by the pseudo-inverse; the same tensor where the size stays.

    For larger patches <B x, w'> = <x, w> exactly; for smaller ones, which hold less, as well as least squares
    can.
    """
    kind: Kind = "bicubic" if weight.dim() == 4 else "linear"
    kernel = weight
    for axis, new in enumerate(size, start=2):
        old = weight.shape[axis]
        if old != new:
            # in float64, which autocast leaves alone: rounded to bfloat16 the identity above would not hold
            kernel = kernel.double()
            inverse = kernel.new_tensor(pinv_rows(old, new, kind))
            kernel = torch.tensordot(kernel, inverse, dims=([axis], [0])).movedim(-1, axis)
    return kernel.to(weight.dtype)


def inflate_kernel(weight: SliceKernel, depth: int, how: Inflation = "average") -> VolumeKernel:
    """A kernel for slices as one for volumes, the new axis last: (W, C, P, Q) -> (W, C, P, Q, depth).

    Slices are [X, Y] and volumes [X, Y, Z], so slices lie across the last axis. A volume whose slices are all
    equal gets the tokens of its slice (``average``: Carreira and Zisserman, CVPR 2017); ``centre`` looks at
    the middle slice alone.

    Raises:
        UsageError: `CONFIG_VALUE` for another `how`.
    """
    if how == "average":
        return weight[..., None].expand(*weight.shape, depth) / depth
    if how != "centre":
        raise UsageError(
            "CONFIG_VALUE", "a kernel is inflated in a known way", expected="average, centre", got=how
        )
    kernel = weight.new_zeros(*weight.shape, depth)
    kernel[..., depth // 2] = weight
    return kernel


def patch_sizes(patch: int | Sequence[int], axes: int) -> tuple[int, ...]:
    """One size per axis.

    Raises:
        UsageError: `CONFIG_VALUE` for sizes that are none, or not one per axis.
    """
    sizes = (patch,) * axes if isinstance(patch, int) else tuple(patch)
    if len(sizes) != axes or not all(isinstance(n, int) and 1 <= n <= LARGEST for n in sizes):
        expected = f"1 to {LARGEST} voxels, once or {axes} times"
        raise UsageError("CONFIG_VALUE", "a patch has a size per axis", expected=expected, got=patch)
    return sizes


def patch_grid(shape: Sequence[int], sizes: Sequence[int]) -> tuple[int, ...]:
    """Patches per axis of a picture of so many voxels.

    Raises:
        InputRefused: `PATCH_GRID` for an axis that is not a whole number of patches, one at least.
    """
    if any(n < size or n % size for n, size in zip(shape, sizes, strict=True)):
        raise InputRefused(
            "PATCH_GRID",
            "a picture is a whole number of patches along every axis",
            expected=f"multiples of {tuple(sizes)} voxels",
            got=tuple(shape),
            hint="Crop or pad it first.",
        )
    return tuple(n // size for n, size in zip(shape, sizes, strict=True))


class PatchEmbed(nn.Module):
    """The linear map, for slices (2 axes) or volumes (3).

    Args:
        width: channels of a token. channels: of the picture. patch: the kernel's own size, one number for all
            axes or one each. axes: 2 or 3.
    """

    def __init__(self, width: int, channels: int, patch: int | Sequence[int], axes: int) -> None:
        super().__init__()
        self.axes = axes
        self.weight = nn.Parameter(torch.empty(width, channels, *patch_sizes(patch, axes)))
        self.bias = nn.Parameter(torch.empty(width))

    def reset(self, generator: torch.Generator | None = None) -> None:
        """Fresh values, uniform as torch's convolutions have them."""
        bound = 1 / math.sqrt(self.weight[0].numel())
        for parameter in (self.weight, self.bias):
            nn.init.uniform_(parameter, -bound, bound, generator=generator)

    def grid(self, image: torch.Tensor, sizes: Sequence[int]) -> tuple[int, ...]:
        """Patches per axis.

        Raises:
            InputRefused: `MODEL_INPUT` for other channels or whole numbers, `PATCH_GRID` for an axis that is
                not a whole number of patches, one at least.
        """
        if image.shape[1] != self.weight.shape[1]:
            got = f"{image.shape[1]} in {tuple(image.shape)}"
            raise InputRefused(
                "MODEL_INPUT", "a picture has the model's channels", expected=self.weight.shape[1], got=got
            )
        if not image.is_floating_point():
            raise InputRefused(
                "MODEL_INPUT", "a picture holds prepared values", expected="floating point", got=image.dtype
            )
        return patch_grid(tuple(image.shape[2:]), sizes)

    def forward(self, image: torch.Tensor, sizes: Sequence[int]) -> PatchTokens:
        """(B, C, *voxels) -> (B, N, W), patches in the order of the picture's axes.

        A matrix product over unfolded patches: what a strided convolution computes, faster on CPUs.
        """
        grid = self.grid(image, sizes)
        blocks = [n for pair in zip(grid, sizes, strict=True) for n in pair]
        patches = image.reshape(*image.shape[:2], *blocks)
        order = [2 + 2 * axis for axis in range(self.axes)], [3 + 2 * axis for axis in range(self.axes)]
        patches = patches.permute(0, *order[0], 1, *order[1]).reshape(len(image), math.prod(grid), -1)
        return F.linear(patches, resize_kernel(self.weight, sizes).flatten(1), self.bias)
