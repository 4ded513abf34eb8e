"""Laws of the report: no sentence says more than its evidence, and nothing unseen is denied.

The judge is our own labeller, which knows nothing of how sentences are made.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

sys.path.insert(0, str(Path(__file__).parents[1] / "unit"))
from _readings import coverage, finding, random_reading

from hilum.read.found import FindingReading
from hilum.read.narrate import SIZED, finding_name, narrate
from hilum.read.reading import NOTICE
from hilum.read.report_rules import report_rules
from hilum.read.sentences import Denial, Remark, Report, Statement, evidence_of
from hilum.text.labels import label_report
from hilum.text.vocabulary import GATES, INDEX, LOBES, ORGAN_CHANNELS

LANGUAGES: Any = st.sampled_from(["en", "de"])


def volume_said(text: str, language: str) -> str | None:
    match = re.search(r"(?:about|etwa) ([\d.,]+) (ml|mm)", text)
    return match and f"{match[1].replace(',', '.') if language == 'de' else match[1]} {match[2]}"


def check_statement(sentence: Statement, found: dict[str, FindingReading], language: str) -> None:
    (evidence,) = sentence.evidence
    labels = label_report(sentence.text)
    stated = {slug for slug, label in labels.items() if label.status in ("said", "doubted")}
    assert stated == {sentence.finding} == {evidence.finding} and found[sentence.finding].present
    assert not [slug for slug, label in labels.items() if label.label == "absent"]
    label, where = labels[sentence.finding], found[sentence.finding].where
    # hedged if and only if calibrated probabilities say so
    graded = evidence.calibrated and evidence.probability < report_rules().plain
    assert (label.status == "doubted") == graded
    if where is None or not where.above_threshold:
        assert (evidence.side, evidence.lobe, evidence.volume_ml) == (None, None, None)
        assert label.side == "" and label.lobes == () and volume_said(sentence.text, language) is None
        return
    assert evidence.lobe == where.lobe_estimate
    assert evidence.side == (None if sentence.finding == "cardiomegaly" else where.side)
    assert label.side == ("" if evidence.side in ("midline", None) else evidence.side)
    if finding_in_lobes(sentence.finding):
        assert label.lobes == ((evidence.lobe,) if evidence.lobe in LOBES else ())
    ml, mm = evidence.volume_ml, evidence.extent_mm
    assert ml is not None and mm is not None
    if sentence.finding == "cardiomegaly":
        assert volume_said(sentence.text, language) is None
        return
    said = f"{mm:.0f} mm" if sentence.finding in SIZED else f"{ml:.{0 if ml >= 10 else 1}f} ml"
    assert volume_said(sentence.text, language) == said
    assert evidence.pieces == where.pieces and (where.pieces < 2 or f"{where.pieces} " in sentence.text)
    if sentence.section == "findings":
        numbers = where.image and where.image.instance_number
        assert f"{where.slice_index if numbers is None else numbers})." in sentence.text


def finding_in_lobes(slug: str) -> bool:
    from hilum.text.labels import LOBED

    return slug in LOBED


def check_denial(sentence: Denial, found: dict[str, FindingReading], organ_ml: dict[str, float]) -> None:
    labels = label_report(sentence.text)
    denied = {slug for slug, label in labels.items() if label.label == "absent"}
    assert denied == {e.finding for e in sentence.evidence}
    assert not [slug for slug, label in labels.items() if label.status in ("said", "doubted")]
    for slug in denied:
        assert not found[slug].present
        # of the organs that its map may lie in, at least one is seen, and its own if it has one
        organs = {ORGAN_CHANNELS[i] for i in GATES[INDEX[slug]]} - {"global"}
        if slug != "medical_material":
            assert any(organ_ml[organ] >= report_rules().seen_ml[organ] for organ in organs)
        own = found[slug].organ
        assert own == "global" or organ_ml[own] >= report_rules().seen_ml[own]


@settings(max_examples=25, deadline=None, phases=(Phase.explicit, Phase.reuse, Phase.generate))
@given(st.integers(0, 2**32 - 1), LANGUAGES)
def test_every_sentence_says_what_its_evidence_holds(seed: int, language: Literal["en", "de"]) -> None:
    findings, organs, covered = random_reading(seed)
    report = narrate(findings, organs, covered, NOTICE, language)
    found, organ_ml = {f.slug: f for f in findings}, {o.name: o.volume_ml for o in organs}
    for sentence in report.sentences:
        for evidence in sentence.evidence:
            assert evidence == evidence_of(found[evidence.finding], organ_ml)
        if isinstance(sentence, Statement):
            check_statement(sentence, found, language)
        elif isinstance(sentence, Denial):
            check_denial(sentence, found, organ_ml)
        else:
            told = label_report(sentence.text).values()
            assert all(label.label == "unknown" for label in told), sentence.text
    stated = [s.finding for s in report.of("findings") if isinstance(s, Statement)]
    present = {f.slug for f in findings if f.present}
    assert sorted(stated) == sorted(present), "each once"
    concluded = [s.finding for s in report.of("impression") if isinstance(s, Statement)]
    assert len(report.of("impression")) <= report_rules().most and set(concluded) <= present
    ranks = [report_rules().rank(found[slug]) for slug in concluded]
    assert ranks == sorted(ranks)
    # and the whole, as its reader gets it
    whole = label_report(report.text)
    said = {slug for slug, label in whole.items() if label.status in ("said", "doubted")}
    denied = {slug for slug, label in whole.items() if label.label == "absent"}
    assert said == present
    assert denied == {e.finding for s in report.sentences if isinstance(s, Denial) for e in s.evidence}


@pytest.mark.parametrize("language", ["en", "de"])
def test_every_name_is_known_to_the_labeller(language: str) -> None:
    for slug in INDEX:
        labels = label_report(f"{finding_name(slug, language)}.")
        assert [s for s, label in labels.items() if label.label == "present"] == [slug]


EVIDENCE = evidence_of(finding("lung_nodule", present=True, probability=0.9), {})
OTHER = evidence_of(finding("emphysema", present=True, probability=0.9), {})
ABSENT = evidence_of(finding("lung_nodule"), {"lung": 4000.0})


@pytest.mark.parametrize(
    "wrong",
    [
        {"evidence": []},
        {"evidence": [OTHER]},
        {"evidence": [ABSENT]},
        {"evidence": [EVIDENCE, OTHER]},
        {"text": "Emphysema."},
        {"text": "Lung nodule. Emphysema."},
        {"text": "No lung nodule."},
        {"text": "Lung nodule in the right upper lobe."},
        {"text": "Possible lung nodule."},
        {"text": "Lung nodule, no emphysema."},
        {"certainty": "ungraded"},
    ],
)
def test_a_finding_without_its_evidence_cannot_be_stated(wrong: dict[str, Any]) -> None:
    right = {"section": "findings", "text": "Lung nodule.", "finding": "lung_nodule", "certainty": "plain"}
    right |= {"evidence": [EVIDENCE]}
    assert Statement(**right).finding == "lung_nodule"
    with pytest.raises(ValidationError):
        Statement(**{**right, **wrong})


@pytest.mark.parametrize(
    "text", ["Lung nodule.", "No emphysema.", "Kein Pleuraerguss.", "Fraglich Emphysem."]
)
def test_a_remark_is_about_no_finding(text: str) -> None:
    with pytest.raises(ValidationError):
        Remark(section="findings", text=text)


@pytest.mark.parametrize("text", ["No emphysema.", "No lung nodule or emphysema.", "Lung nodule."])
def test_a_denial_denies_what_was_looked_for(text: str) -> None:
    assert Denial(text="No lung nodule.", evidence=[ABSENT]).finding is None
    with pytest.raises(ValidationError):
        Denial(text=text, evidence=[ABSENT])


def test_the_impression_states_nothing_new() -> None:
    said = {"text": "Lung nodule.", "finding": "lung_nodule", "certainty": "plain", "evidence": [EVIDENCE]}
    Report(
        language="en",
        sentences=[Statement(section="findings", **said), Statement(section="impression", **said)],
    )
    with pytest.raises(ValidationError, match="impression"):
        Report(language="en", sentences=[Statement(section="impression", **said)])


def test_what_matters_comes_first_and_the_rest_is_counted() -> None:
    sure = {"present": True, "threshold": 0.2}
    found = [
        finding(slug, **sure, probability=p)
        for slug, p in (
            ("medical_material", 0.99), ("emphysema", 0.9), ("lung_nodule", 0.6), ("pleural_effusion", 0.85),
            ("hiatal_hernia", 0.4), ("consolidation", 0.3), ("bronchiectasis", 0.3),
        )
    ]  # fmt: skip
    report = narrate(found, [], coverage(False, False), NOTICE, "en")
    assert [s.finding for s in report.of("impression")] == [
        "pleural_effusion", "lung_nodule", "consolidation", "emphysema", None,
    ]  # fmt: skip
    assert report.of("impression")[-1].text == "3 further findings stand above."
    assert report.of("impression")[1].text == "Probable lung nodule, without a place on the map."
