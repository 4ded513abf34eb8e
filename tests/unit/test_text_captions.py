"""Captions are what the report says; a sentence is called false only where the report denies it."""

import random
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hilum.errors import UsageError
from hilum.text.captions import PADDING, ScanText, Statement, draw_caption, draw_pairs, scan_text, told
from hilum.text.vocabulary import FINDINGS

REPORT = """Technique: with contrast.
Findings:
There is a 6 mm nodule in the right upper lobe.
Small pleural effusion on the left.
No pericardial effusion. The heart is enlarged.
Impression: nodule.
History: emphysema.
"""
BEFUND = "Befund: Rundherd im rechten Oberlappen. Pleuraerguss links. Kein Perikarderguss. Herz vergrößert."


def slugs(statements: tuple[Statement, ...]) -> set[str]:
    return {statement.slug for statement in statements}


def test_a_report_gives_its_blocks_and_statements():
    text = scan_text(REPORT)
    assert text.blocks == (
        "There is a 6 mm nodule in the right upper lobe.",
        "Small pleural effusion on the left.",
        "No pericardial effusion. The heart is enlarged.",
    )
    assert {"lung_nodule", "pleural_effusion", "cardiomegaly"} <= slugs(text.positives)
    # the history's emphysema is of the past: neither here nor absent
    assert "pericardial_effusion" in text.denied and "emphysema" not in slugs(text.positives) | text.denied
    places = {s.slug: s.place for s in text.positives}
    assert places["lung_nodule"] == "in the right upper lobe" and places["pleural_effusion"] == "on the left"
    assert places["cardiomegaly"] == ""


def test_german_reports_speak_german():
    text = scan_text(BEFUND)
    assert text.language == "de" and len(text.blocks) == 4
    sentences = {s.slug: (told(s, "de", there=True), told(s, "de", there=False)) for s in text.positives}
    name = {f.slug: f.name_de for f in FINDINGS}
    assert sentences["lung_nodule"] == (
        f"{name['lung_nodule']} im rechten Oberlappen.",
        f"Kein Nachweis von {name['lung_nodule']} im rechten Oberlappen.",
    )
    assert sentences["pleural_effusion"][0] == f"{name['pleural_effusion']} links."


def test_opposites_differ_in_the_negation_alone():
    statement = Statement("pleural_effusion", "", "on both sides")
    assert told(statement, "en", there=True) == "Pleural effusion on both sides."
    assert told(statement, "en", there=False) == "No pleural effusion on both sides."


def test_each_kind_of_caption_is_as_likely():
    text, rng = scan_text(REPORT), random.Random(0)
    ours = {s.sentence.lower(): "positive" for s in text.positives}
    ours |= {s.sentence.lower(): "negative" for s in text.negatives}
    seen = Counter(ours.get(draw_caption(text, rng), "section") for _ in range(3000))
    assert all(seen[kind] == pytest.approx(1000, abs=120) for kind in ("section", "positive", "negative"))


def test_blocks_are_shuffled_anew_every_other_time():
    text = ScanText(tuple("ABCD"), (), (), "en")
    rng = random.Random(1)
    seen = Counter(draw_caption(text, rng) for _ in range(2000))
    # half of the time as written, and one shuffle in 24 is that too
    assert seen["a b c d"] == pytest.approx(2000 * (0.5 + 0.5 / 24), abs=100) and len(seen) == 24
    assert draw_caption(text, rng, shuffle_chance=0.0, lower=False) == "A B C D"


def test_nothing_said_is_no_caption():
    text = scan_text("  \n")
    assert text.blocks == text.positives == text.negatives == ()
    assert draw_caption(text, random.Random(0)) == ""
    assert draw_pairs(text, [scan_text(REPORT)], random.Random(0)) == [PADDING] * 8


def test_pairs_are_true_or_denied_or_padding():
    text, other = scan_text(REPORT), scan_text("Findings: Pericardial effusion. Emphysema on the right.")
    pairs = draw_pairs(text, [other], random.Random(0), count=8, lower=False)
    assert len(pairs) == 8 and [p.truth for p in pairs].count(1) == min(4, len(text.positives))
    false = [p for p in pairs if p.truth == 0]
    # emphysema is not mentioned here: unknown, so it is not used
    assert [p.sentence for p in false] == ["Pericardial effusion."]
    assert [p.opposite for p in false] == ["No pericardial effusion."]
    assert all(p == PADDING for p in pairs[len(text.positives[:4]) + 1 :])


def test_other_languages_and_doubles_are_left_out():
    text = scan_text(REPORT)
    german = scan_text("Befund: Deutlicher Perikarderguss. Das Herz ist nicht vergrößert.")
    assert german.language == "de" and "pericardial_effusion" in slugs(german.positives)
    assert not [p for p in draw_pairs(text, [german], random.Random(0)) if p.truth == 0]
    english = scan_text("Findings: Pericardial effusion.")
    twice = draw_pairs(text, [english, english], random.Random(0))
    assert len([p for p in twice if p.truth == 0]) == 1


def test_the_same_numbers_give_the_same_texts():
    text, other = scan_text(REPORT), scan_text("Findings: Pericardial effusion.")

    def all_of(seed: int) -> tuple[list[str], list]:
        rng = random.Random(seed)
        return [draw_caption(text, rng) for _ in range(20)], draw_pairs(text, [other], rng)

    assert all_of(3) == all_of(3) != all_of(4)


@pytest.mark.parametrize("count", [0, 1, 7, -2])
def test_pairs_come_in_halves(count):
    with pytest.raises(UsageError, match="halves"):
        draw_pairs(scan_text(REPORT), [], random.Random(0), count=count)


@settings(max_examples=60, deadline=None)
@given(st.text(max_size=300), st.integers(0, 2**31))
def test_any_text_is_survived(report, seed):
    text, rng = scan_text(report), random.Random(seed)
    assert len(draw_pairs(text, [text], rng)) == 8
    caption = draw_caption(text, rng)
    assert bool(caption) == bool(text.blocks or text.positives or text.negatives)
    # what a report says is never false of it
    assert all(p.truth != 0 for p in draw_pairs(text, [text], rng))
