"""`hilum reports labels`: 18 x present, absent or unknown per report, with the sentence that decides."""

from __future__ import annotations

import csv
import io
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from hilum.cli.common import echo_json, json_option, plain, progress

if TYPE_CHECKING:
    from hilum.io.report_table import TableReport
    from hilum.text.labels import FindingLabel

PARTIAL = 4
FAULTS = ("empty", "duplicate", "mojibake", "truncated", "undecodable", "ragged")
LONG = (
    "row", "id", "finding", "label", "probability", "status", "side", "lobes", "organ", "section", "column",
    "start", "end", "sentence",
)  # fmt: skip
FORMULA = ("=", "+", "-", "@", "\t", "\r")
"""A spreadsheet runs a cell that begins with one of these (row E10)."""
SHOWN = 20
"""Reports up to this number are shown one by one."""


@dataclass(frozen=True)
class Labelled:
    """A row with its labels.

    Args:
        report: the row. labels: 18, by slug; empty when the row was refused.
        repaired: characters put right or taken out. lost: replacement characters that stay.
    """

    report: TableReport
    labels: dict[str, FindingLabel]
    repaired: int = 0
    lost: int = 0


@click.command()
@click.argument("source", metavar="FILE.csv|FILE.txt|-", type=click.Path(allow_dash=True))
@click.option(
    "--text-column",
    "text_columns",
    metavar="NAME",
    multiple=True,
    help="A column with report text, several allowed; found by name otherwise. With -, the input is a table.",
)
@click.option(
    "--id-column", metavar="NAME", help="The column that names a row; VolumeName or AccessionNo otherwise."
)
@click.option("--csv", "as_csv", is_flag=True, help="Print a table, one line per report and finding.")
@click.option("--wide", is_flag=True, help="Print a table, one line per report: 1, 0, empty for unknown.")
@json_option
def labels(
    source: str, text_columns: tuple[str, ...], id_column: str | None, as_csv: bool, wide: bool, as_json: bool
) -> int:
    """Say which of the 18 findings a report calls present, absent, or neither.

    The argument is a table (.csv, .tsv), a text file with one report, or - for standard input. Each answer
    comes with a probability and the sentence that decided. Empty, duplicate, damaged and cut reports are
    counted. Exit code 4 when a row could not be read.
    """
    from hilum.errors import UsageError
    from hilum.io.report_table import read_table

    if as_csv + wide + as_json > 1:
        raise UsageError(
            "ANSWER_INVALID", "one form of output", expected="one of --csv, --wide, --json", got="several"
        )
    given: str | bytes = sys.stdin.buffer.read() if source == "-" else source
    rows = read_table(given, text_columns, id_column)
    done: list[Labelled] = []
    with progress("Labelling", len(rows), quiet=as_json or len(rows) < 200) as advance:
        for row in rows:
            done.append(label_row(row))
            advance(1)
    counts = counts_of(done)
    if as_json:
        echo_json(
            {
                "source": "-" if source == "-" else Path(source).name,
                "counts": counts,
                "reports": [as_dict(d) for d in done],
            }
        )
    elif as_csv or wide:
        click.echo(_long(done) if as_csv else _wide(done), nl=False)
        click.echo(summary(counts), err=True)
    else:
        _show(done)
        click.echo(summary(counts), err=True)
    return PARTIAL if counts["refused"] else 0


def label_row(row: TableReport) -> Labelled:
    """The labels of one row; characters count in the text as it is stored."""
    from dataclasses import replace

    from hilum.text.labels import Part, label_parts
    from hilum.text.repair import repair_text
    from hilum.text.sections import kind_of_column

    if row.refused:
        return Labelled(row, {})
    fixed = {column: repair_text(text) for column, text in row.parts}
    found = label_parts([Part(f.text, column, kind_of_column(column)) for column, f in fixed.items()])
    for slug, label in found.items():
        if label.span is not None and label.words is not None and fixed[label.column].changed:
            back = fixed[label.column].original
            found[slug] = replace(label, span=back(label.span), words=back(label.words))
    repaired = sum(f.mojibake + f.removed for f in fixed.values())
    return Labelled(row, found, repaired, sum(f.lost for f in fixed.values()))


