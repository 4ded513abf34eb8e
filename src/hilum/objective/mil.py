"""Organ-gated top-k multiple-instance loss: a scan has a finding if some voxels of its organ have it.

Source: EXACT §1.5, 1.7, 1.8. Two changes, both options: k is a volume in ml per finding instead of one voxel
count for all (a nodule and a mosaic pattern do not have the same size; the paper's 6 and 48 voxels stay
reachable), and the gate can never be empty: where fewer voxels than k pass the threshold, the k most
organ-like voxels pass, so the finding still learns.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch.nn import functional as F

from hilum.tensors import GateRows, Labels, OrganRows, ScanProbabilities, ScanScores

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


@dataclass(frozen=True)
class Pooled:
    """What one map says of each scan.

    Args:
        prob: mean of the highest voxel probabilities, the scan's probability (EXACT §1.5).
        amount: sum of all voxel probabilities in units of the pooled volume: its extent.
    """

    prob: ScanProbabilities
    amount: ScanProbabilities

    @staticmethod
    def stack(scans: Sequence[Pooled]) -> Pooled:
        """Scans of one each -> one batch."""
        return Pooled(torch.cat([s.prob for s in scans]), torch.cat([s.amount for s in scans]))


def pool(logits: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(prob, amount) of one finding from its open voxels' logits; missing voxels count as 0."""
    largest = logits.flatten().topk(min(count, logits.numel())).values
    return largest.sigmoid().sum() / count, logits.sigmoid().sum() / count


def pool_scan(
    heads: Heads, features: torch.Tensor, gate: torch.Tensor, organ_of: Sequence[int], counts: Counts
) -> tuple[Pooled, Pooled]:
    """One scan's maps of half and of full resolution, pooled per finding.

    The heads are read where an organ's gate is open and nowhere else: for a heart that is one voxel in forty.

    Args:
        heads: features (N, C) and findings -> logits (N, F) and (N, F, 8).
        features: (N, C). gate: bool (N, O, 8). organ_of: organ of each finding.
        counts: voxels averaged per finding at half and at full resolution.
    """
    low: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
    high: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
    for organ in sorted(set(organ_of)):
        findings = [d for d, o in enumerate(organ_of) if o == organ]
        where = gate[:, organ].any(dim=1).nonzero().flatten()
        coarse, fine = heads(features.index_select(0, where), findings)
        closed = ~gate[:, organ].index_select(0, where)
        for at, d in enumerate(findings):
            low[d] = pool(coarse[:, at], counts[0][d])
            high[d] = pool(fine[:, at].masked_fill(closed, CLOSED), counts[1][d])
    both = []
    for level in (low, high):
        prob, amount = zip(*(level[d] for d in range(len(organ_of))), strict=True)
        both.append(Pooled(torch.stack(prob)[None], torch.stack(amount)[None]))
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

    On the log of `Pooled.amount`, which every voxel has a share in: what siblings have in common pushes both
    alike and cancels, so that from the first step on the gradient comes from the voxels that differ. The
    highest voxels alone teach nothing before a finding is among them.

    RankNet's loss (Burges et al., ICML 2005) on multiple-instance bags, as Sultani et al. (CVPR 2018) rank
    videos.
    """
    differ = (labels[:, None] == 1) & (labels[None] == 0)
    losses = F.softplus(score[None] - score[:, None])
    return (losses * differ).sum() / differ.sum().clamp_min(1)


def log_odds(prob: ScanProbabilities) -> ScanScores:
    """Score of a probability."""
    return torch.logit(prob.clamp(EPS, 1 - EPS))


def log_amount(amount: ScanProbabilities) -> ScanScores:
    """Score of an amount."""
    return torch.log(amount + EPS)
