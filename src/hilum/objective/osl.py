"""Opposite Sentence Loss: of a statement and its opposite, the scan is nearer to the true one.

Source: Wald et al., COLIPRI, 2025 (Opposite Sentence Loss); in FlexiCT's third stage K = 8 pairs per scan:
findings of this scan with their negation (1), findings of other scans in sections where this scan has none
(0), padding (-1); 256 tokens, weight 0.5 (spec §2).

What differs: padding is taken out before anything is computed with it, so that not even its gradient can be
undefined; and the mean runs over the pairs of all ranks, where a mean per rank would weigh pairs by how few
their rank has.
"""

from __future__ import annotations

import torch
from torch.nn import functional as F

from hilum.objective.gather import mean_over_ranks
from hilum.objective.precision import full, without_autocast
from hilum.tensors import Embeddings, PairEmbeddings, PairLabels, Scalar


def osl_loss(
    images: Embeddings,
    statements: PairEmbeddings,
    opposites: PairEmbeddings,
    labels: PairLabels,
    scale: Scalar,
) -> Scalar:
    """Mean two-way cross-entropy over the pairs of all ranks; 0 with a gradient of 0 without any.

    Args:
        images: one embedding of length 1 per scan. statements, opposites: K each per scan, of length 1.
        labels: 1 the statement is true, 0 its opposite is; anything else is padding, whose embeddings may
            hold anything. scale: `objective.clip.Temperature`.
    """
    with without_autocast(images):
        known = ((labels == 0) | (labels == 1))[..., None]
        difference = full(torch.where(known, statements, 0.0)) - full(torch.where(known, opposites, 0.0))
        logits = scale * torch.einsum("be,bke->bk", full(images), difference)
        losses = F.binary_cross_entropy_with_logits(logits, (labels == 1).to(logits.dtype), reduction="none")
        return mean_over_ranks((losses * known[..., 0]).sum(), known.sum())
