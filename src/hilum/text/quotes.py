"""Whether words stand in a report, and where: letter case, white space and the kind of dash do not count.

A quote begins and ends with a word: "normal" is not in "abnormal".
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from functools import cached_property

MIN_LETTERS = 3
RULER = "---"
"""The line between two cells of a row; no quote goes across."""
MAX_PLACES = 200
MAX_QUOTE = 400
"""Characters. The whole report says everything and shows nothing."""

_SAME = str.maketrans(
    dict.fromkeys("‐‑‒–—―−", "-") | dict.fromkeys("‘’‚′`´", "'") | dict.fromkeys("“”„«»″", '"')
)
_SIZE = re.compile(
    r"(?<![\w.,])(\d{1,4}(?:[.,]\d{1,3})?"
    r"(?:\s{0,3}(?:mm|cm)?\s{0,3}(?:x|×|\*|by|mal|-|to|bis)\s{0,3}\d{1,4}(?:[.,]\d{1,3})?){0,3})"
    r"\s{0,3}-?\s{0,3}(mm|cm|millimet\w{0,4}|centimet\w{0,4}|zentimet\w{0,4})(?!\w)",
    re.IGNORECASE,
)
_NUMBER = re.compile(r"\d{1,4}(?:[.,]\d{1,3})?")
_DENIED_BEFORE = re.compile(
    r"(?<!\w)(?:no|not|without|kein\w{0,2}|ohne)\s{1,3}(?:[^.:;\n]{1,50}\s(?:or|nor|oder)\s{1,3})?$",
    re.IGNORECASE,
)
"""Right before, or before the first of several: "no mass or nodule"."""
_DENIED_BEHIND = re.compile(
    r"(?:[-/]\w{1,20})?\s{1,3}(?:\w{1,12}\s{1,3}){0,2}(?:not|nicht|absent)(?!\w)", re.IGNORECASE
)


class Quotable:
    """A report made ready to be searched for quotes.

    Args:
        text: the report as stored; spans count its characters.
    """

    def __init__(self, text: str) -> None:
        self.text = text

    @cached_property
    def _folded(self) -> tuple[str, list[int]]:
        return _fold(self.text)

    def find(self, quote: str) -> tuple[int, int] | None:
        """First and last+1 character of the first place where `quote` stands, None where it does not."""
        return next(self.places(quote), None)

    def places(self, quote: str) -> Iterator[tuple[int, int]]:
        """The places where `quote` stands, `MAX_PLACES` looked at; none for too short or too long a quote."""
        wanted = _fold(quote)[0].strip().strip("\"'").strip()
        if len(wanted) > MAX_QUOTE or sum(c.isalnum() for c in wanted) < MIN_LETTERS or RULER in wanted:
            return
        folded, origin = self._folded
        at = folded.find(wanted)
        for _ in range(MAX_PLACES):
            if at < 0:
                return
            end = at + len(wanted)
            if _edge(folded, at) and _edge(folded, end):
                yield origin[at], origin[end - 1] + 1
            at = folded.find(wanted, at + 1)

    def denied(self, span: tuple[int, int]) -> bool:
        """The report takes back what a quote says, in words right before or behind that were left out."""
        before, behind = self.text[max(0, span[0] - 60) : span[0]], self.text[span[1] : span[1] + 60]
        return bool(_DENIED_BEFORE.search(before) or _DENIED_BEHIND.match(behind))


def sizes_mm(text: str) -> tuple[float, ...]:
    """Every size in mm that stands in a text: "12 x 8 mm" gives 12 and 8, "1,2 cm" gives 12."""
    found: list[float] = []
    for numbers, unit in _SIZE.findall(text):
        factor = 1.0 if unit.lower().startswith("m") else 10.0
        found += [round(float(n.replace(",", ".")) * factor, 3) for n in _NUMBER.findall(numbers)]
    return tuple(found)


def _edge(text: str, at: int) -> bool:
    """No word goes on across `at`."""
    return at in (0, len(text)) or not (_in_word(text[at - 1]) and _in_word(text[at]))


def _in_word(char: str) -> bool:
    return char.isalnum() or unicodedata.combining(char) > 0


def _fold(text: str) -> tuple[str, list[int]]:
    """The text as it is compared, and for each of its characters the place in the original."""
    folded: list[str] = []
    places: list[int] = []
    for place, char in enumerate(text):
        plain = " " if char.isspace() else unicodedata.normalize("NFKD", char.translate(_SAME)).casefold()
        if plain == " " and folded and folded[-1] == " ":
            continue
        folded += plain
        places += [place] * len(plain)
    return "".join(folded), places
