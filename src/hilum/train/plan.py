"""What a training step of a backbone will need of memory, told before it starts. Nothing is allocated for it.

Counted for float32 from the tensors that autograd keeps of each block, per token and in widths: two norms
(2), queries, keys and values (3), rotated queries and keys (2), attention (1), both branches before their
scale (2), both sums (2), and the perceptron before and after its GELU (2 · mlp). Attention is fused: no
square of tokens is kept. With checkpoints a block keeps its input alone, and one block is whole at a time.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch

from hilum.errors import UsageError
from hilum.model.patch import patch_grid, patch_sizes
from hilum.model.vit import ViT
from hilum.model.vit_config import ViTConfig

FLOAT = 4
MIB = 2**20


class View(NamedTuple):
    """Pictures of one size in a step.

    Args:
        shape: voxels per axis, two or three. pictures: how many a rank holds at a time. patch: as of a
            call.
    """

    shape: tuple[int, ...]
    pictures: int
    patch: int | None = None


class MemoryPlan(NamedTuple):
    """MiB of one rank that shares nothing (one process, or DDP).

    Args:
        parameters, gradients: of all that is trained. moments: AdamW's two. average: the teacher.
        activations: what the backward pass needs, and its own largest tensors.
    """

    parameters: float
    gradients: float
    moments: float
    average: float
    activations: float

    @property
    def total(self) -> float:
        """All of it at once, as with gradients that accumulate over micro-batches. Without torch itself, the
        data, and the losses."""
        return sum(self)


def memory_plan(config: ViTConfig, views: Sequence[View], *, others: int = 0) -> MemoryPlan:
    """The plan for a backbone and the views of one backward pass; `config.checkpoint` decides what is kept.

    Args:
        config: of the backbone. views: all that one backward pass sees. others: trained parameters besides
            the backbone's: heads, projections, text tower (without their activations).

    Raises:
        UsageError: `CONFIG_VALUE` for a patch that is none, a count of pictures below 1, or no view.
        InputRefused: `PATCH_GRID` for a view that is not a whole number of patches.
    """
    if not views or any(view.pictures < 1 for view in views):
        raise UsageError("CONFIG_VALUE", "a step sees views", expected="1 or more of each", got=list(views))
    with torch.device("meta"):
        own = sum(parameter.numel() for parameter in ViT(config).parameters())
    weights = (own + others) * FLOAT / MIB
    tokens = [view.pictures * token_count(config, view) for view in views]
    return MemoryPlan(weights, weights, 2 * weights, weights, _activations(config, tokens) / MIB)


def token_count(config: ViTConfig, view: View) -> int:
    """Tokens of one picture, CLS and registers included.

    Raises:
        UsageError, InputRefused: as of `memory_plan`.
    """
    sizes = patch_sizes(view.patch or config.patch, len(view.shape))
    return config.prefix + math.prod(patch_grid(view.shape, sizes))


def _activations(config: ViTConfig, tokens: Sequence[int]) -> float:
    """Bytes that the backward pass of all views together finds, and needs in the last block."""
    block = 12 + 2 * config.mlp
    # the gradients of the perceptron's two sides, of the largest view, whose block is gone through first
    passing = 2 * config.mlp * max(tokens)
    if config.checkpoint:
        kept = config.depth * sum(tokens) + block * max(tokens)
    else:
        kept = config.depth * block * sum(tokens)
    # before the first block and around the last norm
    ends = 3 * sum(tokens)
    return FLOAT * config.width * (kept + passing + ends)
