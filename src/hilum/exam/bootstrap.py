"""Intervals by resampling patients, all draws at once. NumPy only; scikit-learn is the oracle in the tests.

A draw is a count per scan: how often its patient was drawn. Every model of an exam is measured on the same
draws, so that the difference of two models has an interval of its own. Where a draw holds only one class, an
AUROC is not a number in that draw.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Float64

Scores = Float[np.ndarray, "N"]
Truth = Bool[np.ndarray, "N"]
Draws = Float64[np.ndarray, "B N"]
"""How often each scan stands in each draw."""
Values = Float64[np.ndarray, "B"]
"""A statistic in each draw."""
FindingValues = Float64[np.ndarray, "B D"]


class Interval(NamedTuple):
    """A value and its 95 % percentile interval; NaN where it could not be measured."""

    value: float
    low: float
    high: float


def patient_draws(patients: Sequence[Hashable], draws: int = 1000, seed: int = 0) -> Draws:
    """Patients drawn with replacement, as many as there are; all scans of a patient go together.

    Args:
        patients: of each scan. draws: how many. seed: equal seeds and patients give equal draws.
    """
    names = {name: n for n, name in enumerate(dict.fromkeys(patients))}
    of_scan = np.array([names[p] for p in patients], dtype=np.int64)
    generator = np.random.default_rng(seed)
    share = np.full(len(names), 1 / max(1, len(names)))
    counts = generator.multinomial(len(names), share, size=draws)
    return counts[:, of_scan].astype(np.float64)


def auroc_draws(scores: Scores, truth: Truth, draws: Draws) -> Values:
    """AUROC in every draw, ties counted half."""
    positive, negative = scores[truth], scores[~truth]
    wins = (positive[:, None] > negative).astype(np.float64) + 0.5 * (positive[:, None] == negative)
    of_positive, of_negative = draws[:, truth], draws[:, ~truth]
    pairs = of_positive.sum(1) * of_negative.sum(1)
    won = np.einsum("bn,bn->b", of_positive @ wins, of_negative)
    return np.divide(won, pairs, out=np.full(len(draws), np.nan), where=pairs > 0)


def precision_draws(scores: Scores, truth: Truth, draws: Draws) -> Values:
    """Average precision in every draw: precision over recall in steps; equal scores are one step."""
    order = np.argsort(-scores, kind="stable")
    ranked = scores[order]
    last = np.append(ranked[1:] != ranked[:-1], True)  # of a group of equal scores
    taken = draws[:, order]
    hits = np.cumsum(taken * truth[order], axis=1)[:, last]
    all_taken = np.cumsum(taken, axis=1)[:, last]
    precision = np.divide(hits, all_taken, out=np.zeros_like(hits), where=all_taken > 0)
    gained = np.diff(hits, axis=1, prepend=0.0)
    positives = hits[:, -1] if hits.shape[1] else np.zeros(len(draws))
    total = (precision * gained).sum(1)
    return np.divide(total, positives, out=np.full(len(draws), np.nan), where=positives > 0)


def interval(value: float, drawn: Values) -> Interval:
    """A value and the middle 95 % of its draws; draws that are not a number are left out."""
    known = drawn[np.isfinite(drawn)]
    if not np.isfinite(value) or known.size == 0:
        return Interval(float("nan"), float("nan"), float("nan"))
    low, high = np.percentile(known, [2.5, 97.5])
    return Interval(float(value), float(low), float(high))


def macro_draws(values: FindingValues) -> Values:
    """Mean over the findings that were measured, in every draw; NaN where none was."""
    known = np.isfinite(values)
    count = known.sum(1)
    total = np.where(known, values, 0.0).sum(1)
    return np.divide(total, count, out=np.full(len(values), np.nan), where=count > 0)


def mean_draws(values: Scores, draws: Draws) -> Values:
    """Mean over the cases that have a value, in every draw; NaN where none was drawn."""
    has = np.isfinite(values)
    weight = draws[:, has].sum(1)
    return np.divide(draws[:, has] @ values[has], weight, out=np.full(len(draws), np.nan), where=weight > 0)


def known(value: float) -> float | None:
    """JSON has no NaN."""
    return round(float(value), 5) if np.isfinite(value) else None


def listed(row: Interval) -> list[float] | None:
    """Value, low, high; None where nothing was measured."""
    return [round(float(x), 5) for x in row] if np.isfinite(row.value) else None
