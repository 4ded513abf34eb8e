"""Organ-gated multiple-instance pooling of whole maps, and what scan labels say of it (EXACT §1.5, 1.7).

`objective.mil` does the same on rows of cells for networks that look only where a gate is open.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch.nn import functional as F

from hilum.objective.dense_rule import DenseRule
from hilum.objective.mil import EPS
from hilum.tensors import (
    AnomalyLogits,
    FindingGates,
    FindingMapsTensor,
    FineAnomalyLogits,
    KnownChannels,
    Labels,
    OrganCounts,
    OrganGates,
    OrganLogits,
    OrganProbabilities,
    PackedOrgans,
    ScanProbabilities,
    ScanVolumes,
    VoxelCounts,
)

OPEN = 0.5
"""Probability from which a voxel is in an organ."""

PAPER_PREVALENCE = (
    0.102, 0.2837, 0.1072, 0.0705, 0.2476, 0.1420, 0.2534, 0.1939, 0.2558, 0.4548, 0.3666, 0.2672, 0.1185,
    0.0744, 0.1034, 0.1755, 0.0999, 0.0788,
)  # fmt: skip
"""Share of positives per finding as EXACT has it (§1.7); the fourth disagrees with its own other list."""


class Given(NamedTuple):
    """What a data set outlines.

    Args:
        bits: bit o of a voxel is organ o. known: channels that were outlined.
    """

    bits: PackedOrgans
    known: KnownChannels

    def masks(self) -> OrganGates:
        """0 and 1, also of channels that are not known."""
        count = self.known.shape[1]
        return torch.stack([(self.bits >> bit) & 1 for bit in range(count)], dim=1).float()


class Smoothing(NamedTuple):
    """Where the training scans have their organs on average, and how much that counts.

    Args:
        prior: mean mask per organ, [O, U, V, W] on any grid over the same field. weight: 0..1.
    """

    prior: torch.Tensor
    weight: float

    def __call__(self, organs: OrganProbabilities) -> OrganProbabilities:
        """(1 - weight) · what the network says + weight · where the organ usually is."""
        prior = F.interpolate(self.prior[None], organs.shape[2:], mode="trilinear", align_corners=False)
        return (1 - self.weight) * organs + self.weight * prior.to(organs)


def organ_gates(
    logits: OrganLogits,
    rule: DenseRule,
    given: Given | None = None,
    smoothing: Smoothing | None = None,
    least: OrganCounts | None = None,
) -> OrganGates:
    """How far each organ lets evidence through, [B, O, X, Y, Z].

    Args:
        logits: of the organs at full resolution. given: masks of the data set; organs that it does not know
            are the network's. smoothing: of the network's organs. least: voxels that `rule.guard` keeps open
            (`least_open`).
    """
    organs = torch.sigmoid(logits.float())
    organs = organs if smoothing is None else smoothing(organs)
    if rule.gate == "soft":
        return organs
    # no gradient: anomalies never teach the organs to hide
    organs = organs.detach()
    gates = (organs > OPEN).float()
    if given is not None and rule.gate in ("given", "either"):
        masks, known = given.masks(), given.known[:, :, None, None, None]
        chosen = masks if rule.gate == "given" else torch.maximum(masks, gates)
        gates = torch.where(known, chosen, gates)
    if rule.guard and least is not None:
        _keep_open(gates, organs, least)
    return gates


def _keep_open(gates: OrganGates, organs: OrganProbabilities, least: OrganCounts) -> None:
    wanted = least.to(gates.device).clamp(max=gates[0, 0].numel())
    short = gates.flatten(2).sum(2) < wanted
    for scan, organ in short.nonzero().tolist():
        likeliest = organs[scan, organ].flatten().topk(int(wanted[scan, organ])).indices
        opened = gates[scan, organ].flatten()
        opened[likeliest] = 1.0
        gates[scan, organ] = opened.view(gates.shape[2:])


def finding_gates(organs: OrganGates, rule: DenseRule, shape: Sequence[int]) -> FindingGates:
    """Gates per finding on a grid of `shape`, trilinear where it is coarser."""
    sets = list(dict.fromkeys(rule.gates))
    opened = torch.stack([organs[:, list(channels)].amax(1) for channels in sets], dim=1)
    if tuple(opened.shape[2:]) != tuple(shape):
        opened = F.interpolate(opened, tuple(shape), mode="trilinear", align_corners=False)
    return opened[:, [sets.index(channels) for channels in rule.gates]]


def pool_counts(rule: DenseRule, voxel_ml: ScanVolumes, *, low: bool = False) -> VoxelCounts:
    """Voxels averaged per scan and finding.

    Args:
        voxel_ml: of the full resolution. low: for maps at half of it.
    """
    findings = len(rule.gates)
    if rule.pool == "volume":
        ml = torch.tensor(rule.volumes_ml, dtype=torch.float64, device=voxel_ml.device)
        size = voxel_ml.double() * (8 if low else 1)
        return (ml[None] / size[:, None]).round().long().clamp(min=1 if low else 3)
    count = rule.k_low if low else rule.k_high
    return torch.full((len(voxel_ml), findings), count, dtype=torch.int64, device=voxel_ml.device)


def read_counts(rule: DenseRule, voxel_ml: ScanVolumes) -> VoxelCounts:
    """The same for a scan that is read, at full resolution."""
    if rule.k_read is None:
        return pool_counts(rule, voxel_ml)
    return torch.full((len(voxel_ml), len(rule.gates)), rule.k_read, dtype=torch.int64)


def pool_maps(
    gated: FindingMapsTensor, counts: VoxelCounts, rule: DenseRule, gates: FindingGates | None = None
) -> ScanProbabilities:
    """Gated maps -> one probability per scan and finding; voxels that a map does not have count as 0.

    Args:
        gated: map times gate. counts: per scan and finding. gates: for ``lse``, what is averaged over; None
            takes voxels above 0.
    """
    flat = gated.flatten(2)
    if rule.pool == "lse":
        weight = (flat > 0).to(flat) if gates is None else gates.flatten(2)
        return _log_mean_exp(flat, weight, rule.sharpness)
    most = min(int(counts.max()), flat.shape[2])
    largest = flat.topk(most, dim=2).values
    taken = torch.arange(most, device=flat.device) < counts[:, :, None].to(flat.device)
    return (largest * taken).sum(2) / counts.to(largest)


def _log_mean_exp(flat: torch.Tensor, weight: torch.Tensor, sharpness: float) -> ScanProbabilities:
    """1/r log of the mean of exp(r m) over a gate; 0 for one that is closed everywhere. Source: Pinheiro and
    Collobert, CVPR 2015."""
    total = weight.sum(2)
    logs = torch.where(weight > 0, weight.clamp_min(1e-12).log(), torch.full_like(weight, -1e9))
    mean = torch.logsumexp(sharpness * flat + logs, dim=2) - total.clamp_min(1e-12).log()
    return torch.where(total > 0, (mean / sharpness).clamp(0, 1), torch.zeros_like(mean))


def label_losses(
    prob: ScanProbabilities, labels: Labels, prevalence: Sequence[float], cap: float | None = None
) -> ScanProbabilities:
    """Cross-entropy of every label, positives weighted by (1 - f) / f; 0 where a label is unknown (NaN)."""
    f = torch.tensor(prevalence, dtype=prob.dtype, device=prob.device)
    weight = ((1 - f + EPS) / (f + EPS)).clamp(max=math.inf if cap is None else cap)
    y = torch.nan_to_num(labels)
    # a mean of equal ones may round to more than 1
    loss = -(weight * y * torch.log(prob + EPS) + (1 - y) * torch.log((1 - prob).clamp_min(0) + EPS))
    return torch.where(torch.isnan(labels), torch.zeros_like(loss), loss)


def scan_label_losses(
    low: AnomalyLogits,
    high: FineAnomalyLogits,
    gates: OrganGates,
    labels: Labels,
    rule: DenseRule,
    voxel_ml: ScanVolumes,
    prevalence: Sequence[float],
    cap: float | None = None,
) -> ScanProbabilities:
    """Loss of every label, mean over resolutions (EXACT §1.7).

    Args:
        low, high: logits, at half and at full resolution. gates: of the organs at full resolution.
        labels: NaN unknown. voxel_ml: at full resolution.
    """
    found = []
    for level, logits in enumerate((low, high)):
        opened = finding_gates(gates, rule, logits.shape[2:])
        counts = pool_counts(rule, voxel_ml, low=level == 0)
        prob = pool_maps(torch.sigmoid(logits.float()) * opened, counts, rule, opened)
        found.append(label_losses(prob, labels, prevalence, cap))
    return torch.stack(found).mean(0)


def least_open(rule: DenseRule, voxel_ml: ScanVolumes, organs: int) -> OrganCounts:
    """Voxels per scan and organ that `rule.guard` keeps open: what the findings that it opens for pool."""
    counts = pool_counts(rule, voxel_ml)
    wanted = torch.ones((len(counts), organs), dtype=torch.int64, device=counts.device)
    for finding, channels in enumerate(rule.gates):
        for organ in channels:
            wanted[:, organ] = torch.maximum(wanted[:, organ], counts[:, finding])
    return wanted
