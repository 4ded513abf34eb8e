"""What a run on whole prepared scans leaves: the weights of the best validation, with a card that says so."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from hilum import __version__
from hilum.errors import UsageError
from hilum.heap import keep_freed_memory
from hilum.io.weights import load_weights, save_weights
from hilum.model.preset import load_state
from hilum.train.exact_data import ExactScans
from hilum.train.exact_scans import is_synthetic, people, phantoms_of, preps_agree
from hilum.train.exact_task import DenseTask
from hilum.train.exact_valid import Judged, Record
from hilum.train.loop import Report, train
from hilum.train.run import training_minutes, write_card

VALIDATIONS = 10
"""How often a run is validated where its recipe does not say."""


class KeptTask(DenseTask):
    """A task that says what it leaves."""

    @property
    def preset(self) -> str:
        """Of the model."""
        raise NotImplementedError

    def rebuilt(self, tensors: dict[str, torch.Tensor]) -> nn.Module:
        """The average's tensors -> what is judged."""
        raise NotImplementedError

    def judge(self, module: nn.Module, chosen: ExactScans) -> Judged:
        """What validation scans say of it."""
        raise NotImplementedError

    def weights(self, module: nn.Module) -> Mapping[str, torch.Tensor]:
        """What is written, by the names that a reader knows."""
        raise NotImplementedError

    def facts(self, judged: Judged | None) -> dict[str, Any]:
        """Of the card, beside what all cards say."""
        raise NotImplementedError


def run_kept(task: KeptTask, chosen: ExactScans | None, out: Path, *, report: Report | None = None) -> Path:
    """Trains (or goes on); `out` gets `model.safetensors` and `card.json` of the best validation.

    Raises:
        As of `loop.train`.
    """
    keep_freed_memory()
    out.mkdir(parents=True, exist_ok=True)
    every = task.recipe.validate_every or max(1, task.steps // VALIDATIONS)
    steps = tuple(range(every, task.steps, every)) if chosen is not None else ()
    train(task, out, exports=steps, export=keeper(task, chosen, out), report=report)
    return out


def keeper(
    task: KeptTask, chosen: ExactScans | None, out: Path
) -> Callable[[dict[str, torch.Tensor], int], None]:
    """The export of a run: judges the average, and keeps the weights that were best.

    Args:
        chosen: validation scans; None keeps the last weights. out: the folder.
    """
    record = Record(out, task.identity)

    def keep(tensors: dict[str, torch.Tensor], step: int) -> None:
        module = task.rebuilt(tensors)
        judged = None
        if chosen is not None:
            judged = task.judge(module, chosen)
            record.add(step, judged)
            if record.best != step:
                return
        arrays = {name: value.detach().cpu().numpy() for name, value in task.weights(module).items()}
        facts = {"preset": task.preset, "hilum": __version__}
        digest = save_weights(out / "model.safetensors", arrays, facts)
        write_card(out, card_of(task, chosen, judged, digest, step, out))

    return keep


def card_of(
    task: KeptTask, chosen: ExactScans | None, judged: Judged | None, digest: str, step: int, out: Path
) -> dict[str, Any]:
    """What the model says about itself."""
    recipe, scans = task.recipe, task.scans
    synthetic = is_synthetic(scans)
    what = "synthetic chest phantoms; no real patient" if synthetic else "chest CTs"
    masked = sum(scans.masked(i) for i in range(len(scans)))
    validated = "nothing" if chosen is None else f"{len(chosen)} scans of {people(chosen)} patients"
    macro = None if judged is None or judged.macro != judged.macro else round(judged.macro, 5)
    return {
        "name": recipe.name,
        "preset": task.preset,
        "sha256": digest,
        "synthetic": synthetic,
        "trained_on": (
            f"{len(scans)} scans of {people(scans)} patients, {masked} with masks, scan labels; {what}"
        ),
        "validated_on": validated,
        "validation": None if judged is None else {"step": step, judged.measure: macro},
        "phantoms": phantoms_of(scans, chosen),
        "prep": preps_agree(scans),
        "shape_vox": recipe.shape_vox,
        "steps": step,
        "recipe": recipe.model_dump(mode="json"),
        "calibration": {},
        "training_minutes": training_minutes(out),
        "licence": "Apache-2.0",
        "use": "research and software testing; not a medical device; not for diagnosis",
        **task.facts(judged),
    }


def fill(network: nn.Module, folder: Path, preset: str, wanted: tuple[str, ...] = ("",)) -> str:
    """Loads the weights of a model folder, strictly; returns their sha256.

    Args:
        wanted: beginnings of the names that are loaded; what is left out stays as it is.

    Raises:
        UsageError: `CONFIG_VALUE`, it is a model of another preset. WeightsError: as of `load_weights`.
    """
    card = card_at(folder)
    if card["preset"] != preset:
        raise UsageError(
            "CONFIG_VALUE", "a run starts from a model of its preset", expected=preset, got=card["preset"],
            path=folder,
        )  # fmt: skip
    tensors, _ = load_weights(folder / "model.safetensors", sha256=card["sha256"])
    own = network.state_dict()
    if "map_heads" in card:
        # a classifier is the model that it was made from, and heads
        tensors = {name: array for name, array in tensors.items() if not name.startswith("map_heads.")}
    loaded = {name: torch.from_numpy(array) for name, array in tensors.items() if name.startswith(wanted)}
    load_state(network, {n: v for n, v in own.items() if not n.startswith(wanted)} | loaded)
    return str(card["sha256"])


def card_at(folder: Path) -> dict[str, Any]:
    """The card of a model's folder.

    Raises:
        UsageError: `NOT_FOUND`.
    """
    try:
        card: dict[str, Any] = json.loads((folder / "card.json").read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(
            "NOT_FOUND", "a run starts from a model", expected="model.safetensors and card.json", got="none",
            path=folder,
        ) from error  # fmt: skip
    return card
