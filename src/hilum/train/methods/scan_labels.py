"""What scan labels say about pooled maps, whatever pooled them."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from hilum.objective.mil import Pooled, log_odds, prevalence_bce, sibling_ranking
from hilum.train.batch import Batch
from hilum.train.recipe import ObjectiveRecipe


def scan_loss(pooled: Pooled, batches: Sequence[Batch], recipe: ObjectiveRecipe) -> torch.Tensor:
    """Weighted sum of each scan's cross-entropy and, for scans of one patient, of the rankings by
    probability and by score."""
    labels = torch.cat([batch.labels for batch in batches])
    loss = recipe.anomaly_weight * prevalence_bce(pooled.prob, labels, batches[0].prevalence)
    for weight, scores in (
        (recipe.rank_prob_weight, (log_odds(pooled.prob),)),
        (recipe.rank_weight, pooled.scores),
    ):
        if weight:
            ranked = torch.stack([sibling_ranking(score, labels) for score in scores])
            loss = loss + weight * ranked.mean()
    return loss
