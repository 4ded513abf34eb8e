"""What validation data decide: voxel thresholds, calibration, and the probability from which a finding is
present."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float64

from hilum.exam.calibrate import apply, choose_kind, fit
from hilum.exam.metrics import MAP_THRESHOLDS
from hilum.exam.phantom_cases import CaseScore
from hilum.exam.thresholds import CARD_KEYS, RULES
from hilum.text.vocabulary import SLUGS

Table = Float64[np.ndarray, "N D"]


def choose(cases: Sequence[CaseScore]) -> dict[str, Any]:
    """Thresholds of scans and voxels and the calibration, per finding, for a model's card. Validation cases
    only."""
    pooled = np.array([case.pooled for case in cases], dtype=np.float64)
    labels = (np.array([case.labels for case in cases]) > 0.5).astype(np.float64)
    maps = {
        slug: round(best_map_threshold([c.findings[slug].curve for c in cases if slug in c.findings]), 5)
        for slug in SLUGS
    }
    return choose_presence(pooled, labels, [case.seed for case in cases]) | {"map_thresholds": maps}


def choose_presence(p: Table, labels: Table, patients: Sequence[Hashable]) -> dict[str, Any]:
    """Calibration and both kinds of thresholds for a card.

    Args:
        p: raw probabilities of validation cases, 18 in the vocabulary's order. labels: 1, 0 or NaN.
        patients: of each case.

    Returns:
        `thresholds`, `thresholds_corner`: on calibrated probabilities. `calibration`: see
        `hilum.read.calibration`. `calibration_kind` and `calibration_losses`: what was chosen, by what.
    """
    kind, losses = choose_kind(p, labels, patients)
    entries = fit(p, labels, kind)
    told = apply(p, entries)
    found: dict[str, Any] = {
        CARD_KEYS[rule]: {
            slug: value
            for slug, value in zip(SLUGS, thresholds(told, labels, rule), strict=True)
            if np.isfinite(value)
        }
        for rule in RULES
    }
    held = {slug: entry for slug, entry in zip(SLUGS, entries, strict=True) if entry is not None}
    return found | {"calibration": held, "calibration_kind": kind, "calibration_losses": losses}


def thresholds(p: Table, labels: Table, rule: str) -> list[float]:
    """From which probability on a finding is present, per column; NaN where validation has one class only.

    Args:
        p, labels: of validation cases; labels are 1, 0 or NaN. rule: of `exam.thresholds.RULES`.
    """
    found = []
    for column, label in zip(p.T, labels.T, strict=True):
        seen = np.isfinite(label) & np.isfinite(column)
        truth = label[seen] > 0.5
        both = truth.any() and not truth.all()
        found.append(RULES[rule](column[seen], truth) if both else float("nan"))
    return found


def best_map_threshold(curves: Sequence[Sequence[float]]) -> float:
    """The voxel threshold with the largest mean Dice over the cases that have the finding; 0.5 without
    any."""
    if not curves:
        return 0.5
    return float(MAP_THRESHOLDS[int(np.mean(np.array(curves), axis=0).argmax())])
