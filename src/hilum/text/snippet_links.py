"""Mentions -> references: which image belongs to which series.

An image takes the series named right behind it ("image 38 of series 4"), else the last one named before it in
the same sentence. Source: our own rules.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from hilum.text.sentences import sentence_ends
from hilum.text.snippet_grammar import SEVERAL, Mention
from hilum.text.snippet_numbers import inside_brackets
from hilum.text.snippet_words import AND, CLOSING, DASHES, OPENING, Token, words_of

MARKS = frozenset({",", "(", "[", "/", ";", ":"}) | DASHES
PREPOSITIONS = frozenset({"of", "in", "on", "from", "der", "des", "von", "aus", "auf", "to", "zu"})
PASSED = words_of(
    "the dem den die das at axial axiale axialer coronal sagittal koronar sagittale lung soft "
    "tissue bone window lungenfenster weichteilfenster knochenfenster kernel "
    "current present aktuellen aktueller im mit with image "
    "images number"
)
"""Words that may stand between an image and its series."""


@dataclass(frozen=True)
class Reference:
    """Where a sentence points at images.

    Args:
        series: number or None. images: numbers. total: N of "image n of N".
        start, end: of the reference in the report. spans: all characters that belong to it.
        lender: place in its sentence's list of the reference whose series it took over, or None.
    """

    series: int | None
    images: tuple[int, ...]
    total: int | None
    start: int
    end: int
    spans: tuple[tuple[int, int], ...]
    lender: int | None = None


@dataclass(frozen=True)
class Sentence:
    """A sentence of the report and its references, in order. `start` and `end` are characters."""

    start: int
    end: int
    references: tuple[Reference, ...]


def sentences_of(text: str, tokens: Sequence[Token], mentions: Sequence[Mention]) -> list[Sentence]:
    """The sentences that point at images; the others are left out."""
    inside = inside_brackets(tokens)
    number_ends = frozenset(m.last for m in mentions)
    sentences: list[Sentence] = []
    first, upcoming = 0, 0
    for index in sentence_ends(text, tokens, number_ends):
        held: list[Mention] = []
        while upcoming < len(mentions) and mentions[upcoming].first <= index:
            held.append(mentions[upcoming])
            upcoming += 1
        if any(m.images for m in held):
            found = tuple(_Linker(tokens, held, inside).run())
            sentences.append(Sentence(tokens[first].start, tokens[index].end, found))
        first = index + 1
    return sentences


class _Linker:
    """References of one sentence."""

    def __init__(self, tokens: Sequence[Token], mentions: Sequence[Mention], inside: Sequence[int]) -> None:
        self.tokens, self.mentions, self.inside = tokens, mentions, inside
        self.behind: list[int | None] = [None] * len(mentions)
        for at in reversed(range(len(mentions))):
            self.behind[at] = self.series_behind(at)

    def between(self, a: int, b: int) -> list[str]:
        """Words and marks between two mentions."""
        return [t.text for t in self.tokens[self.mentions[a].last + 1 : self.mentions[b].first]]

    def joined(self, a: int, b: int, limit: int = 5) -> bool:
        """True when two mentions are parts of one reference."""
        words = self.between(a, b)
        return len(words) <= limit and all(w in MARKS or w in PREPOSITIONS or w in PASSED for w in words)

    def series_behind(self, at: int) -> int | None:
        """The mention of a series right behind an image, or behind the last image of its row."""
        mention, after = self.mentions[at], at + 1
        if mention.series is not None or after >= len(self.mentions):
            return None
        other = self.mentions[after]
        if other.series is None:
            words = self.between(at, after)
            return self.behind[after] if words and all(w in AND or w == "," for w in words) else None
        if other.images or not self.joined(at, after):
            return None
        if any(word in PREPOSITIONS for word in self.between(at, after)):
            return after
        has_own = after + 1 < len(self.mentions) and self.mentions[after + 1].series is None
        return None if has_own and self.joined(after, after + 1, limit=2) else after

    def series_in_bracket(self, at: int) -> int | None:
        """A series alone further on in the same bracket: "(Bild 38, 5 mm, Serie 4)"."""
        after = at + 1
        if after >= len(self.mentions) or self.mentions[after].images:
            return None
        a, b = self.inside[self.mentions[at].first], self.inside[self.mentions[after].first]
        return after if a == b >= 0 else None

    def run(self) -> list[Reference]:
        """Every mention of images, with its series."""
        found: list[Reference] = []
        lender: int | None = None  # reference, or -1 - mention of a series alone
        used: set[int] = set()
        for at, mention in enumerate(self.mentions):
            if not mention.images:
                lender = -1 - at
                continue
            parts, series, borrowed = [at], mention.series, None
            behind = self.behind[at]
            if series is None and behind is None and lender is None:
                behind = self.series_in_bracket(at)
            if series is None and behind is not None:
                parts, series = [at, behind], self.mentions[behind].series
            elif series is None and lender is not None:
                if lender < 0:
                    parts, series = [-1 - lender, at], self.mentions[-1 - lender].series
                else:
                    series, borrowed = found[lender].series, lender
            start, end, spans = self.spans([p for p in parts if p not in used])
            used.update(parts)
            if series is not None:
                lender = len(found)
            series = None if series == SEVERAL else series
            found.append(Reference(series, mention.images, mention.total, start, end, spans, borrowed))
        return found

    def spans(self, parts: Sequence[int]) -> tuple[int, int, tuple[tuple[int, int], ...]]:
        """Start and end of the reference (series and image when they stand together, else the image), and all
        spans."""
        pieces = [self.piece(p, p) for p in parts]
        if len(parts) == 2 and parts[1] == parts[0] + 1 and self.joined(*parts):
            pieces = [self.piece(parts[0], parts[1])]
        place = next((p for p, m in zip(pieces, parts, strict=False) if self.mentions[m].images), pieces[-1])
        return (*place, tuple(pieces))

    def piece(self, a: int, b: int) -> tuple[int, int]:
        """Characters from mention a to mention b; a bracket that opens in between is closed."""
        first, last = self.mentions[a].first, self.mentions[b].last
        texts = [t.text for t in self.tokens[first : last + 1]]
        opened = sum(t in OPENING for t in texts) - sum(t in CLOSING for t in texts)
        after = self.tokens[last + 1] if last + 1 < len(self.tokens) else None
        if opened > 0 and after is not None and after.text in CLOSING:
            return self.tokens[first].start, after.end
        return self.tokens[first].start, self.tokens[last].end
