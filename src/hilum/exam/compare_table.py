"""A comparison as JSON and as Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from hilum.exam.bootstrap import Interval, listed
from hilum.exam.compare import MEASURES, Comparison, Goal
from hilum.text.vocabulary import FINDINGS

TITLES = {
    "auroc": "AUROC",
    "dice": "Dice",
    "aupr": "AUPR",
    "hit5": "HIT@5 (Dice)",
    "hit10": "HIT@10 (Dice)",
    "hit5_aupr": "HIT@5 (AUPR)",
    "hit10_aupr": "HIT@10 (AUPR)",
    "peak_inside": "pointing game",
}


def as_json(found: Comparison, goals: Sequence[Goal]) -> dict[str, Any]:
    """JSON-ready; an interval is value, low, high, or null."""
    return {
        "models": list(found.names),
        "cases": found.cases,
        "positives": dict(zip((f.slug for f in FINDINGS), found.positives, strict=True)),
        "goals": [
            {
                "claim": g.claim,
                "least": g.least,
                "measured": listed(g.measured),
                "reached": g.reached,
                "interval": g.verdict,
            }
            for g in goals
        ],
        "macro": _nested(found.macro),
        "differences": _nested(found.differences),
        "ratios": _nested(found.ratios),
        "findings": _per_finding(found.findings),
        "finding_differences": _per_finding(found.finding_differences),
    }


def _nested(table: Mapping[str, Mapping[str, Interval]]) -> dict[str, Any]:
    return {name: {m: listed(row) for m, row in measured.items()} for name, measured in table.items()}


def _per_finding(table: Mapping[str, Mapping[str, tuple[Interval, ...]]]) -> dict[str, Any]:
    return {
        name: {
            m: {f.slug: listed(row) for f, row in zip(FINDINGS, rows, strict=True)}
            for m, rows in measured.items()
        }
        for name, measured in table.items()
    }


def as_markdown(found: Comparison, goals: Sequence[Goal], notes: Sequence[str] = ()) -> str:
    """The goals, the means, and a table per measure with one line per finding."""
    own, others = found.names[0], found.names[1:]
    lines = ["# EXACT in small and its baselines on unseen synthetic phantoms", "", *notes, ""]
    lines += ["## Goals", "", "| goal | least | measured | reached | interval |", "|---|---|---|---|---|"]
    for goal in goals:
        reached = "yes" if goal.reached else "no"
        lines.append(
            f"| {goal.claim} | {goal.least:g} | {told(goal.measured)} | {reached} | {goal.verdict} |"
        )
    lines += ["", "## Means over findings", "", _head("measure", found.names), _rule(len(found.names) + 1)]
    lines += [_line(TITLES[m], [found.macro[name][m] for name in found.names]) for m in MEASURES]
    if others:
        lines += ["", f"## {own} minus the others, mean over findings", ""]
        lines += [_head("measure", others), _rule(len(others) + 1)]
        lines += [_line(TITLES[m], [found.differences[name][m] for name in others]) for m in MEASURES]
        dice = "; ".join(f"{name}: {told(found.ratios[name]['dice'])}" for name in others)
        lines += ["", f"Dice of {own} by that of the others: {dice}"]
    for measure in MEASURES:
        lines += ["", f"## {TITLES[measure]} per finding", ""]
        lines += [_head("finding | n", found.names), _rule(len(found.names) + 2)]
        for d, finding in enumerate(FINDINGS):
            row = [found.findings[name][measure][d] for name in found.names]
            lines.append(_line(f"{finding.name} | {found.positives[d]}", row))
    return "\n".join(lines) + "\n"


def told(row: Interval) -> str:
    """Value with its interval."""
    if not np.isfinite(row.value):
        return "–"
    digits = 3 if abs(row.value) < 100 else 0
    return f"{row.value:.{digits}f} [{row.low:.{digits}f}, {row.high:.{digits}f}]"


def _head(first: str, names: Sequence[str]) -> str:
    return f"| {first} | " + " | ".join(names) + " |"


def _rule(columns: int) -> str:
    return "|" + "---|" * columns


def _line(first: str, row: Sequence[Interval]) -> str:
    return f"| {first} | " + " | ".join(told(value) for value in row) + " |"
