"""What validation data decide: voxel thresholds, calibration, and the probability from which a finding is
present."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.optimize import minimize

from hilum.exam.metrics import MAP_THRESHOLDS, youden
from hilum.exam.phantom_cases import CaseScore
from hilum.text.vocabulary import SLUGS


def choose(cases: Sequence[CaseScore]) -> dict[str, dict]:
    """`thresholds`, `map_thresholds` and `calibration` per finding, for a model's card. Validation cases
    only."""
    pooled = np.array([case.pooled for case in cases], dtype=np.float64)
    labels = np.array([case.labels for case in cases]) > 0.5
    thresholds, maps, calibration = {}, {}, {}
    for d, slug in enumerate(SLUGS):
        scale, offset = logistic(pooled[:, d], labels[:, d])
        calibration[slug] = [round(scale, 5), round(offset, 5)]
        thresholds[slug] = round(youden(apply(pooled[:, d], scale, offset), labels[:, d]), 5)
        maps[slug] = round(
            best_map_threshold([c.findings[slug].curve for c in cases if slug in c.findings]), 5
        )
    return {"thresholds": thresholds, "map_thresholds": maps, "calibration": calibration}


def best_map_threshold(curves: Sequence[Sequence[float]]) -> float:
    """The voxel threshold with the largest mean Dice over the cases that have the finding; 0.5 without
    any."""
    if not curves:
        return 0.5
    return float(MAP_THRESHOLDS[int(np.mean(np.array(curves), axis=0).argmax())])


def logit(p: np.ndarray) -> np.ndarray:
    """Log odds, kept finite."""
    clipped = np.clip(p, 1e-6, 1 - 1e-6)
    return np.log(clipped / (1 - clipped))


def apply(p: np.ndarray, scale: float, offset: float) -> np.ndarray:
    """Calibrated probability."""
    return 1 / (1 + np.exp(-(scale * logit(p) + offset)))


def logistic(p: np.ndarray, truth: np.ndarray, ridge: float = 0.5) -> tuple[float, float]:
    """Platt's two numbers, the scale kept positive so that order never changes and pulled towards 1:
    validation is small."""
    x, y = logit(p), truth.astype(np.float64)

    def cost(theta: np.ndarray) -> float:
        z = np.exp(theta[0]) * x + theta[1]
        return float(
            np.sum(np.logaddexp(0, z) - y * z) + ridge * theta[0] ** 2 + 0.01 * ridge * theta[1] ** 2
        )

    best = minimize(cost, np.array([-0.5, 0.0]), method="Nelder-Mead", options={"maxiter": 400}).x
    return float(np.exp(best[0])), float(best[1])
