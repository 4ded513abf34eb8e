"""One loop for every method: data in, named losses out, one checkpoint that goes on where it stopped."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from hilum.cohort.samples import Sample, load
from hilum.errors import RunError, UsageError
from hilum.model.preset import Preset, build_network
from hilum.train.augment import augment, augment_finer
from hilum.train.batch import Batch, FineView, Phase
from hilum.train.checkpoint import load_checkpoint, save_checkpoint
from hilum.train.methods import cam, exact_small
from hilum.train.recipe import ObjectiveRecipe, OptimRecipe, Recipe

Losses = dict[str, torch.Tensor]
Patient = list[Path]
"""Prepared scans of one patient."""
BOX = 32
"""Side of the box in which a step learns outlines, in half-resolution voxels."""


class Method(Protocol):
    """The scans of a step -> named losses."""

    def __call__(
        self, model: torch.nn.Module, batches: Sequence[Batch], preset: Preset, recipe: ObjectiveRecipe
    ) -> Losses:
        """Each loss already weighted; the loop minimises their sum."""


METHODS: dict[str, Method] = {"exact_small": exact_small.losses, "cam": cam.losses}  # type: ignore[dict-item]


@dataclass
class Progress:
    """What a step reports to whoever shows it."""

    step: int
    steps: int
    losses: dict[str, float]
    seconds: float


def phase_of(step: int, recipe: OptimRecipe) -> Phase:
    """What a step is for: organs, then findings (or both at once), then outlines."""
    first = min(recipe.organ_steps, recipe.steps)
    last = max(first, recipe.steps - recipe.outline_steps)
    if step < first:
        return Phase("organs", 0, first, recipe.lr)
    if step >= last:
        return Phase("outlines", last, recipe.steps - last, recipe.outline_lr or recipe.lr)
    if first == 0:
        return Phase("both", 0, last, recipe.lr)
    return Phase("findings", first, last - first, recipe.finding_lr or recipe.lr)


def learning_rate(step: int, recipe: OptimRecipe) -> float:
    """Linear warm-up, then cosine to a hundredth, in each phase anew."""
    phase = phase_of(step, recipe)
    step -= phase.start
    if step < recipe.warmup:
        return phase.lr * (step + 1) / recipe.warmup
    done = (step - recipe.warmup) / max(1, phase.steps - recipe.warmup)
    return phase.lr * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * min(1.0, done))))


def pick(step: int, count: int, seed: int) -> int:
    """Which patient a step sees: a fresh permutation per epoch, a function of seed and step alone."""
    epoch, position = divmod(step, count)
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed * 100_003 + epoch))
    return int(order[position])


def patients_of(patients: list[Patient], learns: str) -> list[Patient]:
    """Whom a step may see: a patient with fewer scans than others has no siblings to be ranked against, and
    teaches organs alone."""
    if learns in ("organs", "outlines"):
        return patients
    most = max(map(len, patients))
    return [patient for patient in patients if len(patient) == most]


def pick_scans(patient: Patient, count: int, step: int, seed: int) -> Patient:
    """`count` of a patient's scans, or all."""
    generator = torch.Generator().manual_seed(seed * 100_019 + step)
    return [patient[i] for i in torch.randperm(len(patient), generator=generator)[:count].tolist()]


def scans_of(patient: Patient, step: int, recipe: Recipe) -> Patient:
    """What a step sees of its patient."""
    learns = phase_of(step, recipe.optim).learns
    if learns == "outlines":
        # the one that was made finer too
        return patient[:1]
    # siblings have the same organs
    return pick_scans(patient, 1 if learns == "organs" else recipe.optim.scans, step, recipe.seed)


def make_batch(
    sample: Sample, step: int, recipe: Recipe, preset: Preset, prevalence: tuple[float, ...]
) -> Batch:
    """Augment one sample with the random numbers of this step: equal for siblings, so that they differ in
    nothing but findings."""
    generator = torch.Generator().manual_seed(recipe.seed * 1_000_003 + step)
    device = _device(recipe)
    phase = phase_of(step, recipe.optim)
    spacing_mm = preset.prep.spacing_mm
    sample, fine = sample.to(device), None
    if phase.learns == "outlines":
        start, size = pick_box(sample.scan.shape, step, recipe.seed)
        box = tuple(slice(4 * a, 4 * (a + n)) for a, n in zip(start, size, strict=True))
        scan, near, masks = augment_finer(sample, box, spacing_mm, recipe.augment, generator)  # type: ignore[arg-type]
        organs, fine = sample.organs[None] / 255, FineView(start, size, near, masks)
    else:
        alone = phase.learns == "organs"
        look = (spacing_mm, recipe.augment, generator)
        scan, organs = augment(sample.scan, sample.organs, *look, organs_alone=alone)
    progress = (step - phase.start) / phase.steps
    return Batch(scan, organs, sample.labels[None], phase.learns, progress, prevalence, fine)


