"""Does a probability of 0.3 come true in three of ten? Expected calibration error, Brier score, the diagram.

The ECE that is quoted is that of all findings pooled in 15 bins of equal width (Guo et al., ICML 2017). It is
never 0 for finite data, however right the probabilities: `floor` says what a perfectly calibrated model with
the same probabilities would show on as many cases.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from jaxtyping import Bool, Float64

Column = Float64[np.ndarray, "N"]
Truth = Bool[np.ndarray, "N"]
Table = Float64[np.ndarray, "N D"]
Pairs = Float64[np.ndarray, "K"]
PairTruth = Bool[np.ndarray, "K"]
Binning = Literal["width", "mass"]

BINS = 15


@dataclass(frozen=True)
class Reliability:
    """One diagram.

    Args:
        confidence, frequency, count: per bin that is not empty: mean probability, share present, pairs.
    """

    confidence: tuple[float, ...]
    frequency: tuple[float, ...]
    count: tuple[int, ...]

    @property
    def ece(self) -> float:
        """Mean distance of frequency from confidence, weighted by the pairs; NaN without any."""
        total = sum(self.count)
        gaps = zip(self.confidence, self.frequency, self.count, strict=True)
        return sum(abs(c - f) * n for c, f, n in gaps) / total if total else float("nan")

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {
            "confidence": [round(v, 5) for v in self.confidence],
            "frequency": [round(v, 5) for v in self.frequency],
            "count": list(self.count),
        }


def bins_of(p: Column, binning: Binning = "width", bins: int = BINS) -> np.ndarray:
    """Bin of every probability: of equal width, or of as many each (equal ones stay together)."""
    if binning == "width":
        return np.minimum((p * bins).astype(np.int64), bins - 1)
    edges = np.quantile(p, np.arange(1, bins) / bins) if p.size else np.zeros(0)
    return np.searchsorted(edges, p, side="right")


def reliability(p: Column, truth: Truth, binning: Binning = "width", bins: int = BINS) -> Reliability:
    """The diagram of probabilities and what came true."""
    at = bins_of(p, binning, bins)
    count = np.bincount(at, minlength=bins)
    told, came = np.bincount(at, p, bins), np.bincount(at, truth.astype(np.float64), bins)
    held = count > 0
    return Reliability(
        tuple((told[held] / count[held]).tolist()),
        tuple((came[held] / count[held]).tolist()),
        tuple(count[held].tolist()),
    )


def ece(p: Column, truth: Truth, binning: Binning = "width", bins: int = BINS) -> float:
    """Expected calibration error; NaN without cases."""
    return reliability(p, truth, binning, bins).ece


def ece_draws(p: Table, labels: Table, draws: np.ndarray, bins: int = BINS) -> np.ndarray:
    """The pooled ECE of equal width in every draw.

    Args:
        p, labels: per case and finding; NaN labels are left out. draws: float [B, N], counts per case.
    """
    case, _ = np.nonzero(np.isfinite(labels))
    told, came = p[np.isfinite(labels)], labels[np.isfinite(labels)]
    at = bins_of(told, "width", bins)
    gap = told - came
    found = []
    for weights in draws[:, case]:
        off = np.abs(np.bincount(at, weights * gap, bins)).sum()
        found.append(off / weights.sum() if weights.sum() else np.nan)
    return np.array(found)


def floor(p: Column, seed: int = 0, draws: int = 200, bins: int = BINS) -> float:
    """Mean pooled ECE if every probability of `p` were right: truth is drawn from them."""
    generator = np.random.default_rng(seed)
    return float(np.mean([ece(p, generator.random(p.size) < p, bins=bins) for _ in range(draws)]))


def brier(p: Column, truth: Truth) -> float:
    """Mean squared distance of probability from truth; NaN without cases."""
    return float(np.mean((p - truth) ** 2)) if p.size else float("nan")


def pooled(p: Table, labels: Table) -> tuple[Pairs, PairTruth]:
    """All pairs of case and finding whose label is known, in one column."""
    known = np.isfinite(labels)
    return p[known], labels[known] > 0.5


def calibration_facts(p: Table, labels: Table) -> dict[str, Any]:
    """What a table says about calibration; `ece` is the quoted one."""
    told, truth = pooled(p, labels)
    alone = [ece(*pooled(p[:, [d]], labels[:, [d]])) for d in range(p.shape[1])]
    return {
        "ece": ece(told, truth),
        "ece_floor": floor(told) if told.size else float("nan"),
        "ece_equal_mass": ece(told, truth, "mass"),
        "ece_per_finding": alone,
        "ece_mean_of_findings": float(np.nanmean(alone)) if np.isfinite(alone).any() else float("nan"),
        "brier": brier(told, truth),
        "bins": BINS,
    }
