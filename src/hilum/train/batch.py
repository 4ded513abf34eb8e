"""What a step sees."""

from __future__ import annotations

from dataclasses import dataclass

from hilum.tensors import Labels, OrganBits, ScanBatch


@dataclass(frozen=True)
class Batch:
    """One augmented scan with its weak truth.

    Args:
        scan: HU / 1000. organ_bits: seven packed masks. labels: 18 scan labels, NaN unknown.
        progress: how far the training is, 0..1. prevalence: of the training set, per finding.
    """

    scan: ScanBatch
    organ_bits: OrganBits
    labels: Labels
    progress: float
    prevalence: tuple[float, ...]
