"""iBOT: what the teacher sees in a patch, the student says of it from around it.

Source: Zhou et al., ICLR 2022, §3.2; weights per mask and Sinkhorn targets as of DINOv2 (Oquab et al., TMLR
2024). Masks: `objective.masks`. Targets are `objective.sinkhorn` over the masked tokens of all ranks, with
the head of iBOT, not of DINO.

A volume of 20³ patches has thousands of masked tokens, and each has 65,536 logits. With `project` the loss
takes tokens before the last linear map and makes the logits of one chunk at a time; with `sinkhorn.balance`,
the teacher's too.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from hilum.errors import RunError
from hilum.objective.dino import STUDENT_TEMPERATURE, soft_cross_entropy
from hilum.objective.gather import mean_over_ranks
from hilum.objective.parts import sum_in_chunks
from hilum.objective.precision import full
from hilum.objective.sinkhorn import Balanced
from hilum.tensors import PatchMask, Scalar, TokenRows, TokenTargets, TokenWeights


def token_weights(masks: PatchMask) -> TokenWeights:
    """Weight of each masked token in the order of ``tokens[masks]``: one over the masked tokens of its view,
    so that a view counts as much with few masked patches as with many."""
    count = masks.sum(1, keepdim=True).clamp_min(1)
    return (1.0 / count).expand(masks.shape)[masks]


def ibot_loss(
    student: TokenRows,
    targets: TokenTargets | Balanced,
    weights: TokenWeights,
    views: int,
    *,
    temperature: float = STUDENT_TEMPERATURE,
    project: Callable[[torch.Tensor], torch.Tensor] | None = None,
    chunk: int | None = None,
) -> Scalar:
    """Weighted cross-entropy of the masked tokens, over the views of all ranks.

    Args:
        student: logits of the masked tokens, or what `project` makes logits of (`DinoHead.prototypes`).
        targets: shares of the same tokens, or `sinkhorn.balance`, of which a chunk is made at a time.
        weights: `token_weights`.
        views: this rank's views, masked or not: half of them unmasked halves the loss, as published.
        chunk: tokens whose logits exist at a time; None for all.

    Raises:
        RunError: ``MODEL_OUTPUT``, not one target and one weight per token (torch would broadcast a single
            one).
    """
    given = (targets.rows, targets.of_sample) if isinstance(targets, Balanced) else (targets,)
    if not len(student) == len(given[0]) == len(weights):
        raise RunError(
            "MODEL_OUTPUT",
            "every masked token has a target and a weight",
            expected=f"{len(student)} of each",
            got=f"{len(given[0])} and {len(weights)}",
        )

    def weighted(tokens: torch.Tensor, weight: torch.Tensor, *target: torch.Tensor) -> torch.Tensor:
        logits = tokens if project is None else project(tokens)
        shares = targets.shares(*target) if isinstance(targets, Balanced) else target[0]
        return (soft_cross_entropy(logits, shares, temperature) * full(weight)).sum()

    return mean_over_ranks(sum_in_chunks(weighted, (student, weights, *given), chunk), views)
