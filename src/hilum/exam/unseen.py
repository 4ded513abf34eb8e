"""A model is examined on patients it has never seen (row E03): its card says whom it saw."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hilum.cohort.audit import phantom_patients, require_apart
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
    if not data:
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
