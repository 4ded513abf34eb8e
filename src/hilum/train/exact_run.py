"""From a recipe of EXACT to a model folder: cohorts opened and audited, training, the best weights kept."""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from hilum import __version__
from hilum.cohort.manifest import Manifest, read_manifest
from hilum.cohort.parts import split_parts
from hilum.cohort.splits import split_of
from hilum.cohort.store import Store, open_store
from hilum.errors import UsageError
from hilum.heap import keep_freed_memory
from hilum.io.weights import load_weights, preset_data, save_weights
from hilum.model.preset import build, load_state, preset_from
from hilum.text.vocabulary import ORGAN_CHANNELS
from hilum.train.exact_data import ExactScans, labels_of
from hilum.train.exact_recipe import ExactPart, ExactRecipe
from hilum.train.exact_student import ExactStudent, adapt, merge
from hilum.train.exact_task import OUTPUTS, ExactTask
from hilum.train.exact_valid import Choice, Record, choose, scan_probabilities
from hilum.train.loop import Report, train
from hilum.train.parallel import device_of
from hilum.train.run import training_minutes, write_card

VALIDATIONS = 10
"""How often a run is validated where its recipe does not say."""


def run_exact(recipe: ExactRecipe, out: Path, *, report: Report | None = None) -> Path:
    """Trains (or goes on); `out` gets `model.safetensors` and `card.json` of the best validation.

    Raises:
        LeakError: `PATIENT_LEAK`, splits share a patient.
        Others as of `train`, `read_manifest`, `open_store` and `load_weights`.
    """
    keep_freed_memory()
    task, chosen = exact_task(recipe)
    out.mkdir(parents=True, exist_ok=True)
    keeper = Keeper(task, chosen, out)
    every = recipe.validate_every or max(1, task.steps // VALIDATIONS)
    steps = tuple(range(every, task.steps, every)) if chosen is not None and len(chosen) else ()
    train(task, out, exports=steps, export=keeper, report=report)
    return out


def exact_task(recipe: ExactRecipe) -> tuple[ExactTask, ExactScans | None]:
    """Everything that a run needs, read and checked, and the scans that choose."""
    torch.manual_seed(recipe.seed)
    network = build(preset_from(preset_data(recipe.preset)))
    sha256 = None if recipe.start is None else fill(network, recipe.start, recipe.preset)
    scans, chosen = scans_of(recipe.data, None), None
    if recipe.validation_share is not None:
        scans, chosen = parted(scans, recipe.validation_share, recipe.seed)
    elif recipe.validation is not None:
        chosen = scans_of(recipe.data, recipe.validation)
    if not len(scans):
        raise UsageError("CONFIG_VALUE", "a run has scans", expected="scans of its splits", got="none")
    preps_agree(scans)
    return ExactTask(recipe, scans, network, sha256), chosen


def parted(scans: ExactScans, share: float, seed: int) -> tuple[ExactScans, ExactScans]:
    """Scans to learn from and scans to choose on, by patient: a hash of the patient's key decides."""
    shares = {"train": 1 - share, "val": share}
    sides: dict[str, list[int]] = {"train": [], "val": []}
    for i, patient in enumerate(scans.patients):
        sides[split_of(patient, shares, seed)].append(i)
    return scans.pick(sides["train"]), scans.pick(sides["val"])


def fill(network: nn.Module, folder: Path, preset: str) -> str:
    """Loads the weights of a model folder, strictly; returns their sha256.

    Raises:
        UsageError: `CONFIG_VALUE`, it is a model of another preset. WeightsError: as of `load_weights`.
    """
    card = json.loads((folder / "card.json").read_text(encoding="utf-8"))
    if card["preset"] != preset:
        raise UsageError(
            "CONFIG_VALUE", "a run starts from a model of its preset", expected=preset, got=card["preset"],
            path=folder,
        )  # fmt: skip
    tensors, _ = load_weights(folder / "model.safetensors", sha256=card["sha256"])
    load_state(network, {name: torch.from_numpy(array) for name, array in tensors.items()})
    return str(card["sha256"])


def scans_of(parts: Sequence[ExactPart], split: str | None) -> ExactScans:
    """Scans of all cohorts, those of `split` or of each part's own; audited against what must be apart.

    Raises:
        LeakError: `PATIENT_LEAK`. Others as of `read_manifest` and `open_store`.
    """
    keys: list[str] = []
    where: list[Store] = []
    masks: list[Store | None] = []
    labels: list[Any] = []
    patients: list[str] = []
    for part in parts:
        manifest = read_manifest(part.cohort)
        store = open_store(part.cohort / f"store-{part.prep}")
        beside = _masks(part)
        wanted = split or part.split
        own = _keys(part, manifest, store, wanted)
        rows = {row.record.key: row.record for row in manifest.rows() if row.record.key in own}
        for key in sorted(own):
            keys.append(key)
            where.append(store)
            masks.append(beside if beside is not None and key in beside.rows else None)
            labels.append(rows[key].labels)
            patients.append(rows[key].patient)
    return ExactScans(tuple(keys), tuple(where), tuple(masks), labels_of(labels), tuple(patients))


def _keys(part: ExactPart, manifest: Manifest, store: Store, split: str) -> set[str]:
    held = manifest.splits()
    if split not in held:
        return set()
    apart = [name for name in {*part.apart, part.split} if name in held and name != split]
    return set(split_parts(manifest, store, [split, *apart])[split].scans)


def _masks(part: ExactPart) -> Store | None:
    folder = part.cohort / f"store-{part.prep}-masks"
    if not part.masks or not folder.is_dir():
        return None
    store = open_store(folder)
    if list(store.prep["channels"]) != list(ORGAN_CHANNELS):
        raise UsageError(
            "CONFIG_VALUE", "a store of masks has the organs of EXACT", expected=ORGAN_CHANNELS,
            got=store.prep["channels"], path=folder,
        )  # fmt: skip
    return store


def preps_agree(scans: ExactScans) -> dict[str, Any]:
    """The one preparation of all scans: what a reading prepares with.

    Raises:
        UsageError: `CONFIG_VALUE`, cohorts were prepared differently.
    """
    preps = {json.dumps(dict(store.prep), sort_keys=True) for store in scans.where}
    if len(preps) > 1:
        raise UsageError("CONFIG_VALUE", "all cohorts of a run have one preparation", got=sorted(preps))
    return dict(scans.where[0].prep)


class Keeper:
    """The export of a run: validates the average, and keeps the weights that were best.

    Args:
        task: of the run. chosen: validation scans; None or none keep the last weights. out: the folder.
    """

    def __init__(self, task: ExactTask, chosen: ExactScans | None, out: Path) -> None:
        self.task, self.out = task, out
        self.chosen = chosen if chosen is not None and len(chosen) else None
        self.record = Record(out, task.identity)

    def __call__(self, tensors: dict[str, torch.Tensor], step: int) -> None:
        """Called by rank 0 with the average's tensors."""
        network = self._network(tensors)
        choice = None
        if self.chosen is not None:
            recipe = self.task.recipe
            device = device_of(recipe.device)
            answers = scan_probabilities(network, self.chosen, recipe.rule, device, recipe.shape_vox)
            choice = choose(answers, self.chosen.labels)
            self.record.add(step, choice)
            if self.record.best != step:
                return
        arrays = {name: value.detach().cpu().numpy() for name, value in network.state_dict().items()}
        facts = {"preset": self.task.recipe.preset, "hilum": __version__}
        digest = save_weights(self.out / "model.safetensors", arrays, facts)
        write_card(self.out, card_of(self.task, self.chosen, choice, digest, step, self.out))

    def _network(self, tensors: dict[str, torch.Tensor]) -> nn.Module:
        recipe = self.task.recipe
        network = copy.deepcopy(self.task.network)
        adapt(network, recipe.adapt, recipe.lora_rank, OUTPUTS)
        student = ExactStudent(network)
        student.load_state_dict(tensors)
        return merge(student.network)


def card_of(
    task: ExactTask, chosen: ExactScans | None, choice: Choice | None, digest: str, step: int, out: Path
) -> dict[str, Any]:
    """What the model says about itself.

    Voxel thresholds are the scan's: a finding is then present only where some voxel is, and no voxel was ever
    drawn to choose another.
    """
    recipe, scans = task.recipe, task.scans
    synthetic = is_synthetic(scans)
    what = "synthetic chest phantoms; no real patient" if synthetic else "chest CTs"
    thresholds = {} if choice is None else {s: round(t, 6) for s, t in choice.thresholds.items()}
    masked = sum(scans.masked(i) for i in range(len(scans)))
    validated = "nothing" if chosen is None else f"{len(chosen)} scans of {_people(chosen)} patients"
    return {
        "name": recipe.name,
        "preset": recipe.preset,
        "sha256": digest,
        "synthetic": synthetic,
        "trained_on": (
            f"{len(scans)} scans of {_people(scans)} patients, {masked} with organ masks, scan labels; {what}"
        ),
        "validated_on": validated,
        "phantoms": phantoms_of(scans, chosen),
        "validation": None if choice is None else {"step": step, "macro_auroc": _number(choice.macro)},
        "prep": preps_agree(scans),
        "shape_vox": recipe.shape_vox,
        "rule": recipe.rule.facts(),
        "steps": step,
        "prevalence": [round(f, 5) for f in task.prevalence],
        "recipe": recipe.model_dump(mode="json"),
        "thresholds": thresholds,
        "map_thresholds": thresholds,
        "calibration": {},
        "training_minutes": training_minutes(out),
        "licence": "Apache-2.0",
        "use": "research and software testing; not a medical device; not for diagnosis",
    }


def is_synthetic(scans: ExactScans) -> bool:
    """Whether every patient is a phantom."""
    return all(patient.startswith("phantom:") for patient in scans.patients)


def phantoms_of(*sides: ExactScans | None) -> list[str]:
    """Phantoms that a model has seen, sorted: an exam on phantoms asks for them."""
    seen = {patient for side in sides if side is not None for patient in side.patients}
    return sorted(patient for patient in seen if patient.startswith("phantom:"))


def _people(scans: ExactScans) -> int:
    return len(set(scans.patients))


def _number(value: float) -> float | None:
    return None if value != value else round(value, 5)
