"""The report suite: written reports against labels, reference reports, or both.

Two tables. Reports: a name per row (VolumeName) and text columns. Truth: the same names, and CT-RATE's 18
label columns, text columns, or both. A scan of the truth without a report counts as an empty report; a report
without truth is left out and counted. Where the truth has no label columns, our labeller reads the
references; then figures are given twice, with what a reference does not mention masked, and taken as absent.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from hilum.errors import ReportError
from hilum.exam.bootstrap import Interval, interval, patient_draws
from hilum.exam.report_efficacy import Efficacy, efficacy, listed, stated_in, truth_of
from hilum.exam.report_radgraph import RadGraph, radgraph
from hilum.exam.report_words import likeness
from hilum.io.report_table import NOTHING, TEXT_COLUMNS, TableReport, read_table
from hilum.text.label_file import read_label_file
from hilum.text.labels import FindingLabel, Label, Part, label_parts, label_report
from hilum.text.repair import repair_text
from hilum.text.sections import kind_of_column
from hilum.text.vocabulary import FINDINGS, SLUGS

CT_RATE = re.compile(r"(?P<patient>(?:train|valid)_\d+)_[a-z]+_\d+")
"""A name that holds its patient; any other name is a patient of its own."""
Progress = Callable[[int], None]


@dataclass(frozen=True)
class ReportCases:
    """Reports with their truth, one per scan of the truth.

    Args:
        texts: "" for a scan without a report. labels: of the label columns, None without them.
        references: None without text columns. missing: scans without a report.
        unmatched: reports without truth.
    """

    names: list[str]
    texts: list[str]
    stated: list[dict[str, FindingLabel]]
    labels: list[tuple[Label, ...]] | None
    references: list[str] | None
    referred: list[dict[str, FindingLabel]] | None
    missing: int
    unmatched: int

    @property
    def patients(self) -> list[str]:
        """Of each scan."""
        return [m["patient"] if (m := CT_RATE.match(name)) else name for name in self.names]


@dataclass
class ReportResult:
    """What the suite found. efficacy: by how unmentioned truth is taken."""

    facts: dict[str, Any]
    efficacy: dict[str, Efficacy]
    likeness: dict[str, Interval] = field(default_factory=dict)
    radgraph: RadGraph | None = None
    radgraph_f1: dict[str, Interval] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        missing = None if self.radgraph is None else self.radgraph.reason or None
        return {
            "suite": "report",
            **self.facts,
            "efficacy": {name: found.as_dict() for name, found in self.efficacy.items()},
            "likeness": {name: listed(value) for name, value in self.likeness.items()},
            "radgraph": {name: listed(value) for name, value in self.radgraph_f1.items()},
            "radgraph_missing": missing,
        }


def read_cases(reports: Path, truth: Path) -> ReportCases:
    """Both tables, matched by name.

    Raises:
        ContainerError, ReportError: as of `io.report_table.read_table` and `text.label_file.read_label_file`;
            `COLUMN_MISSING` for a truth with neither labels nor texts, or rows without names;
            `LABEL_DUPLICATE` for a name that stands twice; `REPORT_UNMATCHED` where no name meets another.
    """
    told = _by_name(reports)
    has_labels, has_texts = _columns(truth)
    table = dict(read_label_file(truth).rows) if has_labels else {}
    references = _by_name(truth) if has_texts else {}
    names = list(dict.fromkeys([*table, *references]))
    if not set(names) & set(told):
        raise ReportError(
            "REPORT_UNMATCHED", "reports and truth name the same scans", expected=", ".join(names[:3]),
            got=", ".join(list(told)[:3]), path=reports, hint="Both tables need VolumeName, written alike.",
        )  # fmt: skip
    nothing: tuple[Label, ...] = tuple("unknown" for _ in SLUGS)
    return ReportCases(
        names=names,
        texts=[_text(told[name]) if name in told else "" for name in names],
        stated=[_labels(told[name]) if name in told else label_report("") for name in names],
        labels=[table.get(name, nothing) for name in names] if has_labels else None,
        references=[_text(references[n]) if n in references else "" for n in names] if has_texts else None,
        referred=[_labels(references[n]) if n in references else label_report("") for n in names]
        if has_texts
        else None,
        missing=sum(name not in told for name in names),
        unmatched=len(set(told) - set(names)),
    )


def examine_reports(
    cases: ReportCases,
    *,
    draws: int = 1000,
    seed: int = 0,
    with_radgraph: bool = False,
    progress: Progress | None = None,
) -> ReportResult:
    """Every figure of the suite.

    Raises:
        UsageError: `EXTRA_MISSING` for references without the extra `report`.
    """
    stated, patients = stated_in(cases.stated), cases.patients
    how: dict[str, Any] = {"draws": draws, "seed": seed}
    facts = {
        "reports": len(cases.names) - cases.missing, "missing": cases.missing, "unmatched": cases.unmatched,
        "truth": "label columns" if cases.labels is not None else "our labeller on the references", **how,
    }  # fmt: skip
    result = ReportResult(facts, {})
    if cases.labels is not None:
        result.efficacy["masked"] = efficacy(stated, truth_of(cases.labels), patients, **how)
    elif cases.referred is not None:
        rows = [[row[slug].label for slug in SLUGS] for row in cases.referred]
        result.efficacy["masked"] = efficacy(stated, truth_of(rows), patients, **how)
        result.efficacy["absent"] = efficacy(stated, truth_of(rows, "absent"), patients, **how)
    if cases.references is not None:
        result.likeness = likeness(cases.texts, cases.references, patients, progress=progress, **how)
        if with_radgraph:
            result.radgraph = radgraph(cases.texts, cases.references)
            result.radgraph_f1 = _radgraph_f1(result.radgraph, patients, draws, seed)
    return result


def as_text(result: ReportResult) -> str:
    """The figures as plain text."""
    show = "{0.value:.3f} [{0.low:.3f}, {0.high:.3f}]".format
    facts = result.facts
    lines = [
        f"{facts['reports']} reports, {facts['missing']} missing (counted as empty), {facts['unmatched']} "
        f"without truth (left out). Truth: {facts['truth']}. "
        f"95 % intervals over {facts['draws']} draws of patients."
    ]
    for name, found in result.efficacy.items():
        lines += ["", f"Clinical efficacy, unmentioned truth {name} ({found.masked} answers masked)"]
        for kind, scores in (("micro", found.micro), ("macro", found.macro)):
            figures = [f"{n} {show(getattr(scores, n))}" for n in ("precision", "recall", "f1")]
            lines.append(f"  {kind}  {'  '.join(figures)}")
        lines.append(f"  CRG  {show(found.crg)}")
        for finding in FINDINGS:
            tp, fp, fn, tn = found.counts[finding.slug]
            value = show(found.findings[finding.slug].f1)
            lines.append(f"    {finding.name:<36} F1 {value}  TP {tp} FP {fp} FN {fn} TN {tn}")
        if found.left_out:
            lines.append(f"  one class only, not in macro: {', '.join(found.left_out)}")
    for title, values in (("Words", result.likeness), ("RadGraph F1", result.radgraph_f1)):
        if values:
            lines += ["", title, *(f"  {name:<18} {show(value)}" for name, value in values.items())]
    if result.radgraph is not None and result.radgraph.reason:
        lines += ["", f"RadGraph is not there: {result.radgraph.reason}"]
    return "\n".join(lines) + "\n"


def _radgraph_f1(found: RadGraph, patients: Sequence[str], draws: int, seed: int) -> dict[str, Interval]:
    drawn = patient_draws(patients, draws, seed)
    weights = drawn / drawn.sum(1, keepdims=True)
    parts = {"simple": found.simple, "partial": found.partial, "complete": found.complete}
    return {
        name: interval(float(np.mean(values)), weights @ np.array(values))
        for name, values in parts.items()
        if values is not None
    }


def _by_name(path: Path) -> dict[str, TableReport]:
    """The rows of a table with reports, by name."""
    found: dict[str, TableReport] = {}
    for row in read_table(path):
        if row.refused:
            raise ReportError(
                "TEXT_ENCODING", "every row is text, with the cells of its header", got=", ".join(row.faults),
                expected="UTF-8", path=path, hint=f"Row {row.row}.",
            )  # fmt: skip
        if not row.key:
            raise ReportError(
                "COLUMN_MISSING", "every report has a name", expected="VolumeName or AccessionNo",
                got=f"none in row {row.row}", path=path,
            )  # fmt: skip
        if row.key in found:
            raise ReportError(
                "LABEL_DUPLICATE", "a scan has one report", expected=f"one row for {row.key}",
                got=f"another in row {row.row}", path=path, hint="Take one of them out.",
            )  # fmt: skip
        found[row.key] = row
    return found


def _columns(path: Path) -> tuple[bool, bool]:
    """Whether a table has the label columns, and whether it has text columns."""
    with path.open("rb") as file:
        head = file.readline(1 << 20).decode("utf-8-sig", errors="replace")
    names = [name.strip() for name in next(csv.reader([head]), [])]
    labelled = sum(finding.name in names for finding in FINDINGS) > len(FINDINGS) // 2
    written = any(name.lower() in TEXT_COLUMNS for name in names)
    if not labelled and not written:
        raise ReportError(
            "COLUMN_MISSING", "the truth has CT-RATE's 18 label columns or reports",
            expected=f"{FINDINGS[0].name}, ... or {', '.join(TEXT_COLUMNS[:4])}", got=", ".join(names[:20]),
            path=path,
        )  # fmt: skip
    return labelled, written


def _labels(row: TableReport) -> dict[str, FindingLabel]:
    parts = [Part(repair_text(text).text, column, kind_of_column(column)) for column, text in row.parts]
    return label_parts(parts)


def _text(row: TableReport) -> str:
    return "\n".join(text for _, text in row.parts if text.strip().lower() not in NOTHING)
