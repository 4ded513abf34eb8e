"""Sections of a report: findings, impression, technique, history, comparison; English and German.

A heading stands at the start of a line or after a full stop, with a colon or alone on its line. What stands
before the first heading is the body. Columns of a table are sections by their names: CT-RATE's Findings_EN,
Impressions_EN, ClinicalInformation_EN and Technique_EN, Merlin's Findings, INSPECT's impressions.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

SILENT = frozenset({"technique", "history", "comparison"})
"""Sections that say nothing about what this scan shows."""

NAMES = {
    "findings": r"findings?|report|observations?|description|befund(?:e|ung|text)?|(?:ct )?thorax befund",
    "impression": (
        r"impressions?|conclusions?|summary|opinion|diagnos[ie]s|assessment|results?|interpretation|"
        r"(?:zusammenfassende )?beurteilung|(?:gesamt)?beurteilung|zusammenfassung|fazit|schlussfolgerung"
    ),
    "technique": (
        r"techniques?|procedures?|protocol|examination|exam|method|scan parameters|study|"
        r"(?:ct |untersuchungs)?technik|methodi?k?e?|(?:durchgeführte )?untersuchung|protokoll"
    ),
    "history": (
        r"(?:clinical |patient |medical )?(?:history|information|indications?|details|data|background|"
        r"question)|reason for (?:exam(?:ination)?|study|scan|referral)|anamnese|vorgeschichte|"
        r"überweisungsgrund|klinik|angaben zur klinik|fragestellung|"
        r"klinische (?:angaben?|informationen?|fragestellung|daten)|(?:rechtfertigende )?indikation(?:en)?"
    ),
    "comparison": (
        r"comparisons?(?: studies)?|compared (?:to|with)|(?:prior|previous) (?:studies|exams?|imaging)|"
        r"(?:zum )?vergleich(?:suntersuchung(?:en)?)?|voruntersuchung(?:en)?|voraufnahmen?|vorbefunde?"
    ),
}
"""Kind of section -> its headings."""
KINDS = tuple(NAMES)
HEADING = re.compile(
    r"(?:^|\n|(?<=[.!?])\s)[ \t*#]*(?:"
    + "|".join(f"(?P<{kind}>{names})" for kind, names in NAMES.items())
    + r")[ \t]*(?:\([^()\n]{0,40}\))?[ \t*]*(?::|(?=\r?\n)|\n[-=]{3,})",
    re.IGNORECASE,
)
COLUMN = re.compile(
    r"(?:(?P<impression>impressions?|beurteilung|conclusions?)|"
    r"(?P<history>clinical_?information|history|indications?|anamnese)|(?P<technique>techniques?|technik)|"
    r"(?P<comparison>comparisons?|vergleich)|(?P<findings>(?:report_)?findings?|befunde?))(?:_(?:en|de|text))?",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Section:
    """A part of a report.

    Args:
        kind: of `KINDS`, or "" for the body before any heading.
        start: first character, of the heading where there is one. body: first behind it. end: last+1.
    """

    kind: str
    start: int
    body: int
    end: int

    def text(self, report: str) -> str:
        """What stands in it, without its heading."""
        return report[self.body : self.end].strip()


def sections_of(report: str) -> list[Section]:
    """The sections of a report, in order; together they hold all of it but white space. Never raises."""
    found = []
    for match in HEADING.finditer(report):
        kind = next(k for k in KINDS if match.group(k) is not None)
        found.append((kind, match.start(kind), match.end()))
    if not found:
        return [Section("", 0, 0, len(report))]
    body = [Section("", 0, 0, found[0][1])] if report[: found[0][1]].strip() else []
    ends = [*(start for _, start, _ in found[1:]), len(report)]
    return body + [Section(*place, end) for place, end in zip(found, ends, strict=True)]


def kind_of_column(name: str) -> str:
    """The section that a table's column holds, "" for a whole report or an unknown name."""
    match = COLUMN.fullmatch(name.strip())
    return (match.lastgroup or "") if match else ""