def pick_box(shape: Sequence[int], step: int, seed: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Start and size of the box of a step that learns outlines, in half-resolution voxels."""
    generator = torch.Generator().manual_seed(seed * 100_043 + step)
    size = tuple(min(n // 2, BOX) for n in shape)
    start = tuple(
        int(torch.randint(n // 2 - b + 1, (), generator=generator)) for n, b in zip(shape, size, strict=True)
    )
    return start, size


def _device(recipe: Recipe) -> torch.device:
    if recipe.device != "auto":
        return torch.device(recipe.device)
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def prevalence_of(patients: list[Patient]) -> tuple[float, ...]:
    """Share of positives per finding in the training set, kept away from 0 and 1."""
    families = patients_of(patients, "findings")
    labels = torch.stack([load(path).labels for patient in families for path in patient])
    return tuple(float(f) for f in labels.nanmean(0).clamp(0.02, 0.98))


def train(
    recipe: Recipe,
    preset: Preset,
    patients: list[Patient],
    out: Path,
    *,
    report: Callable[[Progress], None] | None = None,
) -> torch.nn.Module:
    """Run the recipe on prepared files; resumes from `out/checkpoint.safetensors`. Returns the averaged
    network.

    A step sees `optim.scans` scans of one patient. Siblings share their anatomy, so what it says about a
    finding cancels, and what the finding itself looks like stays.

    Raises:
        RunError: `LOSS_NONFINITE` with the scan's key; the last good checkpoint stays.
        UsageError: `CONFIG_VALUE` for steps that the preset has no network for.
    """
    if recipe.optim.outline_steps and not (preset.network == "ynet" and preset.net.outline):
        got = f"{recipe.optim.outline_steps} for {preset.name}"
        raise UsageError("CONFIG_VALUE", "outline_steps need a preset with outlines", got=got)
    torch.manual_seed(recipe.seed)
    if recipe.threads is not None:
        torch.set_num_threads(recipe.threads)
    device = _device(recipe)
    model = build_network(preset).to(device)
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(recipe.optim.ema))
    optim = torch.optim.AdamW(
        model.parameters(),
        lr=recipe.optim.lr,
        betas=(0.9, recipe.optim.beta2),
        weight_decay=recipe.optim.weight_decay,
    )
    checkpoint, identity = (
        out / "checkpoint.safetensors",
        recipe.model_dump_json(exclude={"threads", "device"}),
    )
    start = load_checkpoint(checkpoint, model, average, optim, identity) if checkpoint.exists() else 0
    prevalence = prevalence_of(patients)
    for step in range(start, recipe.optim.steps):
        began = time.monotonic()
        seen = patients_of(patients, phase_of(step, recipe.optim).learns)
        patient = seen[pick(step, len(seen), recipe.seed)]
        samples = [load(path) for path in scans_of(patient, step, recipe)]
        batches = {s.key: make_batch(s, step, recipe, preset, prevalence) for s in samples}
        losses = _step(model, optim, batches, preset, recipe, step)
        average.update_parameters(model)
        _log(out, step, losses, time.monotonic() - began, report, recipe.optim.steps)
        if (step + 1) % recipe.checkpoint_every == 0 or step + 1 == recipe.optim.steps:
            save_checkpoint(checkpoint, model, average, optim, step + 1, identity)
    return average.module


def _step(
    model: torch.nn.Module,
    optim: torch.optim.Optimizer,
    batches: dict[str, Batch],
    preset: Preset,
    recipe: Recipe,
    step: int,
) -> dict[str, float]:
    for group in optim.param_groups:
        group["lr"] = learning_rate(step, recipe.optim)
    optim.zero_grad(set_to_none=True)
    with torch.autocast(_device(recipe).type, dtype=torch.bfloat16, enabled=recipe.precision == "bf16"):
        losses = METHODS[recipe.method](model, list(batches.values()), preset, recipe.objective)
    total = torch.stack(list(losses.values())).sum()
    if not torch.isfinite(total):
        raise RunError(
            "LOSS_NONFINITE",
            "a loss is finite",
            expected="a number",
            got=f"{losses} at step {step}",
            path=", ".join(batches),
        )
    total.backward()
    apart: list[torch.nn.Module] = list(model.children()) if recipe.optim.clip_by_module else [model]
    for parameters in filter(None, (list(module.parameters()) for module in apart)):
        torch.nn.utils.clip_grad_norm_(parameters, recipe.optim.clip)
    optim.step()
    return {name: value.item() for name, value in losses.items()}


def _log(
    out: Path,
    step: int,
    losses: dict[str, float],
    seconds: float,
    report: Callable[[Progress], None] | None,
    steps: int,
) -> None:
    with (out / "log.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps({"step": step, "seconds": round(seconds, 3), **losses}) + "\n")
    if report:
        report(Progress(step, steps, losses, seconds))
