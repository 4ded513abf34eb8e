"""Report text as it should have been: mojibake, byte order marks, control characters, Unicode normal form
(row E04).

Only what has one reading is repaired. UTF-8 that was read as Windows-1252 or Latin-1 is recognised by its
pairs ("Ã¼" is "ü"): nobody writes such a pair, so there is one reading. A replacement character stands for
letters that are lost: it stays, and is counted as such.
"""

from __future__ import annotations

import re
import unicodedata
from bisect import bisect_left, bisect_right
from dataclasses import dataclass


def _pairs() -> dict[str, str]:
    """Every character of Western European text as it looks after one wrong reading."""
    wanted = [chr(c) for c in range(0xA0, 0x180)] + list("–—‘’‚“”„†‡•…‰‹›€™−×µ≤≥≈")
    found: dict[str, str] = {}
    for right in wanted:
        for codec in ("cp1252", "latin-1"):
            try:
                found.setdefault(right.encode().decode(codec), right)
            except UnicodeDecodeError:
                continue
    return {wrong: right for wrong, right in found.items() if wrong[0] in "ÂÃÄÅâÎ" and len(wrong) > 1}


PAIRS = _pairs()
DAMAGE = re.compile(
    "(?P<pair>" + "|".join(map(re.escape, sorted(PAIRS, key=len, reverse=True))) + ")"
    r"|(?P<escape>_x000[dD]_\n?)|(?P<bom>\ufeff)|(?P<control>[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x84\x86-\x9f]+)"
    r"|(?P<compose>[^\W\d_][\u0300-\u036f]+)"
)  # fmt: skip
LOST = "\ufffd"


@dataclass(frozen=True)
class Repaired:
    """A text after repair.

    Args:
        text: it. mojibake: wrong readings put right. removed: control characters and marks taken out.
        lost: replacement characters that stay.
        steps: (character here, character in the original) before and behind every repair.
    """

    text: str
    mojibake: int = 0
    removed: int = 0
    lost: int = 0
    steps: tuple[tuple[int, int], ...] = ((0, 0),)

    @property
    def changed(self) -> bool:
        """Whether anything was repaired."""
        return bool(self.mojibake or self.removed)

    def original(self, span: tuple[int, int]) -> tuple[int, int]:
        """The characters of the original text that a span of this one came from."""
        first = self._back(span[0], bisect_right(self.steps, span[0], key=_here) - 1)
        if span[1] <= span[0]:
            return first, first
        # What was put right belongs to the span whole; what was taken out right behind it does not.
        at = bisect_left(self.steps, span[1], key=_here)
        exact = at < len(self.steps) and self.steps[at][0] == span[1]
        return first, self._back(span[1], at if exact else at - 1)

    def _back(self, position: int, step: int) -> int:
        here, there = self.steps[step]
        return there + position - here


def _here(step: tuple[int, int]) -> int:
    return step[0]


def repair_text(text: str) -> Repaired:
    """The text with what has one reading repaired. Never raises; work grows with the length.

    Args:
        text: as stored.
    """
    out: list[str] = []
    steps, length, done = [(0, 0)], 0, 0
    counts = {"pair": 0, "removed": 0}
    for match in DAMAGE.finditer(text):
        right = _right(match)
        if right == match.group():
            continue
        out += [text[done : match.start()], right]
        length += match.start() - done
        steps.append((length, match.start()))
        length, done = length + len(right), match.end()
        steps.append((length, done))
        if match.lastgroup == "pair":
            counts["pair"] += 1
        elif match.lastgroup != "compose":
            counts["removed"] += 1
    out.append(text[done:])
    whole = "".join(out)
    return Repaired(whole, counts["pair"], counts["removed"], whole.count(LOST), tuple(steps))


def _right(match: re.Match[str]) -> str:
    kind, found = match.lastgroup, match.group()
    if kind == "pair":
        return PAIRS[found]
    if kind == "escape":
        return "\n"
    if kind == "compose":
        return unicodedata.normalize("NFC", found)
    return ""
