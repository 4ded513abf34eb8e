"""Nearest neighbours of frozen features, by cosine."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Float64, Int64

from hilum.errors import UsageError
from hilum.exam.probes import (
    Features,
    FindingScores,
    Fitted,
    Known,
    OtherFeatures,
    OtherLabels,
    Scaled,
    Scaling,
    TriLabels,
    better,
    learnable,
    macro_auroc,
    require_finite,
)

NEIGHBOURS = (5, 10, 20, 50, 100)
TEMPERATURES = (0.02, 0.07, 0.2, 1.0)


def fit_neighbours(
    train: tuple[Features, TriLabels],
    validation: tuple[OtherFeatures, OtherLabels],
    neighbours: Sequence[int] = NEIGHBOURS,
    temperatures: Sequence[float] = TEMPERATURES,
) -> Fitted:
    """The share of positives among the nearest training scans whose label is known, weighted by
    exp(cosine / temperature). Validation chooses both, and whether features are standardised first.

    Args:
        train, validation: features and labels. neighbours: how many, those that are tried.
        temperatures: of the weights, those that are tried.

    Raises:
        InputRefused: `MODEL_OUTPUT`, features that are not finite. UsageError: `CONFIG_VALUE`, no choices.
    """
    require_finite(train[0])
    require_finite(validation[0])
    best: tuple[float, _Choice] | None = None
    for scaling in (Scaling.of(train[0]), None):
        neighbourhood = Neighbourhood.of(train, validation[0], scaling)
        for count, temperature in itertools.product(neighbours, temperatures):
            reached = macro_auroc(neighbourhood.scores(count, temperature), validation[1])
            if better(reached, None if best is None else best[0]):
                best = (reached, _Choice(train, scaling, count, temperature))
    if best is None:
        raise UsageError("CONFIG_VALUE", "there are neighbours to choose", got=(neighbours, temperatures))
    reached, choice = best
    chosen = {
        "neighbours": choice.count,
        "temperature": choice.temperature,
        "standardised": choice.scaling is not None,
    }
    return Fitted(choice.scores, chosen, reached)


@dataclass(frozen=True)
class Neighbourhood:
    """The training scans around each of some scans, nearest first; one for all counts and temperatures.

    Args:
        below: cosine minus that of the nearest. labels: of the training scans. place: of each among those
            with a known label, from 1. can: findings with both classes.
    """

    below: Float64[np.ndarray, "M N"]
    labels: Float[np.ndarray, "M N D"]
    place: Int64[np.ndarray, "M N D"]
    can: Known

    @classmethod
    def of(
        cls, train: tuple[Features, TriLabels], features: OtherFeatures, scaling: Scaling | None
    ) -> Neighbourhood:
        """Of scans with these features."""
        rows, others = (_directions(x if scaling is None else scaling.apply(x)) for x in (train[0], features))
        similar = others @ rows.T
        order = np.argsort(-similar, axis=1, kind="stable")
        ranked = np.take_along_axis(similar, order, axis=1)
        labels = train[1][order]
        place = np.cumsum(np.isfinite(labels), axis=1, dtype=np.int64)
        return cls(ranked - ranked[:, :1], labels, place, learnable(train[1]))

    def scores(self, count: int, temperature: float) -> FindingScores:
        """Weighted shares of positives; NaN for a finding whose training labels have one class.

        Args:
            count: of the nearest scans whose label is known. temperature: of the weights.
        """
        used = np.isfinite(self.labels) & (self.place <= count)
        weights = np.where(used, np.exp(self.below / temperature)[:, :, None], 0.0)
        positive = np.where(self.labels == 1, weights, 0.0).sum(1)
        total = weights.sum(1)
        # known neighbours can be so far behind the nearest of all that every weight is 0
        share = np.divide(positive, total, out=np.zeros_like(total), where=total > 0)
        return np.where(self.can, share, np.nan)


@dataclass(frozen=True)
class _Choice:
    train: tuple[Features, TriLabels]
    scaling: Scaling | None
    count: int
    temperature: float

    def scores(self, features: OtherFeatures) -> FindingScores:
        return Neighbourhood.of(self.train, features, self.scaling).scores(self.count, self.temperature)


def _directions(features: OtherFeatures) -> Scaled:
    wide = features.astype(np.float64)
    length = np.linalg.norm(wide, axis=1, keepdims=True)
    return np.divide(wide, length, out=np.zeros_like(wide), where=length > 0)
