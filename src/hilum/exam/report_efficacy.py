"""Clinical efficacy of reports: the findings that they state, by our labeller, against the truth.

A report states a finding or does not: what it denies, leaves open or never mentions is not stated. Truth that
is unknown is masked; where truth was read out of reference reports, `unmentioned="absent"` takes silence for
"not there", as published figures of classifiers without an unknown do. Precision and recall that have no
denominator are not measured; a finding without positives or without negatives is left out of macro figures
and listed.

Source of CRG: EXACT §2.4: X labels, A positives, r = (X - A) / (2 A), U = (X - A) / 2, s = r TP - r FN - FP,
CRG = U / (2 U - s). A report that states nothing has s = -U, and 1/3; a perfect one s = U, and 1.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from jaxtyping import Bool, Float64

from hilum.exam.bootstrap import Interval, interval, macro_draws, patient_draws
from hilum.text.labels import FindingLabel, Label
from hilum.text.vocabulary import SLUGS

FindingMarks = Bool[np.ndarray, "N D"]
FindingTruth = Float64[np.ndarray, "N D"]
DrawnCounts = Float64[np.ndarray, "B"]
Unmentioned = Literal["masked", "absent"]
_TRUTH: Mapping[Label, float] = {"present": 1.0, "absent": 0.0, "unknown": float("nan")}


@dataclass(frozen=True)
class Scores:
    """Precision, recall and F1 of one finding, or of all."""

    precision: Interval
    recall: Interval
    f1: Interval

    def as_dict(self) -> dict[str, list[float | None]]:
        """JSON-ready: value, low, high; None where not measured."""
        return {name: listed(getattr(self, name)) for name in ("precision", "recall", "f1")}


@dataclass(frozen=True)
class Efficacy:
    """What a set of reports is worth to somebody who acts on them.

    Args:
        findings: by slug. counts: by slug, TP, FP, FN, TN of the scans. left_out: findings of one class.
        masked: answers of the truth that are unknown.
    """

    findings: Mapping[str, Scores]
    counts: Mapping[str, tuple[int, int, int, int]]
    micro: Scores
    macro: Scores
    crg: Interval
    left_out: tuple[str, ...]
    masked: int
    reports: int
    patients: int

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {
            "reports": self.reports,
            "patients": self.patients,
            "masked": self.masked,
            "micro": self.micro.as_dict(),
            "macro": self.macro.as_dict(),
            "crg": listed(self.crg),
            "left_out": list(self.left_out),
            "findings": {s: self.findings[s].as_dict() | {"counts": list(self.counts[s])} for s in SLUGS},
        }


def listed(value: Interval) -> list[float | None]:
    """Value, low, high for JSON."""
    return [round(v, 4) if np.isfinite(v) else None for v in value]


def stated_in(labels: Sequence[Mapping[str, FindingLabel]]) -> FindingMarks:
    """Which findings reports state, bool [N, D]."""
    return np.array([[row[s].label == "present" for s in SLUGS] for row in labels]).reshape(-1, len(SLUGS))


def truth_of(labels: Sequence[Sequence[Label]], unmentioned: Unmentioned = "masked") -> FindingTruth:
    """Truth from labels in the vocabulary's order, float [N, D]: 1, 0 or NaN."""
    table = np.array([[_TRUTH[label] for label in row] for row in labels], dtype=np.float64)
    table = table.reshape(-1, len(SLUGS))
    return np.nan_to_num(table, nan=0.0) if unmentioned == "absent" else table


def efficacy(
    stated: FindingMarks,
    truth: FindingTruth,
    patients: Sequence[Hashable],
    *,
    draws: int = 1000,
    seed: int = 0,
) -> Efficacy:
    """Efficacy with 95 % intervals over resampled patients.

    Args:
        stated: of `stated_in`. truth: of `truth_of`. patients: of each report.
    """
    known = np.isfinite(truth)
    true = known & (truth == 1.0)
    cells = [stated & true, stated & known & ~true, ~stated & true, known & ~true & ~stated]
    drawn = np.vstack([np.ones(len(stated)), patient_draws(patients, draws, seed)])
    tp, fp, fn, tn = (drawn @ cell.astype(np.float64) for cell in cells)
    counts = np.stack([cell.sum(0) for cell in cells]).T
    measured = ((counts[:, 0] + counts[:, 2]) > 0) & ((counts[:, 1] + counts[:, 3]) > 0)
    per = _ratios(tp, fp, fn)
    macro = [macro_draws(np.where(measured, value, np.nan)) for value in per]
    micro = _ratios(tp.sum(1), fp.sum(1), fn.sum(1))
    return Efficacy(
        findings={slug: _scores([value[:, d] for value in per]) for d, slug in enumerate(SLUGS)},
        counts={slug: tuple(int(n) for n in counts[d]) for d, slug in enumerate(SLUGS)},  # type: ignore[misc]
        micro=_scores(micro),
        macro=_scores(macro),
        crg=_interval(crg_of(tp.sum(1), fp.sum(1), fn.sum(1), tn.sum(1))),
        left_out=tuple(slug for d, slug in enumerate(SLUGS) if not measured[d]),
        masked=int((~known).sum()),
        reports=len(stated),
        patients=len(set(patients)),
    )


def crg_of(tp: DrawnCounts, fp: DrawnCounts, fn: DrawnCounts, tn: DrawnCounts) -> DrawnCounts:
    """CRG from counts over all findings; NaN without positives or negatives."""
    positives, negatives = tp + fn, fp + tn
    with np.errstate(divide="ignore", invalid="ignore"):
        r, u = negatives / (2 * positives), negatives / 2
        score = r * tp - r * fn - fp
        return np.where((positives > 0) & (negatives > 0), u / (2 * u - score), np.nan)


def _ratios(tp: np.ndarray, fp: np.ndarray, fn: np.ndarray) -> list[np.ndarray]:
    """Precision, recall, F1."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return [tp / (tp + fp), tp / (tp + fn), 2 * tp / (2 * tp + fp + fn)]


def _scores(values: Sequence[np.ndarray]) -> Scores:
    return Scores(*(_interval(value) for value in values))


def _interval(values: np.ndarray) -> Interval:
    return interval(float(values[0]), values[1:])
