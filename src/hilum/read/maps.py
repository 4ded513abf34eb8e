"""A map on the model's grid -> the input's own grid, one at a time: 18 of them at full size would not fit in
memory."""

from __future__ import annotations

from typing import Protocol, TypeAlias, runtime_checkable

import numpy as np
from jaxtyping import Float32

from hilum.errors import RunError
from hilum.types import ProbabilityMap
from hilum.volume import CTVolume

GridMap: TypeAlias = Float32[np.ndarray, "U V W"]
"""Probabilities on the model's grid; `ProbabilityMap` is on the volume's."""


@runtime_checkable
class Inverse(Protocol):
    """The part of a prep trace that is needed here."""

    def invert(self, values: GridMap) -> ProbabilityMap:
        """A map on the model's grid -> on the volume's grid (RAS+)."""
        ...


def finite(heat: np.ndarray, what: str) -> np.ndarray:
    """`heat` itself; NaN or Inf never leaves (G07).

    Raises:
        RunError: `OUTPUT_NONFINITE`, with the number of bad voxels.
    """
    good = np.isfinite(heat)
    if not good.all():
        raise RunError(
            "OUTPUT_NONFINITE",
            f"every value of {what} is a number",
            expected="0 NaN or Inf",
            got=f"{int((~good).sum())} of {heat.size}",
            hint="Nothing was written. See what `hilum check` says about the input.",
        )
    return heat


def on_volume(heat: GridMap, trace: Inverse, volume: CTVolume, what: str) -> ProbabilityMap:
    """A map on the model's grid -> probabilities 0..1 on `volume.geometry`.

    Raises:
        RunError: not finite (`OUTPUT_NONFINITE`) or not on the grid (`GRID_MISMATCH`).
    """
    values = finite(trace.invert(finite(heat, what)), what)
    if values.shape != volume.shape:
        raise RunError(
            "GRID_MISMATCH", f"{what} lies on the volume's grid", expected=volume.shape, got=values.shape
        )
    return np.clip(values, 0.0, 1.0, dtype=np.float32)


def on_source(values: np.ndarray, volume: CTVolume) -> np.ndarray:
    """An array on `volume.geometry` -> on the input's own grid, by permutation and flips only."""
    return volume.to_source(values)
