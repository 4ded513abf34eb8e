"""A model is examined on patients it has never seen (row E03): its card says whom it saw."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from hilum.cohort.audit import phantom_patients, require_apart, require_clean
from hilum.cohort.manifest import MANIFEST, Manifest, read_manifest
from hilum.train.recipe import DataRecipe


def seen_phantoms(card: Mapping[str, Any]) -> list[str]:
    """Keys of the phantoms that a card's recipe trained and chose on; none for a card without a recipe.

    Args:
        card: as `hilum.train.run.fresh_card` writes it.
    """
    data = (card.get("recipe") or {}).get("data")
    if isinstance(data, list):
        # a model of cohorts names its phantoms; whoever has none is no phantom
        return list(card.get("phantoms", ()))
    if not isinstance(data, Mapping) or "validation_seed" not in data:
        return []
    # a card may be older than a key: what it lacks has its default
    patients = DataRecipe.model_construct(**data).patients
    return [
        *phantom_patients(data["seed"], patients),
        *phantom_patients(data["validation_seed"], data["validation"]),
    ]


def require_unseen(card: Mapping[str, Any], first_seed: int, count: int) -> None:
    """Stops before an exam on phantoms that the model was trained or chosen on.

    Args:
        card: of the model. first_seed, count: of the exam's phantoms.

    Raises:
        LeakError: `PATIENT_LEAK`, with the phantoms in `rows`.
    """
    name = str(card.get("name", "the model"))
    require_apart(seen_phantoms(card), phantom_patients(first_seed, count), (f"training of {name}", "exam"))


def require_patients_unseen(card: Mapping[str, Any], patients: Iterable[str]) -> str:
    """Stops before an exam on patients that the model was trained or chosen on, as far as its card says.

    Args:
        card: of the model. patients: keys of the exam's.

    Returns:
        What could be looked at, in words, for the result.

    Raises:
        LeakError: `PATIENT_LEAK`, with the rows.
    """
    seen = seen_phantoms(card)
    if not seen:
        return "its card names no patients: what it was trained on cannot be compared"
    require_apart(seen, patients, (f"training of {card.get('name')}", "exam"))
    return "shares no patient with the phantoms that its card names"


def require_cohorts_unseen(card: Mapping[str, Any], test: Manifest) -> str:
    """The same for a card whose recipe names prepared cohorts: scans and reports are compared as well.

    Args:
        card: of a model. test: the scans of the exam.

    Returns:
        What could be looked at, in words.

    Raises:
        LeakError: `PATIENT_LEAK`, with the rows.
    """
    parts = (card.get("recipe") or {}).get("data")
    if not isinstance(parts, list) or not parts:
        return "its card names no cohort: what it was trained on cannot be compared"
    looked = []
    for part in parts:
        folder, split = Path(str(part.get("cohort"))), str(part.get("split"))
        if not (folder / MANIFEST).is_file():
            looked.append(f"{folder.name} ({split}) is not here: not compared")
            continue
        names = (f"pretraining of {card.get('name')}", "exam")
        require_clean(read_manifest(folder).only(split), test, names)
        looked.append(f"{folder.name} ({split}) shares nothing with the test split")
    return "; ".join(looked)
