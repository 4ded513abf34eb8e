"""From a recipe to a model folder: phantoms, training, choices on validation, weights and card."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from hilum import __version__
from hilum.cohort.audit import phantom_patients, require_apart
from hilum.cohort.phantom_set import PhantomSetSpec, build
from hilum.heap import keep_freed_memory
from hilum.io.atomic import atomic_write
from hilum.io.weights import preset_data, save_weights
from hilum.model.preset import Preset
from hilum.train.loop import Progress
from hilum.train.phantom_task import train
from hilum.train.recipe import Recipe

Track = Callable[[Iterable[list[Path]], int, str], Iterable[list[Path]]]


def training_specs(recipe: Recipe, preset: Preset) -> list[PhantomSetSpec]:
    """The training phantoms of a recipe, patients with siblings first; lesion masks are not stored."""
    data = recipe.data
    families = PhantomSetSpec(
        data.train,
        data.seed,
        preset.prep,
        data.work_mm,
        data.spacing_mm,
        lesions=False,
        prevalence=data.prevalence,
        siblings=data.siblings,
        changes=data.changes,
        finer=recipe.optim.outline_steps > 0,
    )
    if not data.organ_patients:
        return [families]
    alone = replace(
        families, count=data.organ_patients, seed=data.seed + data.families, siblings=1, changes=None
    )
    return [families, alone]


def run_recipe(
    recipe: Recipe,
    out: Path,
    cache: Path,
    *,
    track: Track = lambda items, total, what: items,
    report: Callable[[Progress], None] | None = None,
    patients: list[list[Path]] | None = None,
) -> Path:
    """Make what is missing, train (or go on), write `out/model.safetensors` and `out/card.json`.

    The card's thresholds are neutral until `hilum exam --choose` sets them from validation phantoms.
    `patients`: of `prepared`, of a recipe with equal `data`; None prepares them.
    """
    preset = Preset.from_dict(preset_data(recipe.preset))
    refuse_leak(recipe)
    keep_freed_memory()
    if patients is None:
        patients = prepared(recipe, cache, track=track)
    out.mkdir(parents=True, exist_ok=True)
    network = train(recipe, preset, patients, out, report=report)
    # half precision halves the file; the weights are averages, their last bits carry nothing
    arrays = {k: v.detach().cpu().numpy().astype(np.float16) for k, v in network.state_dict().items()}
    digest = save_weights(out / "model.safetensors", arrays, {"preset": preset.name, "hilum": __version__})
    write_card(out, fresh_card(recipe, preset, digest) | {"training_minutes": training_minutes(out)})
    return out


def prepared(
    recipe: Recipe, cache: Path, *, track: Track = lambda items, total, what: items
) -> list[list[Path]]:
    """Scans of each training patient of a recipe, made where they are missing."""
    preset = Preset.from_dict(preset_data(recipe.preset))
    made = chain.from_iterable(
        build(spec, cache, workers=recipe.data.workers) for spec in training_specs(recipe, preset)
    )
    return list(track(made, recipe.data.patients, "phantom patients"))


def refuse_leak(recipe: Recipe) -> None:
    """Training and validation phantoms are different people.

    Raises:
        LeakError: `PATIENT_LEAK`, the ranges of seeds meet.
    """
    data = recipe.data
    training = phantom_patients(data.seed, data.patients)
    validation = phantom_patients(data.validation_seed, data.validation)
    require_apart(training, validation, ("training", "validation"))


def training_minutes(out: Path) -> float:
    """Sum of the steps' wall times; a step that ran twice, before and after a stop, counts once."""
    lines = (out / "log.jsonl").read_text(encoding="utf-8").splitlines()
    seconds = {row["step"]: float(row["seconds"]) for row in map(json.loads, lines)}
    return round(sum(seconds.values()) / 60, 1)


def fresh_card(recipe: Recipe, preset: Preset, digest: str) -> dict[str, Any]:
    """What a model says about itself before any validation."""
    data = recipe.data
    return {
        "name": recipe.name,
        "preset": preset.name,
        "sha256": digest,
        "synthetic": True,
        "trained_on": (
            f"{data.train + data.organ_patients} scans of {data.patients} synthetic chest phantoms "
            f"(seeds {data.seed} to {data.seed + data.patients - 1}), scan labels and organ masks only; "
            "no real patient"
        ),
        "validated_on": (
            f"{data.validation} synthetic phantoms (seeds {data.validation_seed} to "
            f"{data.validation_seed + data.validation - 1})"
        ),
        "recipe": recipe.model_dump(mode="json"),
        "thresholds": {},
        "map_thresholds": {},
        "calibration": {},
        "licence": "Apache-2.0",
        "use": "research and software testing; not a medical device; not for diagnosis",
    }


def write_card(folder: Path, card: dict[str, Any]) -> None:
    """`card.json`, written beside and renamed."""
    with atomic_write(folder / "card.json") as file:
        file.write((json.dumps(card, indent=2) + "\n").encode())
