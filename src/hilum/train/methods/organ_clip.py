"""Sentences by place, in fVLM's manner: organs as EXACT in small learns them, then each place of a scan
against that place's sentences of all training reports (`model.organ_clip`)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.nn import functional as F

from hilum.model.fold import rows
from hilum.model.organ_clip import OrganClipNet, place_shares
from hilum.model.preset import Preset
from hilum.model.ynet import OrganFeatures
from hilum.objective.align import align_loss
from hilum.tensors import PlaceEmbeddings
from hilum.text.prompts import PLACES
from hilum.train.batch import Batch, of_batches
from hilum.train.methods.exact_small import phase_losses
from hilum.train.recipe import ObjectiveRecipe


def place_embeddings(
    model: OrganClipNet, organs: Sequence[OrganFeatures], batches: Sequence[Batch]
) -> list[PlaceEmbeddings]:
    """Of each scan, one per place (P, E), length 1. Pools by the given masks, as fVLM does while it
    trains."""
    given = [place_shares(rows(F.avg_pool3d(batch.organs, 2))[0]) for batch in batches]
    # cells outside every place say nothing
    where = torch.stack([shares.amax(1) for shares in given]).amax(0).nonzero().flatten()
    found = []
    for one, batch, shares in zip(organs, batches, given, strict=True):
        read = model.heads.read(model.anomaly_cells(batch.scan, one).pick(where))
        found.append(F.normalize(model.heads.pooled(read, shares.index_select(0, where)), dim=1))
    return found


def place_loss(
    model: OrganClipNet, organs: Sequence[OrganFeatures], batches: Sequence[Batch]
) -> torch.Tensor:
    """Mean over places. All normal texts of a place are one target, and so are equal ones."""
    bank, own = of_batches(batches)
    scans = torch.stack(place_embeddings(model, organs, batches))
    texts, scale = model.text(bank.texts), model.text.scale()
    each = [
        align_loss(scans[:, p], texts[:, p], scale, own, bank.same[:, p], share=True)
        for p in range(len(PLACES))
    ]
    return torch.stack(each).mean()


def losses(
    model: OrganClipNet, batches: Sequence[Batch], preset: Preset, recipe: ObjectiveRecipe
) -> dict[str, torch.Tensor]:
    """`organs` and `sentences`, or `outlines`: the phases of EXACT in small."""
    return phase_losses(
        model, batches, recipe, "sentences", lambda organs: place_loss(model, organs, batches)
    )
