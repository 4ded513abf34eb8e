"""Whole reports: each scan's one embedding against all training reports (CLIP; `model.clip_global`)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.nn import functional as F

from hilum.model.clip_global import ClipNet
from hilum.model.preset import Preset
from hilum.objective.align import align_loss
from hilum.train.batch import Batch, of_batches
from hilum.train.recipe import ObjectiveRecipe


def losses(
    model: ClipNet, batches: Sequence[Batch], preset: Preset, recipe: ObjectiveRecipe
) -> dict[str, torch.Tensor]:
    """`report` alone. Equal reports are not each other's negatives."""
    bank, own = of_batches(batches)
    scans = torch.stack([F.normalize(model.embedding(model.read(batch.scan)), dim=0) for batch in batches])
    texts, same = model.text(bank.texts[:, 0]), bank.same[:, 0]
    return {"report": align_loss(scans, texts, model.text.scale(), own, same, share=False)}
