"""What a model answers for the scans of a cohort: read scan by scan, or out of a table that anybody wrote.

A table has CT-RATE's columns, ``VolumeName`` and the names of the findings (or their slugs), with
probabilities; columns that are missing are findings that its model does not know.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from jaxtyping import Float64

from hilum.cohort.manifest import Manifest
from hilum.cohort.records import Label
from hilum.cohort.sources.base import stem
from hilum.errors import InputRefused, ReportError
from hilum.io.table import read_table, said
from hilum.read.contract import Pooling, Reader
from hilum.text.vocabulary import FINDINGS

Table = Float64[np.ndarray, "N D"]
KEY = "VolumeName"
SPLIT = "split"
FORMULA = ("=", "+", "-", "@", "\t", "\r")


@dataclass(frozen=True)
class Answers:
    """One part of a cohort, answered.

    Args:
        keys, patients: per scan. labels: as the data set says them. raw: probabilities as the network gives
            them. probabilities: those that a user sees; of a table both are the same. NaN: no answer.
        unanswered: keys of scans without an answer, and why.
    """

    keys: tuple[str, ...]
    patients: tuple[str, ...]
    labels: tuple[Mapping[str, Label], ...]
    raw: Table
    probabilities: Table
    unanswered: Mapping[str, str]

    def __len__(self) -> int:
        """Scans that were answered."""
        return len(self.keys)

    def calibrated_by(self, model: Pooling) -> Answers:
        """The same raw probabilities under a model's (new) card."""
        told = [model.calibrate(row.astype(np.float32)).astype(np.float64) for row in self.raw]
        return replace(self, probabilities=np.array(told).reshape(self.raw.shape))


def answers_of_model(
    model: Reader, part: Manifest, step: Callable[[int], None] = lambda steps: None
) -> Answers:
    """Reads every scan of a part; one that is refused is listed and left out.

    Args:
        model: reads a scan. part: of a cohort, with its root. step: called with 1 after each scan.
    """
    keys, patients, labels, raw, told = [], [], [], [], []
    unanswered = {}
    for row in part.rows():
        try:
            output = model.run(part.open(row))
        except InputRefused as error:
            unanswered[row.record.key] = error.code
        else:
            keys.append(row.record.key)
            patients.append(row.record.patient)
            labels.append(dict(row.record.labels))
            told.append(output.probabilities)
            raw.append(getattr(output, "pooled", output.probabilities))
        step(1)
    return Answers(tuple(keys), tuple(patients), tuple(labels), _rows(raw), _rows(told), unanswered)


def answers_of_table(path: str | Path, part: Manifest) -> Answers:
    """The rows of a table that a part of a cohort has.

    Args:
        path: CSV, TSV or XLSX. part: of a cohort.

    Raises:
        ReportError: `COLUMN_MISSING`: no key, or no column of a finding; `RECORD_DUPLICATE`.
        InputRefused: `MODEL_OUTPUT`: a value that is no probability.
    """
    rows = read_table(path, (KEY,))
    held = {}
    for row in rows:
        name = stem(row[KEY].lstrip("'"))
        if name in held:
            raise ReportError("RECORD_DUPLICATE", "a table answers once for a scan", got=name, path=path)
        held[name] = row
    columns = _columns(rows[0] if rows else {}, path)
    keys, patients, labels, told = [], [], [], []
    unanswered = {}
    for scan in part.rows():
        if scan.record.key not in held:
            unanswered[scan.record.key] = "not in the table"
            continue
        found = held[scan.record.key]
        keys.append(scan.record.key)
        patients.append(scan.record.patient)
        labels.append(dict(scan.record.labels))
        told.append([_probability(found.get(c, ""), path) for c in columns])
    table = _rows(told)
    return Answers(tuple(keys), tuple(patients), tuple(labels), table, table, unanswered)


def table_of(parts: Mapping[str, Answers]) -> str:
    """Answers as such a table, with the part of each scan; `answers_of_table` reads it again."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([KEY, SPLIT, *(f.name for f in FINDINGS)])
    for split, answers in parts.items():
        for key, row in zip(answers.keys, answers.probabilities, strict=True):
            name = f"'{key}" if key.startswith(FORMULA) else key
            writer.writerow([name, split, *("" if np.isnan(p) else f"{p:.6g}" for p in row)])
    return text.getvalue()


def _columns(row: Mapping[str, str], path: str | Path) -> list[str]:
    chosen = [f.name if f.name in row else f.slug for f in FINDINGS]
    if not any(name in row for name in chosen):
        raise ReportError(
            "COLUMN_MISSING", "a table of answers has columns of findings",
            expected=", ".join(f.name for f in FINDINGS[:3]) + ", ...", got=", ".join(row)[:200], path=path,
        )  # fmt: skip
    return chosen


def _probability(cell: str, path: str | Path) -> float:
    text = said(cell)
    try:
        value = float(text) if text else float("nan")
    except ValueError:
        value = float("inf")
    if not (np.isnan(value) or 0.0 <= value <= 1.0):
        raise InputRefused(
            "MODEL_OUTPUT", "an answer is a probability", expected="0 to 1, or nothing", got=cell[:40],
            path=path,
        )  # fmt: skip
    return value


def _rows(values: Sequence[np.ndarray] | Sequence[Sequence[float]]) -> Table:
    return np.array(values, dtype=np.float64).reshape(len(values), len(FINDINGS))
