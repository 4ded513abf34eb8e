"""The miner on the hand-written list (written before the rules), and rule by rule."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from hilum.text.snippets import Snippet, mine

LIST = Path(__file__).parent / "data" / "snippets_cases.json"
CASES = json.loads(LIST.read_text(encoding="utf-8"))["cases"]
LATER = [
    case
    for name in ("snippets_second.json", "snippets_third.json")
    for case in json.loads(LIST.with_name(name).read_text(encoding="utf-8"))["cases"]
]


def numbers(snippets: list[Snippet]) -> list[tuple[int | None, tuple[int, ...], bool]]:
    return [(s.series, s.images, s.prior) for s in snippets]


def wanted(case: dict) -> list[tuple[int | None, tuple[int, ...], bool]]:
    return [(s["series"], tuple(s["images"]), s["prior"]) for s in case["snippets"]]


def test_the_list_is_long_and_no_case_stands_twice() -> None:
    assert len(CASES) >= 150 and len({c["text"] for c in CASES}) == len(CASES)
    languages = Counter(c["id"][:2] for c in CASES)
    assert min(languages["en"], languages["de"]) >= 75


def test_precision_and_recall_on_the_list() -> None:
    hits = found = asked = 0
    for case in CASES:
        got, want = Counter(numbers(mine(case["text"]))), Counter(wanted(case))
        hits, found, asked = hits + (got & want).total(), found + got.total(), asked + want.total()
    assert hits / found >= 0.995 and hits / asked >= 0.95


@pytest.mark.parametrize("case", LATER, ids=lambda c: c["id"])
def test_the_later_lists_stay_right(case: dict) -> None:
    assert numbers(mine(case["text"])) == wanted(case)


def test_the_words_are_those_of_the_list() -> None:
    said = [(s.text, w["text"]) for c in CASES for s, w in zip(mine(c["text"]), c["snippets"], strict=True)]
    assert sum(a == b for a, b in said) / len(said) >= 0.98


@pytest.mark.parametrize("case", CASES, ids=lambda c: c["id"])
def test_spans_hold_the_numbers_and_words_come_from_the_sentence(case: dict) -> None:
    text = case["text"]
    for s in mine(text):
        assert str(s.images[0]) in text[slice(*s.span)]
        assert text[slice(*s.sentence_span)] == s.sentence
        assert s.sentence_span[0] <= s.span[0] < s.span[1] <= s.sentence_span[1]
        rest = iter(text.split())
        # Words keep their order; punctuation and the article "a" before another word may change.
        for word in s.text.lower().split():
            bare = word.strip(".,;:()")
            assert bare in ("a", "an") or any(bare in other.lower() for other in rest), (s.text, word)


@pytest.mark.parametrize(
    ("text", "want"),
    [
        ("Nodule (series 4, image 38), was 5 mm (series 3, image 20).", [(4, (38,), 0), (3, (20,), 1)]),
        ("New nodule since 2015 (series 4, image 38).", [(4, (38,), 0)]),
        ("This was present on CT 12.03.2015 (image 20).", [(None, (20,), 1)]),
        ("The 2015 CT showed a nodule (series 3, image 20).", [(3, (20,), 1)]),
        ("Prior: 5 mm (3:20). Current: 8 mm (4:38).", [(3, (20,), 1), (4, (38,), 0)]),
        ("Nodule (prior study series 3 image 20) no longer seen.", [(3, (20,), 1)]),
        ("Last rib fracture (series 4, image 38).", [(4, (38,), 0)]),
        ("Status post lobectomy in 2015, scar (series 4 image 38).", [(4, (38,), 0)]),
        ("12 mm (Se 4/38), am 12.03.2015 noch 9 mm (Se 3/20).", [(4, (38,), 0), (3, (20,), 1)]),
        ("12 mm (Se 4/38, VU 9 mm).", [(4, (38,), 0)]),
        ("12 mm (Se 4/38, VU 3/20).", [(4, (38,), 0), (3, (20,), 1)]),
        ("Gegenüber der VU (Se 3/20) größerer Herd (Se 4/38).", [(3, (20,), 1), (4, (38,), 0)]),
        ("Größenzunahme gegenüber der Voruntersuchung (Serie 4, Bild 38).", [(4, (38,), 0)]),
        ("Aktuelle CT vom 12.03.2015: Rundherd (Serie 4, Bild 38).", [(4, (38,), 0)]),
        ("VORBEFUND: CT. Herd (Se 3/20).\n\nBEFUND:\nHerd (Se 4/38).", [(3, (20,), 1), (4, (38,), 0)]),
    ],
)  # fmt: skip
def test_whose_study_a_reference_belongs_to(text: str, want: list) -> None:
    assert numbers(mine(text)) == [(s, i, bool(p)) for s, i, p in want]


@pytest.mark.parametrize(
    ("text", "want"),
    [
        ("Herd (Bild 38, 5 mm, Serie 4).", [(4, (38,))]),
        ("In series 4, nodules are seen on images 38 (RUL), 50 (LUL) and 61 (LLL).", [(4, (38, 50, 61))]),
        ("Images (Se/Im): 4/38, 4/50, 5/12.", [(4, (38,)), (4, (50,)), (5, (12,))]),
        ("Series 3 and 4, images 38 and 50 respectively.", [(None, (38, 50))]),
        ("Bildnummern beziehen sich auf Serie 4. Rundherd (Bild 38).", [(4, (38,))]),
        ("Mass (series 4, image 124 ML).", [(4, (124,))]),
        ("Nodule in serial 201 image 11 of the middle lobe.", [(201, (11,))]),
        ("Nodule (series 2, section 181).", [(2, (181,))]),
        ("1. Nodule (Se 4/38)\n2. Effusion (Se 4/90)", [(4, (38,)), (4, (90,))]),
        ("Nodule (series 4,\nimage 38).", [(4, (38,))]),
        ("Serie 4, 38 mm großer Herd (Bild 12).", [(4, (12,))]),
        ("Images 1-438 were reviewed.", []),
        ("Mass, image 38-42 mm.", []),
        ("Stage I 3, vitamin B 12, type B 12, S. 38.", []),
        ("In image 38a nodule, per se 38, L5-S1 level.", []),
        ("Patient seen at 14:38, injection (14:38), PSA 4:38.", []),
    ],
)
def test_forms_beyond_the_list(text: str, want: list) -> None:
    assert [(s.series, s.images) for s in mine(text)] == want


def test_a_total_is_no_image() -> None:
    (snippet,) = mine("Nodule (series 4, image 38/240).")
    assert snippet.images == (38,) and snippet.total == 240


def test_a_borrowed_series_does_not_cross_studies() -> None:
    current, prior = mine("Nodule (series 4, image 38), previously 5 mm (image 20).")
    assert (current.series, prior.series, prior.prior) == (4, None, True)


def test_as_dict_is_json_and_names_the_first_image() -> None:
    (snippet,) = mine("Nodule (series 4, images 38-40).")
    assert json.loads(json.dumps(snippet.as_dict()))["image"] == 38


def test_empty_and_signless_texts_hold_nothing() -> None:
    assert mine("") == [] and mine(" \n\t ") == [] and mine("Unremarkable chest.") == []
