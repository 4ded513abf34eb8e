"""The exam of a space of scans and texts as a table: a row per measure, a column per model."""

from __future__ import annotations

import numpy as np

from hilum.exam.bootstrap import Interval
from hilum.exam.joint_suite import JointExam


def as_text(found: JointExam) -> str:
    """For a terminal."""
    rows = [["", *found.figures], *_rows(found)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join([_head(found), "", *lines])


def as_markdown(found: JointExam) -> str:
    """For a page."""
    names = list(found.figures)
    lines = [f"| | {' | '.join(names)} |", "|---" * (len(names) + 1) + "|"]
    lines += [f"| {' | '.join(row)} |" for row in _rows(found)]
    return "\n".join([_head(found), "", *lines]) + "\n"


def _head(found: JointExam) -> str:
    return (
        f"{found.scans} scans of {found.patients} patients ({found.split}), {found.snippets} placed "
        "sentences; 95 % intervals over patients."
    )


def _rows(found: JointExam) -> list[list[str]]:
    measures = dict.fromkeys(m for own in found.figures.values() for m in own)
    return [[m, *(_cell(own[m][0]) if m in own else "" for own in found.figures.values())] for m in measures]


def _cell(row: Interval) -> str:
    if not np.isfinite(row.value):
        return "-"
    digits = 3 if max(abs(x) for x in row) <= 1 else 1
    return f"{row.value:.{digits}f} [{row.low:.{digits}f}, {row.high:.{digits}f}]"
