"""Numbers of images in a row of tokens: one, a range, a list, and what only looks like them.

Source: our own rules.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from hilum.text.snippet_words import (
    ABBREVIATED,
    AND,
    CLOSING,
    COUNTED,
    DASHES,
    FOLLOWS,
    IMAGE,
    IMAGE_WEAK,
    NUMBERED,
    OPENING,
    ORDINAL,
    SERIES,
    SERIES_WEAK,
    TO,
    UNITS,
    Token,
)

MAX_RANGE = 300
"""Images of one range; a longer one points at nothing."""
NOTHING = Token("mark", "", -1, -1)


def inside_brackets(tokens: Sequence[Token]) -> list[int]:
    """For each token the opening bracket around it (closed again), or -1. Brackets themselves count as
    outside."""
    closed: dict[int, int] = {}
    stack: list[int] = []
    for index, token in enumerate(tokens):
        if token.text in OPENING:
            stack.append(index)
        elif token.text in CLOSING and stack:
            closed[stack.pop()] = index
    inside: list[int] = [-1] * len(tokens)
    around: list[int] = []
    for index, token in enumerate(tokens):
        if token.text in CLOSING and around and closed[around[-1]] == index:
            around.pop()
        inside[index] = around[-1] if around else -1
        if index in closed:
            around.append(index)
    return inside


@dataclass(frozen=True)
class Items:
    """Image numbers from a list: `last` is the token they end with."""

    images: tuple[int, ...]
    last: int
    total: int | None = None


class Numbers:
    """Tokens with their brackets, and the lists of image numbers in them. What is not there is None."""

    def __init__(self, tokens: Sequence[Token]) -> None:
        self.tokens = tokens
        self.inside = inside_brackets(tokens)

    def at(self, index: int) -> Token:
        """A token, or an empty mark beyond the ends."""
        return self.tokens[index] if 0 <= index < len(self.tokens) else NOTHING

    def is_series(self, index: int) -> bool:
        """A word for series, short ones included."""
        return self.at(index).text in SERIES or self.at(index).text in SERIES_WEAK

    def is_image(self, index: int) -> bool:
        """A word for image, short ones included."""
        return self.at(index).text in IMAGE or self.at(index).text in IMAGE_WEAK

    def glued(self, index: int) -> bool:
        """True when nothing stands between a token and the one before it."""
        return index > 0 and self.at(index).start == self.at(index - 1).end

    def number_after(self, index: int) -> int | None:
        """The number that belongs to the keyword at `index`: "image 38", "Se. 4", "Bild-Nr.: 38"."""
        at = index + 1
        if [self.at(at + k).text for k in range(3)] == ["(", "s", ")"]:
            at += 3
        for _ in range(5):
            token, before = self.at(at), self.at(at - 1).text
            if token.kind in ("number", "decimal"):
                return at
            dot = token.text == "." and self.glued(at) and before in ABBREVIATED
            dash = token.text in DASHES and self.glued(at) and self.glued(at + 1)
            if not (dot or dash or token.text in (":", "#", "=") or token.text in NUMBERED):
                return None
            at += 1
        return None

    def is_id(self, index: int, low: int = 1) -> bool:
        """A whole number that is no quantity: no unit, no "x 12", no "%" behind it."""
        if not low <= self.at(index).value:
            return False
        after, more = self.at(index + 1), self.at(index + 2)
        if after.text == "ml" and after.capital:
            return True  # "image 124 ML": the middle lobe
        if after.text in UNITS and not (after.text == "s" and self.is_pairable(index + 1)):
            return False
        if after.text in ("x", "×", "*", "mal") and (
            more.kind in ("number", "decimal") or after.text != "mal"
        ):
            return False
        if after.text in ("%", "°", "‰", "'", "′", "$", "€") or (after.text == "_" and self.glued(index + 1)):
            return False
        if after.kind == "word" and self.glued(index + 1):
            return after.text in ("f", "ff") or self.is_image(index + 1) or self.is_series(index + 1)
        if after.text in DASHES and (self.is_image(index + 2) or self.is_series(index + 2)):
            return True
        return not (
            after.text in DASHES and self.glued(index + 1) and more.kind == "word" and self.glued(index + 2)
        )

    def is_pairable(self, index: int) -> bool:
        """A word for series with its number behind it."""
        return self.is_series(index) and self.number_after(index) is not None

    def span(self, index: int) -> Items | None:
        """One number or range from `index`: "38", "38-42", "38 bis Bild 42", "138-42", "38 ff."."""
        low = self.at(index).value
        sep, at = self.at(index + 1), index + 2
        if sep.text in DASHES or sep.text in TO:
            at += self.at(at).text in ("zu", "the", "zum")
            if self.is_image(at):
                at = self.number_after(at) or at
            tight = self.glued(index + 1) and self.glued(at)
            if self.is_id(at):
                high = _upper(low, self.at(at).text, tight or sep.text in TO)
                if high is not None and abs(high - low) > MAX_RANGE:
                    return None
                if high is not None:
                    return Items(tuple(range(min(low, high), max(low, high) + 1)), at)
            elif tight and sep.text in DASHES and self.at(at).kind != "word":
                return None
        last = index
        if sep.text in ("f", "ff"):
            last = index + (2 if self.at(index + 2).text == "." and self.at(index + 3).text in CLOSING else 1)
        return Items((low,), last)

    def items(self, index: int, plural: bool) -> Items | None:
        """A list of image numbers from `index`."""
        token = self.at(index)
        if token.kind == "decimal":
            return self.comma_pair(index) if plural and "," in token.text else None
        if not self.is_id(index) or (first := self.span(index)) is None:
            return None
        images, last = list(first.images), first.last
        total = self.total(last) if len(images) == 1 else None
        if total is not None:
            return Items(tuple(images), total[1], total[0])
        while (at := self.continued(last, images[-1], plural)) is not None:
            more = self.span(at)
            if more is None or not self.may_end(more.last, plural or more.images[0] > images[-1]):
                break
            images += more.images
            last = more.last
            if len(images) > MAX_RANGE:
                break
        return Items(tuple(dict.fromkeys(images)), last)

    def comma_pair(self, index: int) -> Items | None:
        """Two image numbers that the tokenizer took for a decimal: "Bilder 38,41"."""
        low, high = (int(p[:6]) for p in self.at(index).text.split(",", 1))
        if self.at(index + 1).text in UNITS or not 0 < low < high < 100_000:
            return None
        return Items((low, high), index)

    def total(self, last: int) -> tuple[int, int] | None:
        """N and its token in "38 of 240" or "38/240"; neighbours ("38/39") are a list."""
        word, at = self.at(last + 1).text, last + 2
        value, high = self.at(last).value, self.at(at).value
        if word in ("of", "von", "/") and high > value and self.is_id(at):
            return (high, at) if word != "/" or high > value + 3 else None
        return None

    def continued(self, last: int, low: int, plural: bool) -> int | None:
        """The next number of a list, or None."""
        last = self.after_aside(last)
        at, word = last + 1, self.at(last + 1).text
        if word == "/" and low < self.at(at + 1).value <= low + 3 and self.glued(at):
            return at + 1
        if word not in AND and word != ",":
            return None
        at += 1
        if word == "," and self.at(at).text in AND:
            at += 1
        if self.at(at - 1).text == "u" and self.at(at).text == ".":
            at += 1
        if not self.is_id(at) or self.pair_sign(at) is not None:
            return None
        bracketed = self.inside[at] >= 0
        return at if plural or bracketed or self.at(at).value > low else None

    def after_aside(self, last: int) -> int:
        """The token before the rest of a list, past a short bracket without numbers: "38 (RUL), 50 (LUL)"."""
        if self.at(last + 1).text not in OPENING:
            return last
        for end in range(last + 2, last + 8):
            if self.at(end).text in CLOSING:
                return end
            if self.at(end).kind in ("number", "decimal") or self.is_series(end) or self.is_image(end):
                return last
        return last

    def may_end(self, last: int, lists: bool) -> bool:
        """True when what follows a number of a list does not make it a count."""
        after = self.at(last + 1)
        if after.text == "." and self.at(last + 2).text in ORDINAL:
            return False
        if after.kind == "mark" or after.text in AND or after.text in TO or after.text in FOLLOWS:
            return True
        return lists and after.text not in COUNTED and (not after.capital or self.is_series(last + 1))

    def pair_sign(self, index: int) -> str | None:
        """The sign in "4/38" or "4:38" from `index`, or None."""
        sign = self.at(index + 1).text
        return sign if sign in ("/", ":") and self.at(index + 2).kind == "number" else None


def _upper(low: int, text: str, tight: bool) -> int | None:
    """The end of a range: as written, shortened ("138-42" is to 142), or None when it is none."""
    high, start = int(text), str(low)
    if len(text) < len(start) and tight and int(start[: -len(text)] + text) > low:
        high = int(start[: -len(text)] + text)
    return None if high <= low and not tight else high
