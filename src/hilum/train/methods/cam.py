"""The baseline's loss: the same terms on the globally pooled logits. No organs, no
gate."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from hilum.model.cam import CamNet
from hilum.model.preset import Preset
from hilum.objective.mil import Pooled
from hilum.train.batch import Batch
from hilum.train.methods.scan_labels import scan_loss
from hilum.train.recipe import ObjectiveRecipe


def losses(
    model: CamNet, batches: Sequence[Batch], preset: Preset, recipe: ObjectiveRecipe
) -> dict[str, torch.Tensor]:
    """`anomaly` alone."""
    scores = torch.cat([model(batch.scan).scan for batch in batches])
    # its one score is its global mean
    return {"anomaly": scan_loss(Pooled(torch.sigmoid(scores), (scores,)), batches, recipe)}
