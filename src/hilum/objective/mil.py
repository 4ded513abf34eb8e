"""Organ-gated top-k multiple-instance loss: a scan has a finding if some voxels of its organ have it.

Source: EXACT §1.5, 1.7, 1.8. Two changes, both options: k is a volume in ml per finding instead of one voxel
count for all (a nodule and a mosaic pattern do not have the same size; the paper's 6 and 48 voxels stay
reachable), and the gate can never be empty: where fewer voxels than k pass the threshold, the k most
organ-like voxels pass, so the finding still learns.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch.nn import functional as F

from hilum.tensors import FeatureRows, GateRows, Labels, OrganRows, ScanProbabilities

Heads = Callable[[torch.Tensor, Sequence[int]], tuple[torch.Tensor, torch.Tensor]]
Counts = tuple[Sequence[int], Sequence[int]]

EPS = 1e-6
CLOSED = -30.0
"""Logit of a voxel outside the gate: sigmoid is 1e-13."""


def organ_gate(organ_prob: OrganRows, least: Sequence[int], threshold: float = 0.5) -> GateRows:
    """Where each organ is, with at least `least[o]` voxels open: an organ that was not found keeps its
    likeliest voxels."""
    gate = organ_prob > threshold
    for organ, count in enumerate(least):
        for scan in (gate[:, :, organ].sum((1, 2)) < count).nonzero().flatten().tolist():
            flat = organ_prob[scan, :, organ].flatten()
            top = flat.topk(min(count, len(flat))).indices
            gate[scan, top // 8, organ, top % 8] = True
    return gate


def top_mean(logits: torch.Tensor, count: int) -> torch.Tensor:
    """Mean of the `count` largest probabilities among the open voxels' logits; missing voxels count as 0."""
    largest = logits.flatten().topk(min(count, logits.numel())).values
    return largest.sigmoid().sum() / count


def scan_probabilities(
    heads: Heads, features: FeatureRows, gate: GateRows, organ_of: Sequence[int], counts: Counts
) -> tuple[ScanProbabilities, ScanProbabilities]:
    """Scan probability per finding from the half- and the full-resolution map.

    The heads are read where an organ's gate is open and nowhere else: for a heart that is one voxel in forty.

    Args:
        heads: features (N, C) and findings -> logits (N, F) and (N, F, 8).
        organ_of: organ of each finding. counts: voxels averaged per finding at half and at full resolution.
    """
    low, high = [], []
    for scan_features, scan_gate in zip(features, gate, strict=True):
        by_finding: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        for organ in sorted(set(organ_of)):
            findings = [d for d, o in enumerate(organ_of) if o == organ]
            where = scan_gate[:, organ].any(dim=1).nonzero().flatten()
            coarse, fine = heads(scan_features.index_select(0, where), findings)
            closed = ~scan_gate[:, organ].index_select(0, where)
            for at, d in enumerate(findings):
                by_finding[d] = (
                    top_mean(coarse[:, at], counts[0][d]),
                    top_mean(fine[:, at].masked_fill(closed, CLOSED), counts[1][d]),
                )
        low.append(torch.stack([by_finding[d][0] for d in range(len(organ_of))]))
        high.append(torch.stack([by_finding[d][1] for d in range(len(organ_of))]))
    return torch.stack(low), torch.stack(high)


def voxel_counts(pool_ml: Sequence[float], voxel_ml: float, least: int = 3) -> list[int]:
    """Pooled volume per finding in ml -> voxels on a grid."""
    return [max(least, round(ml / voxel_ml)) for ml in pool_ml]


def least_open(counts: Sequence[int], organ_of: Sequence[int], organs: int) -> list[int]:
    """Voxels that must stay open per organ: what the findings of that organ pool."""
    return [max([k for k, o in zip(counts, organ_of, strict=True) if o == i] or [1]) for i in range(organs)]


def prevalence_bce(
    prob: ScanProbabilities, labels: Labels, prevalence: Sequence[float], cap: float = 20.0
) -> torch.Tensor:
    """Binary cross-entropy whose positives weigh (1 - f) / f, at most `cap`; unknown labels (NaN) count
    for nothing."""
    f = torch.tensor(prevalence, dtype=prob.dtype, device=prob.device)
    weight = ((1 - f + EPS) / (f + EPS)).clamp(max=cap)
    known = ~torch.isnan(labels)
    y = torch.nan_to_num(labels)
    loss = -(weight * y * torch.log(prob + EPS) + (1 - y) * torch.log(1 - prob + EPS))
    return (loss * known).sum() / known.sum().clamp_min(1)


def sibling_ranking(prob: ScanProbabilities, labels: Labels) -> torch.Tensor:
    """Of two scans of one anatomy, the one with a finding has the higher log odds: softplus of the difference,
    mean over all pairs that differ; 0 without any.

    Whatever the scans have in common pushes both alike and cancels, so the voxels of the finding are what is
    left to learn from. RankNet's loss (Burges et al., ICML 2005) on multiple-instance bags, as Sultani et al.
    (CVPR 2018) rank videos.
    """
    odds = torch.logit(prob.clamp(EPS, 1 - EPS))
    differ = (labels[:, None] == 1) & (labels[None] == 0)
    losses = F.softplus(odds[None] - odds[:, None])
    return (losses * differ).sum() / differ.sum().clamp_min(1)
