"""A plain CSV: one row per scan, the columns named as below. The root is the folder of the table.

`path` and `patient` are needed. `key`, `study`, `series`, `split`, the names of the 18 findings (CT-RATE's or
ours), `findings`, `impression`, `report` and the other sections are read where they are there; every column
`mask:NAME` is the file of a mask and every column `label:NAME` one more label.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from hilum.cohort.records import SECTIONS, MaskRef, ScanRecord
from hilum.cohort.sources.base import Source, SourceOptions, stem
from hilum.errors import ContainerError
from hilum.io.table import Row, read_table, said, tri_state
from hilum.text.vocabulary import FINDINGS

NAMES = ("cohort.csv", "manifest.csv", "scans.csv")
_SLUG_OF = {name: f.slug for f in FINDINGS for name in (f.slug, f.name)}


def table_of(root: Path) -> Path | None:
    """The table that `root` is or holds."""
    if root.is_file() and root.suffix.lower() in (".csv", ".tsv", ".xlsx"):
        return root
    return next((root / name for name in NAMES if (root / name).is_file()), None)


def _detect(root: Path) -> bool:
    table = table_of(root)
    if table is None or table.suffix.lower() == ".xlsx":
        return table is not None
    with table.open("rb") as file:
        head = file.readline(65536).decode("utf-8-sig", errors="replace")
    return "path" in [
        name.strip().strip('"') for name in head.replace(";", ",").replace("\t", ",").split(",")
    ]


def _records(root: Path, options: SourceOptions) -> Iterator[ScanRecord]:
    table = table_of(root)
    if table is None:
        raise ContainerError("NOT_FOUND", "a table of scans exists", expected=" or ".join(NAMES), path=root)
    rows = read_table(table, ("path", "patient"))
    for number, row in enumerate(rows, 1):
        yield _record(row, number)


def _record(row: Row, number: int) -> ScanRecord:
    path = said(row["path"]).replace("\\", "/")
    labels = {slug: tri_state(row[name]) for name, slug in _SLUG_OF.items() if name in row}
    labels |= {
        name.removeprefix("label:"): tri_state(cell)
        for name, cell in row.items()
        if name.startswith("label:")
    }
    masks = tuple(
        MaskRef(name.removeprefix("mask:"), said(cell).replace("\\", "/"))
        for name, cell in row.items()
        if name.startswith("mask:") and said(cell)
    )
    patient = said(row["patient"])
    return ScanRecord(
        key=said(row.get("key")) or f"{stem(path) or 'row'}-{number:06d}",
        path=path,
        patient=patient if ":" in patient or not patient else f"table:{patient}",
        study=said(row.get("study")),
        series=said(row.get("series")),
        split=said(row.get("split")),
        labels=labels,
        text={name: said(row[name]) for name in SECTIONS if name in row},
        masks=masks,
        broken="" if patient else "the table names no patient",
    )


SOURCE = Source("csv", "a table of scans", "HU, by each file's own header", _detect, _records)
