"""From a model's raw scan probability to a frequency, as its card says. Fitting is in `exam.calibrate`.

A card's ``calibration`` holds one entry per finding: ``[scale, offset]`` on the log odds (Platt; a
temperature T is ``[1 / T, 0]``), or a rising table ``{"raw": [...], "calibrated": [...]}`` (isotonic
regression).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float64

from hilum.errors import WeightsError

Column = Float64[np.ndarray, "N"]

LEAST = 1e-6
"""Probabilities are kept this far from 0 and 1 where their log odds are taken."""


def logit(p: np.ndarray) -> np.ndarray:
    """Log odds, kept finite."""
    clipped = np.clip(np.asarray(p, dtype=np.float64), LEAST, 1 - LEAST)
    return np.log(clipped / (1 - clipped))


def platt(p: np.ndarray, scale: float, offset: float) -> np.ndarray:
    """sigmoid(scale · logit(p) + offset)."""
    return 1 / (1 + np.exp(-(scale * logit(p) + offset)))


def calibrated(p: Column, entry: Any) -> Column:
    """Raw probabilities of one finding -> calibrated ones; order never changes, isotonic tables make ties.

    Args:
        p: in 0..1. entry: of a card; None leaves `p` as it is.

    Raises:
        WeightsError: `CONFIG_VALUE`, an entry of no known kind.
    """
    if entry is None:
        return p
    if isinstance(entry, Mapping) and _rising(entry.get("raw")) and _rising(entry.get("calibrated")):
        if len(entry["raw"]) == len(entry["calibrated"]):
            return np.interp(p, entry["raw"], entry["calibrated"])
    elif isinstance(entry, Sequence) and len(entry) == 2 and all(isinstance(v, int | float) for v in entry):
        return platt(p, float(entry[0]), float(entry[1]))
    raise WeightsError(
        "CONFIG_VALUE",
        "a card's calibration is [scale, offset] or a rising table per finding",
        expected='[1.0, 0.0] or {"raw": [...], "calibrated": [...]}',
        got=str(entry)[:80],
    )


def _rising(values: Any) -> bool:
    numbers = isinstance(values, Sequence) and len(values) > 0 and not isinstance(values, str)
    return (
        numbers
        and all(isinstance(v, int | float) for v in values)
        and bool((np.diff(np.array(values, dtype=np.float64)) >= 0).all())
    )
