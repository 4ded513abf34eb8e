"""SigLIP: each pair of a scan and a report is judged alone, as belonging together or not.

Source: Zhai et al., ICCV 2023 (algorithm 1), as RadFinder §1.5a uses it: logits ``e^t cos + b`` with t from
ln 10 and b from -10, both learned; summed over a scan's reports, mean over scans.

What differs from RadFinder's public code (§1.11, 1 and 3): a report gets the gradient of every rank's scans,
t and b that of the whole batch, once; a batch larger than memory goes through `parts.backward_in_parts`.
Reports that say the same are not each other's negatives.
"""

from __future__ import annotations

import torch
from torch.nn import functional as F

from hilum.objective.gather import gather_rows, mean_over_ranks
from hilum.objective.pairs import other_twins, require_pairs
from hilum.objective.parts import sum_in_chunks
from hilum.objective.precision import full, without_autocast
from hilum.tensors import AllEmbeddings, Embeddings, RowIds, Scalar


def siglip_loss(
    images: Embeddings,
    texts: AllEmbeddings,
    scale: Scalar,
    bias: Scalar,
    *,
    same: RowIds | None = None,
    chunk: int | None = 1024,
) -> Scalar:
    """Mean over the scans of all ranks of the summed log-loss of their pairs with all reports.

    Args:
        images, texts: embeddings of length 1, row i of one belongs to row i of the other.
        scale, bias: of `model.temperature.SigmoidScale`.
        same: equal for texts that say the same (a hash); such pairs count for nothing.
        chunk: scans whose logits exist at a time; None for all.

    Raises:
        RunError: ``MODEL_OUTPUT``, not as many texts as images.
    """
    require_pairs(images, texts)
    with without_autocast(images):
        images, texts = full(images), full(texts)
        all_texts, first = gather_rows(texts)
        own = first + torch.arange(len(images), device=images.device)
        groups = None if same is None else gather_rows(same).rows

        def judged(rows: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
            logits = scale * (rows @ all_texts.T) + bias
            pairs = index[:, None] == torch.arange(len(all_texts), device=index.device)
            losses = F.softplus(torch.where(pairs, -logits, logits))
            if groups is None:
                return losses.sum()
            return losses.masked_fill(other_twins(groups, index), 0.0).sum()

        return mean_over_ranks(sum_in_chunks(judged, (images, own), chunk), len(images))
