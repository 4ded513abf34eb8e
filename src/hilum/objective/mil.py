"""Organ-gated top-k multiple-instance loss: a scan has a finding if some voxels of its organ have it.

Source: EXACT §1.5, 1.7, 1.8. Two changes, both options: k is a volume in ml per finding instead of one voxel
count for all (a nodule and a mosaic pattern do not have the same size; the paper's 6 and 48 voxels stay
reachable), and the gate can never be empty: where fewer voxels than k pass the threshold, the k most
organ-like voxels pass, so the finding still learns.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.nn import functional as F

from hilum.tensors import AnomalyLogits, Labels, ScanProbabilities

EPS = 1e-6
CLOSED = -30.0
"""Logit of a voxel outside the gate: sigmoid is 1e-13."""


def organ_gate(organ_prob: torch.Tensor, least: Sequence[int], threshold: float = 0.5) -> torch.Tensor:
    """(B, O, X, Y, Z) probabilities -> bool gate of the same shape with at least `least[o]` voxels open
    per organ."""
    gate = organ_prob > threshold
    for organ, k in enumerate(least):
        flat = organ_prob[:, organ].flatten(1)
        k = min(k, flat.shape[1])
        for scan in torch.nonzero(gate[:, organ].flatten(1).sum(1) < k).flatten().tolist():
            top = flat[scan].topk(k).indices
            gate[scan, organ].view(-1)[top] = True
    return gate


def finding_gate(gate: torch.Tensor, shape: Sequence[int], organ_of: Sequence[int]) -> torch.Tensor:
    """Organ gate (B, O, X, Y, Z) -> one gate per finding (B, D, ...) at the maps' `shape` (any voxel
    open)."""
    if tuple(gate.shape[2:]) != tuple(shape):
        gate = F.max_pool3d(gate.float(), gate.shape[2] // shape[0]) > 0
    return gate[:, list(organ_of)]


def top_mean(logits: AnomalyLogits, gate: torch.Tensor, counts: Sequence[int]) -> ScanProbabilities:
    """Scan probability per finding: mean of the `counts[d]` largest voxel probabilities inside the finding's
    gate.

    Voxels are chosen without gradient and gathered with it, which costs a tenth of masking whole maps.
    """
    with torch.no_grad():
        closed = logits.masked_fill(~gate, CLOSED).flatten(2)
        index = closed.topk(min(max(counts), closed.shape[2]), dim=2).indices
    largest = logits.flatten(2).gather(2, index).sigmoid() * gate.flatten(2).gather(2, index)
    return torch.stack([largest[:, d, :k].mean(1) for d, k in enumerate(counts)], dim=1)


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
