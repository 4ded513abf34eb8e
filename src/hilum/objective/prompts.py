"""Diseases asked in words: is a scan nearer to "there is X" than to "there is no X"?

Source: RadFinder §1.5b: logit ``e^t (cos+ - cos-)``, which the bias of SigLIP cancels from; binary
cross-entropy with capped positive weights and a weight per group of questions; unknown answers are masked.

What differs from its public code (§1.11, 5): an unanswered question is unknown, never negative, and the mean
is over weights, not over counts, so that a group's weight is what it says.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.nn import functional as F

from hilum.objective.gather import mean_over_ranks
from hilum.objective.precision import full, without_autocast
from hilum.tensors import Embeddings, PromptEmbeddings, Scalar, ScanAnswers

CAP = 20.0
"""Largest weight of a rare question's positives."""


def positive_weights(answers: ScanAnswers, cap: float = CAP) -> torch.Tensor:
    """(Q,) negatives per positive of each question over a training set, at most `cap`; 1 where one of the two
    was never answered."""
    positives, negatives = (answers == 1).sum(0), (answers == 0).sum(0)
    weights = (negatives / positives.clamp_min(1)).clamp(max=cap)
    return torch.where((positives > 0) & (negatives > 0), weights, torch.ones_like(weights))


def prompt_logits(
    images: Embeddings, present: PromptEmbeddings, absent: PromptEmbeddings, scale: Scalar
) -> torch.Tensor:
    """(N, Q): how much nearer each scan is to each question's positive sentence.

    Args:
        images: of length 1. present, absent: (N or 1, Q, E) of length 1, a paraphrase per scan and question.
    """
    return scale * torch.einsum("ne,nqe->nq", images, (present - absent).expand(len(images), -1, -1))


def prompt_loss(
    logits: torch.Tensor, answers: ScanAnswers, positive: torch.Tensor, group: Sequence[float] | torch.Tensor
) -> Scalar:
    """Weighted mean of the cross-entropies of everything that was answered, on all ranks; 0 where nothing
    was.

    Args:
        logits: (N, Q) of `prompt_logits`. answers: 1, 0, or NaN for unknown.
        positive: (Q,) of `positive_weights`. group: (Q,) weight of each question's group.
    """
    with without_autocast(logits):
        logits = full(logits)
        known = ~torch.isnan(answers)
        weight = known * torch.as_tensor(group, dtype=logits.dtype, device=logits.device)
        losses = F.binary_cross_entropy_with_logits(
            logits, torch.nan_to_num(answers).to(logits), pos_weight=positive.to(logits), reduction="none"
        )
        return mean_over_ranks((losses * weight).sum(), weight.sum())
