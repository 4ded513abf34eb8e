"""Voxels inherit the label of their scan, between scans of one anatomy.

In a box that two scans of a patient have in common, voxels of the one with a finding vote for it, and every
voxel of the one without votes against. A label is the scan's; no voxel is ever marked.

A finding came or went in one box of many, and votes against it come from all: votes for count more, as a
recipe says (`votes_for`).

Four things keep the votes clean:

* only a finding that came or went has votes for it (`labels` differ);
* a voxel that looks the same in the other scan cannot carry what came or went (`differs`);
* where a finding is absent, it is absent everywhere: every voxel votes against, whatever else it shows;
* a voxel of a scan with several new findings carries one of them. The more the network thinks it is another
  one, the less its vote counts (the responsibilities of expectation-maximisation). Votes against count in
  full: they are certain.

Instance-level learning from bags with inherited labels is the single-instance baseline of multiple-instance
learning (Ray and Craven, ICML 2005); here siblings make its noise cancel. EXACT's own objective is
`objective.mil`.
"""

from __future__ import annotations

import torch
from torch.nn import functional as F

from hilum.tensors import Labels

LARGEST = 8.0
"""Logit beyond which a voxel is no more sure of a finding than this."""


def responsibility(logits: torch.Tensor, eligible: torch.Tensor) -> torch.Tensor:
    """How much of a voxel's vote each finding keeps: (S, N, D, 8), 1 where it is the only one that explains
    the voxel. No gradient.

    Args:
        logits: (S, N, D, 8). eligible: bool of that shape, what the scan's label allows there.
    """
    odds = logits.detach().clamp(max=LARGEST).exp() * eligible
    return (1 + odds) / (1 + odds.sum(2, keepdim=True))


def inherited(
    low: torch.Tensor,
    high: torch.Tensor,
    gate: torch.Tensor,
    labels: Labels,
    differs: torch.Tensor,
    counts: torch.Tensor,
    *,
    explain: bool = True,
    votes_for: float = 1.0,
) -> torch.Tensor:
    """Logistic loss of the votes of one box, summed over its voxels, per finding: (D,).

    Args:
        low: (S, N, D) logits of cells of S siblings. high: (S, N, D, 8) of their voxels.
        gate: bool (N, D, 8), where each finding may lie, the same for all.
        labels: 1, 0 or NaN for unknown. differs: bool (N, 8), what looks different in the siblings.
        counts: (N,), for how many cells each stands.
        explain: whether findings share a voxel's vote. votes_for: weight of votes for; those against have 1.
    """
    present, absent = labels == 1, labels == 0
    told = present.any(0) & absent.any(0)
    stands = counts[:, None, None]
    votes = gate & (present & told)[:, None, :, None] & differs[None, :, None]
    pro = votes_for * stands * (responsibility(high, votes) * votes if explain else votes.to(high.dtype))
    contra = stands * (gate & absent[:, None, :, None])
    fine = F.softplus(-high) * pro + F.softplus(high) * contra
    coarse = F.softplus(-low) * pro.sum(3) + F.softplus(low) * contra.sum(3)
    return fine.sum((0, 1, 3)) + coarse.sum((0, 1))
