"""Calibration, fitted and chosen on validation cases: temperature, Platt's two numbers, isotonic regression.

One kind for all findings, by cross-validated log loss over patients: a finding alone has too few positives to
choose by. Each finding has parameters of its own. Source: Platt 1999; Guo et al., ICML 2017; Zadrozny and
Elkan, KDD 2002. scikit-learn's isotonic regression is the oracle of the tests.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np
from jaxtyping import Bool, Float64
from scipy.optimize import minimize, minimize_scalar
from scipy.special import expit

from hilum.exam.metrics import nanmean
from hilum.read.calibration import calibrated, logit

Column = Float64[np.ndarray, "N"]
Truth = Bool[np.ndarray, "N"]
Steps = Float64[np.ndarray, "K"]
Table = Float64[np.ndarray, "N D"]
"""Per case and finding; labels are 1, 0 or NaN."""

FOLDS = 5
RIDGE = 0.5
"""Pulls log(scale) towards 0: validation is small. A hundredth of it pulls the offset."""


def temperature(p: Column, truth: Truth, ridge: float = RIDGE) -> list[float]:
    """``[scale, 0]``: the one scale of the log odds with the least log loss."""
    x, y = logit(p), truth.astype(np.float64)

    def cost(theta: float) -> float:
        z = np.exp(theta) * x
        return float(np.sum(np.logaddexp(0, z) - y * z) + ridge * theta**2)

    best = minimize_scalar(cost, bounds=(-4.0, 4.0), method="bounded").x
    return [round(float(np.exp(best)), 5), 0.0]


def logistic(p: np.ndarray, truth: np.ndarray, ridge: float = RIDGE) -> tuple[float, float]:
    """Platt's two numbers, the scale kept positive so that order never changes and pulled towards 1."""
    x, y = logit(p), truth.astype(np.float64)

    def cost(theta: np.ndarray) -> tuple[float, np.ndarray]:
        """The penalised log loss and its gradient."""
        scale = np.exp(theta[0])
        z = scale * x + theta[1]
        loss = np.sum(np.logaddexp(0, z) - y * z) + ridge * theta[0] ** 2 + 0.01 * ridge * theta[1] ** 2
        off = expit(z) - y
        slope = [scale * (off @ x) + 2 * ridge * theta[0], off.sum() + 0.02 * ridge * theta[1]]
        return float(loss), np.array(slope)

    best = minimize(cost, np.array([-0.5, 0.0]), jac=True, method="BFGS").x
    return float(np.exp(best[0])), float(best[1])


def isotonic(x: Column, y: Column) -> tuple[Steps, Steps]:
    """The rising step function nearest to `y` in squares (pool adjacent violators).

    Args:
        x: in any order; equal ones are one point. y: values.

    Returns:
        Ends of the level pieces, rising, and their levels; between two pieces the line that joins them.
    """
    points, place, counts = np.unique(x, return_inverse=True, return_counts=True)
    means = np.bincount(place, weights=y) / counts
    blocks: list[tuple[float, float, float, float]] = []  # level, weight, first x, last x
    for point, mean, count in zip(points, means, counts, strict=True):
        block = (float(mean), float(count), float(point), float(point))
        while blocks and blocks[-1][0] >= block[0]:
            level, weight, first, _ = blocks.pop()
            both = weight + block[1]
            block = ((level * weight + block[0] * block[1]) / both, both, first, block[3])
        blocks.append(block)
    ends = [(b[2], b[0]) for b in blocks if b[2] < b[3]] + [(b[3], b[0]) for b in blocks]
    table = np.array(sorted(ends), dtype=np.float64)
    return table[:, 0], table[:, 1]


def isotonic_entry(p: Column, truth: Truth) -> dict[str, list[float]]:
    """Isotonic regression for a card; levels stay half a case away from 0 and 1."""
    raw, level = isotonic(p, truth.astype(np.float64))
    edge = 0.5 / len(p)
    return {"raw": raw.tolist(), "calibrated": np.clip(level, edge, 1 - edge).tolist()}


def platt_entry(p: Column, truth: Truth) -> list[float]:
    """`logistic` for a card."""
    scale, offset = logistic(p, truth)
    return [round(scale, 5), round(offset, 5)]


KINDS: Mapping[str, Callable[[Column, Truth], Any]] = MappingProxyType(
    {
        "none": lambda p, truth: None,
        "temperature": temperature,
        "platt": platt_entry,
        "isotonic": isotonic_entry,
    }
)
"""Kind -> how one finding's entry is fitted."""


def fit(p: Table, labels: Table, kind: str) -> list[Any]:
    """An entry per finding; None where validation shows one class only."""
    found = []
    for column, label in zip(p.T, labels.T, strict=True):
        seen = np.isfinite(label)
        truth = label[seen] > 0.5
        usable = truth.any() and not truth.all()
        found.append(KINDS[kind](column[seen], truth) if usable else None)
    return found


def apply(p: Table, entries: Sequence[Any]) -> Table:
    """Every finding's column through its entry."""
    return np.stack([calibrated(c, e) for c, e in zip(p.T, entries, strict=True)], axis=1)


def choose_kind(
    p: Table,
    labels: Table,
    patients: Sequence[Hashable],
    *,
    kinds: Sequence[str] = tuple(KINDS),
    seed: int = 0,
) -> tuple[str, dict[str, float]]:
    """The kind with the least log loss on held-out patients, and the losses.

    Args:
        p, labels: of validation cases. patients: of each. kinds: of `KINDS`. seed: of the folds.
    """
    fold = folds_of(patients, FOLDS, seed)
    losses = {}
    for kind in kinds:
        told = np.full(p.shape, np.nan)
        for part in range(fold.max() + 1):
            held = fold == part
            told[held] = apply(p[held], fit(p[~held], labels[~held], kind))
        losses[kind] = round(float(nanmean(log_loss(told, labels).ravel())), 5)
    return min(losses, key=lambda kind: losses[kind]), losses


def folds_of(patients: Sequence[Hashable], folds: int, seed: int = 0) -> np.ndarray:
    """Fold of every case; all cases of a patient share one."""
    names = {name: n for n, name in enumerate(dict.fromkeys(patients))}
    order = np.random.default_rng(seed).permutation(len(names))
    count = max(2, min(folds, len(names)))
    return np.array([order[names[p]] % count for p in patients], dtype=np.int64)


def log_loss(p: Table, labels: Table) -> Table:
    """Minus log likelihood per case and finding; NaN where the label is unknown."""
    z = logit(p)
    return np.where(np.isfinite(labels), np.logaddexp(0, z) - np.nan_to_num(labels) * z, np.nan)
