"""Validation of a run of EXACT: AUROC per finding, Youden's thresholds, and which weights are kept."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float32
from torch import nn

from hilum.io.atomic import atomic_write
from hilum.objective.dense_read import read_maps
from hilum.objective.dense_rule import DenseRule
from hilum.objective.roc import auroc, youden
from hilum.text.vocabulary import SLUGS
from hilum.train.exact_data import ExactScans, stack

RECORD = "validation.json"

Answers = Float32[np.ndarray, "N D"]


@torch.inference_mode()
def scan_probabilities(
    network: nn.Module,
    scans: ExactScans,
    rule: DenseRule,
    device: torch.device,
    shape_vox: tuple[int, int, int] | None,
) -> Answers:
    """What a network (not wrapped) says of every scan, one at a time, in float32."""
    network = network.to(device).eval()
    answers = []
    for i in range(len(scans)):
        (batch,) = stack([scans.sample(i, shape_vox)])
        batch = batch.to(device)
        out = network(batch.scan)
        found = read_maps(out.organs, out.low, out.high, rule, batch.voxel_ml)
        answers.append(found.pooled[0].cpu().numpy())
    return np.stack(answers).astype(np.float32)


@runtime_checkable
class Judged(Protocol):
    """What validation scans say."""

    @property
    def macro(self) -> float:
        """What the best weights have most of, NaN where it could not be measured."""

    @property
    def measure(self) -> str:
        """Its name."""

    def told(self) -> dict[str, Any]:
        """For `validation.json`."""


@dataclass(frozen=True)
class Choice:
    """What validation scans say of findings.

    Args:
        auroc: per finding, NaN where one class is missing. thresholds: Youden's, 0.5 there. macro: mean of
            `auroc` over the findings that have one.
    """

    auroc: dict[str, float]
    thresholds: dict[str, float]
    macro: float
    measure: str = "macro_auroc"

    def told(self) -> dict[str, Any]:
        """See `Judged`."""
        areas = {slug: None if math.isnan(area) else round(area, 5) for slug, area in self.auroc.items()}
        return {"auroc": areas}


def choose(answers: Answers, labels: torch.Tensor) -> Choice:
    """Thresholds and AUROC from answers and labels [N, 18]; unknown labels (NaN) count for nothing."""
    truth = labels.numpy()
    areas, cuts = {}, {}
    for d, slug in enumerate(SLUGS):
        known = ~np.isnan(truth[:, d])
        scores, present = answers[known, d].astype(np.float64), truth[known, d] > 0.5
        both = bool(present.any() and not present.all())
        areas[slug] = auroc(scores, present) if both else float("nan")
        cuts[slug] = youden(scores, present) if both else 0.5
    measured = [area for area in areas.values() if not math.isnan(area)]
    return Choice(areas, cuts, float(np.mean(measured)) if measured else float("nan"))


class Record:
    """Every validation of a run, in its folder; a run that goes on goes on with it.

    Args:
        folder: of the run. identity: of the run; records of another one are forgotten.
    """

    def __init__(self, folder: Path, identity: str) -> None:
        self.path, self.identity = folder / RECORD, identity
        self.rows: dict[int, dict[str, Any]] = {}
        try:
            told = json.loads(self.path.read_text(encoding="utf-8"))
            if told["identity"] == identity:
                self.rows = {int(row["step"]): row for row in told["validations"]}
        except (OSError, ValueError, KeyError, TypeError):
            pass

    def add(self, step: int, judged: Judged) -> None:
        """Writes the validation of a step."""
        best = None if math.isnan(judged.macro) else judged.macro
        self.rows[step] = {"step": step, "best_by": judged.measure, judged.measure: best, **judged.told()}
        told = {"identity": self.identity, "validations": [self.rows[s] for s in sorted(self.rows)]}
        with atomic_write(self.path) as file:
            file.write((json.dumps(told, indent=1) + "\n").encode())

    @property
    def best(self) -> int:
        """Step of the highest measure, the first of equals; the last step where nothing was measured."""
        values = {step: row[row["best_by"]] for step, row in self.rows.items()}
        measured = {step: value for step, value in values.items() if value is not None}
        if not measured:
            return max(self.rows)
        return min(step for step, value in measured.items() if value == max(measured.values()))
