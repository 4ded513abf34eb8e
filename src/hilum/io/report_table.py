"""Reports from a CSV file, a text file or standard input, each with its faults (rows E01, E02, E04, E05,
E08).

The text stays as it is, character by character, so that places in it can be pointed at; only a byte order
mark goes. Nothing but the report columns is kept: a table may hold names.
"""

from __future__ import annotations

import csv
import difflib
import io
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from hilum.errors import ContainerError, ReportError, UsageError
from hilum.io.limits import GIB

Fault = Literal["", "empty", "duplicate", "undecodable", "mojibake"]
RowFault = Literal["empty", "duplicate", "undecodable", "mojibake", "ragged", "truncated"]
REFUSED: frozenset[RowFault] = frozenset({"undecodable", "ragged"})
"""Faults of a row that is not read: its bytes are no text, or its cells do not fit the header."""

TEXT_COLUMNS = (
    "report_text", "report", "text", "findings_en", "impressions_en", "findings", "impression", "impressions",
    "full_report", "radiology_report", "report_findings", "befund", "beurteilung", "befundtext",
)  # fmt: skip
"""Names of columns with report text, lower case; every one that is there is read."""
TABLES = (".csv", ".tsv")
MAX_TABLE_BYTES = 4 * GIB
NOTHING = frozenset({"", "nan", "none", "null", "n/a", "na"})
KEY_COLUMNS = ("volumename", "volume_name", "accessionno")
CELL_LIMITS = (255, 256, 1024, 2000, 4000, 8000, 32767, 65535)
"""Lengths at which spreadsheets and databases cut a text."""
CUT_END = re.compile(
    r"(?:\.\.\.|…|[,(–-]|\[truncated\]|(?<![^\W_])(?:the|a|an|of|in|and|or|with|is|are|was|were|no|to|at|on|der|die|das|"
    r"des|dem|den|im|in|und|oder|mit|kein|keine|ist|sind|von|zum|zur))\s*$",
    re.IGNORECASE,
)
"""What no finished report ends with."""
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


@dataclass(frozen=True)
class TableReport:
    """One row of a table, or one text: a report in its parts.

    Args:
        row: number of the data row, from 1. key: what names it, "" where the table has no such column.
        parts: (column, text) in the table's order; column "" for a text file. Texts as stored.
        faults: what is wrong with it; none of its parts is read where one is of `REFUSED`.
    """

    row: int
    key: str
    parts: tuple[tuple[str, str], ...]
    faults: tuple[RowFault, ...] = ()

    @property
    def refused(self) -> bool:
        """Whether the row cannot be read."""
        return bool(REFUSED & set(self.faults))


@dataclass(frozen=True)
class _Row:
    row: int
    key: str
    cells: tuple[tuple[str, str], ...]
    fits: bool


def read_reports(source: str | Path | bytes, text_column: str | None = None) -> list[ReportRow]:
    """The report cells of a table (`.csv`, `.tsv`), or a text.

    Args:
        source: a path; or bytes, which are one text. text_column: the column to read; None finds it by name.

    Raises:
        ContainerError: `NOT_FOUND`, `DIMS_HUGE`.
        ReportError: `COLUMN_MISSING`; `TEXT_ENCODING` (a text that is not UTF-8, a table that is no CSV).
        UsageError: a column of what is no table (`ANSWER_INVALID`).
    """
    if not _is_table(source):
        if text_column is not None:
            raise _no_table(text_column, source)
        return [_judged(1, "", _text_of(source), Counter())]
    seen: Counter[str] = Counter()
    rows = _rows(source, () if text_column is None else (text_column,), None)
    return [_judged(row.row, column, text, seen) for row in rows for column, text in row.cells]


def read_table(
    source: str | Path | bytes, text_columns: Sequence[str] = (), id_column: str | None = None
) -> list[TableReport]:
    """The reports of a table, row by row, or a text as one report.

    Args:
        source: a path; or bytes, which are a table where `text_columns` are given, else one text.
        text_columns: the columns to read; none finds them by name.
        id_column: what names a row; None takes `VolumeName` or `AccessionNo` where there is one.

    Raises: see `read_reports`.
    """
    asked = text_columns[0] if text_columns else id_column
    if not _is_table(source) and not (isinstance(source, bytes) and text_columns):
        if asked is not None:
            raise _no_table(asked, source)
        return [_faults(_Row(1, "", (("", _text_of(source)),), True), Counter(), "")]
    seen: Counter[str] = Counter()
    rows = list(_rows(source, text_columns, id_column))
    ending = "truncated" if _open_quote(source) else ""
    return [_faults(row, seen, ending if row is rows[-1] else "") for row in rows]


def _is_table(source: str | Path | bytes) -> bool:
    return not isinstance(source, bytes) and str(source).lower().endswith(TABLES)


def _no_table(column: str, source: str | Path | bytes) -> UsageError:
    return UsageError(
        "ANSWER_INVALID", "--text-column and --id-column name columns of a table",
        expected="a .csv or .tsv file", got=column, path=None if isinstance(source, bytes) else source,
    )  # fmt: skip


