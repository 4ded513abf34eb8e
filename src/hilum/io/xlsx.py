"""The first sheet of an XLSX workbook as text (Merlin's reports come as one).

ECMA-376 part 1: a zip with `xl/worksheets/sheet1.xml`, whose cells hold numbers, inline text or an index into
`xl/sharedStrings.xml`. Formulas are not run: a cell gives the value that was saved.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from hilum.errors import ContainerError
from hilum.io.archive import Member, open_archive
from hilum.io.limits import Limits
from hilum.io.safe_xml import Element, parse_xml

SHARED, SHEETS = "xl/sharedStrings.xml", "xl/worksheets/"
MAX_COLUMNS = 16_384


def read_sheet(path: str | Path) -> list[list[str]]:
    """Rows of the first worksheet, each as long as its last cell; empty cells are "".

    Raises:
        ContainerError: `NOT_FOUND`, rows of archives, `XML_DANGEROUS`, `NOT_AN_IMAGE` when there is no sheet.
    """
    try:
        with open_archive(path, Limits()) as members:
            held = {m.label: m for m in members}
            sheets = sorted((n for n in held if n.startswith(SHEETS) and n.endswith(".xml")), key=_natural)
            if not sheets:
                raise ContainerError(
                    "NOT_AN_IMAGE", "a workbook has a sheet", got=sorted(held)[:5], path=path
                )
            shared = _shared(held[SHARED]) if SHARED in held else []
            sheet = _parse(held[sheets[0]])
    except OSError as error:
        got = error.strerror or type(error).__name__
        raise ContainerError("NOT_FOUND", "the input exists and can be read", got=got, path=path) from error
    data = sheet.find("sheetData")
    return [_row(row, shared) for row in (data.all("row") if data else [])]


def _natural(name: str) -> tuple[int, str]:
    return len(name), name


def _parse(member: Member) -> Element:
    return parse_xml(member.read(), member.label)


def _shared(member: Member) -> list[str]:
    return ["".join(_runs(item)) for item in _parse(member).all("si")]


def _runs(item: Element) -> Iterator[str]:
    """The text of a string: plain, or in runs of formatting; phonetic hints are left out."""
    for child in item.children:
        if child.name == "t":
            yield child.text
        elif child.name == "r":
            yield from (t.text for t in child.all("t"))


def _row(row: Element, shared: list[str]) -> list[str]:
    cells: dict[int, str] = {}
    for position, cell in enumerate(row.all("c")):
        at = _column(cell.attributes.get("r", "")) if "r" in cell.attributes else position
        if 0 <= at < MAX_COLUMNS:
            cells[at] = _value(cell, shared)
    return [cells.get(i, "") for i in range(max(cells, default=-1) + 1)]


def _column(reference: str) -> int:
    """``B7`` -> 1."""
    number = 0
    for letter in reference:
        if not letter.isalpha():
            break
        number = number * 26 + ord(letter.upper()) - ord("A") + 1
    return number - 1


def _value(cell: Element, shared: list[str]) -> str:
    kind, value = cell.attributes.get("t", "n"), cell.word("v")
    if kind == "inlineStr":
        inline = cell.find("is")
        return "".join(_runs(inline)) if inline else ""
    if kind == "s":
        return shared[int(value)] if value.isdigit() and int(value) < len(shared) else ""
    return value
