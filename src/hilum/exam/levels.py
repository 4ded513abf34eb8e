"""A continuous map against a mask, exactly: Dice of any level set and average precision, without a histogram.

Only the voxels above 0 are sorted, once, as float32; voxels at 0 are one group of equal values. No more
memory than the sorted copy of what a gated map leaves. scikit-learn is the oracle of the tests.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32, Float64

from hilum.errors import RunError
from hilum.types import MaskVolume, ProbabilityMap


@dataclass(frozen=True, eq=False)
class Levels:
    """Sorted values of one map.

    Args:
        values: those above 0, rising. hits: those of them that lie in the mask, rising.
        truth: voxels of the mask. voxels: of the grid.
    """

    values: Float32[np.ndarray, "V"]
    hits: Float32[np.ndarray, "H"]
    truth: int
    voxels: int

    def average_precision(self) -> float:
        """Sum of precision times gained recall over falling thresholds, equal values together; NaN without
        truth."""
        if not self.truth:
            return float("nan")
        steps, gained = np.unique(self.hits, return_counts=True)
        steps, gained = steps[::-1], gained[::-1]
        found = np.cumsum(gained)
        taken = len(self.values) - np.searchsorted(self.values, steps, side="left")
        total = float(np.sum(found / taken * gained))
        rest = self.truth - len(self.hits)  # voxels of the mask where the map is 0: one group, everything
        return (total + rest * (self.truth / self.voxels)) / self.truth

    def relative(self, ratio: float) -> float:
        """The value from which on the top `ratio` of the voxels above 0 lie; inf for an empty map.

        Args:
            ratio: above 0 to 1; at least one voxel is taken, equal values with it (EXACT §2.2).
        """
        if not len(self.values):
            return float("inf")
        top = max(1, int(np.ceil(ratio * len(self.values))))
        return float(self.values[len(self.values) - top])

    def dice(self, thresholds: Float64[np.ndarray, "T"]) -> Float64[np.ndarray, "T"]:
        """Dice of ``map >= t`` for every t above 0; 1 where both sides are empty."""
        at = thresholds.astype(np.float32)  # as the map: a float64 here would copy all values
        taken = len(self.values) - np.searchsorted(self.values, at, side="left")
        found = len(self.hits) - np.searchsorted(self.hits, at, side="left")
        total = taken + self.truth
        return np.where(total > 0, 2.0 * found / np.maximum(total, 1), 1.0)


def levels_of(heat: ProbabilityMap, truth: MaskVolume) -> Levels:
    """Sorts a map once.

    Args:
        heat: values of 0 and more. truth: on the same grid.

    Raises:
        RunError: a value is not finite, or negative (`OUTPUT_NONFINITE`).
    """
    above = heat > 0
    values = heat[above]
    # NaN and -inf are not above 0; a plain sum of what is left finds them without another copy
    if not (np.isfinite(values).all() and int((heat == 0).sum()) + values.size == heat.size):
        raise RunError(
            "OUTPUT_NONFINITE", "a map's values are probabilities or sums of them", expected="0 or more",
            got="NaN, Inf or less than 0", hint="Maps of logits go through a sigmoid first.",
        )  # fmt: skip
    hits = heat[above & truth]
    values.sort()
    hits.sort()
    return Levels(values, hits, int(truth.sum()), heat.size)


def average_precision(heat: ProbabilityMap, truth: MaskVolume) -> float:
    """Area under precision over recall of one map, in steps; NaN without truth."""
    return levels_of(heat, truth).average_precision()
