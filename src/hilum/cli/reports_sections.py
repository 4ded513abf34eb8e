"""`hilum reports sections`: findings, impression, technique, history and comparison of reports."""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from hilum.cli.common import echo_json, json_option, plain

if TYPE_CHECKING:
    from hilum.io.report_table import TableReport

PARTIAL = 4


@click.command()
@click.argument("source", metavar="FILE.csv|FILE.txt|-", type=click.Path(allow_dash=True))
@click.option(
    "--text-column", "text_columns", metavar="NAME", multiple=True,
    help="A column with report text, several allowed; found by name otherwise. With -, the input is a table.",
)  # fmt: skip
@click.option(
    "--id-column", metavar="NAME", help="The column that names a row; VolumeName or AccessionNo otherwise."
)
@json_option
def sections(source: str, text_columns: tuple[str, ...], id_column: str | None, as_json: bool) -> int:
    """Cut reports into findings, impression, technique, history and comparison.

    Headings are found in English and German; a column's name says what it holds where its text has none. Exit
    code 4 when a row could not be read.
    """
    from hilum.io.report_table import read_table

    given: str | bytes = sys.stdin.buffer.read() if source == "-" else source
    rows = read_table(given, text_columns, id_column)
    told: list[dict[str, Any]] = [
        {"row": r.row, "id": r.key, "faults": list(r.faults), "sections": _sections(r)} for r in rows
    ]  # fmt: skip
    counts: Counter[str] = Counter(s["kind"] or "body" for t in told for s in t["sections"])
    refused = sum(r.refused for r in rows)
    totals = {"reports": len(rows), "refused": refused} | dict(sorted(counts.items()))
    if as_json:
        name = "-" if source == "-" else Path(source).name
        echo_json({"source": name, "counts": totals, "reports": told})
    else:
        _show(told)
        click.echo(", ".join(f"{number} {name}" for name, number in totals.items()), err=True)
    return PARTIAL if refused else 0


def _sections(row: TableReport) -> list[dict[str, Any]]:
    """The sections of one report; `span` is that of the words without their heading."""
    from hilum.text.sections import kind_of_column, sections_of

    told = []
    for column, text in row.parts:
        found = sections_of(text)
        for section in found:
            kind = section.kind or (kind_of_column(column) if len(found) == 1 else "")
            said = section.text(text)
            start = text.index(said, section.body) if said else section.body
            if said or section.kind:
                span = [start, start + len(said)]
                told.append({"kind": kind, "column": column, "span": span, "text": said})
    return told


def _show(told: list[dict[str, Any]]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for name in ("row", "section", "column", "text"):
        table.add_column(name, overflow="fold")
    for report in told:
        for section in report["sections"]:
            name = plain(report["id"], lines=True) or str(report["row"])
            table.add_row(
                name,
                section["kind"] or "body",
                plain(section["column"], lines=True),
                plain(section["text"], lines=True),
            )
    Console(highlight=False, soft_wrap=False).print(table)
