"""A few scans against every report of the training set, and every one of their reports against these scans.

Sources: CLIP (Radford et al., ICML 2021, §2.3) for both directions' softmax; fVLM (EXACT §4) for targets that
are shared by all texts which say the same, as all normal ones of an organ do.

What differs: texts are frozen up to a linear map, so a scan's softmax runs over all of them and not over
those of the batch. The other direction has only the scans of the step, siblings of one anatomy.
"""

from __future__ import annotations

import torch
from torch.nn import functional as F

from hilum.objective.pairs import other_twins
from hilum.objective.precision import full, without_autocast
from hilum.tensors import AllEmbeddings, BankIds, Embeddings, RowIds, Scalar


def align_loss(
    scans: Embeddings, texts: AllEmbeddings, scale: Scalar, own: RowIds, same: BankIds, *, share: bool
) -> Scalar:
    """Mean of both directions' cross-entropy.

    Args:
        scans: of length 1, one per scan of the step. texts: of length 1, the whole bank.
        own: row of each scan's text. same: of each text, equal for those that say the same.
        share: texts that say the same share the target; otherwise they are left out as negatives.
    """
    with without_autocast(scans):
        scans, texts = full(scans), full(texts)
        said = same[own]
        forward = scale * (scans @ texts.T)
        loss = _cross_entropy(forward, same, own, share)
        if (said == said[0]).all():
            # the scans of the step differ in nothing that their texts say
            return 0.5 * loss
        backward = scale * (texts[own] @ scans.T)
        return 0.5 * (loss + _cross_entropy(backward, said, torch.arange(len(own), device=own.device), share))


def _cross_entropy(logits: torch.Tensor, names: torch.Tensor, own: RowIds, share: bool) -> Scalar:
    """`names`: of the columns, equal for those that say the same. `own`: each row's column."""
    if share:
        twins = names[own, None] == names[None]
        return F.cross_entropy(logits, twins / twins.sum(1, keepdim=True))
    return F.cross_entropy(logits.masked_fill(other_twins(names, own), -torch.inf), own)
