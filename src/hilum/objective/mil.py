"""Organ-gated top-k multiple-instance loss: a scan has a finding if some voxels of its organ have it.

Source: EXACT §1.5, 1.7, 1.8. Two changes, both options: k is a volume in ml per finding instead of one voxel
count for all (a nodule and a mosaic pattern do not have the same size; the paper's 6 and 48 voxels stay
reachable), and the gate can never be empty: where fewer voxels than k pass the threshold, the k most
organ-like voxels pass, so the finding still learns.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch.nn import functional as F

from hilum.tensors import GateRows, Labels, OrganRows, ScanProbabilities, ScanScores

Gates = Sequence[tuple[int, ...]]
Counts = tuple[Sequence[int], Sequence[int]]

EPS = 1e-6
CLOSED = -30.0
"""Logit of a voxel outside the gate: sigmoid is 1e-13."""
SHARPNESS = (1.0, 4.0)
"""Of `Pooled.scores`: at 1 the whole extent of a finding counts, at 4 hardly more than its best voxels."""


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


@dataclass(frozen=True)
class Pooled:
    """What one map says of each scan.

    Args:
        prob: mean of the highest voxel probabilities, the scan's probability (EXACT §1.5).
        scores: log-sum-exp of all voxel logits at each of `SHARPNESS`, one after the other.
    """

    prob: ScanProbabilities
    scores: tuple[ScanScores, ...]

    @staticmethod
    def stack(scans: Sequence[Pooled]) -> Pooled:
        """Scans of one each -> one batch."""
        scores = zip(*(s.scores for s in scans), strict=True)
        return Pooled(torch.cat([s.prob for s in scans]), tuple(torch.cat(s) for s in scores))


def pool(logits: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(prob, scores) of one finding from its open voxels' logits; missing voxels count as 0."""
    logits = logits.flatten()
    largest = logits.topk(min(count, logits.numel())).values
    scores = [torch.logsumexp(sharp * logits, 0) / sharp for sharp in SHARPNESS]
    return largest.sigmoid().sum() / count, torch.stack(scores)


def pool_scan(
    low: torch.Tensor, high: torch.Tensor, gate: torch.Tensor, gates: Gates, counts: Counts
) -> tuple[Pooled, Pooled]:
    """One scan's logits at half and at full resolution, pooled per finding over its open voxels.

    Args:
        low: (N, D) logits of cells. high: (N, D, 8) of their voxels.
        gate: bool (N, O, 8), where each organ is. gates: organs that open the gate of each finding.
        counts: voxels averaged per finding at half and at full resolution.
    """
    opened = {organs: gate[:, list(organs)].any(dim=1) for organs in set(gates)}
    where = {organs: voxels.any(dim=1).nonzero().flatten() for organs, voxels in opened.items()}
    levels: tuple[list, list] = ([], [])
    each = zip(gates, low.unbind(1), high.unbind(1), *counts, strict=True)
    for organs, coarse, fine, k_low, k_high in each:
        cells = where[organs]
        closed = ~opened[organs].index_select(0, cells)
        levels[0].append(pool(coarse.index_select(0, cells), k_low))
        levels[1].append(pool(fine.index_select(0, cells).masked_fill(closed, CLOSED), k_high))
    both = []
    for level in levels:
        prob, scores = zip(*level, strict=True)
        both.append(Pooled(torch.stack(prob)[None], torch.stack(scores)[None].unbind(2)))
    return both[0], both[1]


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


def sibling_ranking(score: ScanScores, labels: Labels) -> torch.Tensor:
    """Of two scans of one anatomy, the one with a finding has the higher score: softplus of the difference,
    mean over all pairs that differ; 0 without any.

    On `Pooled.scores`, which every voxel has a share in: what siblings have in common pushes both alike and
    cancels, so that from the first step on the gradient comes from the voxels that differ. The highest voxels
    alone teach nothing before a finding is among them.

    RankNet's loss (Burges et al., ICML 2005) on multiple-instance bags, as Sultani et al. (CVPR 2018) rank
    videos.
    """
    differ = (labels[:, None] == 1) & (labels[None] == 0)
    losses = F.softplus(score[None] - score[:, None])
    return (losses * differ).sum() / differ.sum().clamp_min(1)


def log_odds(prob: ScanProbabilities) -> ScanScores:
    """Score of a probability."""
    return torch.logit(prob.clamp(EPS, 1 - EPS))
