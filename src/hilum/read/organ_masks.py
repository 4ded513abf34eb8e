"""Seven organ channels on the model's grid, wherever they came from: the model, or a file of the user's."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from hilum.geometry import Geometry
from hilum.text.vocabulary import ORGAN_CHANNELS
from hilum.types import MaskVolume

OrganSource = Literal["model", "file", "derived"]


@dataclass(frozen=True, eq=False)
class OrganMasks:
    """Masks on one grid.

    Args:
        grid: of every mask. masks: channel -> bool mask, all of `ORGAN_CHANNELS`. source: channel -> origin.
        lobes: lobe name -> mask, empty when the source has no lobes.
        sha256: of the organ file, None for the model's own. notes: what had to be derived, unknown labels.
    """

    grid: Geometry
    masks: dict[str, MaskVolume]
    source: dict[str, OrganSource]
    lobes: dict[str, MaskVolume] = field(default_factory=dict)
    sha256: str | None = None
    notes: tuple[str, ...] = ()

    @classmethod
    def of_model(cls, grid: Geometry, probabilities: np.ndarray) -> OrganMasks:
        """Model probabilities [7, U, V, W] -> masks at 0.5."""
        masks = {name: probabilities[i] > 0.5 for i, name in enumerate(ORGAN_CHANNELS)}
        return cls(grid, masks, dict.fromkeys(ORGAN_CHANNELS, "model"))

    def volume_ml(self, name: str) -> float:
        """Volume of a channel, ml."""
        return float(np.count_nonzero(self.masks[name])) * self.grid.voxel_ml


def mm_of(grid: Geometry, mask: MaskVolume) -> np.ndarray:
    """Centres of the True voxels, mm RAS+ (N, 3)."""
    return grid.to_mm(np.argwhere(mask))
