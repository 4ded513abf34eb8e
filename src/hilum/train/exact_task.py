"""EXACT as a task of the loop."""

from __future__ import annotations

import copy
import hashlib
import json
import math
from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any

import torch
from torch import nn

from hilum.objective.dense import (
    PAPER_PREVALENCE,
    Smoothing,
    least_open,
    organ_gates,
    scan_label_losses,
)
from hilum.objective.gather import rank, sum_over_ranks, world
from hilum.objective.segmentation import segmentation_weight, tversky_focal_each
from hilum.text.vocabulary import FINDINGS, ORGAN_CHANNELS
from hilum.train.clipping import clip_by_part
from hilum.train.ema import Average
from hilum.train.exact_data import ExactBatch, ExactScans, ExactStream, Groups, mean_organs, stack
from hilum.train.exact_recipe import DenseRecipe, ExactRecipe
from hilum.train.exact_student import ExactStudent, adapt
from hilum.train.groups import GroupRecipe, adamw_groups, parameter_groups
from hilum.train.parallel import exchange_gradients, without_exchange
from hilum.train.schedule import Rates
from hilum.train.task import Losses

OUTPUTS = (len(ORGAN_CHANNELS), len(FINDINGS))


class DenseTask:
    """See `train.task.Task`: what all runs on whole prepared scans do alike.

    A method says what its student is, what it sums over scans, and how many terms each sum has.

    Args:
        recipe: of the run. scans: that it learns from. start: sha256 of what it starts from, or None.
    """

    def __init__(self, recipe: DenseRecipe, scans: ExactScans, start: str | None = None) -> None:
        self.recipe, self.scans = recipe, scans
        self.steps, self.betas = steps_of(recipe, len(scans)), (0.9, recipe.beta2)
        self.identity = json.dumps({**facts_of(recipe), "start": start, **scans_facts(scans)})

    def student(self) -> nn.Module:
        """See `Task`."""
        raise NotImplementedError

    def sums(self, model: nn.Module, part: ExactBatch, step: int) -> Losses:
        """Weighted losses of some scans, summed over what is known of them."""
        raise NotImplementedError

    def known(self, batch: ExactBatch) -> dict[str, torch.Tensor]:
        """How many terms each sum has."""
        raise NotImplementedError

    def groups(self, model: nn.Module) -> list[dict[str, Any]]:
        """See `Task`."""
        recipe = GroupRecipe.model_validate({"layer_decay": 1.0, "patch_factor": 1.0})
        groups = adamw_groups(parameter_groups(model, recipe))
        if not self.recipe.decay_all:
            return groups
        return [{**group, "decays": True} for group in groups]

    def rates(self, step: int) -> Rates:
        """See `Task`. The average starts as the weights after the first step."""
        lr = learning_rate(self.recipe, step, self.steps, len(self.scans))
        return Rates(lr, lr, self.recipe.weight_decay, self.recipe.ema if step else 0.0, temperature=1.0)

    def batches(self, start: int, device: torch.device) -> Iterator[Groups]:
        """See `Task`."""
        stream = ExactStream(self.recipe, self.scans, start=start, rank=rank(), ranks=world())
        for groups in stream.loader(self.recipe.workers, stack):
            yield tuple(batch.to(device) for batch in groups)

    def keys(self, batch: Groups) -> list[str]:
        """See `Task`."""
        return [key for group in batch for key in group.keys]

    def backward(self, model: nn.Module, average: Average, batch: Groups, step: int) -> Losses:
        """See `Task`. Every loss is a sum over scans, divided by what the whole batch knows: passing some
        scans at a time gives the whole batch's loss and gradient."""
        parts = [part for group in batch for part in group.parts(self.recipe.micro)]
        each = [self.known(group) for group in batch]
        counts = {name: _counted([known[name] for known in each]) for name in each[0]}
        found: Losses = {}
        alone = len(parts) == 1
        with nullcontext() if alone else without_exchange(model):
            for part in parts:
                sums = self.sums(model, part, step)
                own = {name: value * (world() / counts[name]) for name, value in sums.items()}
                torch.stack(list(own.values())).sum().backward()
                for name, value in own.items():
                    found[name] = found.get(name, torch.zeros_like(value)) + value.detach()
        if not alone:
            exchange_gradients(model)
        return found

    def clip(self, model: nn.Module) -> None:
        """See `Task`."""
        if self.recipe.clip is not None:
            clip_by_part(model, self.recipe.clip)


