"""One model against others on the same cases: differences and ratios with intervals of their own.

Every statistic is computed in the same draws of patients for every model, so that the difference of two
models has the interval of a difference. Means are over findings: of each finding's mean over the cases that
have it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float64

from hilum.exam.bootstrap import Draws, FindingValues, Interval, Values, auroc_draws, interval, macro_draws
from hilum.exam.bootstrap import patient_draws as draw_patients
from hilum.exam.metrics import MAP_THRESHOLDS
from hilum.exam.phantom_cases import CaseScore, Localisation
from hilum.text.vocabulary import SLUGS

CaseValues = Float64[np.ndarray, "N D"]
"""A number per case and finding, NaN where the case does not have it."""

LOCAL = ("dice", "aupr", "hit5", "hit10", "hit5_aupr", "hit10_aupr", "peak_inside")
MEASURES = ("auroc", *LOCAL)
"""Of each finding: AUROC of the scan's score; Dice at the threshold that validation chose, average precision
of the map, shares of cases in which Dice (average precision) is at least 5 % and 10 % (EXACT §2.2), and in
which the map's highest voxel lies in the lesion (pointing game)."""


def local_values(found: Localisation, threshold: int) -> dict[str, float]:
    """Of one case that has the finding. threshold: index into `MAP_THRESHOLDS`."""
    dice, aupr = found.curve[threshold], found.aupr
    return {
        "dice": dice,
        "aupr": aupr,
        "hit5": float(dice >= 0.05),
        "hit10": float(dice >= 0.10),
        "hit5_aupr": float(aupr >= 0.05) if np.isfinite(aupr) else float("nan"),
        "hit10_aupr": float(aupr >= 0.10) if np.isfinite(aupr) else float("nan"),
        "peak_inside": float(found.peak_inside),
    }


def case_values(cases: Sequence[CaseScore], map_thresholds: Mapping[str, float]) -> dict[str, CaseValues]:
    """Measure of `LOCAL` -> its values.

    Args:
        cases: of one model. map_thresholds: per finding, as its card has them.
    """
    tables = {name: np.full((len(cases), len(SLUGS)), np.nan) for name in LOCAL}
    for d, slug in enumerate(SLUGS):
        at = int(np.abs(MAP_THRESHOLDS - map_thresholds[slug]).argmin())
        for row, case in enumerate(cases):
            if slug in case.findings:
                for name, value in local_values(case.findings[slug], at).items():
                    tables[name][row, d] = value
    return tables


def finding_means(values: CaseValues, draws: Draws) -> FindingValues:
    """Mean over the drawn cases that have each finding; NaN where none was drawn."""
    known = np.isfinite(values)
    count = draws @ known.astype(np.float64)
    total = draws @ np.where(known, values, 0.0)
    return np.divide(total, count, out=np.full(count.shape, np.nan), where=count > 0)


def drawn_measures(
    cases: Sequence[CaseScore], map_thresholds: Mapping[str, float], draws: Draws
) -> dict[str, FindingValues]:
    """Measure of `MEASURES` -> its value per draw and finding."""
    scores = np.array([case.pooled for case in cases], dtype=np.float64)
    labels = np.array([case.labels for case in cases]) > 0.5
    areas = [auroc_draws(scores[:, d], labels[:, d], draws) for d in range(len(SLUGS))]
    tables = case_values(cases, map_thresholds)
    return {"auroc": np.stack(areas, axis=1)} | {k: finding_means(v, draws) for k, v in tables.items()}


def of_draws(values: Values) -> Interval:
    """The first draw is every case once: the value itself."""
    return interval(float(values[0]), values[1:])


