"""What a model that reads scans gives, on its own grid; and what every kind of model does to give it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from jaxtyping import Float32

from hilum.geometry import Geometry
from hilum.volume import CTVolume

OrganMaps = Float32[np.ndarray, "O U V W"]
OutlineMaps = Float32[np.ndarray, "O X Y Z"]
FindingMaps = Float32[np.ndarray, "D U V W"]
FindingProbabilities = Float32[np.ndarray, "D"]


@dataclass(frozen=True)
class Found:
    """A way's answer.

    Args:
        grid: of organs and maps. organs: probabilities in `vocabulary.ORGAN_CHANNELS` order: the gates.
        maps: anomaly probabilities, 0 outside the finding's organ. ungated: the same before the organ gate.
        pooled: mean of the highest voxels of each map, as trained.
        trace: the way back to the volume's grid.
        outlines: `organs` as finely as the model knows them. outline_trace: their grid and way back.
        coarse: maps of half the resolution on `grid`, gated; None where the model has none of its own.
        shown: the prepared scan on `grid`, as the network saw it; None where nobody asks.
    """

    grid: Geometry
    organs: OrganMaps
    maps: FindingMaps
    ungated: FindingMaps
    pooled: FindingProbabilities
    trace: Any
    outlines: OutlineMaps
    outline_trace: Any
    coarse: FindingMaps | None = None
    shown: np.ndarray | None = None


@dataclass(frozen=True)
class ModelOutput(Found):
    """What a model says of one scan, on the model's own grid.

    Args:
        probabilities: `pooled` after calibration.
    """

    probabilities: FindingProbabilities = None  # type: ignore[assignment]


@dataclass(frozen=True)
class Inference:
    """A network's answer at full resolution: organs (O, ...), ungated maps (D, ...), gate (D, ...), pooled
    (D,), and organs at half the voxel (O, ...) if the finer scan was given to a network with outlines.
    """

    organs: torch.Tensor
    maps: torch.Tensor
    gate: torch.Tensor
    pooled: FindingProbabilities
    outlines: torch.Tensor | None = None
    coarse: torch.Tensor | None = None


class Way(Protocol):
    """How a kind of network reads a scan."""

    gates: tuple[tuple[int, ...], ...]
    """Organ channels that open each finding's gate."""

    def run(self, volume: CTVolume, outlines: bool = True) -> Found:
        """Prepare, infer, gate, pool; without `outlines`, which cost as much again, they are the organs."""

    def infer(self, scan: torch.Tensor, fine: torch.Tensor | None = None) -> Inference:
        """One prepared scan through the network."""

    def pool(self, maps: torch.Tensor | FindingMaps, grid: Geometry | None = None) -> FindingProbabilities:
        """Gated maps -> probabilities."""
