"""Three layouts of the same voxels: volumes, cells of 2x2x2 voxels with their voxels as channels, and rows of
cells."""

from __future__ import annotations

from collections.abc import Sequence

import torch


def fold(x: torch.Tensor) -> torch.Tensor:
    """(B, C, X, Y, Z) -> (B, 8 C, X/2, Y/2, Z/2): each 2x2x2 block becomes channels."""
    b, c, n, m, k = x.shape
    x = x.reshape(b, c, n // 2, 2, m // 2, 2, k // 2, 2)
    return x.permute(0, 1, 3, 5, 7, 2, 4, 6).reshape(b, 8 * c, n // 2, m // 2, k // 2)


def unfold(x: torch.Tensor) -> torch.Tensor:
    """The inverse of `fold`."""
    b, c, n, m, k = x.shape
    x = x.reshape(b, c // 8, 2, 2, 2, n, m, k)
    return x.permute(0, 1, 5, 2, 6, 3, 7, 4).reshape(b, c // 8, 2 * n, 2 * m, 2 * k)


def rows(x: torch.Tensor) -> torch.Tensor:
    """(B, C, U, V, W) -> (B, U V W, C); no copy in the channels-last layout."""
    return x.permute(0, 2, 3, 4, 1).flatten(1, 3)


def unrows(x: torch.Tensor, shape: Sequence[int]) -> torch.Tensor:
    """The inverse of `rows`, for a half-resolution `shape` (U, V, W)."""
    return x.transpose(1, 2).unflatten(2, tuple(shape))
