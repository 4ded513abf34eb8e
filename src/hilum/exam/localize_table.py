"""The localisation suite's figures: Dice, AUPR, HIT and the pointing game, by target, with intervals by
patient; as data, as text, as Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float64

from hilum.exam.bootstrap import Interval, interval, listed, mean_draws, patient_draws
from hilum.exam.frozen_table import INTERVAL, Table, piped, plain_table, shown
from hilum.exam.localize import UNION, ScanScore
from hilum.exam.localize_cuts import Cut, Kind, choose_cut, dice_at
from hilum.text.vocabulary import FINDINGS, INDEX

Column = Float64[np.ndarray, "N"]

HITS = (0.05, 0.10)
MEASURES = (
    "dice", "dice_with_empties", "aupr", "hit5_dice", "hit10_dice", "hit5_aupr", "hit10_aupr", "peak_inside",
    "peak_near",
)  # fmt: skip
"""`hitX_M`: share of scans whose M is at least X %. `peak_near`: within the tolerance. All but
`dice_with_empties` are over scans with truth."""
NOTE_PAPER = (
    "EXACT's convention: the published absolute threshold, most likely chosen on test scans, on "
    "the squashed grid of 64 x 128 x 128, maps summed. Not comparable with the default figures."
)


@dataclass(frozen=True)
class TargetRow:
    """One target.

    Args:
        target: `UNION`, a finding or a category. scans, with_truth: how many. median_ml: outlined.
        cut: by which a map became a mask, None where nothing chose one. values: of `MEASURES`.
    """

    target: str
    scans: int
    with_truth: int
    median_ml: float
    cut: Cut | None
    values: Mapping[str, Interval]

    @property
    def name(self) -> str:
        """In words."""
        return FINDINGS[INDEX[self.target]].name if self.target in INDEX else self.target

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready; what was not measured is None."""
        return {
            "target": self.target,
            "name": self.name,
            "scans": self.scans,
            "with_truth": self.with_truth,
            "median_ml": None if np.isnan(self.median_ml) else round(self.median_ml, 3),
            "cut": None if self.cut is None else self.cut.as_dict(),
            **{name: listed(value) for name, value in self.values.items()},
        }


