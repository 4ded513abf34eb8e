"""From a recipe to a model folder: phantoms, training, choices on validation, weights and card."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np

from hilum import __version__
from hilum.cohort.audit import phantom_patients, require_apart
from hilum.cohort.phantom_set import PhantomSetSpec, build
from hilum.io.atomic import atomic_write
from hilum.io.weights import preset_data, save_weights
from hilum.model.preset import Preset
from hilum.train.loop import Progress, train
from hilum.train.recipe import Recipe

Track = Callable[[Iterable[list[Path]], int, str], Iterable[list[Path]]]


def training_spec(recipe: Recipe, preset: Preset) -> PhantomSetSpec:
    """The training phantoms of a recipe; lesion masks are not stored."""
    data = recipe.data
    return PhantomSetSpec(
        data.train,
        data.seed,
        preset.prep,
        data.work_mm,
        data.spacing_mm,
        lesions=False,
        prevalence=data.prevalence,
        siblings=data.siblings,
        finer=recipe.optim.outline_steps > 0,
    )


def run_recipe(
    recipe: Recipe,
    out: Path,
    cache: Path,
    *,
    track: Track = lambda items, total, what: items,
    report: Callable[[Progress], None] | None = None,
) -> Path:
    """Make what is missing, train (or go on), write `out/model.safetensors` and `out/card.json`.

    The card's thresholds are neutral until `hilum exam --choose` sets them from validation phantoms.
    """
    preset = Preset.from_dict(preset_data(recipe.preset))
    refuse_leak(recipe)
    spec = training_spec(recipe, preset)
    made = build(spec, cache, workers=recipe.data.workers)
    patients = list(track(made, spec.count // spec.siblings, "phantom patients"))
    out.mkdir(parents=True, exist_ok=True)
    network = train(recipe, preset, patients, out, report=report)
    # half precision halves the file; the weights are averages, their last bits carry nothing
    arrays = {k: v.detach().cpu().numpy().astype(np.float16) for k, v in network.state_dict().items()}
    digest = save_weights(out / "model.safetensors", arrays, {"preset": preset.name, "hilum": __version__})
    write_card(out, fresh_card(recipe, preset, digest) | {"training_minutes": training_minutes(out)})
    return out


def refuse_leak(recipe: Recipe) -> None:
    """Training and validation phantoms are different people.

    Raises:
        LeakError: `PATIENT_LEAK`, the ranges of seeds meet.
    """
    data = recipe.data
    training = phantom_patients(data.seed, data.train // data.siblings)
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
    patients = data.train // data.siblings
    return {
        "name": recipe.name,
        "preset": preset.name,
        "sha256": digest,
        "synthetic": True,
        "trained_on": (
            f"{data.train} scans of {patients} synthetic chest phantoms (seeds {data.seed} to "
            f"{data.seed + patients - 1}), scan labels and organ masks only; no real patient"
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
