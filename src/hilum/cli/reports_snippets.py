"""`hilum reports snippets`: what in a report points at an image, and where that image lies."""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from hilum.cli.common import echo_json, json_option, plain, progress

if TYPE_CHECKING:
    from hilum.io.dicom_place import Study
    from hilum.io.report_table import Fault, ReportRow

PARTIAL = 4
FAULTS: tuple[Fault, ...] = ("empty", "duplicate", "undecodable", "mojibake")


@click.command()
@click.argument("source", metavar="FILE.csv|TEXT|-", type=click.Path(allow_dash=True))
@click.option(
    "--text-column", metavar="NAME", help="The column with the report; found by its name otherwise."
)
@click.option("--row", type=click.IntRange(min=1), help="Only this data row of the table, from 1.")
@click.option("--dicom", metavar="FOLDER", type=click.Path(), help="The report's study: where do images lie?")
@json_option
def snippets(source: str, text_column: str | None, row: int | None, dicom: str | None, as_json: bool) -> int:
    """List what points at an image: words, series, images, whether of an earlier study.

    The argument is a table (.csv, .tsv), a text file with one report, or - for standard input. With --dicom
    every image is looked for in that study: SOP UID and height in mm, or the reason why not. Exit code 4 when
    a row could not be read or an image of this study could not be found.
    """
    from hilum.io.dicom_place import read_study
    from hilum.io.report_table import read_reports

    given: str | bytes = sys.stdin.buffer.read() if source == "-" else source
    rows = [r for r in read_reports(given, text_column) if row is None or r.row == row]
    study: Study | None = None
    if dicom is not None:
        _check_one_report(rows, dicom)
        with progress("Reading", quiet=as_json):
            study = read_study(dicom)
    found = [told for r in rows for told in _snippets(r, study)]
    counts = _counts(rows, found)
    if as_json:
        name = "-" if source == "-" else Path(source).name
        echo_json({"source": name, "counts": counts, "snippets": found})
    else:
        _show(found, counts, study is not None)
    lost = any("refused" in p for s in found if not s["prior"] for p in s.get("places", []))
    return PARTIAL if lost or counts["undecodable"] else 0


def _check_one_report(rows: list[ReportRow], dicom: str) -> None:
    """A folder is one study, so it goes with one report."""
    from hilum.errors import UsageError

    reports = {r.row for r in rows if r.fault not in ("empty", "undecodable")}
    if len(reports) > 1:
        raise UsageError(
            "ANSWER_INVALID", "--dicom is the study of one report", expected="one report",
            got=f"{len(reports)} reports", path=dicom, hint="Choose one with --row.",
        )  # fmt: skip


def _snippets(row: ReportRow, study: Study | None) -> list[dict[str, Any]]:
    from hilum.text.snippet_places import resolve
    from hilum.text.snippets import mine

    found = []
    for snippet in mine(row.text):
        told = {"row": row.row, "column": row.column} | snippet.as_dict()
        if study is not None:
            told["places"] = [r.as_dict() for r in resolve(snippet, study)]
        found.append(told)
    return found


def _counts(rows: list[ReportRow], found: list[dict[str, Any]]) -> dict[str, int]:
    faults: Counter[Fault] = Counter(r.fault for r in rows)
    counts = {"reports": len(rows)} | {name: faults[name] for name in FAULTS}
    return counts | {"snippets": len(found), "prior": sum(s["prior"] for s in found)}


def _show(found: list[dict[str, Any]], counts: dict[str, int], placed: bool) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False, soft_wrap=False)
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for name in (
        "row",
        "series",
        "images",
        "study",
        "characters",
        "what is said",
        *(["where"] if placed else []),
    ):
        table.add_column(name, overflow="fold")
    for told in found:
        series = "?" if told["series"] is None else str(told["series"])
        cells = [str(told["row"]), series, _ranges(told["images"]), "earlier" if told["prior"] else "this"]
        cells += ["{}-{}".format(*told["span"]), plain(told["text"], lines=True)]
        cells += [_places(told["places"])] if placed else []
        table.add_row(*cells)
    if found:
        console.print(table)
    console.print(
        ", ".join(f"{number} {name}" for name, number in counts.items() if number or name == "snippets")
    )


def _ranges(images: list[int]) -> str:
    """Image numbers in short: "38-42, 50"."""
    runs: list[list[int]] = []
    for image in images:
        if runs and image == runs[-1][-1] + 1:
            runs[-1].append(image)
        else:
            runs.append([image])
    return ", ".join(str(r[0]) if len(r) == 1 else f"{r[0]}-{r[-1]}" for r in runs)


def _places(places: list[dict[str, Any]]) -> str:
    """Height of each image in mm with its SOP UID, or the code and what was found instead."""
    told = []
    for place in places:
        if "refused" in place:
            told.append(f"{place['image']}: {place['refused']['code']} ({place['refused'].get('got', '')})")
        else:
            told.append(f"{place['image']}: z {place['z_mm']:.1f} mm {place['sop_uid']}")
    return plain("\n".join(told), lines=True)