@dataclass(frozen=True)
class Localisation:
    """Everything the suite found: facts of the run, and a row per target, the union first."""

    facts: Mapping[str, Any]
    rows: tuple[TargetRow, ...]

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready; `summary` is the union."""
        union = next((row for row in self.rows if row.target == UNION), None)
        summary = {} if union is None else {name: listed(value) for name, value in union.values.items()}
        return {
            "suite": "localize",
            **self.facts,
            "summary": summary,
            "findings": [row.as_dict() for row in self.rows],
            "chosen": {row.target: row.cut.as_dict() for row in self.rows if row.cut is not None},
        }


def choose_cuts(scores: Sequence[ScanScore], kind: Kind = "both") -> dict[str, Cut]:
    """Target -> cut, from validation scans that have the target.

    Args:
        scores: of validation scans only. kind: what may be used.
    """
    curves: dict[str, list] = {}
    for scan in scores:
        for target, score in scan.targets.items():
            if score.truth_ml > 0:
                curves.setdefault(target, []).append(score.curve)
    found = {target: choose_cut(held, kind) for target, held in curves.items()}
    return {target: cut for target, cut in found.items() if cut is not None}


def tabulate(
    scores: Sequence[ScanScore],
    cuts: Mapping[str, Cut],
    facts: Mapping[str, Any],
    *,
    tolerance_mm: float,
    draws: int = 1000,
    seed: int = 0,
) -> Localisation:
    """Scores of test scans -> figures.

    Args:
        scores: of test scans. cuts: by target, chosen elsewhere. facts: for the result.
        tolerance_mm: of the pointing game. draws, seed: of the intervals.
    """
    counts = patient_draws([scan.patient for scan in scores], draws, seed)
    targets = dict.fromkeys(t for scan in scores for t in scan.targets)
    rows = tuple(_row(t, scores, cuts.get(t), tolerance_mm, counts) for t in targets)
    about = {
        "scans": len(scores),
        "patients": len({scan.patient for scan in scores}),
        "tolerance_mm": tolerance_mm,
        "intervals": {"draws": draws, "seed": seed, "by": "patient"},
    }
    return Localisation({**facts, **about}, rows)


def _row(
    target: str, scores: Sequence[ScanScore], cut: Cut | None, tolerance_mm: float, draws: np.ndarray
) -> TargetRow:
    nothing = np.full(len(scores), np.nan)
    held = [(n, scan.targets[target]) for n, scan in enumerate(scores) if target in scan.targets]
    ml, overlap, aupr, away = nothing.copy(), nothing.copy(), nothing.copy(), nothing.copy()
    for n, score in held:
        ml[n], aupr[n], away[n] = score.truth_ml, score.aupr, score.peak_mm
        overlap[n] = np.nan if cut is None else dice_at(score.curve, cut)
    there = ml > 0
    columns = _columns(np.where(there, overlap, np.nan), overlap, aupr, away, tolerance_mm)
    values = {}
    for name in MEASURES:
        column = columns[name]
        mean = float(column[np.isfinite(column)].mean()) if np.isfinite(column).any() else float("nan")
        values[name] = interval(mean, mean_draws(column, draws))
    median = float(np.median(ml[there])) if there.any() else float("nan")
    return TargetRow(target, len(held), int(there.sum()), median, cut, values)


def _columns(
    dice: Column, dice_all: Column, aupr: Column, away_mm: Column, tolerance_mm: float
) -> dict[str, Column]:
    """Each measure per scan; NaN where a scan is not in it."""

    def at_least(values: Column, least: float) -> Column:
        return np.where(np.isnan(values), np.nan, (values >= least).astype(np.float64))

    return {
        "dice": dice,
        "dice_with_empties": dice_all,
        "aupr": aupr,
        "hit5_dice": at_least(dice, HITS[0]),
        "hit10_dice": at_least(dice, HITS[1]),
        "hit5_aupr": at_least(aupr, HITS[0]),
        "hit10_aupr": at_least(aupr, HITS[1]),
        "peak_inside": at_least(-away_mm, 0.0),
        "peak_near": at_least(-away_mm, -tolerance_mm),
    }


def as_text(result: Localisation) -> str:
    """For a terminal: targets without intervals, the union with them."""
    return "\n\n".join([_head(result), plain_table(*_targets(result, "{0.value:.3f}")),
                        plain_table(*_union(result)), *_notes(result)]) + "\n"  # fmt: skip


def as_markdown(result: Localisation) -> str:
    """The same with every interval."""
    return "\n\n".join([_head(result), piped(*_union(result)), piped(*_targets(result, INTERVAL)),
                        *_notes(result)]) + "\n"  # fmt: skip


def _head(result: Localisation) -> str:
    f = result.facts
    where = "the scan's own grid" if f["grid"] == "scan" else "the published grid, 64 x 128 x 128"
    head = (
        f"{f['model']} on {f['scans']} scans of {f['patients']} patients ({f['source']}, {f['part']}).\n"
        f"Compared on {where}; maps joined by {f['join']}. Cuts: {f['cuts_from']}."
    )
    return head + (f"\n{NOTE_PAPER}" if f["convention"] == "paper" else "")


def _targets(result: Localisation, how: str) -> Table:
    names = ("dice", "aupr", "hit5_dice", "hit10_dice", "peak_inside", "peak_near")
    near = f"peak <= {result.facts['tolerance_mm']:g} mm"
    head = ["target", "scans", "ml", "Dice", "AUPR", "HIT@5 %", "HIT@10 %", "peak inside", near]
    body = []
    for row in result.rows:
        size = "-" if np.isnan(row.median_ml) else f"{row.median_ml:.1f}"
        cells = [shown(row.values[name], how) for name in names]
        body.append([row.name, f"{row.with_truth}/{row.scans}", size, *cells])
    return "By target, over scans that have it (HIT of Dice)", head, body


def _union(result: Localisation) -> Table:
    rows = [row for row in result.rows if row.target == UNION]
    body = [[name.replace("_", " "), shown(row.values[name])] for row in rows for name in MEASURES]
    return "The union, 95 % intervals by patient", ["measure", "value"], body


def _notes(result: Localisation) -> list[str]:
    notes = []
    if any(row.cut is None for row in result.rows):
        notes.append("A target without a cut has no Dice: no validation scan has it. See --chosen.")
    if result.facts.get("refused"):
        notes.append(f"{len(result.facts['refused'])} scans were refused and left out.")
    return notes
