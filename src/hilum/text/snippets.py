"""Snippets: pieces of a report that point at an image, with the words, the numbers and where they stand.

    >>> [s.images for s in mine("Nodule in the lingula (Se 4/38), unchanged to the prior CT.")]
    [(38,)]

The way: tokens -> mentions (`snippet_grammar`) -> references by sentence (`snippet_links`) -> which belong to
an earlier study (`snippet_prior`) -> their words (`snippet_clean`). Where an image lies in millimetres is the
business of `hilum.io.dicom_place`. Source: the task is RadFinder's (arXiv 2603.02026), whose rules are not
public; these are our own.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from hilum.text.snippet_clean import AUX, OLD, clean_texts, mark_cues
from hilum.text.snippet_grammar import mentions_of
from hilum.text.snippet_links import Reference, Sentence, sentences_of
from hilum.text.snippet_prior import MASK, cues_of, prior_blocks, prior_flags
from hilum.text.snippet_words import tokens_of

ALL_FROM = re.compile(
    r"\b(?:image numbers?|images?|bilder|bildnummern|bildangaben|nummern)\s(?:[a-zäöüß]{1,20}\s){0,5}?"
    r"(?:refer|relate|correspond|beziehen|bezogen|stammen|aus|from)\s(?:[a-zäöüß]{1,20}\s){0,3}?"
    r"(?:series|serie)\s(?:n(?:r|o)\.?\s|number\s)?([0-9]{1,5})(?=\s?(?:\.(?!\w)|;|\)|\n|$))",
    re.IGNORECASE,
)
"""The report says once which series its image numbers are of."""
RESERVED = str.maketrans({MASK: " ", AUX: " ", OLD: " "})


@dataclass(frozen=True)
class Snippet:
    """One reference to images and what is said there.

    Args:
        text: the clause without references and without words about an earlier study; may be empty.
        series: series number, None when the report names none. images: image numbers, ranges spelled out.
        prior: the images are those of an earlier study: never to be looked for in this one (row E12).
        span: first and last+1 character of the reference in the report.
        sentence: the sentence as it stands. sentence_span: its characters.
        total: N where the report says "image n of N", else None.
    """

    text: str
    series: int | None
    images: tuple[int, ...]
    prior: bool
    span: tuple[int, int]
    sentence: str
    sentence_span: tuple[int, int]
    total: int | None = None

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready. `image` is the first of `images`."""
        return {
            "text": self.text,
            "series": self.series,
            "image": self.images[0],
            "images": list(self.images),
            "prior": self.prior,
            "span": list(self.span),
            "sentence": self.sentence,
            "sentence_span": list(self.sentence_span),
            "total": self.total,
        }


def mine(report: str) -> list[Snippet]:
    """Every reference to images in a report, in order. English and German; never raises.

    Args:
        report: the text, of any length; work grows with its length.
    """
    text = report.translate(RESERVED)
    tokens = tokens_of(text)
    sentences = sentences_of(text, tokens, mentions_of(tokens))
    blocks = prior_blocks(text)
    found = [snippet for sentence in sentences for snippet in _snippets(report, text, sentence, blocks)]
    stated = ALL_FROM.search(text)
    if stated is None:
        return found
    default = int(stated.group(1))
    return [s if s.prior or s.series is not None else replace(s, series=default) for s in found]


def _snippets(report: str, text: str, sentence: Sentence, blocks: Sequence[tuple[int, int]]) -> list[Snippet]:
    masked, places = _mask(text, sentence)
    references = sentence.references
    cues = cues_of(masked)
    flags = prior_flags(masked, cues, places, [r.series for r in references])
    if any(start <= sentence.start < end for start, end in blocks) and all(c.kind != "current" for c in cues):
        flags = [True] * len(flags)
    words = clean_texts(mark_cues(masked, cues), flags)
    return [
        Snippet(
            text=said,
            series=_series(references, flags, at),
            images=reference.images,
            prior=flags[at],
            span=(reference.start, reference.end),
            sentence=report[sentence.start : sentence.end],
            sentence_span=(sentence.start, sentence.end),
            total=reference.total,
        )
        for at, (reference, said) in enumerate(zip(references, words, strict=True))
    ]


def _series(references: Sequence[Reference], flags: Sequence[bool], at: int) -> int | None:
    """A series is not taken over from a reference to another study."""
    lender = references[at].lender
    return None if lender is not None and flags[lender] != flags[at] else references[at].series


def _mask(text: str, sentence: Sentence) -> tuple[str, list[tuple[int, int]]]:
    """The sentence on one line with one `MASK` per reference (`AUX` for a series that stands apart), and
    where the masks are."""
    signs: list[tuple[int, int, str]] = []
    for reference in sentence.references:
        own = (reference.start, reference.end)
        signs += [(*span, MASK if span == own else AUX) for span in reference.spans]
    out: list[str] = []
    at = sentence.start
    for start, end, sign in sorted(signs):
        out += [text[at:start], sign]
        at = max(at, end)
    masked = re.sub(r"\s+", " ", "".join([*out, text[at : sentence.end]]))
    return masked, [m.span() for m in re.finditer(MASK, masked)]
