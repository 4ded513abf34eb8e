"""What scan labels say about scan probabilities, whatever pooled them."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from hilum.objective.mil import prevalence_bce, sibling_ranking
from hilum.tensors import ScanProbabilities
from hilum.train.batch import Batch
from hilum.train.recipe import ObjectiveRecipe


def scan_loss(prob: ScanProbabilities, batches: Sequence[Batch], recipe: ObjectiveRecipe) -> torch.Tensor:
    """Weighted sum of the cross-entropy of each scan and, for scans of one patient, of their ranking."""
    labels = torch.cat([batch.labels for batch in batches])
    loss = recipe.anomaly_weight * prevalence_bce(prob, labels, batches[0].prevalence)
    if recipe.ranking_weight:
        loss = loss + recipe.ranking_weight * sibling_ranking(prob, labels)
    return loss
