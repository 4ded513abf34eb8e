"""What a dense network says of a scan that is read: confined maps, and probabilities that follow from them
(EXACT §1.8)."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import torch
from torch.nn import functional as F

from hilum.objective.dense import finding_gates, least_open, organ_gates, pool_maps, read_counts
from hilum.objective.dense_rule import DenseRule
from hilum.tensors import (
    AnomalyLogits,
    FindingGates,
    FindingMapsTensor,
    FineAnomalyLogits,
    OrganLogits,
    OrganProbabilities,
    ScanProbabilities,
    ScanVolumes,
)


class DenseReading(NamedTuple):
    """All at full resolution.

    Args:
        organs: probabilities. gates: per finding; 0 outside its organ. high: anomaly probabilities of the
            full resolution, low those of half of it, trilinear; neither is gated.
        pooled: of `high` times `gates`, per scan and finding.
    """

    organs: OrganProbabilities
    gates: FindingGates
    high: FindingMapsTensor
    low: FindingMapsTensor
    pooled: ScanProbabilities


def read_maps(
    organs: OrganLogits, low: AnomalyLogits, high: FineAnomalyLogits, rule: DenseRule, voxel_ml: ScanVolumes
) -> DenseReading:
    """Logits -> reading. Masks of a data set are never asked for."""
    own = replace(rule, gate="soft" if rule.gate == "soft" else "hard")
    hard = replace(own, gate="hard")
    least = least_open(rule, voxel_ml, organs.shape[1]) if rule.guard else None
    opened = organ_gates(organs, hard, least=least)
    if own.gate == "soft":
        # weighted as trained, and still nothing outside the organ
        opened = opened * organ_gates(organs, own)
    gates = finding_gates(opened, rule, high.shape[2:])
    fine = torch.sigmoid(high.float())
    coarse = F.interpolate(torch.sigmoid(low.float()), high.shape[2:], mode="trilinear", align_corners=False)
    pooled = pool_gated(fine * gates, rule, voxel_ml)
    return DenseReading(torch.sigmoid(organs.float()), gates, fine, coarse, pooled)


def pool_gated(gated: FindingMapsTensor, rule: DenseRule, voxel_ml: ScanVolumes) -> ScanProbabilities:
    """Gated maps at full resolution -> probabilities: what anybody can compute again from exported maps."""
    return pool_maps(gated, read_counts(rule, voxel_ml), rule)
