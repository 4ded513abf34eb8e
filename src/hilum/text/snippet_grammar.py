"""Report text -> mentions of series and images, by one pass over its tokens.

A mention is "series 4", "images 38, 41 and 50" or both at once ("Se 4/38", "(4:38)"). Which image belongs to
which series is decided in `snippet_links`. Source: our own rules.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from hilum.text.snippet_numbers import Items, Numbers
from hilum.text.snippet_words import (
    AND,
    CLOSING,
    COUNTABLE,
    COUNTING,
    DASHES,
    EARLIER,
    IMAGE_WEAK,
    NOT_PLACES,
    OPENING,
    PLURAL,
    SEE,
    SERIES,
    SERIES_WEAK,
    Token,
)

SEVERAL = -1
"""Stands for the series of "series 3 and 4": which one is not said."""


@dataclass(frozen=True)
class Mention:
    """Numbers of a series, of images, or of both.

    Args:
        series: its number, `SEVERAL`, or None for images alone. images: numbers in the order written,
            ranges spelled out; empty for a series alone. total: N of "image n of N". first, last: tokens.
    """

    series: int | None
    images: tuple[int, ...]
    total: int | None
    first: int
    last: int


def mentions_of(tokens: Sequence[Token]) -> list[Mention]:
    """Every mention, in order. Never raises, whatever the text."""
    return _Scan(tokens).run()


class _Scan(Numbers):
    """One pass. Methods that look for something return None when it is not there."""

    def __init__(self, tokens: Sequence[Token]) -> None:
        super().__init__(tokens)
        self.found: list[Mention] = []
        self.slash_means_place = any(
            self.is_series(i) and self.at(i + 1).text == "/" and self.is_image(i + 2)
            for i in range(len(tokens))
        )

    def run(self) -> list[Mention]:
        """All mentions."""
        index = 0
        while index < len(self.tokens):
            kind = self.tokens[index].kind
            found = None
            if kind == "word":
                found = self.both_words(index) or self.series(index) or self.image(index)
            elif kind == "number":
                found = self.next_pair(index) or self.bare(index)
            if found is None:
                index += 1
                continue
            self.found.append(found)
            index = found.last + 1
        return self.found

    def both_words(self, index: int) -> Mention | None:
        """ "series/image 4/38"."""
        if not (self.is_series(index) and self.at(index + 1).text == "/" and self.is_image(index + 2)):
            return None
        at = self.number_after(index + 2 + (self.at(index + 3).text in CLOSING))
        if at is None or self.pair_sign(at) is None or not self.is_id(at, low=0):
            return None
        items = self.items(at + 2, plural=False)
        if items is None:
            return None
        return Mention(self.at(at).value, items.images, None, index, items.last)

    def series(self, index: int) -> Mention | None:
        """ "series 4", "Se 4/38", "series 4 #38", "4. Serie"."""
        word = self.at(index).text
        if not self.is_series(index) or (word == "se" and self.at(index - 1).text == "per"):
            return None
        weak, at = word in SERIES_WEAK, self.number_after(index)
        if at is None and not weak and self.is_ordinal(index - 2):
            return Mention(self.at(index - 2).value, (), None, index - 2, index)
        if at is None or not self.is_id(at, low=0):
            return None
        pair = self.pair_from(at, weak)
        if pair is not None:
            return Mention(self.at(at).value, pair.images, None, index, pair.last)
        if weak and not self.short_image_follows(at):
            return None
        if self.at(at + 1).text in AND and self.is_id(at + 2, low=0) and self.pair_sign(at + 2) is None:
            return Mention(SEVERAL, (), None, index, at + 2)
        return Mention(self.at(at).value, (), None, index, at)

    def is_ordinal(self, index: int) -> bool:
        """ "der 4." or "the 4th", not the end of a sentence."""
        glued = self.at(index).value >= 0 and self.glued(index + 1)
        after = self.at(index + 1).text in (".", "th", "rd", "nd", "st")
        return glued and after and self.at(index - 1).text in ("der", "die", "den", "in", "the", "of", "zur")

    def pair_from(self, at: int, weak: bool) -> Items | None:
        """Images that follow a series number without a word of their own."""
        sign = self.at(at + 1).text
        if sign in ("/", ":") and self.at(at + 2).kind in ("number", "decimal"):
            items = self.items(at + 2, plural=not weak)
            if items is None or not (sign == "/" or self.glued(at + 2) or self.ends(items.last)):
                return None
            safe = self.inside[at] >= 0 and self.glued(at + 1) and min(items.images) > 10
            return items if safe or not weak else None
        if weak:
            return None
        start = at + 1 + (sign == ",")
        if self.at(start).text == "#" or self.at(start).text in ("nr", "no"):
            number = self.number_after(start) if self.at(start).text != "#" else start + 1
            return self.items(number, plural=False) if number is not None else None
        return None

    def ends(self, last: int) -> bool:
        """True when a clause or bracket ends behind a token."""
        after = self.at(last + 1)
        return after.text in CLOSING or after.text in ("", ",", ";", ".")

    def short_image_follows(self, at: int) -> bool:
        """ "S 4 B 38": a word for image with a number right behind the series number."""
        start = at + 1 + (self.at(at + 1).text in (",", "/", ":", ";") or self.at(at + 1).text in DASHES)
        return self.is_image(start) and self.number_after(start) is not None

    def image(self, index: int) -> Mention | None:
        """ "image 38", "Bilder 38 bis 42", and the short words where nothing else can be meant."""
        word = self.at(index).text
        if not self.is_image(index) or self.is_count(index):
            return None
        at = self.number_after(index)
        if at is None:
            return None
        items = self.items(at, plural=word in PLURAL or self.inside[index] >= 0)
        amount = word in COUNTABLE and self.at(index + 1).text == ":" and self.inside[index] < 0
        if amount and items is not None and len(items.images) == 1:
            return None
        if items is None or (word in IMAGE_WEAK and not self.short_is_meant(index, items.last)):
            return None
        return Mention(None, items.images, items.total, index, items.last)

    def is_count(self, index: int) -> bool:
        """ "number of images: 438"."""
        for back in (1, 2, 3):
            if self.at(index - back).kind != "word":
                return False
            if self.at(index - back).text in COUNTING:
                return True
        return False

    def short_is_meant(self, index: int, last: int) -> bool:
        """A short word counts right behind a series, right before one, or ("Im 38") alone in brackets."""
        if self.found and not self.found[-1].images and self.near(self.found[-1].last, index):
            return True
        after = last + 1 + (self.at(last + 1).text in (",", "/", ";", ":"))
        if self.inside[index] < 0:
            return False
        if self.at(after).text in SERIES or (self.is_series(after) and self.number_after(after) == after + 1):
            return self.number_after(after) is not None
        alone = (
            self.at(index - 1).text in OPENING
            or self.at(index - 1).text in (",", ";")
            or self.is_see(index - 1)
        )
        return self.at(index).text == "im" and alone and self.ends(last)

    def near(self, last: int, index: int) -> bool:
        """True when at most a comma, a slash or the like stands between two tokens."""
        return index == last + 1 or (index == last + 2 and self.at(last + 1).kind == "mark")

    def is_see(self, index: int) -> bool:
        """ "see", "siehe", "s."."""
        word = self.at(index - 1 if self.at(index).text == "." else index).text
        return word in SEE

    def next_pair(self, index: int) -> Mention | None:
        """A further pair after one: "Se 4/38 and 5/61"."""
        before = self.found[-1] if self.found else None
        if before is None or before.series is None or not before.images:
            return None
        between = [self.at(k).text for k in range(before.last + 1, min(index, before.last + 5))]
        links = [b in AND or b in EARLIER or b in (",", ";", ":", ".", "-") for b in between]
        if index > before.last + 4 or not between or not all(links):
            return None
        if self.inside[index] != self.inside[before.last]:
            return None
        return self.plain_pair(index)

    def plain_pair(self, index: int) -> Mention | None:
        """Numbers alone: "4:38", "4/38-42"."""
        if self.pair_sign(index) is None or not self.is_id(index, low=0) or not self.glued(index + 1):
            return None
        items = self.items(index + 2, plural=False) if self.glued(index + 2) else None
        if items is None or not self.may_end(items.last, lists=False):
            return None
        return Mention(self.at(index).value, items.images, None, index, items.last)

    def bare(self, index: int) -> Mention | None:
        """ "(4:38)": a pair alone in brackets or after "see"; with a slash only where the report says so."""
        sign = self.pair_sign(index)
        if sign is None or (sign == "/" and not self.slash_means_place):
            return None
        opened = self.inside[index]
        before = self.at(index - 1)
        see, comma = self.is_see(index - 1), before.text in (",", ";")
        if not (see or comma or before.text in OPENING) or self.is_ratio(index, opened):
            return None
        pair = self.plain_pair(index)
        return pair if pair is not None and (see or self.ends(pair.last)) else None

    def is_ratio(self, index: int, opened: int) -> bool:
        """A ratio, a dilution or a time of day."""
        low, high = self.at(index), self.at(index + 2)
        if low.text.startswith("0") or (high.text.startswith("0") and len(high.text) != 2):
            return True
        if low.value == 1 and (high.value <= 5 or high.value in (10, 20, 50, 100, 1000, 10000)):
            return True
        start = opened if opened >= 0 else index
        around = [self.at(k).text for k in (*range(start - 4, start), index - 1, index + 3)]
        return any(word in NOT_PLACES for word in around)