@dataclass(frozen=True)
class Comparison:
    """What one run found.

    Args:
        names: of the models, the one that is compared with the others first. cases: how many.
        positives: cases that have each finding.
        findings: model -> measure -> interval per finding. macro: model -> measure -> mean over findings.
        differences: other model -> measure -> first minus other, mean over findings.
        finding_differences: the same per finding.
        ratios: other model -> measure -> first by other, mean over findings.
    """

    names: tuple[str, ...]
    cases: int
    positives: tuple[int, ...]
    findings: Mapping[str, Mapping[str, tuple[Interval, ...]]]
    macro: Mapping[str, Mapping[str, Interval]]
    differences: Mapping[str, Mapping[str, Interval]]
    finding_differences: Mapping[str, Mapping[str, tuple[Interval, ...]]]
    ratios: Mapping[str, Mapping[str, Interval]]


def compare(
    cases: Mapping[str, Sequence[CaseScore]],
    map_thresholds: Mapping[str, Mapping[str, float]],
    *,
    draws: int = 1000,
    seed: int = 0,
) -> Comparison:
    """The first model against the others.

    Args:
        cases: model -> the same cases in the same order; a case's seed names its patient.
        map_thresholds: model -> finding -> threshold, chosen on validation cases.
        draws, seed: of the bootstrap by patient.
    """
    names = tuple(cases)
    first = cases[names[0]]
    patients = [case.seed for case in first]
    if any([case.seed for case in cases[name]] != patients for name in names):
        raise ValueError("every model is examined on the same cases in the same order")
    counts = np.concatenate([np.ones((1, len(patients))), draw_patients(patients, draws, seed)])
    drawn = {name: drawn_measures(cases[name], map_thresholds[name], counts) for name in names}
    macro = {name: {m: macro_draws(v) for m, v in measured.items()} for name, measured in drawn.items()}
    own, mine = macro[names[0]], drawn[names[0]]

    def each(values: FindingValues) -> tuple[Interval, ...]:
        return tuple(of_draws(column) for column in values.T)

    return Comparison(
        names,
        len(patients),
        tuple(int(sum(slug in case.findings for case in first)) for slug in SLUGS),
        {name: {m: each(v) for m, v in measured.items()} for name, measured in drawn.items()},
        {name: {m: of_draws(v) for m, v in measured.items()} for name, measured in macro.items()},
        {o: {m: of_draws(own[m] - macro[o][m]) for m in MEASURES} for o in names[1:]},
        {o: {m: each(mine[m] - drawn[o][m]) for m in MEASURES} for o in names[1:]},
        {o: {m: of_draws(_ratio(own[m], macro[o][m])) for m in MEASURES} for o in names[1:]},
    )


def _ratio(above: Values, below: Values) -> Values:
    """Infinite ratios are kept as large numbers: leaving them out would pull an interval down."""
    return np.where(np.isfinite(above + below), above / np.maximum(below, 1e-6), np.nan)


Verdict = Literal["holds", "is refuted", "is open", "was not measured"]


@dataclass(frozen=True)
class Goal:
    """A claim of the form: this number is at least so much.

    Args:
        claim: in words. least: the number. measured: with its interval.
    """

    claim: str
    least: float
    measured: Interval

    @property
    def reached(self) -> bool:
        """Whether the value itself is at least so much."""
        return bool(self.measured.value >= self.least)

    @property
    def verdict(self) -> Verdict:
        """`holds` when the whole interval says so, `is refuted` when none of it does."""
        if not np.isfinite(self.measured.value):
            return "was not measured"
        if self.measured.low >= self.least:
            return "holds"
        return "is refuted" if self.measured.high < self.least else "is open"


def goals(found: Comparison, global_model: str | None) -> list[Goal]:
    """What the method is meant to reach on this suite.

    Args:
        global_model: the one that aligns whole scans with whole reports; None when it was not examined.
    """
    own = found.names[0]
    listed = [
        Goal(f"{own} has at least the AUROC of {other}", 0.0, measured["auroc"])
        for other, measured in found.differences.items()
    ]
    listed.append(Goal("localisation Dice, mean over findings", 0.45, found.macro[own]["dice"]))
    if global_model is not None:
        claim = f"localisation Dice by that of {global_model}"
        listed.append(Goal(claim, 10.0, found.ratios[global_model]["dice"]))
    listed.append(Goal("peak in the lesion, mean over findings", 0.75, found.macro[own]["peak_inside"]))
    return listed