def _open_quote(source: str | Path | bytes) -> bool:
    """True when the last quoted cell of a table is never closed: the file was cut."""
    content = source if isinstance(source, bytes) else _bytes_of(Path(source))
    return content.count(b'"') % 2 == 1


def _faults(row: _Row, seen: Counter[str], ending: str) -> TableReport:
    """A row with what is wrong with it."""
    texts = [text for _, text in row.cells]
    if any("\udc80" <= c <= "\udcff" for text in (*texts, row.key) for c in text):
        return TableReport(row.row, "", (), ("undecodable",))
    if not row.fits:
        return TableReport(row.row, row.key, (), ("ragged",))
    saying = [" ".join(text.split()) for text in texts]
    saying = [t for t in saying if t.lower() not in NOTHING]
    if not saying:
        return TableReport(row.row, row.key, row.cells, ("empty",))
    key = "\n".join(saying)
    seen[key] += 1
    found: list[RowFault] = ["duplicate"] if seen[key] > 1 else []
    found += ["mojibake"] if any(sign in text for text in texts for sign in MOJIBAKE) else []
    found += ["truncated"] if ending or any(_cut(text) for text in texts) else []
    return TableReport(row.row, row.key, row.cells, tuple(found))


def _cut(text: str) -> bool:
    """True for a text that stops in the middle (row E05)."""
    last = text.rstrip()
    if not last or last[-1] in '.!?"”':
        return last.endswith(("...", "…"))
    return len(text) in CELL_LIMITS or CUT_END.search(last[-40:]) is not None


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


def _text_of(source: str | Path | bytes) -> str:
    content = source if isinstance(source, bytes) else _bytes_of(Path(source))
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ReportError(
            "TEXT_ENCODING", "a report is UTF-8 text", expected="UTF-8", got=f"byte {error.start} is not",
            path=None if isinstance(source, bytes) else source, hint="Convert it to UTF-8.",
        ) from error  # fmt: skip


def _rows(source: str | Path | bytes, wanted: Sequence[str], id_column: str | None) -> Iterator[_Row]:
    """The rows of a table with the cells of its report columns."""
    path = Path("-") if isinstance(source, bytes) else Path(source)
    raw = source if isinstance(source, bytes) else _bytes_of(path)
    # Bytes that are not UTF-8 survive as lone surrogates, so that one bad row costs one row.
    content = raw.decode("utf-8-sig", errors="surrogateescape")
    limit = csv.field_size_limit(max(len(content), 1))
    try:
        delimiter = "\t" if path.suffix.lower() == ".tsv" else _delimiter(content)
        table = csv.reader(io.StringIO(content, newline=""), delimiter=delimiter)
        header = next(table, [])
        columns = _columns([c for c in header if c], wanted, path)
        places = [header.index(c) for c in columns]
        key = _key_column(header, id_column, path)
        row = 0
        for cells in table:
            if not cells:
                continue
            row += 1
            padded = [*cells, *[""] * (len(header) - len(cells))]
            held = tuple((c, padded[at]) for c, at in zip(columns, places, strict=True))
            yield _Row(row, "" if key is None else padded[key], held, len(cells) == len(header))
    except csv.Error as error:
        raise ReportError("TEXT_ENCODING", "a table is a CSV file", got=str(error), path=path) from error
    finally:
        csv.field_size_limit(limit)


def _key_column(header: Sequence[str], wanted: str | None, path: Path) -> int | None:
    """Where the name of a row stands."""
    if wanted is None:
        return next((at for at, name in enumerate(header) if name.strip().lower() in KEY_COLUMNS), None)
    if wanted in header:
        return header.index(wanted)
    raise _missing(wanted, header, path, "--id-column")


def _delimiter(content: str) -> str:
    """Comma or semicolon, whichever the head of the table has more of."""
    head = content.split("\n", 1)[0]
    return ";" if head.count(";") > head.count(",") else ","


def _columns(names: list[str], wanted: Sequence[str], path: Path) -> list[str]:
    """The columns that hold reports (row E08)."""
    for name in wanted:
        if name not in names:
            raise _missing(name, names, path, "--text-column")
    known = [n for n in names if n.strip().lower() in TEXT_COLUMNS]
    if not wanted and not known:
        raise _missing(None, names, path, "--text-column")
    return list(wanted) or known


def _missing(wanted: str | None, names: Sequence[str], path: Path, option: str) -> ReportError:
    near = difflib.get_close_matches(wanted or "report_text", names, n=1, cutoff=0.4)
    return ReportError(
        "COLUMN_MISSING", "a table has the columns that are read",
        expected=wanted or ", ".join(TEXT_COLUMNS[:6]), got=", ".join(names[:20]) or "no header", path=path,
        hint=f"Name it with {option}{f' (nearest: {near[0]})' if near else ''}.",
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
