"""AUROC, Dice curves, thresholds; intervals are in `exam.bootstrap`. NumPy only; scikit-learn is the oracle
in the tests."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float64

from hilum.objective.roc import auroc, youden

__all__ = ["MAP_THRESHOLDS", "auroc", "dice", "dice_curve", "nanmean", "youden"]

MAP_THRESHOLDS = 1 / (1 + np.exp(-np.linspace(-14.0, 4.0, 91)))
"""Voxel thresholds that are tried on validation data, from 8e-7 to 0.98: maps of a model that has seen few
voxels of a finding lie low."""


def dice(predicted: np.ndarray, truth: np.ndarray) -> float:
    """2 |A and B| / (|A| + |B|); 1 when both are empty."""
    total = int(predicted.sum()) + int(truth.sum())
    return 1.0 if total == 0 else 2.0 * int((predicted & truth).sum()) / total


def dice_curve(scores: np.ndarray, truth: np.ndarray) -> Float64[np.ndarray, "T"]:
    """Dice of `scores >= t` against `truth` for every t of `MAP_THRESHOLDS`, in one pass."""
    edges = np.concatenate([[-np.inf], MAP_THRESHOLDS, [np.inf]])
    everywhere = np.histogram(scores, edges)[0]
    inside = np.histogram(scores[truth], edges)[0]
    above = everywhere[::-1].cumsum()[::-1][1:]
    hits = inside[::-1].cumsum()[::-1][1:]
    return 2.0 * hits / np.maximum(1, above + int(truth.sum()))


def nanmean(values: list[float] | np.ndarray) -> float:
    """Mean of what is known; NaN when nothing is."""
    array = np.asarray(values, dtype=np.float64)
    array = array[np.isfinite(array)]
    return float(array.mean()) if array.size else float("nan")
