"""What a step sees."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from hilum.tensors import Labels, OrganTruth, ScanBatch

Learns = Literal["organs", "findings", "both", "outlines"]


@dataclass(frozen=True)
class Phase:
    """A stretch of the training with one aim and one learning-rate schedule.

    Args:
        learns: what. start, steps: where it lies in the run. lr: its highest learning rate.
    """

    learns: Learns
    start: int
    steps: int
    lr: float


@dataclass(frozen=True)
class FineView:
    """A box of the scan at half the voxel.

    Args:
        start, size: of the box in half-resolution voxels (four of these along each axis). scan: HU / 1000.
        organs: shares of each voxel.
    """

    start: tuple[int, ...]
    size: tuple[int, ...]
    scan: ScanBatch
    organs: OrganTruth


@dataclass(frozen=True)
class Batch:
    """One augmented scan with its weak truth.

    Args:
        scan: HU / 1000. organs: shares of each voxel. labels: 18 scan labels, NaN unknown.
        learns: what this step is for. progress: how far its phase is, 0..1.
        prevalence: of the training set, per finding. fine: for steps that learn outlines.
    """

    scan: ScanBatch
    organs: OrganTruth
    labels: Labels
    learns: Learns
    progress: float
    prevalence: tuple[float, ...]
    fine: FineView | None = None
