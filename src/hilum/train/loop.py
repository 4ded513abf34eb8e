"""One loop for every method: data in, named losses out, on one process or many, and on from where it stopped.

What is random is a function of seed and step, so that a run that was killed and goes on is the run that was
never killed, bit for bit.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from hilum.errors import RunError, RunStopped
from hilum.io.atomic import atomic_write
from hilum.objective.gather import rank, world
from hilum.objective.precision import in_precision
from hilum.train.checkpoints import Checkpoints
from hilum.train.ema import Average
from hilum.train.groups import set_rates
from hilum.train.parallel import any_rank, device_of, mean_losses, process_group, wrapped
from hilum.train.stop import Stop
from hilum.train.task import Losses, Task
from hilum.train.track import Tracker

FAILED = "failed-batch.json"


@dataclass(frozen=True)
class Progress:
    """What a step reports to whoever shows it: losses are those of the whole batch."""

    step: int
    steps: int
    losses: dict[str, float]
    seconds: float


Report = Callable[[Progress], None]
Export = Callable[[dict[str, torch.Tensor], int], None]


def train(
    task: Task,
    out: Path,
    *,
    exports: tuple[int, ...] = (),
    export: Export | None = None,
    report: Report | None = None,
) -> Average:
    """Runs a task to its end, or goes on where it stopped; returns the average of the weights.

    Args:
        out: folder for checkpoints, log and, of a step that fails, the keys of its scans.
        export: called by rank 0 with the average after every step of `exports`.
        report: called by rank 0 after every step.

    Raises:
        RunError: `LOSS_NONFINITE`, `GRADIENT_NONFINITE` (the last checkpoint stays as it was);
        RunStopped: `RUN_STOPPED` after SIGTERM or SIGINT, with a checkpoint of the last step done.
        WeightsError: `RESUME_CHANGED` for a folder of another run.
    """
    recipe = task.recipe
    torch.manual_seed(recipe.seed)
    if recipe.threads is not None:
        torch.set_num_threads(recipe.threads)
    device = device_of(recipe.device)
    with process_group(device), Stop() as stop, Tracker(out, recipe, writes=rank() == 0) as tracker:
        run = _Run(task, out, device)
        for step in range(run.start, task.steps):
            began = time.monotonic()
            losses = run.step(step)
            seconds = time.monotonic() - began
            tracker.log(step, seconds, losses, run.rates)
            if report and rank() == 0:
                report(Progress(step, task.steps, losses, seconds))
            done = step + 1
            if done in exports and done < task.steps and export is not None:
                run.export(export, done)
            stopping = any_rank(stop.asked, device)
            if done % recipe.checkpoint_every == 0 or done == task.steps or stopping:
                run.save(done)
            if stopping and done < task.steps:
                raise RunStopped(
                    "RUN_STOPPED",
                    "a run goes on to its last step",
                    expected=task.steps,
                    got=f"{done}, asked to stop",
                    path=out,
                    hint="Run the same command again; it goes on there.",
                )
        if export is not None:
            run.export(export, task.steps)
        return run.average


class _Run:
    """The state of a run."""

    def __init__(self, task: Task, out: Path, device: torch.device) -> None:
        self.task, self.out, self.device = task, out, device
        self.model = wrapped(task.student().to(device), task.recipe.parallel)
        twin = None
        if world() > 1 and task.recipe.parallel == "fsdp":
            twin = wrapped(task.student().to(device), "fsdp")
        self.average = Average(self.model, twin)
        self.optim = torch.optim.AdamW(task.groups(self.model), lr=0.0, betas=task.betas)
        self.checkpoints = Checkpoints(out / "checkpoints")
        self.start = self.checkpoints.load(self.model, self.average, self.optim, task.identity)
        self.batches = task.batches(self.start, device)
        self.model.train()

    def step(self, step: int) -> dict[str, float]:
        """One step of the optimiser; losses of the whole batch."""
        batch = next(self.batches)
        self.rates = self.task.rates(step)
        set_rates(self.optim, self.rates)
        self.optim.zero_grad(set_to_none=True)
        with in_precision(self.device, self.task.recipe.precision):
            found = self.task.backward(self.model, self.average, batch, step)
        losses = self._finite(found, batch, step)
        try:
            self.task.clip(self.model)
        except RunError:
            self._note_failure(batch, step, losses)
            raise
        self.optim.step()
        self.average.update(self.rates.ema)
        return losses

    def save(self, step: int) -> None:
        """A checkpoint after `step` steps."""
        self.checkpoints.save(step, self.model, self.average, self.optim, self.task.identity)

    def export(self, export: Export, step: int) -> None:
        """The average, whole, to rank 0."""
        tensors = self.average.tensors()
        if rank() == 0:
            export(tensors, step)

    def _finite(self, found: Losses, batch: Any, step: int) -> dict[str, float]:
        losses = mean_losses(found)
        if all(map(_is_number, losses.values())):
            return losses
        path = self._note_failure(batch, step, losses)
        raise RunError(
            "LOSS_NONFINITE",
            "a loss is finite",
            expected="a number",
            got=f"{losses} at step {step}, scans {', '.join(self.task.keys(batch))}",
            path=path,
        )

    def _note_failure(self, batch: Any, step: int, losses: dict[str, float]) -> Path:
        """This rank's scans of a step that failed."""
        name = FAILED if world() == 1 else f"rank{rank()}-{FAILED}"
        told = {name: repr(value) for name, value in losses.items()}
        facts = {"step": step, "losses": told, "scans": self.task.keys(batch)}
        with atomic_write(self.out / name) as file:
            file.write(json.dumps(facts, indent=1).encode())
        return self.out / name


def _is_number(value: float) -> bool:
    return value - value == 0.0
