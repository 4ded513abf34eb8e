"""The frozen-feature suite's tables, as plain text and as Markdown."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from hilum.exam.bootstrap import Interval
from hilum.exam.frozen import FrozenResult
from hilum.exam.frozen_measure import Measured
from hilum.text.vocabulary import FINDINGS

UNMEASURED = "not measured"
INTERVAL = "{0.value:.3f} [{0.low:.3f}, {0.high:.3f}]"


def as_text(result: FrozenResult) -> str:
    """Macro figures, differences, and figures per finding; those without intervals, which Markdown has."""
    found = [*_macro_tables(result), _per_finding(result, "{0.value:.3f}")]
    return "\n\n".join(plain_table(title, head, body) for title, head, body in found) + "\n"


def as_markdown(result: FrozenResult) -> str:
    """The same tables, with every interval."""
    found = [*_macro_tables(result), _per_finding(result, INTERVAL)]
    return "\n\n".join(piped(title, head, body) for title, head, body in found) + "\n"


Table = tuple[str, list[str], list[list[str]]]
"""Title, head, rows."""


def shown(row: Interval, how: str = INTERVAL) -> str:
    """A value and its interval, or in words that there is none."""
    return how.format(row) if np.isfinite(row.value) else UNMEASURED


def _macro_tables(result: FrozenResult) -> list[Table]:
    return [_macro(result), *_differences(result)]


def _macro(result: FrozenResult) -> Table:
    scans = result.facts["cohort"]["scans"]
    title = (
        f"Macro figures on {scans['test']} test scans; probes trained on shares of {scans['train']}, chosen "
        f"on {scans['val']}. 95 % intervals over {result.facts['seeds']['draws']} draws of patients."
    )
    head = ["features", "probe", "share", "findings", "AUROC", "average precision"]
    body = [
        [row.name, row.probe, f"{row.fraction:.0%}", str(row.findings), shown(row.macro),
         shown(row.macro_precision)]
        for row in result.rows
    ]  # fmt: skip
    return title, head, body


def _differences(result: FrozenResult) -> list[Table]:
    """With all training patients, one table per probe."""
    found: list[Table] = []
    for probe in dict.fromkeys(row.probe for row in result.differences):
        body = [
            [row.first, row.second, shown(row.value)]
            for row in result.differences
            if row.probe == probe and row.fraction in (0.0, 1.0)
        ]
        if body:
            title = f"Difference of macro AUROC, {probe}, on the same draws"
            found.append((title, ["features", "minus", "difference"], body))
    return found


def _per_finding(result: FrozenResult, how: str) -> Table:
    rows: Sequence[Measured] = [
        r for r in result.rows if r.probe in ("linear", "zero-shot") and r.fraction in (0, 1)
    ]
    head = ["finding", "positives in test", *(f"{row.name}" for row in rows)]
    body = [
        [
            finding.name,
            str(result.positives[finding.slug]["test"]),
            *(shown(row.auroc[d], how) for row in rows),
        ]
        for d, finding in enumerate(FINDINGS)
    ]
    return "AUROC per finding, linear probes with all training patients and zero-shot", head, body


def plain_table(title: str, head: list[str], body: list[list[str]]) -> str:
    """A table in columns."""
    widths = [max(len(line[i]) for line in [head, *body]) for i in range(len(head))]
    lines = [
        "  ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)).rstrip()
        for line in [head, *body]
    ]
    return "\n".join([title, *lines])


def piped(title: str, head: list[str], body: list[list[str]]) -> str:
    """A table in Markdown."""
    lines = [f"| {' | '.join(line)} |" for line in [head, ["---"] * len(head), *body]]
    return "\n".join([title, "", *lines])
