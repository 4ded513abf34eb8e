"""Steps that fill given minutes, so that methods whose steps cost differently train equally long."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from hilum.model.preset import Preset
from hilum.objective.precision import in_precision
from hilum.train.batch import Learns
from hilum.train.ema import Average
from hilum.train.groups import set_rates
from hilum.train.phantom_task import PhantomTask, phases_of
from hilum.train.recipe import OptimRecipe, Recipe

Seconds = Mapping[Learns, float]
"""Of one step of each phase."""


def phases(optim: OptimRecipe) -> dict[Learns, tuple[int, int]]:
    """First step and number of steps of each phase that a recipe has."""
    return {phase.learns: (phase.start, phase.steps) for phase in phases_of(optim)}


def planned_minutes(optim: OptimRecipe, seconds: Seconds) -> float:
    """How long a recipe's steps take."""
    return sum(seconds[learns] * count for learns, (_, count) in phases(optim).items()) / 60


def fill(recipe: Recipe, seconds: Seconds, minutes: float) -> Recipe:
    """The recipe with every phase longer or shorter by one factor, so that its steps take `minutes`."""
    factor = minutes / planned_minutes(recipe.optim, seconds)
    counts = {learns: max(1, round(count * factor)) for learns, (_, count) in phases(recipe.optim).items()}
    optim = recipe.optim.model_copy(
        update={
            "steps": sum(counts.values()),
            "organ_steps": counts.get("organs", 0),
            "box_steps": counts.get("boxes", 0),
            "outline_steps": counts.get("outlines", 0),
        }
    )
    return recipe.model_copy(update={"optim": optim})


def step_seconds(
    jobs: Mapping[str, tuple[Recipe, Preset]], patients: list[list[Path]], *, rounds: int = 3, steps: int = 3
) -> dict[str, Seconds]:
    """Seconds of one step of each phase of each job, measured in turns so that whatever else the machine does
    slows all alike. The networks are thrown away.

    Args:
        jobs: name -> recipe and preset. patients: prepared scans of all. rounds: turns; the mean counts.
        steps: timed per turn, after one that is not.
    """
    first = next(iter(jobs.values()))[0]
    if first.threads is not None:
        torch.set_num_threads(first.threads)
    tasks = {name: _Timed(recipe, preset, patients) for name, (recipe, preset) in jobs.items()}
    told: dict[str, dict[Learns, list[float]]] = {name: {} for name in jobs}
    for turn in range(rounds):
        for name, task in tasks.items():
            for learns, (start, count) in phases(task.task.recipe.optim).items():
                some = min(steps + 1, count)
                # other patients in every turn: what a step costs goes with the size of a chest
                timed = task.run(start + turn * (count - some) // rounds, some)
                told[name].setdefault(learns, []).extend(timed[1:] or timed)
    return {name: {k: statistics.fmean(v) for k, v in phase.items()} for name, phase in told.items()}


class _Timed:
    """A task that runs some of its steps as the loop does."""

    def __init__(self, recipe: Recipe, preset: Preset, patients: list[list[Path]]) -> None:
        torch.manual_seed(recipe.seed)
        self.task = PhantomTask(recipe, preset, patients)
        self.model = self.task.student().train()
        self.average = Average(self.model)
        self.optim = torch.optim.AdamW(self.task.groups(self.model), lr=0.0, betas=self.task.betas)

    def run(self, start: int, count: int) -> list[float]:
        """Seconds of each of some steps."""
        batches = self.task.batches(start, torch.device("cpu"))
        told: list[float] = []
        for step in range(start, start + count):
            began = time.monotonic()
            self._step(next(batches), step)
            told.append(time.monotonic() - began)
        return told

    def _step(self, batch: Any, step: int) -> None:
        rates = self.task.rates(step)
        set_rates(self.optim, rates)
        self.optim.zero_grad(set_to_none=True)
        with in_precision(torch.device("cpu"), self.task.recipe.precision):
            self.task.backward(self.model, self.average, batch, step)
        self.task.clip(self.model)
        self.optim.step()
        self.average.update(rates.ema)


def minutes_apart(minutes: Sequence[float]) -> float:
    """How far apart training times lie, as a share of the longest."""
    return 0.0 if not minutes or max(minutes) == 0 else 1 - min(minutes) / max(minutes)
