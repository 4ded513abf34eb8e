"""From a map to a mask: absolute, relative or both, and which one validation cases choose. EXACT §2.2.

`abs`: map >= threshold. `rel`: the top ratio of the voxels above 0. `both`: where the two agree. All three
are level sets: a case keeps its Dice at every pair, so that choosing never looks at a map again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
from jaxtyping import Float64

from hilum.errors import UsageError
from hilum.exam.levels import Levels
from hilum.exam.metrics import MAP_THRESHOLDS

Kind = Literal["abs", "rel", "both"]
KINDS: tuple[Kind, ...] = ("abs", "rel", "both")

NOTHING = float(np.finfo(np.float32).tiny)
"""The absolute threshold that asks for nothing but more than 0."""
THRESHOLDS = np.array(
    sorted({NOTHING, 0.004, 0.15, 0.2, *MAP_THRESHOLDS.tolist(), *np.linspace(1.0, 4.0, 13).tolist()})
)
"""Tried on validation: `MAP_THRESHOLDS`, what sums reach, and the published ones."""
RATIOS = np.array([0.001, 0.002, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 0.7, 1.0])

Curve = Float64[np.ndarray, "T R"]
"""Dice of one case at every threshold and ratio."""


@dataclass(frozen=True)
class Cut:
    """How a map becomes a mask.

    Args:
        threshold: smallest value. ratio: largest share of the voxels above 0.
    """

    threshold: float = NOTHING
    ratio: float = 1.0

    @property
    def kind(self) -> Kind:
        """Which of the two says something."""
        if self.ratio >= 1:
            return "abs"
        return "rel" if self.threshold <= NOTHING else "both"

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return asdict(self) | {"kind": self.kind}

    @classmethod
    def of(cls, told: Any) -> Cut:
        """The inverse of `as_dict`.

        Raises:
            UsageError: `CONFIG_VALUE`.
        """
        try:
            cut = cls(float(told["threshold"]), float(told["ratio"]))
        except (KeyError, TypeError, ValueError) as error:
            raise _bad(told) from error
        if not (cut.threshold > 0 and 0 < cut.ratio <= 1):
            raise _bad(told)
        return cut

    def dice(self, levels: Levels) -> float:
        """Of one case; 1 where map and truth are empty."""
        at = max(self.threshold, levels.relative(self.ratio))
        return float(levels.dice(np.array([at]))[0])


def curve_of(levels: Levels) -> Curve:
    """Dice of one case at every pair of `THRESHOLDS` and `RATIOS`."""
    relative = np.array([levels.relative(float(r)) for r in RATIOS])
    at = np.maximum(THRESHOLDS[:, None], relative[None])
    return levels.dice(at.ravel()).reshape(at.shape)


def choose_cut(curves: Sequence[Curve], kind: Kind = "both") -> Cut | None:
    """The pair with the largest mean Dice; None without cases. Of equal ones the lowest threshold.

    Args:
        curves: of validation cases with truth. kind: what may be used; ``both`` tries the other two as well.
    """
    if not curves:
        return None
    mean = np.mean(np.stack(curves), axis=0)
    if kind == "abs":
        return Cut(threshold=float(THRESHOLDS[int(mean[:, -1].argmax())]))
    if kind == "rel":
        return Cut(ratio=float(RATIOS[int(mean[0].argmax())]))
    t, r = np.unravel_index(int(mean.argmax()), mean.shape)
    return Cut(float(THRESHOLDS[t]), float(RATIOS[r]))


def dice_at(curve: Curve, cut: Cut) -> float:
    """Dice of one case at a cut.

    Raises:
        UsageError: `CONFIG_VALUE`, a cut that is none of those tried.
    """
    t, r = (
        int(np.abs(grid - value).argmin())
        for grid, value in ((THRESHOLDS, cut.threshold), (RATIOS, cut.ratio))
    )
    if not (np.isclose(THRESHOLDS[t], cut.threshold, atol=0) and np.isclose(RATIOS[r], cut.ratio, atol=0)):
        raise UsageError(
            "CONFIG_VALUE", "a cut is one of those that were tried",
            expected=f"nearest: {THRESHOLDS[t]:.6g}, {RATIOS[r]:.6g}", got=f"{cut.threshold}, {cut.ratio}",
        )  # fmt: skip
    return float(curve[t, r])


def _bad(told: Any) -> UsageError:
    return UsageError(
        "CONFIG_VALUE", "a cut is a threshold above 0 and a ratio above 0 to 1",
        expected='{"threshold": 0.2, "ratio": 1.0}', got=str(told)[:80],
    )  # fmt: skip
