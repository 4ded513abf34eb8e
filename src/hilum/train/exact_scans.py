"""Cohorts of a run on whole prepared scans, opened and audited; and the patients of each side."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from hilum.cohort.manifest import Manifest, read_manifest
from hilum.cohort.mask_sources import LESION
from hilum.cohort.parts import split_parts
from hilum.cohort.splits import split_of
from hilum.cohort.store import Store, open_store
from hilum.errors import UsageError
from hilum.text.vocabulary import ORGAN_CHANNELS
from hilum.train.exact_data import ExactScans, labels_of
from hilum.train.exact_recipe import DenseRecipe, ExactPart


def sides_of(
    recipe: DenseRecipe, channels: Sequence[str] = ORGAN_CHANNELS
) -> tuple[ExactScans, ExactScans | None]:
    """Scans that a run learns from, and those that choose.

    Raises:
        UsageError: `CONFIG_VALUE`, there are none or cohorts were prepared differently.
        LeakError: `PATIENT_LEAK`. Others as of `read_manifest` and `open_store`.
    """
    scans, chosen = scans_of(recipe.data, None, channels), None
    if recipe.validation_share is not None:
        scans, chosen = parted(scans, recipe.validation_share, recipe.seed)
    elif recipe.validation is not None:
        chosen = scans_of(recipe.data, recipe.validation, channels)
    if not len(scans):
        raise UsageError("CONFIG_VALUE", "a run has scans", expected="scans of its splits", got="none")
    preps_agree(scans)
    return scans, chosen if chosen is not None and len(chosen) else None


def parted(scans: ExactScans, share: float, seed: int) -> tuple[ExactScans, ExactScans]:
    """Scans to learn from and scans to choose on, by patient: a hash of the patient's key decides."""
    shares = {"train": 1 - share, "val": share}
    sides: dict[str, list[int]] = {"train": [], "val": []}
    for i, patient in enumerate(scans.patients):
        sides[split_of(patient, shares, seed)].append(i)
    return scans.pick(sides["train"]), scans.pick(sides["val"])


def scans_of(
    parts: Sequence[ExactPart], split: str | None, channels: Sequence[str] = ORGAN_CHANNELS
) -> ExactScans:
    """Scans of all cohorts, those of `split` or of each part's own; audited against what must be apart.

    Args:
        channels: of the masks beside them; organs lie in `store-PREP-masks`, `LESION` in
            `store-PREP-findings`.

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
        beside = _masks(part, channels)
        wanted = split or part.split
        own = _keys(part, manifest, store, wanted)
        rows = {row.record.key: row.record for row in manifest.rows() if row.record.key in own}
        for key in sorted(own):
            keys.append(key)
            where.append(store)
            masks.append(beside if beside is not None and key in beside.rows else None)
            labels.append(rows[key].labels)
            patients.append(rows[key].patient)
    return ExactScans(
        tuple(keys), tuple(where), tuple(masks), labels_of(labels), tuple(patients), tuple(channels)
    )


def _keys(part: ExactPart, manifest: Manifest, store: Store, split: str) -> set[str]:
    held = manifest.splits()
    if split not in held:
        return set()
    apart = [name for name in {*part.apart, part.split} if name in held and name != split]
    return set(split_parts(manifest, store, [split, *apart])[split].scans)


def _masks(part: ExactPart, channels: Sequence[str]) -> Store | None:
    what = "findings" if tuple(channels) == (LESION,) else "masks"
    folder = part.cohort / f"store-{part.prep}-{what}"
    if not part.masks or not folder.is_dir():
        return None
    store = open_store(folder)
    if list(store.prep["channels"]) != list(channels):
        raise UsageError(
            "CONFIG_VALUE", "a store of masks has the channels that are learned", expected=tuple(channels),
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


def is_synthetic(scans: ExactScans) -> bool:
    """Whether every patient is a phantom."""
    return all(patient.startswith("phantom:") for patient in scans.patients)


def phantoms_of(*sides: ExactScans | None) -> list[str]:
    """Phantoms that a model has seen, sorted: an exam on phantoms asks for them."""
    seen = {patient for side in sides if side is not None for patient in side.patients}
    return sorted(patient for patient in seen if patient.startswith("phantom:"))


def people(scans: ExactScans) -> int:
    """How many patients."""
    return len(set(scans.patients))
