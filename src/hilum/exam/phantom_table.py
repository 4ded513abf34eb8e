"""The phantom suite's table: scan-level AUROC and calibration, organ Dice, weakly supervised localisation,
each with its interval by patient."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float64

from hilum.exam.bootstrap import auroc_draws, interval, listed, macro_draws, mean_draws, patient_draws
from hilum.exam.metrics import MAP_THRESHOLDS, auroc, nanmean
from hilum.exam.phantom_cases import CaseScore, Localisation
from hilum.exam.reliability import Reliability, calibration_facts, ece, ece_draws, pooled, reliability
from hilum.text.vocabulary import FINDINGS, ORGAN_CHANNELS, SLUGS

Table = Float64[np.ndarray, "N D"]

HITS = (0.05, 0.10)
"""EXACT's HIT@5 and HIT@10: share of cases whose Dice (or AUPR) is at least so much."""
HIT_OF = {"localisation_dice": "dice", "localisation_aupr": "aupr"}
NEAR_MM = 10.0
"""Tolerance of the pointing game beside the strict one."""


@dataclass(frozen=True)
class FindingRow:
    """One finding: how many phantoms have it, AUROC, and over those that have it: mean Dice at the validation
    threshold, share of peaks inside, average precision, HIT, share of peaks within 10 mm.

    `intervals`: measure -> value, low, high.
    """

    name: str
    positives: int
    auroc: float
    dice: float
    peak_inside: float
    median_ml: float
    aupr: float = float("nan")
    hit5: float = float("nan")
    hit10: float = float("nan")
    hit5_aupr: float = float("nan")
    hit10_aupr: float = float("nan")
    peak_within_10_mm: float = float("nan")
    ece: float = float("nan")
    intervals: Mapping[str, list[float] | None] = field(default_factory=dict)


@dataclass(frozen=True)
class PhantomTable:
    """All rows of one model and the means that the card quotes; intervals are 95 % bootstraps over
    patients. `calibration` and `diagrams`: raw and calibrated, empty where cases lack probabilities."""

    model: str
    cases: int
    rows: tuple[FindingRow, ...]
    organs: dict[str, float]
    summary: dict[str, tuple[float, float, float]]
    calibration: Mapping[str, Mapping] = field(default_factory=dict)
    diagrams: Mapping[str, Reliability] = field(default_factory=dict)

    def as_dict(self) -> dict:
        """JSON-ready."""
        return {
            "model": self.model,
            "cases": self.cases,
            "organs": self.organs,
            "summary": {k: list(v) for k, v in self.summary.items()},
            "findings": [dict(vars(row)) for row in self.rows],
            "calibration": {k: dict(v) for k, v in self.calibration.items()},
            "reliability": {k: d.as_dict() for k, d in self.diagrams.items()},
        }


def tabulate(cases: Sequence[CaseScore], map_thresholds: dict[str, float]) -> PhantomTable:
    """Cases of one model -> its table."""
    raw = np.array([c.pooled for c in cases], dtype=np.float64)
    labels = np.array([c.labels for c in cases]) > 0.5
    at = {slug: int(np.abs(MAP_THRESHOLDS - map_thresholds[slug]).argmin()) for slug in SLUGS}
    told = {"raw": raw}
    if all(c.probabilities for c in cases):
        told["calibrated"] = np.array([c.probabilities for c in cases], dtype=np.float64)
    draws = patient_draws([c.seed for c in cases])
    rows = tuple(_row(d, cases, told, labels, at, draws) for d in range(len(SLUGS)))
    organs = {o: nanmean([c.organs[o] for c in cases if o in c.organs]) for o in ORGAN_CHANNELS}
    summary = _summary(cases, told, labels, at, draws)
    truth = labels.astype(np.float64)
    return PhantomTable(
        cases[0].model,
        len(cases),
        rows,
        organs,
        summary,
        {name: calibration_facts(p, truth) for name, p in told.items()},
        {name: reliability(*pooled(p, truth)) for name, p in told.items()},
    )


def _summary(
    cases: Sequence[CaseScore],
    told: Mapping[str, Table],
    labels: np.ndarray,
    at: Mapping[str, int],
    draws: np.ndarray,
) -> dict[str, tuple[float, float, float]]:
    """Measure -> value, low, high. The first draw is every case once: the value itself."""
    draws = np.concatenate([np.ones((1, len(cases))), draws])
    per_finding: dict[str, Callable[[str, Localisation], float]] = {
        "localisation_dice": lambda s, f: f.curve[at[s]],
        "peak_inside": lambda s, f: float(f.peak_inside),
        "peak_within_10_mm": lambda s, f: float(f.peak_mm <= NEAR_MM),
        "localisation_aupr": lambda s, f: f.aupr,
    }
    areas = [auroc_draws(told["raw"][:, d], labels[:, d], draws) for d in range(len(SLUGS))]
    drawn = {
        "macro_auroc": macro_draws(np.stack(areas, axis=1)),
        "organ_dice": _means([list(c.organs.values()) for c in cases], draws),
    }
    for name, value in per_finding.items():
        held = [[value(s, f) for s, f in c.findings.items()] for c in cases]
        drawn[name] = _means(held, draws)
        for least in HITS if name in HIT_OF else ():
            hits = [[_at_least(v, least) for v in one] for one in held]
            drawn[f"hit{round(100 * least)}_{HIT_OF[name]}"] = _means(hits, draws)
    for name, p in told.items():
        key = "ece" if name == "calibrated" else "ece_raw"
        drawn[key] = ece_draws(p, labels.astype(np.float64), draws)
    return {name: interval(float(v[0]), v[1:]) for name, v in drawn.items()}


