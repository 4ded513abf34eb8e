"""A stage of FlexiCT as a task of the loop."""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn

from hilum.cohort.loader import Part
from hilum.model.vit import ViT
from hilum.objective.gather import rank, world
from hilum.objective.gram import resize_features
from hilum.objective.parts import backward_in_parts
from hilum.text.captions import ScanText
from hilum.text.tokens import Tokens
from hilum.train.clipping import clip_by_part
from hilum.train.distil import Distil
from hilum.train.distil_teachers import load_teachers
from hilum.train.ema import Average, unwrapped
from hilum.train.groups import adamw_groups, parameter_groups
from hilum.train.parallel import exchange_gradients, without_exchange
from hilum.train.schedule import Rates
from hilum.train.stage_data import StageBatch, StageStream, stack_samples
from hilum.train.stage_losses import Losses, stage_losses
from hilum.train.stage_recipe import StageRecipe
from hilum.train.stage_start import Start
from hilum.train.student import Seen, Student, Targets, TextIds
from hilum.train.teachers import HuScale, Shown, Teacher


class StageTask:
    """See `train.task.Task`.

    Args:
        recipe: of the stage. parts: its scans. start: what it starts from. texts, patients: by scan, for a
            stage with text.
    """

    def __init__(
        self,
        recipe: StageRecipe,
        parts: list[Part],
        start: Start,
        *,
        texts: Mapping[str, ScanText] | None = None,
        patients: Mapping[str, str] | None = None,
    ) -> None:
        self.recipe, self.parts, self.start = recipe, parts, start
        self.texts, self.patients = texts, patients
        self.steps, self.betas = recipe.steps, (0.9, recipe.beta2)
        self.identity = json.dumps({**facts_of(recipe), "start": start.sha256, **stores_of(parts)})
        self._anchor: ViT | None = None
        self._others: list[Teacher] | None = None
        self._standards: dict[str, torch.Tensor] | None = None

    def student(self) -> Student:
        """See `Task`. Seeds come from the recipe, so that every rank draws the same weights."""
        torch.manual_seed(self.recipe.seed)
        # a twin under FSDP2 is another one
        student = Student(self.start.vision, self.recipe, copy.deepcopy(self.start.text), self._distil())
        self.start.fill(student)
        if student.distil is not None:
            self._standardise(student.distil)
        if self.recipe.text is not None and self.recipe.text.frozen and student.text is not None:
            student.text.requires_grad_(False)
        return student

    def groups(self, model: nn.Module) -> list[dict[str, Any]]:
        """See `Task`."""
        return adamw_groups(parameter_groups(model, self.recipe.groups))

    def rates(self, step: int) -> Rates:
        """See `Task`."""
        return self.recipe.rates.at(step, self.recipe.batch)

    def batches(self, start: int, device: torch.device) -> Iterator[StageBatch]:
        """See `Task`."""
        stream = StageStream(
            self.recipe,
            self.parts,
            texts=self.texts,
            patients=self.patients,
            start=start,
            rank=rank(),
            ranks=world(),
        )
        for batch in stream.loader(self.recipe.workers, stack_samples):
            yield batch.to(device)

    def keys(self, batch: StageBatch) -> list[str]:
        """See `Task`."""
        return list(batch.keys)

    def backward(self, model: nn.Module, average: Average, batch: StageBatch, step: int) -> Losses:
        """See `Task`. With `micro` the backbone runs over a few scans at a time, and the losses see all."""
        student = unwrapped(model)
        assert isinstance(student, Student)
        targets = self._targets(average.module, batch, step)
        parts = batch.parts(self.recipe.micro)
        found: Losses = {}

        def embed(part: StageBatch) -> Seen:
            return model("embed", part, step, self._ids(part, batch.masks.device))

        def loss(*seen: torch.Tensor) -> torch.Tensor:
            found.update(stage_losses(student, Seen(*seen), batch, targets))
            return torch.stack(list(found.values())).sum()

        if len(parts) == 1:
            loss(*embed(batch)).backward()
        else:
            with without_exchange(model):
                backward_in_parts(embed, parts, loss)
            exchange_gradients(model)
        return {name: value.detach() for name, value in found.items()}

    def clip(self, model: nn.Module) -> None:
        """See `Task`."""
        clip_by_part(model, self.recipe.clip)

    @torch.no_grad()
    def _targets(self, teacher: nn.Module, batch: StageBatch, step: int) -> Targets:
        targets = teacher("targets", batch, self.rates(step).temperature, self.recipe.micro)
        if isinstance(teacher, Student) and teacher.distil is not None:
            # the standardisation never changes: the average's is the student's
            targets = targets._replace(others=teacher.distil.targets(*self._shown_of(batch)))
        if not self.recipe.losses.gram:
            return targets
        return targets._replace(anchors=torch.cat([self._anchors(p) for p in batch.parts(self.recipe.micro)]))

    def _anchors(self, batch: StageBatch) -> torch.Tensor:
        """The Gram teacher's patches of whole views, on the student's grid: [B, V, N, D]."""
        views = batch.views.whole if batch.views.anchor is None else batch.views.anchor
        out = self._anchored(views.device)(views.flatten(0, 1), patch=batch.patch)
        grid = [n // batch.patch for n in batch.views.whole.shape[3:]]
        features = resize_features(out.patches, out.grid, grid)
        return features.unflatten(0, (len(views), -1)).transpose(0, 1)

    def _distil(self) -> Distil | None:
        recipe = self.recipe.distil
        if recipe is None:
            return None
        if self._others is None:
            self._others = load_teachers(recipe, self.parts[0].store.prep)
        return Distil(self.start.vision.width, recipe, self._others)

    def _standardise(self, distil: Distil) -> None:
        """Estimated once: a twin under FSDP2 takes what the first one has."""
        if self._standards is None:
            distil.fit(self._shown())
            self._standards = distil.standards.state_dict()
        else:
            distil.standards.load_state_dict(self._standards)

    def _shown(self) -> Iterator[Shown]:
        """This rank's share of the scans that the standardisation is estimated on."""
        assert self.recipe.distil is not None, "only a stage with other teachers asks"
        steps = -(-self.recipe.distil.fit_scans // self.recipe.batch)
        batches = self.batches(0, torch.device("cpu"))
        for _ in range(steps):
            yield Shown(*self._shown_of(next(batches)))

    def _shown_of(self, batch: StageBatch) -> tuple[torch.Tensor, tuple[float, ...], HuScale]:
        """Whole views as teachers of other making see them: the middle of a scan."""
        volumes, views = self.recipe.volumes, batch.views.whole
        assert volumes is not None, "checked when the recipe was read"
        spacing = self.parts[0].store.prep["spacing_mm"]
        spacing_mm = tuple(mm * volumes.field / volumes.side_vox for mm in spacing)
        slope, intercept = batch.scale.repeat(len(views), 1).unbind(1)
        return views.flatten(0, 1), spacing_mm, HuScale(slope, intercept)

    def _anchored(self, device: torch.device) -> ViT:
        """The frozen teacher of the Gram loss."""
        if self._anchor is None:
            self._anchor = self.start.anchor().to(device).eval().requires_grad_(False)
        return self._anchor

    def _ids(self, batch: StageBatch, device: torch.device) -> TextIds | None:
        text, tokens = self.recipe.text, self.start.tokens
        if text is None or tokens is None:
            return None
        sentences = [
            said
            for pairs in batch.pairs
            for said in (*(p.sentence for p in pairs), *(p.opposite for p in pairs))
        ]
        captions = _tensors(tokens, list(batch.captions), text.max_tokens, device)
        ids, seen = _tensors(tokens, sentences, text.pair_tokens, device)
        shape = (len(batch), 2 * text.pairs)
        return TextIds(captions, (ids.unflatten(0, shape), seen.unflatten(0, shape)))


def _tensors(
    tokens: Tokens, texts: list[str], most: int, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    ids, seen = tokens(texts, most)
    return torch.from_numpy(ids).to(device), torch.from_numpy(seen).to(device)


def facts_of(recipe: StageRecipe) -> dict[str, Any]:
    """What of a recipe decides its result; where things lie and how the work is shared does not."""
    beside = {
        "threads",
        "device",
        "parallel",
        "workers",
        "checkpoint_every",
        "track",
        "start",
        "gram_teacher",
    }
    beside |= {"exports", "name"}
    facts = recipe.model_dump(mode="json", exclude=beside)
    for part in facts["data"]:
        del part["cohort"]
    for teacher in (facts["distil"] or {}).get("teachers", []):
        # which weights it has is kept with its standardisation
        del teacher["teacher"]
    return facts


def stores_of(parts: list[Part]) -> dict[str, Any]:
    """The scans that a run sees."""
    keys = [sorted(part.scans) for part in parts]
    sums = [
        [part.store.row(key).file_sha256 for key in of_part]
        for part, of_part in zip(parts, keys, strict=True)
    ]
    return {"scans": hashlib.sha256(json.dumps([keys, sums]).encode()).hexdigest()}
