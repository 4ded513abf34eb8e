"""The baseline's loss: prevalence-weighted cross-entropy on the globally pooled logits. No organs, no
gate."""

from __future__ import annotations

import torch

from hilum.model.cam import CamNet
from hilum.model.preset import Preset
from hilum.objective.mil import prevalence_bce
from hilum.train.batch import Batch
from hilum.train.recipe import ObjectiveRecipe


def losses(model: CamNet, batch: Batch, preset: Preset, recipe: ObjectiveRecipe) -> dict[str, torch.Tensor]:
    """`anomaly` alone."""
    prob = torch.sigmoid(model(batch.scan).scan)
    return {"anomaly": recipe.anomaly_weight * prevalence_bce(prob, batch.labels, batch.prevalence)}
