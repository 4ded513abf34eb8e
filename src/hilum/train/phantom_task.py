"""Training on phantoms as a task of the loop: organs and findings from scan labels (`methods/`)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import Any, Protocol

import torch

from hilum.cohort.samples import Sample, load, load_labels, load_report
from hilum.errors import UsageError
from hilum.model.preset import READS_REPORTS, Preset, build_network
from hilum.objective.gather import world
from hilum.train.ahead import ahead
from hilum.train.augment import augment, augment_finer
from hilum.train.batch import Batch, FineView, Learns, Phase, ReportRow
from hilum.train.boxes import Box, Boxes, Seats, draw_box, seats_of
from hilum.train.ema import Average
from hilum.train.loop import Progress
from hilum.train.loop import train as run_task
from hilum.train.methods import cam, clip_global, exact_small, organ_clip
from hilum.train.recipe import ObjectiveRecipe, OptimRecipe, Recipe
from hilum.train.schedule import Rates
from hilum.train.start_organs import take_organs
from hilum.train.text_bank import Of, TextBank, bank_of

Losses = dict[str, torch.Tensor]
Patient = list[Path]
"""Prepared scans of one patient."""
BOX = 32
"""Side of the box in which a step learns outlines, in half-resolution voxels."""


class Method(Protocol):
    """The scans of a step -> named losses."""

    def __call__(
        self,
        model: torch.nn.Module,
        batches: Sequence[Batch] | Boxes,
        preset: Preset,
        recipe: ObjectiveRecipe,
    ) -> Losses:
        """Each loss already weighted; the loop minimises their sum."""


METHODS: dict[str, Method] = {
    "exact_small": exact_small.losses,  # type: ignore[dict-item]
    "cam": cam.losses,  # type: ignore[dict-item]
    "clip_global": clip_global.losses,  # type: ignore[dict-item]
    "organ_clip": organ_clip.losses,  # type: ignore[dict-item]
}
BANK_OF: dict[str, Of] = {"clip_global": "report", "organ_clip": "places"}
"""What methods that read reports are aligned with."""


def phases_of(recipe: OptimRecipe) -> list[Phase]:
    """What a run learns, one after the other: organs, findings in boxes, findings in whole scans (or with
    organs at once), outlines. What does not fit into the run's steps is left out: whole scans first, then
    boxes, then outlines."""
    organs = min(recipe.organ_steps, recipe.steps)
    outlines = min(recipe.outline_steps, recipe.steps - organs)
    boxes = min(recipe.box_steps, recipe.steps - organs - outlines)
    rest = recipe.steps - organs - outlines - boxes
    alone = recipe.organ_steps or recipe.organs_from
    whole: tuple[Learns, float | None] = ("findings", recipe.finding_lr) if alone else ("both", None)
    listed: list[tuple[Learns, int, float | None]] = [
        ("organs", organs, None),
        ("boxes", boxes, recipe.box_lr),
        (whole[0], rest, whole[1]),
        ("outlines", outlines, recipe.outline_lr),
    ]
    starts = accumulate((steps for _, steps, _ in listed), initial=0)
    every = (Phase(what, at, n, lr or recipe.lr) for (what, n, lr), at in zip(listed, starts, strict=False))
    return [phase for phase in every if phase.steps]


def phase_of(step: int, recipe: OptimRecipe) -> Phase:
    """What a step is for."""
    return next(phase for phase in phases_of(recipe) if step < phase.start + phase.steps)


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
    phase = phase_of(step, recipe.optim)
    spacing_mm = preset.prep.spacing_mm
    fine = None
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


def make_boxes(
    patients: list[Patient],
    step: int,
    recipe: Recipe,
    preset: Preset,
    unknown: torch.Tensor,
    device: torch.device,
    known: dict[tuple[Path, ...], Seats],
) -> Boxes:
    """What a step that compares siblings in boxes sees: each box from other patients.

    Args:
        unknown: findings that siblings always share (`shared_of`): boxes can say nothing of them.
        known: where boxes of scans lie that earlier steps saw; this one's are added.
    """
    found, keys = list[Box](), list[str]()
    for at in range(step * recipe.objective.boxes, (step + 1) * recipe.objective.boxes):
        patient = patients[pick(at, len(patients), recipe.seed)]
        # the first scan is what the others are follow-ups of
        paths = (patient[0], *pick_scans(patient[1:], recipe.optim.box_scans - 1, at, recipe.seed))
        siblings = [load(path, finer=False).to(device) for path in paths]
        seats = known.get(paths) or known.setdefault(paths, seats_of(siblings, unknown.to(device)))
        generator = torch.Generator().manual_seed(recipe.seed * 1_000_033 + at)
        box = draw_box(siblings, seats, preset.prep.spacing_mm, recipe.augment, generator)
        if box is not None:
            found.append(box)
            keys += [one.key for one in siblings]
    return Boxes(tuple(found), tuple(keys))


def pick_box(shape: Sequence[int], step: int, seed: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Start and size of the box of a step that learns outlines, in half-resolution voxels."""
    generator = torch.Generator().manual_seed(seed * 100_043 + step)
    size = tuple(min(n // 2, BOX) for n in shape)
    start = tuple(
        int(torch.randint(n // 2 - b + 1, (), generator=generator)) for n, b in zip(shape, size, strict=True)
    )
    return start, size


def family_labels(patients: list[Patient]) -> list[torch.Tensor]:
    """Labels (S, D) of the scans of each patient that findings are learnt from."""
    families = patients_of(patients, "findings")
    return [torch.stack([load_labels(path) for path in patient]) for patient in families]


def prevalence_of(families: list[torch.Tensor]) -> tuple[float, ...]:
    """Share of positives per finding in the training set, kept away from 0 and 1."""
    return tuple(float(f) for f in torch.cat(families).nanmean(0).clamp(0.02, 0.98))


def shared_of(families: list[torch.Tensor]) -> torch.Tensor:
    """Which findings (bool, one per finding) no scan of a patient has without the others."""
    return torch.stack([(labels == labels[:1]).all(0) for labels in families]).all(0)


def told(batch: Batch, key: str, bank: TextBank) -> Batch:
    """The same with its report; without one where the scan teaches organs alone."""
    row = bank.row_of.get(key)
    return batch if row is None else replace(batch, report=ReportRow(bank, row))


class PhantomTask:
    """See `train.task.Task`. A step sees `optim.scans` scans of one patient. Siblings share their anatomy, so
    what it says about a finding cancels, and what the finding itself looks like stays.

    Raises:
        UsageError: `CONFIG_VALUE` for steps that the preset or the method has no use for, or for several
            processes.
    """

    def __init__(self, recipe: Recipe, preset: Preset, patients: list[Patient]) -> None:
        if recipe.method == "clip_global" and recipe.optim.organ_steps:
            raise UsageError(
                "CONFIG_VALUE",
                "organ_steps are for methods that learn organs",
                expected=0,
                got=recipe.optim.organ_steps,
            )
        if recipe.optim.box_steps and not getattr(preset.net, "abn_stem", 0):
            raise UsageError("CONFIG_VALUE", "box_steps need a preset with abn_stem", got=preset.name)
        knows_organs = preset.network in ("ynet", "organ_clip")
        if recipe.optim.outline_steps and not (knows_organs and preset.net.outline):
            got = f"{recipe.optim.outline_steps} for {preset.name}"
            raise UsageError("CONFIG_VALUE", "outline_steps need a preset with outlines", got=got)
        self.recipe, self.preset, self.patients = recipe, preset, patients
        self.steps, self.betas = recipe.optim.steps, (0.9, recipe.optim.beta2)
        self.identity = recipe.model_dump_json(
            exclude={"threads", "device", "parallel", "checkpoint_every", "track"}
        )

    def student(self) -> torch.nn.Module:
        """See `Task`."""
        if world() > 1:
            raise UsageError("CONFIG_VALUE", "this method runs in one process", expected=1, got=world())
        network = build_network(self.preset)
        if self.recipe.optim.organs_from is not None:
            take_organs(network, self.recipe.optim.organs_from)
        if self.bank is not None:
            network.text.prompts.copy_(self.bank.prompts)  # type: ignore[union-attr, operator]
        return network

    @cached_property
    def families(self) -> list[torch.Tensor]:
        """Labels of the scans that findings are learnt from, per patient."""
        return family_labels(self.patients)

    @cached_property
    def prevalence(self) -> tuple[float, ...]:
        """Of the scans that findings are learnt from."""
        return prevalence_of(self.families)

    @cached_property
    def shared(self) -> torch.Tensor:
        """Findings that siblings always share."""
        return shared_of(self.families)

    @cached_property
    def bank(self) -> TextBank | None:
        """Reports of the scans that findings are learnt from, for a network that is aligned with texts."""
        if self.preset.network not in READS_REPORTS:
            return None
        learnt = [path for patient in patients_of(self.patients, "findings") for path in patient]
        reports = {path.stem: load_report(path) for path in learnt}
        return bank_of(reports, BANK_OF[self.recipe.method])

    def groups(self, model: torch.nn.Module) -> list[dict[str, Any]]:
        """See `Task`: one for all."""
        return [{"params": list(model.parameters()), "lr_factor": 1.0, "decays": True, "last": False}]

    def rates(self, step: int) -> Rates:
        """See `Task`. The average starts as the weights after the first step."""
        optim = self.recipe.optim
        lr = learning_rate(step, optim)
        return Rates(lr, lr, optim.weight_decay, optim.ema if step else 0.0, temperature=1.0)

    def batches(self, start: int, device: torch.device) -> Iterator[dict[str, Batch] | Boxes]:
        """See `Task`."""
        return ahead(self._made(start, device))

    def _made(self, start: int, device: torch.device) -> Iterator[dict[str, Batch] | Boxes]:
        bank, known = self.bank and self.bank.to(device), dict[tuple[Path, ...], Seats]()
        for step in range(start, self.steps):
            learns = phase_of(step, self.recipe.optim).learns
            seen = patients_of(self.patients, learns)
            if learns == "boxes":
                yield make_boxes(seen, step, self.recipe, self.preset, self.shared, device, known)
                continue
            patient = seen[pick(step, len(seen), self.recipe.seed)]
            finer = learns == "outlines"
            samples = [load(path, finer=finer).to(device) for path in scans_of(patient, step, self.recipe)]
            rest = (step, self.recipe, self.preset, self.prevalence)
            made = {sample.key: make_batch(sample, *rest) for sample in samples}
            yield made if bank is None else {key: told(batch, key, bank) for key, batch in made.items()}

    def keys(self, batch: dict[str, Batch] | Boxes) -> list[str]:
        """See `Task`."""
        return list(batch.keys if isinstance(batch, Boxes) else batch)

    def backward(
        self, model: torch.nn.Module, average: Average, batch: dict[str, Batch] | Boxes, step: int
    ) -> Losses:
        """See `Task`."""
        seen = batch if isinstance(batch, Boxes) else list(batch.values())
        if self.recipe.optim.box_steps:
            # whole scans are mostly air: what cells are like is learnt from boxes, and rests with the organs
            model.abn.norms.train(isinstance(batch, Boxes))  # type: ignore[union-attr]
        losses = METHODS[self.recipe.method](model, seen, self.preset, self.recipe.objective)
        torch.stack(list(losses.values())).sum().backward()
        return losses

    def clip(self, model: torch.nn.Module) -> None:
        """See `Task`."""
        apart = list(model.children()) if self.recipe.optim.clip_by_module else [model]
        for parameters in filter(None, (list(module.parameters()) for module in apart)):
            torch.nn.utils.clip_grad_norm_(parameters, self.recipe.optim.clip)


def train(
    recipe: Recipe,
    preset: Preset,
    patients: list[Patient],
    out: Path,
    *,
    report: Callable[[Progress], None] | None = None,
) -> torch.nn.Module:
    """Runs the recipe on prepared files, or goes on in `out`; returns the averaged network.

    Raises:
        As of `loop.train` and `PhantomTask`.
    """
    return run_task(PhantomTask(recipe, preset, patients), out, report=report).module
