"""Laws of the miner over arbitrary text: it never raises, its spans are true, and work grows with length."""

from __future__ import annotations

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hilum.text.snippet_prior import MASK
from hilum.text.snippets import mine

PIECES = st.sampled_from(
    ["series ", "Se", "image ", "Bild ", "IMA", "im ", "S", "B", "4", "38", "38-42", ", ", "/", ":",
     "(", ")", "[", "]", " and ", " bis ", ". ", "\n", "VU ", "prior CT ", "12.03.2015", "since ", "mm ",
     "Nodule ", "unchanged ", ";",
     "currently ", "of ", MASK, "0", "99999999999999999999", "٣", "ß", "\x00"]
)  # fmt: skip


def laws(text: str) -> None:
    last = -1
    for snippet in mine(text):
        start, end = snippet.span
        assert 0 <= start < end <= len(text) and start >= last
        assert text[slice(*snippet.sentence_span)] == snippet.sentence
        assert snippet.images and all(0 < n < 100_000 for n in snippet.images)
        assert snippet.series is None or 0 <= snippet.series < 100_000
        assert MASK not in snippet.text and "\n" not in snippet.text
        last = start


@given(st.text(max_size=400))
@settings(max_examples=300, deadline=None)
def test_arbitrary_text_never_raises(text: str) -> None:
    laws(text)


@given(st.lists(PIECES, max_size=60).map("".join))
@settings(max_examples=600, deadline=None)
def test_pieces_of_references_in_any_order_never_raise(text: str) -> None:
    laws(text)


@given(st.integers(0, 999), st.integers(1, 9999))
@settings(max_examples=100, deadline=None)
def test_any_pair_of_numbers_is_read(series: int, image: int) -> None:
    for form in ("(series {}, image {})", "(Se {}/{})", "(Serie {} Bild {})", "(Se{} Im{})"):
        (snippet,) = mine("Nodule " + form.format(series, image) + ".")
        assert (snippet.series, snippet.images, snippet.text) == (series, (image,), "Nodule")


UNITS = {
    "pairs": "(4:38) ", "open": "(", "close": ")", "prior": "prior ", "digits": "1", "commas": "1,",
    "images": "image 1, ", "numbers": "images 1, 2 and 3", "dashes": "-2", "spaces": " ", "vu": "VU Se 3/20 ",
    "letters": "a", "dates": "12.03.2015 ", "dots": ".", "dated": "CT of ", "nested": "(series 4 ",
    "lines": "\n",    "headings": "Comparison:\n", "was": ", was ", "compared": "compared with the ",
    "asides": "(a), 2 ",
    "seen": "best seen on ", "this": "this is ", "and": "and ",
}  # fmt: skip


@pytest.mark.parametrize("unit", UNITS.values(), ids=UNITS.keys())
def test_long_texts_take_time_in_proportion(unit: str) -> None:
    text = "images 1" + unit * (20_000 // len(unit)) + " series 4, image 38"
    start = time.process_time()
    mine(text)
    assert time.process_time() - start < 6.0