def _means(values: Sequence[Sequence[float]], draws: np.ndarray) -> np.ndarray:
    """Mean over everything that the drawn cases hold, in every draw; NaN where they hold nothing."""
    known = [[v for v in one if np.isfinite(v)] for one in values]
    total = draws @ np.array([sum(one) for one in known], dtype=np.float64)
    count = draws @ np.array([len(one) for one in known], dtype=np.float64)
    return np.divide(total, count, out=np.full(len(draws), np.nan), where=count > 0)


def _at_least(value: float, least: float) -> float:
    return float("nan") if np.isnan(value) else float(value >= least)


def _row(
    d: int,
    cases: Sequence[CaseScore],
    told: Mapping[str, Table],
    labels: np.ndarray,
    at: Mapping[str, int],
    draws: np.ndarray,
) -> FindingRow:
    slug = SLUGS[d]
    found = [c.findings.get(slug) for c in cases]
    per_case: dict[str, list[float]] = {
        "dice": [float("nan") if f is None else f.curve[at[slug]] for f in found],
        "aupr": [float("nan") if f is None else f.aupr for f in found],
        "peak_inside": [float("nan") if f is None else float(f.peak_inside) for f in found],
        "peak_within_10_mm": [float("nan") if f is None else float(f.peak_mm <= NEAR_MM) for f in found],
    }
    for least in HITS:
        name = f"hit{round(100 * least)}"
        per_case[name] = [_at_least(v, least) for v in per_case["dice"]]
        per_case[f"{name}_aupr"] = [_at_least(v, least) for v in per_case["aupr"]]
    values = {name: nanmean(column) for name, column in per_case.items()}
    drawn = {name: mean_draws(np.array(column), draws) for name, column in per_case.items()}
    values["auroc"] = auroc(told["raw"][:, d], labels[:, d])
    drawn["auroc"] = auroc_draws(told["raw"][:, d], labels[:, d], draws)
    quoted = told.get("calibrated", told["raw"])
    sizes = [f.volume_ml for f in found if f is not None]
    return FindingRow(
        name=FINDINGS[d].name,
        positives=len(sizes),
        median_ml=float(np.median(sizes)) if sizes else float("nan"),
        ece=ece(quoted[:, d], labels[:, d]),
        intervals={name: listed(interval(values[name], drawn[name])) for name in values},
        **values,
    )


def as_text(tables: Sequence[PhantomTable]) -> str:
    """Plain text: one line per finding, the models side by side, then the means with their intervals."""
    head = f"{'finding':36s} {'n':>3s} {'ml':>7s}" + "".join(
        f" | {t.model:>20s} AUROC  Dice  AUPR  peak" for t in tables
    )
    lines = [head]
    for position, row in enumerate(tables[0].rows):
        line = f"{row.name:36s} {row.positives:3d} {row.median_ml:7.1f}"
        for table in tables:
            r = table.rows[position]
            line += f" | {'':20s} {r.auroc:5.2f} {r.dice:5.2f} {r.aupr:5.2f} {r.peak_inside:5.2f}"
        lines.append(line)
    for name in dict.fromkeys(n for t in tables for n in t.summary):
        values = "".join(
            f" | {t.summary[name][0]:.3f} [{t.summary[name][1]:.3f}, {t.summary[name][2]:.3f}]"
            if name in t.summary
            else f" | {'':20s}"
            for t in tables
        )
        lines.append(f"{name:47s}{values}")
    for table in tables:
        organs = ", ".join(f"{k} {v:.3f}" for k, v in table.organs.items())
        lines.append(f"organ Dice of {table.model}: {organs}")
        told = table.calibration.get("calibrated")
        if told:
            lines.append(
                f"ECE of {table.model}: {told['ece']:.3f} (all findings pooled, 15 bins of equal width; "
                f"a perfect model would show {told['ece_floor']:.3f}), equal mass "
                f"{told['ece_equal_mass']:.3f}, mean of findings {told['ece_mean_of_findings']:.3f}; "
                f"Brier {told['brier']:.3f}"
            )
    return "\n".join(lines)
