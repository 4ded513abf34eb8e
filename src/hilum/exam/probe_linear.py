"""Linear probes: one L2-penalised logistic regression per finding on standardised features.

scikit-learn is the oracle in the tests.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float64
from scipy.optimize import minimize

from hilum.errors import UsageError
from hilum.exam.probes import (
    Features,
    FindingScores,
    Fitted,
    OtherFeatures,
    OtherLabels,
    Scaling,
    TriLabels,
    better,
    learnable,
    macro_auroc,
    require_finite,
)

STRENGTHS = tuple(10.0 ** (e / 2) for e in range(10, -5, -1))
"""Penalties that are tried: of half the squared weights, beside the sum of the scans' losses."""


@dataclass(frozen=True)
class Weights:
    """A line per finding: log odds = features · slope + intercept; NaN for a finding without both classes."""

    slope: Float64[np.ndarray, "F D"]
    intercept: Float64[np.ndarray, "D"]

    def margins(self, features: OtherFeatures) -> FindingScores:
        """Log odds."""
        return features.astype(np.float64) @ self.slope + self.intercept


def fit_linear(
    train: tuple[Features, TriLabels],
    validation: tuple[OtherFeatures, OtherLabels],
    strengths: Sequence[float] = STRENGTHS,
) -> Fitted:
    """Trains with every strength and keeps the one that is best on validation, the same for all findings: one
    finding has too few positives there to choose by.

    Args:
        train, validation: features and labels. strengths: of the penalty, those that are tried.

    Raises:
        InputRefused: `MODEL_OUTPUT`, features that are not finite. UsageError: `CONFIG_VALUE`, no strength.
    """
    require_finite(train[0])
    require_finite(validation[0])
    scaling = Scaling.of(train[0])
    seen = scaling.apply(validation[0])
    best: tuple[float, float, Weights] | None = None
    for strength, weights in logistic_path(scaling.apply(train[0]), train[1], strengths):
        reached = macro_auroc(weights.margins(seen), validation[1])
        if better(reached, None if best is None else best[0]):
            best = (reached, strength, weights)
    if best is None:
        raise UsageError("CONFIG_VALUE", "there is a strength to choose", expected="> 0", got=strengths)
    reached, strength, weights = best
    return Fitted(lambda x: weights.margins(scaling.apply(x)), {"strength": strength}, reached)


def logistic_path(
    features: Features, labels: TriLabels, strengths: Sequence[float]
) -> Iterator[tuple[float, Weights]]:
    """The regressions for every strength, strongest first, each started from the one before.

    The sum of the known labels' log losses plus strength / 2 times the squared slopes; the intercept is free.
    All findings are solved together, along axes on which no curvature exceeds 1: the features' singular
    vectors over the root of s² / 4 + strength, Böhning and Lindsay's bound (1988), which holds for every
    subset of labels.

    Args:
        features: with mean 0 (with another the axes suit the intercept less: slower, not wrong).
    """
    left, sizes, right = np.linalg.svd(features.astype(np.float64), full_matrices=False)
    design = np.concatenate([left * sizes, np.ones((len(features), 1))], axis=1)
    can = learnable(labels)
    known = np.isfinite(labels) & can
    missing = np.where(can, 0.0, np.nan)
    loss = _Loss(design, np.where(known, labels, 0.0).astype(np.float64), known)
    at = np.zeros((design.shape[1], labels.shape[1]))
    curvature = np.append(sizes**2, len(features)) / 4
    for strength in sorted(strengths, reverse=True):
        penalty = np.append(np.full(len(sizes), strength), 0.0)[:, None]
        at = loss.minimum(at, penalty, 1 / np.sqrt(curvature[:, None] + penalty))
        yield strength, Weights(right.T @ at[:-1] + missing, at[-1] + missing)


@dataclass(frozen=True)
class _Loss:
    """Of all findings together; rows of the design are scans, its last column is the intercept's."""

    design: Float64[np.ndarray, "N P"]
    truth: Float64[np.ndarray, "N D"]
    known: Bool[np.ndarray, "N D"]

    def minimum(self, start: np.ndarray, penalty: np.ndarray, axes: np.ndarray) -> np.ndarray:
        """By L-BFGS along `axes`."""

        def value(flat: np.ndarray) -> tuple[float, np.ndarray]:
            at = flat.reshape(start.shape) * axes
            margin = self.design @ at
            losses = np.where(self.known, np.logaddexp(0.0, margin) - self.truth * margin, 0.0)
            # tanh does not overflow
            slack = np.where(self.known, 0.5 + 0.5 * np.tanh(margin / 2) - self.truth, 0.0)
            gradient = (self.design.T @ slack + penalty * at) * axes
            return float(losses.sum() + 0.5 * (penalty * at**2).sum()), gradient.ravel()

        options = {"maxiter": 1000, "ftol": 1e-11, "gtol": 1e-4}
        found = minimize(value, (start / axes).ravel(), jac=True, method="L-BFGS-B", options=options)
        return found.x.reshape(start.shape) * axes
