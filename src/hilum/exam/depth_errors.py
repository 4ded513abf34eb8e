"""Where a sentence belongs, measured: errors in mm, against what needs no model.

Source: RadFinder §1.8 (MAE, median, within 12 and 24 mm, per-scan MAE; random and middle slice). Ours is the
baseline that reads the sentence alone: a sentence about the apex is not hard to place.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Float64, Int64

from hilum.exam.bootstrap import Draws, Interval, Values, interval, mean_draws

WITHIN_MM = (12.0, 24.0)
PENALTIES = (0.01, 0.1, 1.0, 10.0, 100.0)

Errors = Float64[np.ndarray, "S"]
Heights = Float64[np.ndarray, "S"]
Of = Int64[np.ndarray, "S"]
TextRows = Float[np.ndarray, "S W"]


@dataclass(frozen=True)
class Placed:
    """Sentences with a place.

    Args:
        rows: what a frozen text tower says of them. at_mm: where they belong. low_mm, high_mm: of their
            scan. of_scan: number of it.
    """

    rows: TextRows
    at_mm: Heights
    low_mm: Heights
    high_mm: Heights
    of_scan: Of

    @property
    def share(self) -> Heights:
        """Height within the scan, 0 at its lowest depth, 1 at its highest."""
        return (self.at_mm - self.low_mm) / np.maximum(self.high_mm - self.low_mm, 1e-6)


def measured(errors: Errors, of_scan: Of, draws: Draws) -> dict[str, tuple[Interval, Values]]:
    """Figures of one way to place sentences: value with interval, and its draws.

    Args:
        errors: mm, of each sentence. of_scan: column of `draws`.
    """
    each = draws[:, of_scan]
    told = {"MAE mm": _mean(errors, each)}
    order = np.argsort(errors, kind="stable")
    weight = np.cumsum(each[:, order], axis=1)
    median = errors[order][(weight >= weight[:, -1:] / 2).argmax(1)]
    told["median mm"] = (interval(float(np.median(errors)), median), median)
    for limit in WITHIN_MM:
        told[f"within {limit:g} mm"] = _mean((errors <= limit).astype(np.float64), each)
    scans = np.unique(of_scan)
    per_scan = np.array([errors[of_scan == scan].mean() for scan in scans])
    told["per-scan MAE mm"] = _mean(per_scan, draws[:, scans])
    return told


def middle_errors(placed: Placed) -> Errors:
    """Of the middle of each scan."""
    return np.abs(placed.at_mm - (placed.low_mm + placed.high_mm) / 2)


def random_errors(placed: Placed) -> Errors:
    """Expected error of a height drawn evenly over the scan, without drawing one."""
    below, above = placed.at_mm - placed.low_mm, placed.high_mm - placed.at_mm
    length = np.maximum(placed.high_mm - placed.low_mm, 1e-6)
    inside = (below**2 + above**2) / (2 * length)
    # a place outside the scan is as far as the scan's middle
    outside = np.abs((placed.low_mm + placed.high_mm) / 2 - placed.at_mm)
    return np.where((below >= 0) & (above >= 0), inside, outside)


def prior_errors(train: Placed, val: Placed, test: Placed) -> tuple[Errors, float]:
    """Of a ridge regression from the sentence to its height within a scan, no scan looked at.

    Returns:
        Errors on `test`, and the penalty that `val` chose.
    """
    mean, deviation = train.rows.mean(0), train.rows.std(0) + 1e-6
    chosen = min(PENALTIES, key=lambda p: float(_prior(train, val, p, mean, deviation).mean()))
    return _prior(train, test, chosen, mean, deviation), chosen


def _prior(train: Placed, asked: Placed, penalty: float, mean: np.ndarray, deviation: np.ndarray) -> Errors:
    def design(rows: np.ndarray) -> np.ndarray:
        return np.hstack([(rows - mean) / deviation, np.ones((len(rows), 1))]).astype(np.float64)

    x, y = design(train.rows), train.share
    ridge = penalty * len(x) * 1e-2 * np.eye(x.shape[1])
    ridge[-1, -1] = 0.0
    weights = np.linalg.solve(x.T @ x + ridge, x.T @ y)
    share = np.clip(design(asked.rows) @ weights, 0.0, 1.0)
    return np.abs(asked.low_mm + share * (asked.high_mm - asked.low_mm) - asked.at_mm)


def _mean(values: Errors, draws: Draws) -> tuple[Interval, Values]:
    drawn = mean_draws(values, draws)
    return interval(float(values.mean()), drawn), drawn
