"""What a step sees."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from hilum.tensors import Labels, OrganTruth, RowIds, ScanBatch
from hilum.train.text_bank import TextBank

Learns = Literal["organs", "boxes", "findings", "both", "outlines"]


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
class ReportRow:
    """A scan's report: the bank of all and its row there."""

    bank: TextBank
    row: int


@dataclass(frozen=True)
class Batch:
    """One augmented scan with its weak truth.

    Args:
        scan: HU / 1000. organs: shares of each voxel. labels: 18 scan labels, NaN unknown.
        learns: what this step is for. progress: how far its phase is, 0..1.
        prevalence: of the training set, per finding. fine: for steps that learn outlines.
        report: for methods that learn from reports.
    """

    scan: ScanBatch
    organs: OrganTruth
    labels: Labels
    learns: Learns
    progress: float
    prevalence: tuple[float, ...]
    fine: FineView | None = None
    report: ReportRow | None = None


def of_batches(batches: Sequence[Batch]) -> tuple[TextBank, RowIds]:
    """The bank, and the row of each scan's report."""
    told = [batch.report for batch in batches]
    assert told[0] is not None, "the task gives methods that read reports their bank"
    bank = told[0].bank
    return bank, torch.tensor([one.row for one in told if one is not None], device=bank.same.device)
