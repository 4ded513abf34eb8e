"""What scan labels say about pooled maps, whatever pooled them."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from hilum.objective.mil import Pooled, log_amount, log_odds, prevalence_bce, sibling_ranking
from hilum.train.batch import Batch
from hilum.train.recipe import ObjectiveRecipe


def scan_loss(pooled: Pooled, batches: Sequence[Batch], recipe: ObjectiveRecipe) -> torch.Tensor:
    """Weighted sum of each scan's cross-entropy and, for scans of one patient, of the rankings of probability
    and of amount."""
    labels = torch.cat([batch.labels for batch in batches])
    loss = recipe.anomaly_weight * prevalence_bce(pooled.prob, labels, batches[0].prevalence)
    if recipe.rank_prob_weight:
        loss = loss + recipe.rank_prob_weight * sibling_ranking(log_odds(pooled.prob), labels)
    if recipe.rank_amount_weight:
        loss = loss + recipe.rank_amount_weight * sibling_ranking(log_amount(pooled.amount), labels)
    return loss
