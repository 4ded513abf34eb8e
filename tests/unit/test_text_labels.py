"""The labeller: negation, doubt, the past, places, columns of tables; lists; time in proportion to length."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from hilum.text.label_rules import LANGUAGES, load_lexicon
from hilum.text.labels import PROBABILITY, Part, label_parts, label_report
from hilum.text.vocabulary import FINDINGS, SLUGS

DATA = Path(__file__).parent / "data"
ENGLISH, GERMAN, SECOND, THIRD = (
    json.loads((DATA / f"labels_{language}.json").read_text(encoding="utf-8"))["cases"]
    for language in ("en", "de", "second", "third")
)


def said(text: str) -> dict[str, str]:
    """What is not unknown."""
    return {slug: label.label for slug, label in label_report(text).items() if label.label != "unknown"}


@pytest.mark.parametrize("case", ENGLISH, ids=[c["text"][:60] for c in ENGLISH])
def test_english(case: dict) -> None:
    wanted = {slug: label for slug, label in case["labels"].items() if label != "unknown"}
    assert said(case["text"]) == wanted


@pytest.mark.parametrize(
    "case", [*GERMAN, *SECOND, *THIRD], ids=[c["text"][:60] for c in [*GERMAN, *SECOND, *THIRD]]
)
def test_german_and_other_styles(case: dict) -> None:
    got = said(case["text"])
    wanted = {slug: label for slug, label in case["labels"].items() if label != "unknown"}
    # What the list does not name may be denied ("Normalbefund") but never be found.
    assert {s: v for s, v in got.items() if s in case["labels"] or v == "present"} == wanted


def test_the_german_list_is_large_and_names_every_finding() -> None:
    assert len(GERMAN) >= 60
    assert {slug for case in GERMAN for slug in case["labels"]} == set(SLUGS)


def test_the_deciding_sentence_its_characters_side_and_lobe() -> None:
    text = "No effusion.\nThere is a 6 mm nodule in the right upper lobe. Bilateral emphysema in the apices."
    found = label_report(text)
    nodule = found["lung_nodule"]
    assert nodule.sentence == "There is a 6 mm nodule in the right upper lobe."
    assert text[slice(*nodule.span or ())] == nodule.sentence and text[slice(*nodule.words or ())] == "nodule"
    assert (nodule.side, nodule.lobes, nodule.organ) == ("right", ("right upper lobe",), "lung")
    assert found["emphysema"].side == "both"
    assert found["emphysema"].lobes == ("right upper lobe", "left upper lobe")
    assert found["bronchiectasis"].label == "unknown" and found["bronchiectasis"].span is None


def test_characters_survive_capitals_that_change_length() -> None:
    text = "İİİ hastane. Pleural effusion on the left."
    effusion = label_report(text)["pleural_effusion"]
    assert text[slice(*effusion.words or ())] == "Pleural effusion" and effusion.side == "left"


def test_any_positive_statement_wins_over_a_denial() -> None:
    assert said("No nodule is seen. Impression: 3 mm nodule in the left lung.")["lung_nodule"] == "present"


def test_history_technique_and_comparison_are_read_over() -> None:
    text = (
        "History: known emphysema, pleural effusion.\nTechnique: port catheter used.\n"
        "Comparison: CT with bronchiectasis.\nFindings: small hiatal hernia."
    )
    assert said(text) == {"hiatal_hernia": "present"}


def test_columns_are_sections_and_the_first_strongest_statement_decides() -> None:
    parts = [
        Part("Emphysema?", "ClinicalInformation_EN", "history"),
        Part("Possible consolidation.", "Findings_EN", "findings"),
        Part("Consolidation in the lingula.", "Impressions_EN", "impression"),
    ]
    found = label_parts(parts)
    assert found["emphysema"].label == "unknown" and found["emphysema"].status == ""
    decided = found["consolidation"]
    assert (decided.label, decided.column, decided.section) == ("present", "Impressions_EN", "impression")


@pytest.mark.parametrize(
    "text", ["", "\n\n", "....", "?" * 50, "()(((", "é" * 300, "\ud800", "no " * 400, "𝔽𝔾 lung"]
)
def test_nothing_breaks_it(text: str) -> None:
    found = label_report(text)
    assert list(found) == list(SLUGS) and all(label.label == "unknown" for label in found.values())


def test_probabilities_follow_what_is_said() -> None:
    found = label_report("Pleural effusion on the left. No nodule. Atelectasis cannot be excluded.")
    order = [found[s].probability for s in ("pleural_effusion", "atelectasis", "lung_nodule")]
    assert order == sorted(order, reverse=True) and all(0 <= p <= 1 for p in PROBABILITY.values())
    told = found["pleural_effusion"].as_dict()
    assert told["finding"] == "Pleural effusion" and json.loads(json.dumps(told)) == told


@pytest.mark.parametrize("language", LANGUAGES)
def test_rule_files_name_all_findings_and_every_place_they_use(language: str) -> None:
    lexicon = load_lexicon(language)  # type: ignore[arg-type]
    kinds = [m for patterns in lexicon.keyed.values() for _, m in patterns] + [m for _, m in lexicon.inner]
    assert {m.name for m in kinds if m.kind == "term"} == {f.slug for f in FINDINGS}
    places = {m.name for m in kinds if m.kind == "place"}
    for slug, policy in lexicon.policies.items():
        assert policy.at | policy.bars <= places, slug
        assert policy.hedged in ("present", "unknown")


def test_time_grows_with_length_only() -> None:
    sentence = (
        "There is no pleural effusion, a 4 mm nodule is observed in the right upper lobe and emphysema. "
    )

    def seconds(copies: int) -> float:
        text = sentence * copies
        best = float("inf")
        for _ in range(3):
            start = time.process_time()
            label_report(text)
            best = min(best, time.process_time() - start)
        return best

    seconds(2)
    short, long = seconds(40), seconds(400)
    assert long < 30 * short, (short, long)


def test_one_endless_sentence_is_no_trap() -> None:
    start = time.process_time()
    label_report("no nodule, effusion and " * 3000)
    assert time.process_time() - start < 10
