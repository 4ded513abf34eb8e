"""A space of scans and texts as a task of the one loop (RadFinder §1.5, 1.6).

SigLIP, prompts and placed sentences make one backward pass over the whole batch, whatever it is cut into:
gradients are those of one process (`objective.parts`, `objective.gather`). In the public code the three are
summed over micro-batches of different kinds, so that their weights mean something else than they say
(§1.5, 1.11).
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from hilum.model.preset import JointPreset
from hilum.model.rope import draw_rescale
from hilum.model.text_tower import TextTower
from hilum.objective.gather import rank, world
from hilum.objective.parts import backward_in_parts
from hilum.objective.prompts import positive_weights
from hilum.text.tokens import Tokens
from hilum.train.clipping import clip_by_part
from hilum.train.ema import Average, unwrapped
from hilum.train.groups import GroupRecipe, adamw_groups, parameter_groups
from hilum.train.joint_data import JointBatch, JointScans, JointStream, samples_facts, tensors_of
from hilum.train.joint_recipe import JointRecipe
from hilum.train.joint_student import JointSeen, JointStudent, JointTexts, Shake, Texts, joint_losses
from hilum.train.parallel import exchange_gradients, without_exchange
from hilum.train.schedule import Rates
from hilum.train.stream import generator_of
from hilum.train.task import Losses

STANDARD_SCANS = 1000
"""Scans that windows are standardised by."""


@dataclass(frozen=True)
class JointTower:
    """The text side of a run.

    Args:
        name: of tower and weights. width: of its rows. rows: what it says of every text of the run, if it is
            frozen. tower, tokens: if it learns.
    """

    name: str
    width: int
    rows: torch.Tensor | None
    tower: TextTower | None = None
    tokens: Tokens | None = None


class JointRun:
    """See the module's docstring. A `Task`."""

    def __init__(
        self, recipe: JointRecipe, preset: JointPreset, scans: JointScans, tower: JointTower
    ) -> None:
        self.recipe, self.preset, self.scans, self.tower = recipe, preset, scans, tower
        self.steps, self.betas = recipe.steps, (0.9, recipe.beta2)
        self.identity = samples_facts(recipe, scans, tower.name)
        weights, asked = recipe.losses, scans.bank.questions
        self.positive = positive_weights(scans.answers(), weights.cap)
        self.groups_of = torch.tensor([weights.groups.get(q.group, 1.0) for q in asked])

    def student(self) -> JointStudent:
        """See `Task`. Seeds come from the recipe, so that every rank draws the same weights."""
        recipe = self.recipe
        torch.manual_seed(recipe.seed)
        tower = copy.deepcopy(self.tower.tower)
        fan, shake = recipe.fresh == "fan", Shake(recipe.noise, recipe.drop)
        student = JointStudent(
            self.preset.net, recipe.losses, tower, recipe.text.lora, recipe.bias, fan, shake
        )
        self._standardise(student)
        return student

    def groups(self, model: nn.Module) -> list[dict[str, Any]]:
        """See `Task`."""
        return adamw_groups(parameter_groups(model, GroupRecipe.model_validate({})))

    def rates(self, step: int) -> Rates:
        """See `Task`."""
        return self.recipe.rates.at(step, self.recipe.batch)

    def batches(self, start: int, device: torch.device) -> Iterator[JointBatch]:
        """See `Task`."""
        stream = JointStream(self.recipe, self.scans, start=start, rank=rank(), ranks=world())
        for batch in stream.batches(self.recipe.workers):
            yield batch.to(device)

    def keys(self, batch: JointBatch) -> list[str]:
        """See `Task`."""
        return list(batch.keys)

    def backward(self, model: nn.Module, average: Average, batch: JointBatch, step: int) -> Losses:
        """See `Task`. With `micro` the model runs over a few scans at a time, and the losses see all."""
        student = unwrapped(model)
        assert isinstance(student, JointStudent)
        parts = list(enumerate(batch.parts(self.recipe.micro)))
        rescale = draw_rescale(self.recipe.rescale, generator_of(self.recipe.seed, "rescale", step))
        hidden = self._hidden(batch, step)
        shown, found = shown_depths(batch, hidden), Losses()
        device = batch.both.device

        def embed(numbered: tuple[int, JointBatch]) -> JointSeen:
            number, part = numbered
            first = number * (self.recipe.micro or len(batch))
            present = part.present & ~hidden[first : first + len(part)]
            with torch.random.fork_rng():
                # LoRA's dropout is drawn alike in both passes
                torch.manual_seed((self.recipe.seed * 1_000_003 + step) * 1009 + rank() * 101 + number)
                return model(part, self._texts(part), present, rescale.to(device))

        def loss(*seen: torch.Tensor) -> torch.Tensor:
            of_groups = (self.positive.to(device), self.groups_of.to(device))
            found.update(
                joint_losses(student.joint, JointSeen(*seen), batch, shown, *of_groups, self.recipe.losses)
            )
            return torch.stack(list(found.values())).sum()

        if len(parts) == 1:
            loss(*embed(parts[0])).backward()
        else:
            with without_exchange(model):
                backward_in_parts(embed, parts, loss)
            exchange_gradients(model)
        return {name: value.detach() for name, value in found.items()}

    def clip(self, model: nn.Module) -> None:
        """See `Task`."""
        clip_by_part(model, self.recipe.clip)

    def _standardise(self, student: JointStudent) -> None:
        """By the scans of the split, the first of them if there are many, and by texts of a frozen tower."""
        samples = self.scans.samples[:STANDARD_SCANS]
        read = [tensors_of(self.scans.cache.get(s.key, s.scan or None)) for s in samples]
        student.windows.fit(torch.cat([scan["both"].flatten(0, 2) for scan in read]))
        student.depths.fit(torch.cat([scan["depths"].flatten(0, 3) for scan in read]))
        if self.tower.rows is not None:
            placed = {p.text for s in self.scans.samples for p in s.snippets}
            there = torch.tensor([text in placed for text in self.scans.texts])
            student.reports.fit(self.tower.rows[~there])
            student.snippets.fit(self.tower.rows[there] if there.any() else self.tower.rows)

    def _hidden(self, batch: JointBatch, step: int) -> torch.Tensor:
        """Windows that a step does not show, each scan's own draw; one at least is left."""
        hidden = torch.zeros_like(batch.present)
        if self.recipe.hide:
            for i, key in enumerate(batch.keys):
                drawn = generator_of(self.recipe.seed, "hide", step, key)
                chance = torch.rand(batch.present.shape[1:], generator=drawn).to(batch.both.device)
                hidden[i] = batch.present[i] & (chance < self.recipe.hide)
                if torch.equal(hidden[i], batch.present[i]):
                    hidden[i] = False
        return hidden

    def _texts(self, batch: JointBatch) -> JointTexts:
        return JointTexts(*(self._said(n) for n in (batch.reports, batch.snippets, batch.prompts)))

    def _said(self, numbers: torch.Tensor) -> Texts:
        if self.tower.rows is not None:
            return self.tower.rows[numbers.cpu()].to(numbers.device)
        assert self.tower.tokens is not None, "a tower that learns reads tokens"
        texts = [self.scans.texts[int(n)] for n in numbers]
        if not texts:
            empty = torch.zeros(0, 1, dtype=torch.int64, device=numbers.device)
            return empty, empty.bool()
        ids, mask = self.tower.tokens(texts, self.recipe.text.max_tokens)
        return torch.from_numpy(ids).to(numbers.device), torch.from_numpy(mask).to(numbers.device)


def shown_depths(batch: JointBatch, hidden: torch.Tensor) -> torch.Tensor:
    """(B, D) depths of which at least one window is shown; all of a scan whose own depths are all hidden
    cannot be: a window of each scan is left."""
    seen = (batch.present & ~hidden).any(2).any(1)
    per = batch.depths.shape[4]
    shown = seen.repeat_interleave(per, dim=1)
    # a sentence always has a depth to belong to
    return torch.where((shown & batch.there).any(1, keepdim=True), shown, torch.ones_like(shown))
