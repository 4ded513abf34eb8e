"""Scan-level figures of one set of answers: per finding and macro, with intervals by patient.

Arrays only. A label that is unknown is in no figure; a finding of which the scans show one class is in none
and is listed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal

import numpy as np
from jaxtyping import Float64

from hilum.exam.bootstrap import Draws, Interval, auroc_draws, interval, listed, macro_draws, precision_draws
from hilum.exam.presence import (
    Counts,
    accuracy,
    counts_of,
    f1_absent,
    f1_present,
    f1_weighted,
    sensitivity,
    specificity,
)
from hilum.exam.thresholds import corner, corner_on_grid

Table = Float64[np.ndarray, "N D"]
Called = Float64[np.ndarray, "N D"]
"""1 called present, 0 not, NaN where no threshold is known."""

Convention = Literal["default", "paper", "fvlm"]
NOTES: Mapping[str, str] = MappingProxyType(
    {
        "default": "Thresholds come from validation; presence is the positive class.",
        "paper": "EXACT's convention: THRESHOLDS ARE FIT ON THE TEST SCANS THEMSELVES and ABSENCE is the "
        "positive class. Not comparable with the default figures, and optimistic.",
        "fvlm": "fVLM's and CT-CLIP's convention: THRESHOLDS ARE FIT ON THE TEST SCANS THEMSELVES, F1 is the "
        "mean over both classes weighted by their cases. Not comparable with the default, and optimistic.",
    }
)
F1_OF: Mapping[str, str] = MappingProxyType(
    {"default": "f1_present", "paper": "f1_absent", "fvlm": "f1_weighted"}
)
"""Which of the three F1s a convention quotes."""

COUNTED: Mapping[str, Callable[[Counts], np.ndarray]] = MappingProxyType(
    {
        "f1_present": f1_present,
        "f1_absent": f1_absent,
        "f1_weighted": f1_weighted,
        "accuracy": accuracy,
        "sensitivity": sensitivity,
        "specificity": specificity,
    }
)
MEASURES = ("auroc", "average_precision", *COUNTED)


@dataclass(frozen=True)
class Column:
    """One finding.

    Args:
        slug: of it. positives, negatives, unknown: scans. excluded: why it is in no mean, or "".
        values: measure -> value and interval. threshold: from which it was called, NaN for none.
    """

    slug: str
    positives: int
    negatives: int
    unknown: int
    excluded: str
    values: Mapping[str, Interval]
    threshold: float

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready; what was not measured is None."""
        told = {name: listed(value) for name, value in self.values.items()}
        return {**{k: v for k, v in vars(self).items() if k != "values"}, **told} | {
            "threshold": None if np.isnan(self.threshold) else self.threshold
        }


@dataclass(frozen=True)
class Figures:
    """All findings of a set, and the means over those that were measured."""

    columns: tuple[Column, ...]
    macro: Mapping[str, Interval]


def fit_on_test(p: Table, labels: Table, convention: Convention) -> tuple[Called, list[float]]:
    """Calls by thresholds that are fitted to the very scans they are measured on: as published.

    Args:
        p: probabilities. labels: 1, 0 or NaN. convention: ``paper`` or ``fvlm``.

    Returns:
        Calls, and the probability from which each finding is called.
    """
    called, chosen = np.full(p.shape, np.nan), []
    for d, (column, label) in enumerate(zip(p.T, labels.T, strict=True)):
        seen = np.isfinite(label) & np.isfinite(column)
        truth = label[seen] > 0.5
        if not truth.any() or truth.all():
            chosen.append(float("nan"))
            continue
        if convention == "fvlm":
            at = corner_on_grid(column[seen], truth)
            called[seen, d] = column[seen] > at
        else:
            absent_from = corner(1 - column[seen], ~truth)
            called[seen, d] = ~(1 - column[seen] >= absent_from)
            at = 1 - absent_from
        chosen.append(at)
    return called, chosen


def call(p: Table, thresholds: list[float]) -> Called:
    """Present from the threshold on; NaN where there is none."""
    at = np.array(thresholds, dtype=np.float64)
    return np.where(np.isfinite(p) & np.isfinite(at), (p >= at).astype(np.float64), np.nan)


def figures(
    slugs: tuple[str, ...], raw: Table, labels: Table, called: Called, thresholds: list[float], draws: Draws
) -> Figures:
    """Everything about scan-level answers.

    Args:
        slugs: of the columns. raw: what ranks the scans. labels: 1, 0 or NaN. called: see `call`.
        thresholds: only told. draws: of patients, without the scans themselves.
    """
    with_all = np.concatenate([np.ones((1, len(raw))), draws])
    columns, tables = [], []
    for d, slug in enumerate(slugs):
        values, why = _measured(raw[:, d], labels[:, d], called[:, d], with_all)
        known = labels[:, d][np.isfinite(labels[:, d])]
        positives = int((known > 0.5).sum())
        told = {m: interval(float(v[0]), v[1:]) for m, v in values.items()}
        unknown = len(raw) - known.size
        columns.append(Column(slug, positives, known.size - positives, unknown, why, told, thresholds[d]))
        tables.append(values)
    macro = {}
    for name in MEASURES:
        means = macro_draws(np.stack([t[name] for t in tables], axis=1))
        macro[name] = interval(float(means[0]), means[1:])
    return Figures(tuple(columns), macro)


def _measured(
    raw: np.ndarray, label: np.ndarray, called: np.ndarray, draws: np.ndarray
) -> tuple[dict[str, np.ndarray], str]:
    """Measure -> its value on the scans, then in every draw; and why there is none."""
    nothing = {name: np.full(len(draws), np.nan) for name in MEASURES}
    seen = np.isfinite(label) & np.isfinite(raw)
    truth = label[seen] > 0.5
    if not np.isfinite(label).any():
        return nothing, "no label is known"
    if not np.isfinite(raw).any():
        return nothing, "not answered"
    if not truth.any() or truth.all():
        return nothing, "one class only"
    found = nothing | {
        "auroc": auroc_draws(raw[seen], truth, draws[:, seen]),
        "average_precision": precision_draws(raw[seen], truth, draws[:, seen]),
    }
    if np.isfinite(called[seen]).all():
        counts = counts_of(called[seen] > 0.5, truth, draws[:, seen])
        found |= {name: of(counts) for name, of in COUNTED.items()}
    return found, ""
