"""EXACT in small: organ masks and voxel anomaly maps from scan labels (EXACT §1.5, 1.7)."""

from __future__ import annotations

import torch
from torch.nn import functional as F

from hilum.model.preset import Preset
from hilum.model.ynet import YNet
from hilum.objective.mil import finding_gate, least_open, organ_gate, prevalence_bce, top_mean, voxel_counts
from hilum.objective.segmentation import segmentation_weight, tversky_focal
from hilum.text.vocabulary import ORGAN_CHANNELS, ORGAN_OF
from hilum.train.batch import Batch
from hilum.train.recipe import ObjectiveRecipe

PAPER_COUNT_LOW = 6
PAPER_COUNT_HIGH = 48


def pooled_counts(preset: Preset, recipe: ObjectiveRecipe) -> tuple[list[int], list[int]]:
    """Voxels averaged into a scan probability, per finding, at half and full resolution."""
    if recipe.pool == "paper":
        return [PAPER_COUNT_LOW] * len(ORGAN_OF), [PAPER_COUNT_HIGH] * len(ORGAN_OF)
    return voxel_counts(preset.pool_ml, preset.voxel_ml * 8, 1), voxel_counts(preset.pool_ml, preset.voxel_ml)


def coarse_masks(organs: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """Masks at the resolution of a coarse head: a voxel belongs to an organ that fills at least half of
    it."""
    return F.avg_pool3d(organs.float(), organs.shape[2] // like.shape[2]) >= 0.5


def losses(model: YNet, batch: Batch, preset: Preset, recipe: ObjectiveRecipe) -> dict[str, torch.Tensor]:
    """`organs` and `anomaly`, each already weighted; their sum is minimised."""
    out = model(batch.scan)
    organs = tversky_focal(
        out.organs,
        batch.organs,
        false_positive=recipe.tversky_fp,
        false_negative=recipe.tversky_fn,
        focal_alpha=recipe.focal_alpha,
    )
    for coarse in out.coarse:
        organs = organs + recipe.coarse_weight * tversky_focal(
            coarse,
            coarse_masks(batch.organs, coarse),
            false_positive=recipe.tversky_fp,
            false_negative=recipe.tversky_fn,
            focal_alpha=recipe.focal_alpha,
        )
    if batch.progress < recipe.organs_first:
        return {"organs": segmentation_weight(batch.progress) * organs}
    low_counts, high_counts = pooled_counts(preset, recipe)
    # the gate carries no gradient: anomalies never teach the organs to hide
    gate = organ_gate(
        torch.sigmoid(out.organs.detach()), least_open(high_counts, ORGAN_OF, len(ORGAN_CHANNELS))
    )
    if recipe.gate == "given":
        gate = batch.organs
    elif recipe.gate == "either":
        gate = gate | batch.organs
    anomaly = torch.stack(
        [
            prevalence_bce(
                top_mean(maps, finding_gate(gate, maps.shape[2:], ORGAN_OF), counts),
                batch.labels,
                batch.prevalence,
            )
            for maps, counts in ((out.low, low_counts), (out.high, high_counts))
        ]
    ).mean()
    return {
        "organs": segmentation_weight(batch.progress) * organs,
        "anomaly": recipe.anomaly_weight * anomaly,
    }
