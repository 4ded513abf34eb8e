"""Reports from a CSV file, a text file or standard input, each with its fault (rows E01, E02, E04, E08).

The text stays as it is, character by character, so that places in it can be pointed at; only a byte order
mark goes. Nothing but the report columns is kept: a table may hold names.
"""

from __future__ import annotations

import csv
import difflib
import io
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from hilum.errors import ContainerError, ReportError, UsageError
from hilum.io.limits import GIB

Fault = Literal["", "empty", "duplicate", "undecodable", "mojibake"]

TEXT_COLUMNS = (
    "report_text", "report", "text", "findings_en", "impressions_en", "findings", "impression", "impressions",
    "full_report", "radiology_report", "report_findings", "befund", "beurteilung", "befundtext",
)  # fmt: skip
"""Names of columns with report text, lower case; every one that is there is read."""
TABLES = (".csv", ".tsv")
MAX_TABLE_BYTES = 4 * GIB
NOTHING = frozenset({"", "nan", "none", "null", "n/a", "na"})
MOJIBAKE = ("Ã¤", "Ã¶", "Ã¼", "ÃŸ", "Ã„", "Ã–", "Ãœ", "â€", "\ufffd", "_x000D_")
"""UTF-8 read as something else, and what spreadsheets leave."""


@dataclass(frozen=True)
class ReportRow:
    """One report text.

    Args:
        row: number of the data row, from 1. column: its column, "" for a text file. text: as stored.
        fault: what is wrong with it; an `undecodable` one has no text, the others are whole.
    """

    row: int
    column: str
    text: str
    fault: Fault = ""


def read_reports(source: str | Path | bytes, text_column: str | None = None) -> list[ReportRow]:
    """The reports of a table (`.csv`, `.tsv`) or of a text.

    Args:
        source: a path; or bytes, which are one text. text_column: the column to read; None finds it by name.

    Raises:
        ContainerError: `NOT_FOUND`, `DIMS_HUGE`.
        ReportError: `COLUMN_MISSING`; `TEXT_ENCODING` (a text that is not UTF-8, a table that is no CSV).
        UsageError: a column of what is no table (`ANSWER_INVALID`).
    """
    if isinstance(source, bytes) or not str(source).lower().endswith(TABLES):
        if text_column is not None:
            raise UsageError(
                "ANSWER_INVALID", "--text-column names a column of a table", expected="a .csv or .tsv file",
                got=text_column, path=None if isinstance(source, bytes) else source,
            )  # fmt: skip
        return [_one_text(source if isinstance(source, bytes) else _bytes_of(Path(source)), source)]
    path = Path(source)
    seen: Counter[str] = Counter()
    return [_judged(row, column, text, seen) for row, column, text in _cells(path, text_column)]


def _bytes_of(path: Path) -> bytes:
    try:
        if path.stat().st_size > MAX_TABLE_BYTES:
            raise ContainerError(
                "DIMS_HUGE", "a table fits the budget", expected=f"<= {MAX_TABLE_BYTES} bytes",
                got=f"{path.stat().st_size} bytes", path=path,
            )  # fmt: skip
        return path.read_bytes()
    except OSError as error:
        got = error.strerror or type(error).__name__
        raise ContainerError("NOT_FOUND", "the input exists and can be read", got=got, path=path) from error


def _one_text(content: bytes, source: str | Path | bytes) -> ReportRow:
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ReportError(
            "TEXT_ENCODING", "a report is UTF-8 text", expected="UTF-8", got=f"byte {error.start} is not",
            path=None if isinstance(source, bytes) else source, hint="Convert it to UTF-8.",
        ) from error  # fmt: skip
    return _judged(1, "", text, Counter())


def _cells(path: Path, text_column: str | None) -> Iterator[tuple[int, str, str]]:
    """Row, column and text of every report cell."""
    # Bytes that are not UTF-8 survive as lone surrogates, so that one bad row costs one row.
    content = _bytes_of(path).decode("utf-8-sig", errors="surrogateescape")
    limit = csv.field_size_limit(max(len(content), 1))
    try:
        delimiter = "\t" if path.suffix.lower() == ".tsv" else _delimiter(content)
        table = csv.DictReader(io.StringIO(content, newline=""), delimiter=delimiter)
        columns = _columns([c for c in table.fieldnames or [] if c], text_column, path)
        for row, cells in enumerate(table, 1):
            for column in columns:
                yield row, column, cells.get(column) or ""
    except csv.Error as error:
        raise ReportError("TEXT_ENCODING", "a table is a CSV file", got=str(error), path=path) from error
    finally:
        csv.field_size_limit(limit)


def _delimiter(content: str) -> str:
    """Comma or semicolon, whichever the head of the table has more of."""
    head = content.split("\n", 1)[0]
    return ";" if head.count(";") > head.count(",") else ","


def _columns(names: list[str], wanted: str | None, path: Path) -> list[str]:
    """The columns that hold reports (row E08)."""
    if wanted is not None and wanted in names:
        return [wanted]
    known = [n for n in names if n.strip().lower() in TEXT_COLUMNS]
    if wanted is None and known:
        return known
    near = difflib.get_close_matches(wanted or "report_text", names, n=1, cutoff=0.4)
    raise ReportError(
        "COLUMN_MISSING", "a table has a column with the report",
        expected=wanted or ", ".join(TEXT_COLUMNS[:6]), got=", ".join(names[:20]) or "no header", path=path,
        hint=f"Name it with --text-column{f' (nearest: {near[0]})' if near else ''}.",
    )  # fmt: skip


def _judged(row: int, column: str, text: str, seen: Counter[str]) -> ReportRow:
    if any("\udc80" <= c <= "\udcff" for c in text):
        return ReportRow(row, column, "", "undecodable")
    key = " ".join(text.split())
    if key.lower() in NOTHING:
        return ReportRow(row, column, text, "empty")
    seen[key] += 1
    if seen[key] > 1:
        return ReportRow(row, column, text, "duplicate")
    return ReportRow(row, column, text, "mojibake" if any(sign in text for sign in MOJIBAKE) else "")
