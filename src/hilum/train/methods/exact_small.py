"""EXACT in small: organ masks and voxel anomaly maps from scan labels (EXACT §1.5, 1.7)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch.nn import functional as F

from hilum.model.preset import Preset
from hilum.model.ynet import YNet, YNetFeatures, fold, rows
from hilum.objective.mil import least_open, organ_gate, scan_probabilities, voxel_counts
from hilum.objective.segmentation import segmentation_weight, tversky_focal
from hilum.tensors import OrganBits
from hilum.text.vocabulary import ORGAN_CHANNELS, ORGAN_OF
from hilum.train.batch import Batch
from hilum.train.methods.scan_labels import scan_loss
from hilum.train.recipe import ObjectiveRecipe

PAPER_COUNT_LOW = 6
PAPER_COUNT_HIGH = 48


def pooled_counts(preset: Preset, recipe: ObjectiveRecipe) -> tuple[list[int], list[int]]:
    """Voxels averaged into a scan probability, per finding, at half and full resolution."""
    if recipe.pool == "paper":
        return [PAPER_COUNT_LOW] * len(ORGAN_OF), [PAPER_COUNT_HIGH] * len(ORGAN_OF)
    return voxel_counts(preset.pool_ml, preset.voxel_ml * 8, 1), voxel_counts(preset.pool_ml, preset.voxel_ml)


def organ_rows(bits: OrganBits) -> torch.Tensor:
    """Packed masks -> bool (B, N, O, 8) at half resolution, eight voxels of the full grid in each."""
    shifts = torch.arange(len(ORGAN_CHANNELS), dtype=torch.uint8, device=bits.device)
    return (rows(fold(bits[:, None]))[:, :, None] >> shifts[:, None]) & 1 > 0


def coarse_masks(bits: OrganBits, like: torch.Tensor) -> torch.Tensor:
    """Masks at the resolution of a coarse head: a voxel belongs to an organ that fills at least half of
    it."""
    share = organ_rows(bits).float().mean(3).transpose(1, 2)
    half = share.unflatten(2, tuple(n // 2 for n in bits.shape[1:]))
    return F.avg_pool3d(half, half.shape[2] // like.shape[2]) >= 0.5


def organ_loss(features: YNetFeatures, batch: Batch, recipe: ObjectiveRecipe) -> torch.Tensor:
    """Tversky + focal on the full grid, and on the coarse heads while a deep network trains."""
    tversky = partial(
        tversky_focal,
        false_positive=recipe.tversky_fp,
        false_negative=recipe.tversky_fn,
        focal_alpha=recipe.focal_alpha,
    )
    loss = tversky(features.organ_rows().transpose(1, 2), organ_rows(batch.organ_bits).transpose(1, 2))
    for coarse in features.coarse:
        loss = loss + recipe.coarse_weight * tversky(coarse, coarse_masks(batch.organ_bits, coarse))
    return segmentation_weight(batch.progress) * loss


def pooled(
    model: YNet, features: YNetFeatures, batch: Batch, preset: Preset, recipe: ObjectiveRecipe
) -> torch.Tensor:
    """Scan probabilities (2, B, D) from the maps of both resolutions, inside the organs."""
    counts = pooled_counts(preset, recipe)
    given = organ_rows(batch.organ_bits)
    # the gate carries no gradient: anomalies never teach the organs to hide
    found = organ_gate(
        torch.sigmoid(features.organ_rows().detach()), least_open(counts[1], ORGAN_OF, len(ORGAN_CHANNELS))
    )
    gate = {"predicted": found, "given": given, "either": found | given}[recipe.gate]
    return torch.stack(
        scan_probabilities(model.anomaly_heads.rows, rows(features.anomalies), gate, ORGAN_OF, counts)
    )


def losses(
    model: YNet, batches: Sequence[Batch], preset: Preset, recipe: ObjectiveRecipe
) -> dict[str, torch.Tensor]:
    """`organs` and `anomaly`, each already weighted; their sum is minimised."""
    features = [model.features(batch.scan) for batch in batches]
    named = {}
    if batches[0].step % recipe.organs_every == 0 or batches[0].progress < recipe.organs_first:
        organs = [organ_loss(f, batch, recipe) for f, batch in zip(features, batches, strict=True)]
        named["organs"] = torch.stack(organs).mean()
    if batches[0].progress >= recipe.organs_first:
        both = zip(features, batches, strict=True)
        probs = torch.cat([pooled(model, f, batch, preset, recipe) for f, batch in both], dim=1)
        named["anomaly"] = torch.stack([scan_loss(p, batches, recipe) for p in probs]).mean()
    return named
