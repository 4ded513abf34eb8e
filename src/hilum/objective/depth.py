"""At which depth of its scan a sentence belongs: a soft target over the scan's own depths.

Source: RadFinder §1.5c: ``cos / tau`` with tau 0.1, softmax over the valid depths of that scan alone, soft
cross-entropy against a Gaussian of 24 mm.

What differs from its public code (§1.11, 2): the target is masked first and normalised then, so that it sums
to 1 at the edge of a scan and in a padded batch; its centre is where the slice lies in millimetres, between
two depths if that is so, and its width is in millimetres whatever the depths' spacing.
"""

from __future__ import annotations

import torch

from hilum.objective.gather import mean_over_ranks
from hilum.objective.precision import full, without_autocast
from hilum.tensors import DepthLogits, DepthMask, DepthMm, Scalar, SnippetMm

TAU = 0.1
SIGMA_MM = 24.0
REACH = 3.0
"""Standard deviations beyond which the target is 0 (the paper: 6 positions, its deviation being 2)."""


def depth_target(
    depth_mm: DepthMm, valid: DepthMask, at_mm: SnippetMm, sigma_mm: float = SIGMA_MM
) -> torch.Tensor:
    """(S, D) share of each depth, 0 where not valid; rows sum to 1.

    A snippet farther from every valid depth than the Gaussian reaches belongs to the nearest one.

    Args:
        depth_mm: where each scan's depths lie. valid: which exist; each row has one. at_mm: of each snippet.
    """
    away = ((depth_mm - at_mm[:, None]) / sigma_mm).abs()
    nearest = away.masked_fill(~valid, torch.inf).amin(1, keepdim=True)
    # the nearest depth always counts; the exponent is relative to it, so that far rows do not vanish
    weight = torch.exp(0.5 * (nearest**2 - away**2)) * (valid & ((away <= REACH) | (away == nearest)))
    return weight / weight.sum(1, keepdim=True)


def depth_loss(
    logits: DepthLogits, depth_mm: DepthMm, valid: DepthMask, at_mm: SnippetMm, sigma_mm: float = SIGMA_MM
) -> Scalar:
    """Mean soft cross-entropy over the snippets of all ranks; 0 without any.

    Args:
        logits: (S, D) cosines of each snippet with the depths of its own scan, over `TAU`.
    """
    with without_autocast(logits):
        logits = full(logits)
        log_share = torch.log_softmax(logits.masked_fill(~valid, -torch.inf), dim=1)
        target = depth_target(depth_mm, valid, at_mm, sigma_mm).to(logits)
        # 0 times minus infinity is no number
        total = -(target * log_share.masked_fill(~valid, 0.0)).sum()
        return mean_over_ranks(total, len(logits))