class ExactTask(DenseTask):
    """EXACT itself: organs from masks, findings from scan labels (EXACT §1.7).

    Args:
        network: fresh, or with the weights that the run starts from; the others as of `DenseTask`.
    """

    recipe: ExactRecipe

    def __init__(
        self, recipe: ExactRecipe, scans: ExactScans, network: nn.Module, start: str | None = None
    ) -> None:
        super().__init__(recipe, scans, start)
        self.network = network
        paper = recipe.losses.prevalence == "paper"
        self.prevalence = PAPER_PREVALENCE if paper else scans.prevalence()
        self._prior: torch.Tensor | None = None

    def student(self) -> ExactStudent:
        """See `Task`. A twin under FSDP2 is another one, with the same weights."""
        torch.manual_seed(self.recipe.seed)
        network = copy.deepcopy(self.network)
        adapt(network, self.recipe.adapt, self.recipe.lora_rank, OUTPUTS)
        return ExactStudent(network)

    def known(self, batch: ExactBatch) -> dict[str, torch.Tensor]:
        """See `DenseTask`."""
        return {"organs": batch.known.sum(), "anomaly": (~torch.isnan(batch.labels)).sum()}

    def sums(self, model: nn.Module, part: ExactBatch, step: int) -> Losses:
        """See `DenseTask`."""
        recipe, weights = self.recipe, self.recipe.losses
        organs, low, high = model(part.scan)
        each = tversky_focal_each(
            organs.float(),
            part.given.masks(),
            false_positive=weights.tversky_fp,
            false_negative=weights.tversky_fn,
            focal_alpha=weights.focal_alpha,
            focal_gamma=weights.focal_gamma,
        )
        least = least_open(recipe.rule, part.voxel_ml, len(ORGAN_CHANNELS)) if recipe.rule.guard else None
        gates = organ_gates(organs, recipe.rule, part.given, self._smoothing(step, organs.device), least)
        labels = scan_label_losses(
            low,
            high,
            gates,
            part.labels,
            recipe.rule,
            part.voxel_ml,
            self.prevalence,
            weights.positive_cap,
        )
        falling = segmentation_weight(step / self.steps, weights.organs_start, weights.organs_floor)
        # multiplied, not chosen: whoever knows nothing still has a gradient of 0 for every parameter
        return {
            "organs": weights.organs * falling * (each * part.known).sum(),
            "anomaly": weights.anomaly * labels.sum(),
        }

    def _smoothing(self, step: int, device: torch.device) -> Smoothing | None:
        weights = self.recipe.losses
        left = weights.prior * (1 - step / (weights.prior_until * self.steps))
        if left <= 0:
            return None
        if self._prior is None:
            self._prior = mean_organs(self.scans)
        self._prior = self._prior.to(device)
        return Smoothing(self._prior, left)


def _counted(counts: list[torch.Tensor]) -> torch.Tensor:
    """Over all ranks, 1 at least."""
    return sum_over_ranks(torch.stack(counts).sum().double()).clamp_min(1)


def steps_of(recipe: DenseRecipe, scans: int) -> int:
    """All steps of a run: as the recipe says, or until every scan was seen `epochs` times."""
    if recipe.steps is not None:
        return recipe.steps
    assert recipe.epochs is not None, "checked when the recipe was read"
    return max(1, math.ceil(recipe.epochs * scans / recipe.batch))


def learning_rate(recipe: DenseRecipe, step: int, steps: int, scans: int) -> float:
    """A linear rise, then a cosine over the rest of the run.

    As published (EXACT §1.9) the cosine has a period of 50 epochs and a run more of them: the learning rate
    goes up again, and a run ends at its highest or anywhere. `lr_period_epochs` brings that back, by epochs.
    """
    if step < recipe.lr_rise:
        return recipe.lr * (step + 1) / recipe.lr_rise
    if recipe.lr_period_epochs != "run":
        epoch = step * recipe.batch // scans
        done = epoch / recipe.lr_period_epochs
    else:
        done = (step - recipe.lr_rise) / max(1, steps - recipe.lr_rise)
    return recipe.lr_end + (recipe.lr - recipe.lr_end) * (1 + math.cos(math.pi * done)) / 2


def facts_of(recipe: DenseRecipe) -> dict[str, Any]:
    """What of a recipe decides its result; where things lie and how the work is shared does not."""
    beside = {"threads", "device", "parallel", "workers", "checkpoint_every", "track", "start", "name"}
    facts = recipe.model_dump(mode="json", exclude=beside | {"validate_every", "micro"})
    for part in facts["data"]:
        del part["cohort"]
    return facts


def scans_facts(scans: ExactScans) -> dict[str, Any]:
    """The scans that a run sees, with their masks and labels."""
    rows = []
    for i, key in enumerate(scans.keys):
        beside = scans.masks[i]
        mask = None if beside is None else beside.row(key).file_sha256
        rows.append([key, scans.row(i).file_sha256, mask, [str(v) for v in scans.labels[i].tolist()]])
    return {"scans": hashlib.sha256(json.dumps(rows).encode()).hexdigest()}
