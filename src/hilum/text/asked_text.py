"""A row of a table as the one text that a model is asked about, and the way back into its cells.

Cells are repaired as far as that has one reading, and joined with a line between them that no quote crosses.
"""

from __future__ import annotations

from dataclasses import dataclass

from hilum.io.report_table import NOTHING, TableReport
from hilum.text.quotes import RULER
from hilum.text.repair import Repaired, repair_text

JOIN = f"\n\n{RULER}\n\n"


@dataclass(frozen=True)
class AskedText:
    """What is sent of a report.

    Args:
        text: it. parts: (column, first character in `text`, the cell after its repair).
    """

    text: str
    parts: tuple[tuple[str, int, Repaired], ...]

    def cell_of(self, span: tuple[int, int]) -> tuple[str, str, tuple[int, int]]:
        """The column and the words of a span of `text`, and the characters of the cell as stored."""
        column, start, cell = next(p for p in reversed(self.parts) if p[1] <= span[0])
        last = min(span[1] - start, len(cell.text))
        first = min(span[0] - start, last)
        return column, cell.text[first:last], cell.original((first, last))


def asked_text(report: TableReport) -> AskedText:
    """The text of a row; "" for one that is refused or says nothing."""
    parts: list[tuple[str, int, Repaired]] = []
    text = ""
    for column, stored in () if report.refused else report.parts:
        cell = repair_text(stored)
        if " ".join(cell.text.split()).lower() in NOTHING:
            continue
        text += JOIN if parts else ""
        parts.append((column, len(text), cell))
        text += cell.text
    return AskedText(text, tuple(parts))
