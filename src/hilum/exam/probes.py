"""What frozen features know: the parts that nearest neighbours and linear probes share. NumPy only.

Labels are 1, 0 or NaN for unknown; an unknown label is in no loss, no neighbourhood and no measure. Whatever
a probe can choose (neighbours, temperature, penalty) is chosen by the macro AUROC on validation.
A finding whose training labels have one class is NaN: it was not measured.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Float64

from hilum.errors import InputRefused
from hilum.exam.metrics import auroc, nanmean

Features = Float[np.ndarray, "N F"]
OtherFeatures = Float[np.ndarray, "M F"]
Scaled = Float64[np.ndarray, "M F"]
TriLabels = Float[np.ndarray, "N D"]
OtherLabels = Float[np.ndarray, "M D"]
FindingScores = Float64[np.ndarray, "M D"]
Known = Bool[np.ndarray, "D"]


@dataclass(frozen=True)
class Fitted:
    """A probe after training and choice.

    Args:
        scores: features of other scans -> a score per finding, NaN where a finding could not be learned.
        chosen: what validation decided. validation: macro AUROC there; NaN when nothing could be measured.
    """

    scores: Callable[[OtherFeatures], FindingScores]
    chosen: dict[str, Any]
    validation: float


@dataclass(frozen=True)
class Scaling:
    """Mean of the training features, and 1 / deviation; 0 for a feature that never varies."""

    mean: Float64[np.ndarray, "F"]
    factor: Float64[np.ndarray, "F"]

    @classmethod
    def of(cls, features: Features) -> Scaling:
        """From training features."""
        wide = features.astype(np.float64)
        mean, std = wide.mean(0), wide.std(0)
        # constant but for rounding: the rest would be noise blown up to deviation 1
        varies = std > 1e-7 * np.abs(mean)
        return cls(mean, np.divide(1.0, std, out=np.zeros_like(std), where=varies))

    def apply(self, features: OtherFeatures) -> Scaled:
        """Standardised features."""
        return (features.astype(np.float64) - self.mean) * self.factor


def macro_auroc(scores: FindingScores, labels: OtherLabels) -> float:
    """Mean over the findings that have both classes and scores; NaN when none has."""
    return nanmean([known_auroc(scores[:, d], labels[:, d]) for d in range(labels.shape[1])])


def known_auroc(scores: Float[np.ndarray, "M"], labels: Float[np.ndarray, "M"]) -> float:
    """AUROC over the scans whose label is known; NaN with one class, or without scores."""
    known = np.isfinite(labels)
    if not np.isfinite(scores[known]).all():
        return float("nan")
    return auroc(scores[known], labels[known] > 0.5)


def learnable(labels: TriLabels) -> Known:
    """Which findings have both classes."""
    return (labels == 1).any(0) & (labels == 0).any(0)


def better(reached: float, before: float | None) -> bool:
    """Whether a choice replaces the one before: on a tie, or where validation measures nothing, the first
    stays."""
    return before is None or reached > before or (math.isnan(before) and not math.isnan(reached))


def require_finite(features: OtherFeatures) -> None:
    """Before any fit.

    Raises:
        InputRefused: `MODEL_OUTPUT`.
    """
    wrong = int((~np.isfinite(features)).any(1).sum())
    if wrong:
        raise InputRefused(
            "MODEL_OUTPUT", "features are finite", expected="numbers", got=f"{wrong} scans with others"
        )
