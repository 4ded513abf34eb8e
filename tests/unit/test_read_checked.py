"""A report that something else wrote: what the reading does not bear out is kept apart, with its reason."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from _readings import finding, random_reading
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from readshow_standin import NODULE_MM, Standin, chest, straight_grid

import hilum
from hilum.read.checked import CheckedText, Written, check_text
from hilum.read.found import FindingReading, Where
from hilum.read.narrate import narrate
from hilum.read.reading import NOTICE
from hilum.read.write_report import write_report
from hilum.text.labels import label_report
from hilum.text.vocabulary import SLUGS

ORGAN_ML = {"lung": 4000.0, "pleura": 300.0, "heart": 0.0, "mediastinum": 400.0, "airways": 60.0}


def where(**changes: Any) -> Where:
    point = (0.0, 0.0, 0.0)
    basic = {
        "peak_mm_ras": point, "peak_mm_lps": point, "centroid_mm_ras": point, "centroid_mm_lps": point,
        "box_mm_ras": (point, point), "box_mm_lps": (point, point), "extent_mm": 12.0,
        "peak_voxel": (1, 2, 3),
        "slice_index": 3, "image": None, "side": "left", "lobe_estimate": "left upper lobe",
        "lobe_basis": "lobe masks", "pieces": 1, "above_threshold": True,
    }  # fmt: skip
    return Where.model_validate({**basic, **changes})


def findings() -> list[FindingReading]:
    """A nodule in the left upper lobe; an effusion whose map has no voxel; nothing else."""
    present = {"present": True, "probability": 0.9}
    made = {
        "lung_nodule": finding("lung_nodule", where=where(), volume_ml=1.0, **present),
        "pleural_effusion": finding(
            "pleural_effusion", where=where(above_threshold=False, pieces=0), **present
        ),
    }
    return [made.get(slug) or finding(slug) for slug in SLUGS]


def check(text: str) -> CheckedText:
    return check_text(text, findings(), ORGAN_ML)


@pytest.mark.parametrize(
    ("text", "slug", "why"),
    [
        ("There is consolidation in the right lower lobe.", "consolidation", "not_present"),
        ("Possible emphysema.", "emphysema", "not_present"),
        ("Konsolidierung im rechten Unterlappen.", "consolidation", "not_present"),
        ("Pleural effusion on the left.", "pleural_effusion", "no_map"),
        ("Nodule in the right upper lobe.", "lung_nodule", "side"),
        ("Nodule in the left lower lobe.", "lung_nodule", "lobe"),
        ("Rundherd im linken Unterlappen.", "lung_nodule", "lobe"),
        ("No pulmonary nodules.", "lung_nodule", "denied_but_present"),
        ("Kein Lungenrundherd.", "lung_nodule", "denied_but_present"),
        ("No pericardial effusion.", "pericardial_effusion", "organ_not_seen"),
        ("Nodule in the left upper lobe and consolidation.", "consolidation", "not_present"),
    ],
)
def test_what_no_map_supports_is_flagged(text: str, slug: str, why: str) -> None:
    found = check(text)
    assert found.sentences == []
    (apart,) = found.unsupported
    assert apart.text == text and (slug, why) in {(r.finding, r.why) for r in apart.reasons}
    assert all(r.detail for r in apart.reasons)


@pytest.mark.parametrize(
    ("text", "states", "denies"),
    [
        ("Nodule in the left upper lobe.", ["lung_nodule"], []),
        ("Probably a nodule of the left lung, no consolidation.", ["lung_nodule"], ["consolidation"]),
        ("Rundherd im linken Oberlappen, kein Emphysem.", ["lung_nodule"], ["emphysema"]),
        ("The trachea is in the midline.", [], []),
    ],
)
def test_what_the_reading_bears_out_has_evidence(text: str, states: list[str], denies: list[str]) -> None:
    found = check(text)
    (kept,) = found.sentences
    assert found.unsupported == [] and (kept.states, kept.denies) == (states, denies)
    assert [e.finding for e in kept.evidence] == [*states, *denies]


def test_sentences_are_judged_one_by_one_and_none_is_lost() -> None:
    text = "Nodule in the left upper lobe. Emphysema. No consolidation. Cardiomegaly."
    found = check(text)
    assert [s.text for s in found.sentences] == ["Nodule in the left upper lobe.", "No consolidation."]
    assert [s.text for s in found.unsupported] == ["Emphysema.", "Cardiomegaly."]
    assert check("").sentences == check("").unsupported == []


@pytest.mark.parametrize(
    "wrong",
    [
        {"evidence": []},
        {"states": [], "evidence": []},
        {"text": "Nodule. Emphysema."},
        {"text": "No nodule."},
        {"states": ["emphysema"]},
    ],
)
def test_a_written_sentence_cannot_be_made_without_evidence(wrong: dict[str, Any]) -> None:
    right = check("Nodule in the left upper lobe.").sentences[0].model_dump()
    Written.model_validate(right)
    with pytest.raises(ValidationError):
        Written.model_validate({**right, **wrong})


@settings(max_examples=8, deadline=None, phases=(Phase.explicit, Phase.reuse, Phase.generate))
@given(st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1), st.sampled_from(["en", "de"]))
def test_the_report_of_another_scan_leaves_no_false_finding(seed: int, other: int, language: Any) -> None:
    """A whole report about another scan: what stays is true of this one."""
    mine, organs, _ = random_reading(seed)
    text = narrate(*random_reading(other), NOTICE, language).text
    organ_ml = {o.name: o.volume_ml for o in organs}
    found = check_text(text, mine, organ_ml, language)
    known = {f.slug: f for f in mine}
    for slug, label in label_report(found.text).items():
        if label.status in ("said", "doubted"):
            assert known[slug].present and known[slug].where is not None
            assert known[slug].where.above_threshold
        elif label.label == "absent":
            assert not known[slug].present


def test_a_language_model_writes_and_is_checked() -> None:
    from test_report_writer import FEATURES, TOKENS

    asked: list[list[int]] = []

    class Parrot:
        def write(self, features: torch.Tensor, ids: list[int], end_id: int, max_new: int = 512) -> list[int]:
            asked.append(ids)
            return TOKENS.ask("<image>", "Nodule in the left lung. Emphysema.").ids[2:]

    reading = hilum.read(chest(straight_grid()), model=Standin(bumps={"lung_nodule": NODULE_MM}))
    found = write_report(Parrot(), TOKENS, FEATURES, reading)
    assert [s.text for s in found.sentences] == ["Nodule in the left lung."]
    assert [(u.text, u.reasons[0].why) for u in found.unsupported] == [("Emphysema.", "not_present")]
    prompt = TOKENS.decode([i for i in asked[0] if i >= 0])
    assert "Lung nodule=1" in prompt and "Emphysema=0" in prompt
