"""CLIP: of all reports, a scan is nearest to its own, and of all scans a report.

Source: Radford et al., ICML 2021, §2.3 (softmax over both directions), which is what FlexiCT's third stage
uses (spec §0, §2: not SigLIP); temperature as in its code: the logarithm of the scale starts at 2.659 and
stays in [0, ln 100].

What differs: the temperature and whatever made the embeddings get the gradient of the whole batch on every
rank (`objective.gather`); a chunk of logits exists at a time; equal reports are never each other's negatives.
"""

from __future__ import annotations

import torch
from torch.nn import functional as F

from hilum.model.temperature import HIGHEST as HIGHEST
from hilum.model.temperature import START as START
from hilum.model.temperature import Temperature as Temperature
from hilum.objective.gather import gather_rows, mean_over_ranks
from hilum.objective.pairs import other_twins, require_pairs
from hilum.objective.parts import sum_in_chunks
from hilum.objective.precision import full, without_autocast
from hilum.tensors import AllEmbeddings, Embeddings, RowIds, Scalar


def clip_loss(
    images: Embeddings,
    texts: AllEmbeddings,
    scale: Scalar,
    *,
    same: RowIds | None = None,
    chunk: int | None = 1024,
) -> Scalar:
    """Mean of both directions' cross-entropy over the pairs of all ranks; 0 for a single pair.

    Args:
        images, texts: embeddings of length 1, row i of one belongs to row i of the other.
        scale: `Temperature`.
        same: equal for texts that say the same (a hash); such pairs are no negatives.
        chunk: rows whose logits exist at a time; None for all.

    Raises:
        RunError: ``MODEL_OUTPUT``, not as many texts as images.
    """
    require_pairs(images, texts)
    with without_autocast(images):
        images, texts = full(images), full(texts)
        (all_images, first), (all_texts, _) = gather_rows(images), gather_rows(texts)
        own = first + torch.arange(len(images), device=images.device)
        groups = None if same is None else gather_rows(same).rows

        def direction(rows: torch.Tensor, index: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
            logits = scale * (rows @ columns.T)
            if groups is not None:
                logits = logits.masked_fill(other_twins(groups, index), -torch.inf)
            return F.cross_entropy(logits, index, reduction="sum")

        total = 0.5 * (
            sum_in_chunks(lambda rows, index: direction(rows, index, all_texts), (images, own), chunk)
            + sum_in_chunks(lambda rows, index: direction(rows, index, all_images), (texts, own), chunk)
        )
        return mean_over_ranks(total, len(images))
