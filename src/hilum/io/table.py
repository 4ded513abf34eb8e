"""Tables of a data set: CSV, TSV or XLSX as rows of text, with the columns that the work needs (rows E04,
E08).

Values stay text; a cell that is not there is "". Bytes that are not UTF-8 become U+FFFD in their cell, so
that one bad row costs one row; the manifest counts them.
"""

from __future__ import annotations

import csv
import difflib
import io
from collections.abc import Iterable
from pathlib import Path

from hilum.errors import ContainerError, ReportError
from hilum.io.limits import GIB

MAX_TABLE_BYTES = 4 * GIB
NOTHING = frozenset({"", "nan", "none", "null", "n/a", "na", "not given.", "not given"})
"""What tables write where nothing is said, lower case. CT-RATE writes "Not given."."""

Row = dict[str, str]


def read_table(path: str | Path, needed: Iterable[str] = ()) -> list[Row]:
    """The rows of a table.

    Args:
        path: `.csv`, `.tsv` or `.xlsx` (its first sheet). needed: columns that must be there.

    Raises:
        ContainerError: `NOT_FOUND`, `DIMS_HUGE`, and those of archives for a workbook.
        ReportError: `COLUMN_MISSING`, with the nearest name; `TEXT_ENCODING` when it is no table.
    """
    path = Path(path)
    if path.suffix.lower() == ".xlsx":
        from hilum.io.xlsx import read_sheet

        cells = read_sheet(path)
        header = cells[0] if cells else []
        rows = [dict(zip(header, line, strict=False)) for line in cells[1:]]
        rows = [{name: row.get(name, "") for name in header if name} for row in rows]
    else:
        header, rows = _read_csv(path)
    require_columns(header, needed, path)
    return rows


def require_columns(names: Iterable[str], needed: Iterable[str], path: str | Path) -> None:
    """Row E08: before any work, the columns are there.

    Raises:
        ReportError: `COLUMN_MISSING`.
    """
    held = [n for n in names if n]
    for wanted in needed:
        if wanted not in held:
            near = difflib.get_close_matches(wanted, held, n=1, cutoff=0.4)
            raise ReportError(
                "COLUMN_MISSING", "a table has the columns that the work needs", expected=wanted,
                got=", ".join(held[:20]) or "no header", path=path,
                hint=f"Rename the column{f' {near[0]}' if near else ''}." if near else None,
            )  # fmt: skip


def said(cell: str | None) -> str:
    """The text of a cell, "" where a table says that there is none."""
    text = (cell or "").strip()
    return "" if text.lower() in NOTHING else text


def tri_state(cell: str | None) -> int | None:
    """A label cell as 1, 0, or None for unknown (row E07): blank, -1, NaN or anything that is no 0 or 1."""
    text = said(cell).lower()
    if text in ("true", "yes", "positive", "present"):
        return 1
    if text in ("false", "no", "negative", "absent"):
        return 0
    try:
        value = float(text)
    except ValueError:
        return None
    return int(value) if value in (0.0, 1.0) else None


def _read_csv(path: Path) -> tuple[list[str], list[Row]]:
    try:
        if path.stat().st_size > MAX_TABLE_BYTES:
            raise ContainerError(
                "DIMS_HUGE", "a table fits the budget", expected=f"<= {MAX_TABLE_BYTES} bytes", path=path
            )
        content = path.read_bytes().decode("utf-8-sig", errors="replace")
    except OSError as error:
        got = error.strerror or type(error).__name__
        raise ContainerError("NOT_FOUND", "the input exists and can be read", got=got, path=path) from error
    limit = csv.field_size_limit(max(len(content), 1))
    try:
        table = csv.DictReader(io.StringIO(content, newline=""), delimiter=_delimiter(path, content))
        header = [name for name in table.fieldnames or [] if name]
        return header, [{name: row.get(name) or "" for name in header} for row in table]
    except csv.Error as error:
        raise ReportError("TEXT_ENCODING", "a table is a CSV file", got=str(error), path=path) from error
    finally:
        csv.field_size_limit(limit)


def _delimiter(path: Path, content: str) -> str:
    if path.suffix.lower() == ".tsv":
        return "\t"
    head = content.split("\n", 1)[0]
    return max(",;\t", key=head.count)
