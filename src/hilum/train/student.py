"""All that a stage of FlexiCT trains, in one module: its average is the teacher, and what is exported.

DDP and FSDP2 act when a model is called, and only then. So everything that is done with a student goes
through its call, by name: `student("embed", batch, step, text)`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn import functional as F

from hilum.model.dino_head import DinoHead, DinoHeadConfig
from hilum.model.text_tower import TextTower
from hilum.model.vit import ViT, ViTOutput
from hilum.model.vit_config import ViTConfig
from hilum.objective.clip import Temperature
from hilum.objective.dino import view_targets
from hilum.objective.precision import full
from hilum.objective.sinkhorn import Balanced, balance
from hilum.tensors import Embeddings
from hilum.train.distil import Distil, Target
from hilum.train.stage_data import StageBatch
from hilum.train.stage_recipe import LossRecipe, StageRecipe
from hilum.train.stream import generator_of
from hilum.train.views import Views


class Seen(NamedTuple):
    """What a student made of a batch: rows are scans (of `hidden`: masked patches, scan by scan), so that the
    parts of a batch are put together along the first axis. What a stage has no use for has no columns.

    Args:
        whole: [B, V, W] CLS of whole views, masked ones included. hidden: [M, W] masked patches.
        parts: [B, P, W] CLS of small views. patches: [B, V, N, W] of whole views.
        image: [B, E] image embeddings of unmasked views. captions: [B, E]. said, unsaid: [B, K, E] sentences
            and their opposites.
    """

    whole: torch.Tensor
    hidden: torch.Tensor
    parts: torch.Tensor
    patches: torch.Tensor
    image: torch.Tensor
    captions: torch.Tensor
    said: torch.Tensor
    unsaid: torch.Tensor


class Targets(NamedTuple):
    """What the teacher says of a whole batch.

    Args:
        whole: shares of prototypes per whole view [V, B, K]; None where no loss asks. hidden: of every masked
            patch, in the order of `Seen.hidden`. anchors: [B, V, N, D] the Gram teacher's patches.
        others: what other teachers say of the whole views (V · B), by name.
    """

    whole: torch.Tensor | None
    hidden: Balanced | None
    anchors: torch.Tensor | None = None
    others: Mapping[str, Target] | None = None


class TextIds(NamedTuple):
    """Tokens of a batch: ids and masks of captions [B, T] and of 2 K sentences per scan [B, 2K, S]."""

    captions: tuple[torch.Tensor, torch.Tensor]
    sentences: tuple[torch.Tensor, torch.Tensor]


class Student(nn.Module):
    """Backbone, heads and, for the third stage, the language side."""

    def __init__(
        self,
        vision: ViTConfig,
        recipe: StageRecipe,
        text: TextTower | None = None,
        distil: Distil | None = None,
    ) -> None:
        super().__init__()
        self.losses: LossRecipe = recipe.losses
        self.seed = recipe.seed
        self.chunk = recipe.heads.chunk
        self.vision = ViT(vision)
        sizes = recipe.heads.model_dump(exclude={"chunk"})
        self.dino = DinoHead(DinoHeadConfig(vision.width, **sizes)) if recipe.losses.dino else None
        self.ibot = DinoHead(DinoHeadConfig(vision.width, **sizes)) if recipe.losses.ibot else None
        self.text, self.distil = text, distil
        self.projection = None if text is None else nn.Linear(2 * vision.width, text.width, bias=False)
        self.temperature = None if text is None else Temperature()
        # the embedding of the other rank of pictures has no gradient: DDP would wait for it
        resting = self.vision.patch_3d if recipe.slices is not None else self.vision.patch_2d
        if resting is not None:
            resting.requires_grad_(False)

    def train(self, mode: bool = True) -> Student:
        """A text tower drops nothing out: what is random in a step comes from its seed, and a part of a
        batch is seen twice (`parts.backward_in_parts`)."""
        super().train(mode)
        if self.text is not None:
            self.text.eval()
        return self

    def forward(self, what: str, *given: Any) -> Any:
        """`embed` or `targets`, see there."""
        return self.embed(*given) if what == "embed" else self.targets(*given)

    def embed(self, batch: StageBatch, step: int, text: TextIds | None) -> Seen:
        """Tokens of a batch or of a part of it; what is random in them is a function of the step."""
        views = batch.views
        count, scans = len(views.whole), len(batch)
        image = captions = said = unsaid = views.whole.new_zeros(scans, 0)
        if text is None:
            out = self._see(views.whole, batch, (step, "whole"), masked=True)
            hidden = _by_scan(out.patches, count)[batch.masks]
        else:
            # pictures for the text losses are whole (spec §2, defect b); only masked ones are seen again
            out = self._see(views.whole, batch, (step, "whole"), masked=False)
            image = self.image_embedding(out)
            hidden = self._hidden_again(batch, step)
            captions, said, unsaid = self._read(text)
        wanted = self.losses.gram or self.distil is not None
        patches = _by_scan(out.patches, count) if wanted else views.whole.new_zeros(scans, 0)
        seen = Seen(
            _by_scan(out.cls, count), hidden, self._small(batch, step), patches, image, captions, said, unsaid
        )
        # FSDP2 hangs its hooks on what leaves a model, and warns of views, which could be written into
        return Seen(*(rows.clone() if rows._is_view() else rows for rows in seen))

    def image_embedding(self, seen: ViTOutput) -> Embeddings:
        """CLS and the mean patch, projected, of length 1 (FlexiCT §1)."""
        assert self.projection is not None, "only a student with a text tower has one"
        return F.normalize(self.projection(torch.cat([seen.cls, seen.patches.mean(1)], 1)), dim=-1)

    @torch.no_grad()
    def targets(self, batch: StageBatch, temperature: float, micro: int | None) -> Targets:
        """The teacher's: whole views, unmasked, in evaluation, `micro` scans at a time."""
        cls, tokens = [], []
        for part in batch.parts(micro):
            out = self._see(part.views.whole, part, None, masked=False)
            count = len(part.views.whole)
            cls.append(_by_scan(out.cls, count))
            tokens.append(_by_scan(out.patches, count)[part.masks])
        whole, hidden = None, None
        if self.dino is not None:
            whole = view_targets(self.dino(torch.cat(cls).transpose(0, 1)), temperature)
        if self.ibot is not None:
            # Sinkhorn makes logits outside of autocast
            rows = full(self.ibot.directions(torch.cat(tokens)))
            hidden = balance(rows, temperature, project=self.ibot.prototypes, chunk=self.chunk)
        return Targets(whole, hidden)

    def _see(
        self, views: torch.Tensor, batch: StageBatch, drawn: tuple[int, str] | None, *, masked: bool
    ) -> ViTOutput:
        """Tokens of views (V, B, 1, ...) as (V · B, ...). drawn: step and name of the random numbers."""
        mask = batch.masks.transpose(0, 1).flatten(0, 1) if masked else None
        pictures = views.flatten(0, 1)
        noise = None
        if drawn is not None:
            noise = self.vision.draw(len(pictures), generator_of(self.seed, *drawn))
        return self.vision(pictures, patch=batch.patch, mask=mask, noise=noise)

    def _small(self, batch: StageBatch, step: int) -> torch.Tensor:
        views = batch.views.parts
        if self.dino is None or not len(views):
            return views.new_zeros(len(batch), 0, self.vision.config.width)
        return _by_scan(self._see(views, batch, (step, "parts"), masked=False).cls, len(views))

    def _hidden_again(self, batch: StageBatch, step: int) -> torch.Tensor:
        """Masked patches of views that have a mask."""
        if self.ibot is None:
            return batch.views.whole.new_zeros(0, self.vision.config.width)
        some = batch.masks.flatten(1).any(1)
        # never none at all, or the mask token would have no gradient on this rank
        rows = some.nonzero().flatten() if some.any() else some.nonzero().new_zeros(1)
        again = replace(
            batch,
            keys=tuple(batch.keys[i] for i in rows.tolist()),
            views=Views(batch.views.whole[:, rows], batch.views.parts[:, :0]),
            masks=batch.masks[rows],
        )
        out = self._see(again.views.whole, again, (step, "masked"), masked=True)
        return _by_scan(out.patches, len(again.views.whole))[again.masks]

    def _read(self, text: TextIds) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        assert self.text is not None, "only a student with a text tower reads"
        captions = F.normalize(self.text(*text.captions), dim=-1)
        ids, seen = text.sentences
        sentences = F.normalize(self.text(ids.flatten(0, 1), seen.flatten(0, 1)), dim=-1)
        said, unsaid = sentences.unflatten(0, ids.shape[:2]).chunk(2, dim=1)
        return captions, said, unsaid


def _by_scan(rows: torch.Tensor, views: int) -> torch.Tensor:
    """(V · B, ...) -> (B, V, ...)."""
    return rows.unflatten(0, (views, -1)).transpose(0, 1)
