"""KoLeo: the embeddings of a batch spread out, each away from its nearest neighbour.

Source: Sablayrolles et al., "Spreading vectors for similarity search", ICLR 2019, eq. 3 (the differential
entropy estimate of Kozachenko and Leonenko); in self-supervision DINOv2. One view at a time: two views of one
scan are meant to be near.

Of two equal embeddings the logarithm of their distance has no bottom: with the usual offset of 1e-8 a
duplicated scan pushes with millions. Here the distance is sqrt(d² + 1e-8), so that equal embeddings are left
in peace, and an embedding of length 1 never has a gradient above 5000. Distances are differences, not
2 - 2 cos, which has no digits left where they are small.
"""

from __future__ import annotations

import torch
from torch.nn import functional as F

from hilum.objective.gather import gather_rows, mean_over_ranks
from hilum.objective.precision import full, without_autocast
from hilum.tensors import AllEmbeddings, Embeddings, Scalar

LEAST = 1e-4
"""Distances far below this count as equal."""


def koleo_loss(embeddings: Embeddings, *, across_ranks: bool = True) -> Scalar:
    """Mean of -log of the distance to the nearest other embedding, all of length 1; 0 with fewer than two.

    Args:
        embeddings: one row per scan, of any length. across_ranks: neighbours among all ranks' rows; otherwise
            among this rank's, and the loss depends on how the batch is spread, as published for FlexiCT's
            first stage.
    """
    with without_autocast(embeddings):
        own = F.normalize(full(embeddings), dim=-1)
        everyone, first = gather_rows(own) if across_ranks else (own, 0)
        if len(everyone) < 2:
            total = 0 * (own.sum() + everyone.sum())
        else:
            near = everyone.index_select(0, _nearest(own.detach(), everyone.detach(), first))
            # without a row of its own a rank still owes the others its part of the backward pass
            total = -0.5 * ((own - near).square().sum(-1) + LEAST**2).log().sum()
        return mean_over_ranks(total, len(own))


def _nearest(own: Embeddings, everyone: AllEmbeddings, first: int) -> torch.Tensor:
    """Index of each row's nearest other row; rows of `own` begin at `first` of `everyone`."""
    cosine = own @ everyone.T
    rows = torch.arange(len(own), device=own.device)
    cosine[rows, first + rows] = -torch.inf
    return cosine.argmax(1)
