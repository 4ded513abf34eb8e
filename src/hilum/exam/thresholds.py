"""From which probability on a finding is called present. Rules only; the caller gives validation cases.

Youden's is in `exam.metrics`. The corner rules are those of published tables (EXACT §2.1, fVLM's
calc_metrics.py): the point of the ROC curve nearest to (0, 1).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

import numpy as np

from hilum.exam.bootstrap import Scores, Truth
from hilum.exam.metrics import youden

GRID = np.linspace(0.0, 1.0, 100)
"""Thresholds that fVLM's and CT-CLIP's evaluation tries."""


def corner(scores: Scores, truth: Truth) -> float:
    """Threshold (>=) at the ROC point nearest (0, 1); ties: higher TPR. 0.5 with one class only.

    Every score is tried, also those that lie on a straight piece of the curve. The threshold lies half way to
    the next lower score, so that no rounding moves a case across it.
    """
    if truth.all() or not truth.any():
        return 0.5
    order = np.argsort(-scores, kind="stable")
    ranked = scores[order]
    last = np.append(ranked[1:] != ranked[:-1], True)
    hits = np.cumsum(truth[order])[last]
    wrong = np.cumsum(~truth[order])[last]
    at = _nearest(wrong, int(truth.sum()) - hits, int((~truth).sum()), int(truth.sum()))
    values = ranked[last]
    return float((values[at] + values[min(at + 1, len(values) - 1)]) / 2)


def corner_on_grid(scores: Scores, truth: Truth) -> float:
    """The same criterion over `GRID`, as fVLM's and CT-CLIP's tables have it: positive above (>), ties: the
    highest threshold. 0.5 with one class only."""
    if truth.all() or not truth.any():
        return 0.5
    above = scores[None] > GRID[:, None]
    wrong, missed = (above & ~truth).sum(1), (~above & truth).sum(1)
    best = _distance(wrong, missed, int((~truth).sum()), int(truth.sum()))
    return float(GRID[np.flatnonzero(best == best.min())[-1]])


def _distance(wrong: np.ndarray, missed: np.ndarray, negatives: int, positives: int) -> np.ndarray:
    """Squared distance from (0, 1) times a constant, in whole numbers: equal distances are equal."""
    return np.array(
        [(int(w) * positives) ** 2 + (int(m) * negatives) ** 2 for w, m in zip(wrong, missed, strict=True)],
        dtype=object,
    )


def _nearest(wrong: np.ndarray, missed: np.ndarray, negatives: int, positives: int) -> int:
    # scores fall along the curve, so of equal distances the last has the highest TPR
    distance = _distance(wrong, missed, negatives, positives)
    return int(np.flatnonzero(distance == distance.min())[-1])


RULES: Mapping[str, Callable[[Scores, Truth], float]] = MappingProxyType({"youden": youden, "corner": corner})
"""Rules by name; both are chosen on validation data and kept in a model's card."""
CARD_KEYS: Mapping[str, str] = MappingProxyType({"youden": "thresholds", "corner": "thresholds_corner"})
"""Where a card keeps them; reading uses Youden's."""
