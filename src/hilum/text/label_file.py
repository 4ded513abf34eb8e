"""Label files of CT-RATE's form: one row per scan, `VolumeName`, 18 columns of 1, 0 or nothing (row
E07).

An answer that is not there is not "no": blank, "nan" and -1 stay unknown. What is neither is refused with its
row and column, before anything is used.
"""

from __future__ import annotations

import csv
import difflib
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from hilum.errors import ContainerError, ReportError
from hilum.io.report_table import MAX_TABLE_BYTES
from hilum.text.labels import Label
from hilum.text.vocabulary import FINDINGS, SLUGS

KEYS = ("VolumeName", "volume_name", "AccessionNo")
VALUES: Mapping[str, Label] = {
    "1": "present", "1.0": "present", "0": "absent", "0.0": "absent", "-0.0": "absent",
    "": "unknown", "nan": "unknown", "-1": "unknown", "-1.0": "unknown",
}  # fmt: skip


@dataclass(frozen=True)
class LabelTable:
    """What a label file says.

    Args:
        rows: name of the scan -> 18 labels in the vocabulary's order. repeats: rows that said the same again.
        unknown: answers that are not there.
    """

    rows: Mapping[str, tuple[Label, ...]]
    repeats: int = 0
    unknown: int = 0

    def of(self, name: str, slug: str) -> Label:
        """One answer; unknown for a scan that is not in the file."""
        return self.rows[name][SLUGS.index(slug)] if name in self.rows else "unknown"


def read_label_file(path: str | Path) -> LabelTable:
    """The labels of a CT-RATE label file (`*_predicted_labels.csv`), whatever the order of its columns.

    Args:
        path: a CSV file. Columns that are neither the name nor one of the 18 are left out.

    Raises:
        ContainerError: `NOT_FOUND`, `DIMS_HUGE`.
        ReportError: no CSV in UTF-8 (`TEXT_ENCODING`); one of the 19 columns missing or there twice
            (`COLUMN_MISSING`); a value that is not 1, 0 or unknown, a row without name or with other cells
            than the header (`LABEL_VALUES`); two rows that disagree about one scan (`LABEL_DUPLICATE`).
    """
    file = Path(path)
    try:
        table = csv.reader(io.StringIO(_text(file), newline=""), strict=True)
        header = [name.strip() for name in next(table, [])]
        key, places = _places(header, file)
        rows: dict[str, tuple[Label, ...]] = {}
        repeats = 0
        for number, cells in enumerate((cells for cells in table if cells), 1):
            name, labels = _row(cells, number, header, key, places, file)
            if name in rows and rows[name] != labels:
                raise _contradicted(name, number, file)
            repeats += name in rows
            rows[name] = labels
    except csv.Error as error:
        raise ReportError("TEXT_ENCODING", "a label file is a CSV file", got=str(error), path=file) from error
    return LabelTable(rows, repeats, sum(labels.count("unknown") for labels in rows.values()))


def _contradicted(name: str, number: int, file: Path) -> ReportError:
    return ReportError(
        "LABEL_DUPLICATE", "a label file says one thing about a scan", expected=f"one row for {name}",
        got=f"another one in row {number} that disagrees", path=file, hint="Take one of them out.",
    )  # fmt: skip


def _text(file: Path) -> str:
    try:
        if file.stat().st_size > MAX_TABLE_BYTES:
            raise ContainerError(
                "DIMS_HUGE", "a table fits the budget", expected=f"<= {MAX_TABLE_BYTES} bytes",
                got=f"{file.stat().st_size} bytes", path=file,
            )  # fmt: skip
        return file.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        got = f"byte {error.start} is not"
        raise ReportError(
            "TEXT_ENCODING", "a label file is UTF-8 text", expected="UTF-8", got=got, path=file
        ) from error
    except OSError as error:
        got = error.strerror or type(error).__name__
        raise ContainerError("NOT_FOUND", "the input exists and can be read", got=got, path=file) from error


def _places(header: Sequence[str], file: Path) -> tuple[int, list[int]]:
    """Where the name and the 18 stand (row E08)."""
    key = next((header.index(name) for name in KEYS if name in header), None)
    if key is None:
        raise _missing("VolumeName", header, file)
    places = []
    for finding in FINDINGS:
        if header.count(finding.name) != 1:
            raise _missing(finding.name, header, file)
        places.append(header.index(finding.name))
    return key, places


def _missing(name: str, header: Sequence[str], file: Path) -> ReportError:
    near = difflib.get_close_matches(name, header, n=1, cutoff=0.5)
    got = "twice" if header.count(name) > 1 else ", ".join(header[:20]) or "no header"
    return ReportError(
        "COLUMN_MISSING", "a label file has VolumeName and the 18 names, each once", expected=name, got=got,
        path=file, hint=f"Nearest: {near[0]}." if near and near[0] != name else None,
    )  # fmt: skip


def _row(
    cells: Sequence[str], number: int, header: Sequence[str], key: int, places: Sequence[int], file: Path
) -> tuple[str, tuple[Label, ...]]:
    if len(cells) != len(header):
        raise _bad(number, "its cells", f"{len(header)} cells", f"{len(cells)}", file)
    name = cells[key].strip()
    if not name:
        raise _bad(number, header[key], "a name", "nothing", file)
    labels: list[Label] = []
    for place in places:
        value = cells[place].strip().lower()
        if value not in VALUES:
            raise _bad(number, header[place], "1, 0, or blank for unknown", cells[place][:40], file)
        labels.append(VALUES[value])
    return name, tuple(labels)


def _bad(number: int, column: str, expected: str, got: str, file: Path) -> ReportError:
    return ReportError(
        "LABEL_VALUES",
        f"row {number}, {column}: a finding is 1, 0 or not known",
        expected=expected,
        got=got,
        path=file,
    )
