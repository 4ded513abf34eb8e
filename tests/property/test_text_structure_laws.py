"""Laws of reading a reply: whatever is said, what counts is borne out, and what is not is refused by us."""

from __future__ import annotations

import json
from contextlib import suppress
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from hilum.io.report_table import TableReport
from hilum.text.asked_text import asked_text
from hilum.text.questions import load_bank
from hilum.text.quotes import RULER, Quotable
from hilum.text.repair import repair_text
from hilum.text.reply_json import NoReply
from hilum.text.structure import Structured, as_payload, from_payload, read_reply

BANK = load_bank()
IDS = [item.id for item in BANK.items]
ITEMS = {item.id: item for item in BANK.items}
REPORT = (
    "Nodule of 1.2 x 0.8 cm in the right upper lobe.\r\n"
    "\tNo pleural effusion; Gefa\u0308ßwand “verkalkt”, 5–6 mm."
)

ANY = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
PIECES = st.builds(lambda a, b: REPORT[min(a, b) : max(a, b)], st.integers(0, 120), st.integers(0, 120))
VALUES = st.sampled_from(["yes", "no", "unknown", "right", "both", "mild", "new", 12, 8.0, "5 mm"]) | ANY
ANSWERS = st.fixed_dictionaries(
    {"id": st.sampled_from(IDS) | st.text(max_size=20), "answer": VALUES, "quote": PIECES | st.text() | ANY}
)


def well_founded(found: Structured) -> None:
    for name, answer in found.answers.items():
        item, (first, last) = ITEMS[name], answer.span
        assert 0 <= first < last <= len(REPORT)
        if item.kind == "size_mm":
            assert answer.value in (12.0, 8.0, 5.0, 6.0)
        else:
            values = answer.value if isinstance(answer.value, tuple) else (answer.value,)
            assert values and set(values) <= set(item.choices)
        assert item.of is None or found.answers[item.of].value == "yes"
    assert all(number > 0 for number in found.dropped.values())
    kept = json.loads(json.dumps(as_payload(found), allow_nan=False))
    assert from_payload(BANK.items, REPORT, kept) == found


@settings(max_examples=300, deadline=None)
@given(st.lists(ANSWERS | ANY, max_size=12))
def test_whatever_is_answered_only_what_is_borne_out_counts(answers: list[Any]) -> None:
    try:
        found = read_reply(BANK.items, REPORT, json.dumps({"answers": answers}))
    except NoReply:
        return
    well_founded(found)
    given = sum(isinstance(a, dict) for a in answers)
    assert len(found.answers) <= given and sum(found.dropped.values()) <= len(answers)


@settings(max_examples=300, deadline=None)
@given(st.text() | st.text(alphabet='{}[]":,\\ answersNaN019.eE-'))
def test_whatever_is_said_is_read_or_refused(text: str) -> None:
    for said in (text, '{"answers": [' + text, '{"answers": []}' + text):
        with suppress(NoReply):
            well_founded(read_reply(BANK.items, REPORT, said))


PARTS = st.lists(
    st.lists(
        st.sampled_from(
            ["Nodule", "GrÃ¶ÃŸe", "5 mm", "a\u0308", "\x07", "_x000D_", "â€“", "\n", "-", "groß", "nan"]
        ),
        max_size=8,
    ).map(" ".join),
    min_size=1,
    max_size=3,
)


@settings(max_examples=200, deadline=None)
@given(PARTS, st.integers(0, 80), st.integers(1, 30))
def test_a_place_in_what_was_asked_is_the_same_words_in_the_cell(
    texts: list[str], at: int, long: int
) -> None:
    report = TableReport(1, "", tuple((f"c{k}", text) for k, text in enumerate(texts)))
    asked = asked_text(report)
    span = Quotable(asked.text).find(asked.text[at : at + long])
    if span is None:
        return
    column, quote, (first, last) = asked.cell_of(span)
    stored = dict(report.parts)[column]
    assert 0 <= first <= last <= len(stored)
    assert repair_text(stored[first:last]).text.strip() == quote.strip()
    assert asked.text[slice(*span)].startswith(quote) and RULER not in quote


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=60), st.integers(0, 60), st.integers(0, 60))
def test_what_is_cut_from_a_text_at_words_is_found_in_it(text: str, one: int, other: int) -> None:
    words = text.split()
    quote = " ".join(words[min(one, other) : max(one, other)])
    span = Quotable(text).find(quote.swapcase())
    if span is not None:
        assert 0 <= span[0] < span[1] <= len(text)
    elif quote.isascii() and sum(c.isalnum() for c in quote) >= 3:
        raise AssertionError((text, quote))