def counts_of(done: Sequence[Labelled]) -> dict[str, int]:
    """Reports, and how many have which fault; `refused` rows were not read."""
    faults: Counter[str] = Counter(fault for d in done for fault in d.report.faults)
    counts = {"reports": len(done)} | {name: faults[name] for name in FAULTS}
    return counts | {
        "refused": sum(d.report.refused for d in done),
        "repaired": sum(d.repaired > 0 for d in done),
        "lost_characters": sum(d.lost > 0 for d in done),
    }


def summary(counts: dict[str, int]) -> str:
    """The counts in one line; those of zero are left out."""
    return ", ".join(f"{n} {name.replace('_', ' ')}" for name, n in counts.items() if n or name == "reports")


def as_dict(done: Labelled) -> dict[str, Any]:
    """JSON-ready."""
    return {
        "row": done.report.row,
        "id": done.report.key,
        "faults": list(done.report.faults),
        "repaired": done.repaired,
        "labels": [label.as_dict() for label in done.labels.values()],
    }


def _cell(value: object) -> str:
    """A cell that no spreadsheet runs."""
    text = "" if value is None else str(value)
    return f"'{text}" if text.startswith(FORMULA) else text


def _table(header: Iterable[str], rows: Iterable[Iterable[object]]) -> str:
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(header)
    writer.writerows([_cell(value) for value in row] for row in rows)
    return out.getvalue()


def _long(done: Sequence[Labelled]) -> str:
    rows = []
    for d in done:
        for label in d.labels.values():
            told = label.as_dict() | {
                "row": d.report.row,
                "id": d.report.key,
                "lobes": "; ".join(label.lobes),
            }
            told |= dict(zip(("start", "end"), label.span or ("", ""), strict=True))
            rows.append([told[name] for name in LONG])
    return _table(LONG, rows)


def _wide(done: Sequence[Labelled]) -> str:
    """CT-RATE's own form, which `hilum.text.label_file` reads."""
    from hilum.text.vocabulary import FINDINGS

    values = {"present": "1", "absent": "0", "unknown": ""}
    rows = [
        [d.report.key or d.report.row, *(values[d.labels[f.slug].label] for f in FINDINGS)]
        for d in done
        if d.labels
    ]
    return _table(["VolumeName", *(f.name for f in FINDINGS)], rows)


def _show(done: Sequence[Labelled]) -> None:
    from rich.console import Console

    console = Console(highlight=False, soft_wrap=False)
    console.print(_each(done) if len(done) <= SHOWN else _totals(done))


def _each(done: Sequence[Labelled]) -> Any:
    """What each report calls present, or leaves open, with its sentence."""
    table = _columns("row", "finding", "label", "where", "sentence")
    for d in done:
        said = [
            label
            for label in d.labels.values()
            if label.label == "present" or label.status in ("doubted", "open")
        ]
        for label in said:
            name = label.as_dict()["finding"]
            where = ", ".join(label.lobes) or label.side
            table.add_row(_name(d.report), name, label.label, where, plain(label.sentence, lines=True))
        if not said:
            what = ", ".join(d.report.faults) if d.report.refused or "empty" in d.report.faults else "nothing"
            table.add_row(_name(d.report), what, "", "", "")
    return table


def _name(report: TableReport) -> str:
    return plain(report.key, lines=True) if report.key else str(report.row)


def _totals(done: Sequence[Labelled]) -> Any:
    """How often each finding is present, absent, unknown."""
    from hilum.text.vocabulary import FINDINGS

    table = _columns("finding", "present", "absent", "unknown")
    for finding in FINDINGS:
        counted: Counter[str] = Counter(d.labels[finding.slug].label for d in done if d.labels)
        table.add_row(finding.name, *(str(counted[name]) for name in ("present", "absent", "unknown")))
    return table


def _columns(*names: str) -> Any:
    from rich.table import Table

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for name in names:
        table.add_column(name, overflow="fold")
    return table
