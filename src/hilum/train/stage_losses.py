"""The losses of a stage from what student and teacher made of a whole batch (FlexiCT §2)."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from hilum.objective.clip import clip_loss
from hilum.objective.dino import dino_loss, view_shares
from hilum.objective.gram import gram_loss
from hilum.objective.ibot import ibot_loss, token_weights
from hilum.objective.koleo import koleo_loss
from hilum.objective.osl import osl_loss
from hilum.tensors import Scalar
from hilum.text.captions import Pair
from hilum.train.stage_data import StageBatch
from hilum.train.stage_recipe import LossRecipe
from hilum.train.student import Seen, Student, Targets

Losses = dict[str, Scalar]


def stage_losses(student: Student, seen: Seen, batch: StageBatch, targets: Targets) -> Losses:
    """Every loss of the stage by name, already weighted; their sum is minimised.

    Args:
        student: unwrapped, for its heads. seen, targets: of the whole batch of this rank.
    """
    weights = student.losses
    losses: Losses = {}
    if student.dino is not None and targets.whole is not None:
        losses |= _dino(student, seen, targets.whole, weights)
    if student.ibot is not None and targets.hidden is not None:
        flat = batch.masks.flatten(0, 1)
        ibot = ibot_loss(
            student.ibot.directions(seen.hidden),
            targets.hidden,
            token_weights(flat),
            len(flat),
            project=student.ibot.prototypes,
            chunk=student.chunk,
        )
        losses["ibot"] = weights.ibot * ibot
    if weights.koleo:
        spread = [koleo_loss(view, across_ranks=weights.koleo_across_ranks) for view in seen.whole.unbind(1)]
        losses["koleo"] = weights.koleo * torch.stack(spread).mean()
    if weights.gram and targets.anchors is not None:
        losses["gram"] = weights.gram * gram_loss(seen.patches.flatten(0, 1), targets.anchors.flatten(0, 1))
    return losses | _text(student, seen, batch, weights) | _others(student, seen, batch, targets)


def _dino(student: Student, seen: Seen, whole: torch.Tensor, weights: LossRecipe) -> Losses:
    assert student.dino is not None
    count, small = seen.whole.shape[1], seen.parts.shape[1]
    shares = view_shares(count, small)
    losses: Losses = {}
    if shares[0] and weights.dino_global:
        views = student.dino(seen.whole.transpose(0, 1))
        losses["dino"] = (
            weights.dino * shares[0] * weights.dino_global * dino_loss(views, whole, same_views=True)
        )
    if shares[1] and weights.dino_local:
        views = student.dino(seen.parts.transpose(0, 1))
        local = dino_loss(views, whole, same_views=False)
        losses["dino_local"] = weights.dino * shares[1] * weights.dino_local * local
    return losses


def _text(student: Student, seen: Seen, batch: StageBatch, weights: LossRecipe) -> Losses:
    if student.temperature is None:
        return {}
    scale = student.temperature()
    device = seen.image.device
    # a report that says nothing is no caption
    told = torch.tensor(
        [i for i, text in enumerate(batch.captions) if text], dtype=torch.int64, device=device
    )
    same = row_ids([batch.captions[i] for i in told.tolist()]).to(device)
    clip = clip_loss(seen.image[told], seen.captions[told], scale, same=same)
    osl = osl_loss(seen.image, seen.said, seen.unsaid, pair_labels(batch.pairs).to(device), scale)
    return {"clip": weights.clip * clip, "osl": weights.osl * osl}


def _others(student: Student, seen: Seen, batch: StageBatch, targets: Targets) -> Losses:
    """What teachers of other making say of the whole views."""
    if student.distil is None or targets.others is None:
        return {}
    grid = [n // batch.patch for n in batch.views.whole.shape[3:]]
    cls, patches = (rows.transpose(0, 1).flatten(0, 1) for rows in (seen.whole, seen.patches))
    found = student.distil.losses(cls, patches, grid, targets.others)
    return {name: student.distil.weights[name] * value for name, value in found.items()}


def row_ids(texts: Sequence[str]) -> torch.Tensor:
    """Equal numbers for equal texts, on every rank."""
    import hashlib

    digests = [hashlib.sha256(text.encode("utf-8")).digest()[:8] for text in texts]
    return torch.tensor([int.from_bytes(d, "big", signed=True) for d in digests], dtype=torch.int64)


def pair_labels(pairs: Sequence[Sequence[Pair]]) -> torch.Tensor:
    """[B, K]: 1, 0, or -1 for padding."""
    return torch.tensor([[pair.truth for pair in of_scan] for of_scan in pairs], dtype=torch.int64)
