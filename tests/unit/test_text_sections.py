"""Sections, repair of text, label files."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hilum.errors import ContainerError, HilumError, ReportError
from hilum.text.label_file import read_label_file
from hilum.text.repair import repair_text
from hilum.text.sections import kind_of_column, sections_of
from hilum.text.sentences import sentence_spans
from hilum.text.vocabulary import FINDINGS

ENGLISH = """Chest CT, non-contrast.
CLINICAL INFORMATION: cough.
Technique: 1 mm slices.
COMPARISON: none
FINDINGS:
No nodule.
Impression: normal."""
GERMAN = """Klinische Angaben: Husten.
Fragestellung: Rundherd?
Technik: Native CT.
Voruntersuchung: keine.
Befund
Kein Rundherd.
Beurteilung: Normalbefund."""


def told(report: str) -> list[tuple[str, str]]:
    return [(s.kind, s.text(report)) for s in sections_of(report)]


def test_english_headings() -> None:
    assert told(ENGLISH) == [
        ("", "Chest CT, non-contrast."),
        ("history", "cough."),
        ("technique", "1 mm slices."),
        ("comparison", "none"),
        ("findings", "No nodule."),
        ("impression", "normal."),
    ]


def test_german_headings() -> None:
    assert told(GERMAN) == [
        ("history", "Husten."),
        ("history", "Rundherd?"),
        ("technique", "Native CT."),
        ("comparison", "keine."),
        ("findings", "Kein Rundherd."),
        ("impression", "Normalbefund."),
    ]


def test_a_report_without_headings_is_one_body() -> None:
    assert told("The findings are normal. History of cough.") == [
        ("", "The findings are normal. History of cough.")
    ]


def test_a_heading_behind_a_full_stop() -> None:
    assert told("No effusion. Impression: normal.") == [("", "No effusion."), ("impression", "normal.")]


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("Findings_EN", "findings"),
        ("Impressions_EN", "impression"),
        ("ClinicalInformation_EN", "history"),
        ("Technique_EN", "technique"),
        ("Findings", "findings"),
        ("impressions", "impression"),
        ("Beurteilung", "impression"),
        ("report_text", ""),
    ],
)
def test_columns_of_the_public_sets(name: str, kind: str) -> None:
    assert kind_of_column(name) == kind


@given(st.text(max_size=300))
def test_sections_hold_the_whole_report(report: str) -> None:
    sections = sections_of(report)
    edges = [(s.start, s.end) for s in sections]
    assert edges[-1][1] == len(report) and report[: edges[0][0]].strip(
        " \t\r\n*#\x1c\x1d\x1e\x1f\x85\x0b\x0c"
    ) in ("",)
    assert all(a[1] == b[0] for a, b in pairwise(edges))
    assert all(s.start <= s.body <= s.end for s in sections)


@given(st.text(alphabet='ab .\n"•!?-1', max_size=200))
def test_sentences_leave_nothing_but_white_space_between(text: str) -> None:
    at = 0
    for start, end in sentence_spans(text):
        assert at <= start < end and not text[at:start].strip()
        at = end
    assert not text[at:].strip()


@pytest.mark.parametrize(
    "right", ["Großer Pleuraerguss", "Lungenödem – beidseits", "Größe 5 µm", "Œsophage", "30 °"]
)
@pytest.mark.parametrize("codec", ["cp1252", "latin-1"])
def test_mojibake_has_one_reading(right: str, codec: str) -> None:
    wrong = right.encode().decode(codec)
    fixed = repair_text(wrong)
    assert fixed.text == right and fixed.mojibake > 0 and fixed.changed


def test_what_is_right_stays() -> None:
    text = "Größe: 5 × 3 mm – unverändert. “Nodule” • Âge, Ã. naïve"
    fixed = repair_text(text)
    assert fixed.text == text and not fixed.changed and fixed.original((3, 8)) == (3, 8)


def test_marks_go_letters_are_composed_and_losses_counted() -> None:
    fixed = repair_text("\ufeffA\u0308rztin_x000D_\nErg\x00uss r\ufffdchts")
    assert fixed.text == "Ärztin\nErguss r\ufffdchts"
    assert (fixed.removed, fixed.lost, fixed.mojibake) == (3, 1, 0)


def test_characters_lead_back_to_the_original() -> None:
    wrong = "Kein Ã–dem. GroÃŸer\x07 Pleuraerguss rechts."
    fixed = repair_text(wrong)
    at = fixed.text.index("Pleuraerguss")
    assert wrong[slice(*fixed.original((at, at + 12)))] == "Pleuraerguss"
    assert wrong[slice(*fixed.original((0, len(fixed.text))))] == wrong


@given(st.text(max_size=80), st.text(alphabet="abc", min_size=1, max_size=5))
def test_repair_never_raises_and_spans_lead_home(around: str, word: str) -> None:
    fixed = repair_text(around + "\n" + word)
    end = len(fixed.text)
    assert (around + "\n" + word)[slice(*fixed.original((end - len(word), end)))] == word


def label_file(path: Path, *rows: str, header: str | None = None) -> Path:
    names = header or ",".join(["VolumeName", *(f.name for f in FINDINGS)])
    path.write_text("\n".join([names, *rows]) + "\n", encoding="utf-8")
    return path


def row(name: str, *values: str) -> str:
    return ",".join([name, *values, *["0"] * (18 - len(values))])


def test_a_label_file_is_tri_state(tmp_path: Path) -> None:
    path = label_file(
        tmp_path / "l.csv", row("a.nii.gz", "1", "0", "", "nan", "-1", "1.0"), row("b.nii.gz", "1")
    )
    table = read_label_file(path)
    assert table.rows["a.nii.gz"][:7] == (
        "present",
        "absent",
        "unknown",
        "unknown",
        "unknown",
        "present",
        "absent",
    )
    assert (table.unknown, table.repeats, len(table.rows)) == (3, 0, 2)
    assert (
        table.of("b.nii.gz", "medical_material") == "present" and table.of("gone", "emphysema") == "unknown"
    )


def test_the_order_of_columns_does_not_matter(tmp_path: Path) -> None:
    names = [f.name for f in reversed(FINDINGS)]
    path = label_file(tmp_path / "l.csv", "1," * 1 + "0," * 17 + "a", header=",".join([*names, "VolumeName"]))
    assert read_label_file(path).rows["a"] == ("absent",) * 17 + ("present",)


def test_the_same_row_twice_is_counted_and_a_contradiction_refused(tmp_path: Path) -> None:
    same = label_file(tmp_path / "l.csv", row("a", "1"), row("a", "1.0"))
    assert read_label_file(same).repeats == 1
    assert refusal(label_file(tmp_path / "m.csv", row("a", "1"), row("a", "0"))).code == "LABEL_DUPLICATE"


def refusal(path: Path) -> HilumError:
    with pytest.raises((ReportError, ContainerError)) as caught:
        read_label_file(path)
    return caught.value


@pytest.mark.parametrize("value", ["2", "yes", "0.5", "positive", "1;0", "--1", "inf"])
def test_values_that_are_no_labels_are_refused_with_their_place(tmp_path: Path, value: str) -> None:
    error = refusal(label_file(tmp_path / "l.csv", row("a"), row("b", "0", value)))
    assert error.code == "LABEL_VALUES" and value in str(error.got)
    assert "row 2" in error.rule and "Arterial wall calcification" in error.rule


def test_bad_tables_are_refused_with_codes(tmp_path: Path) -> None:
    assert refusal(tmp_path / "gone.csv").code == "NOT_FOUND"
    assert refusal(label_file(tmp_path / "a.csv", header="VolumeName,Emphysem")).code == "COLUMN_MISSING"
    renamed = ",".join(["Volume", *(f.name for f in FINDINGS)])
    error = refusal(label_file(tmp_path / "b.csv", row("a"), header=renamed))
    assert error.code == "COLUMN_MISSING" and error.hint == "Nearest: Volume."
    twice = ",".join(["VolumeName", *(f.name for f in FINDINGS), FINDINGS[3].name])
    assert refusal(label_file(tmp_path / "c.csv", row("a") + ",0", header=twice)).got == "twice"
    assert refusal(label_file(tmp_path / "d.csv", row("a") + ",1")).code == "LABEL_VALUES"
    assert refusal(label_file(tmp_path / "e.csv", row(""))).code == "LABEL_VALUES"
    (tmp_path / "f.csv").write_bytes(b"VolumeName\xff\n")
    assert refusal(tmp_path / "f.csv").code == "TEXT_ENCODING"
    (tmp_path / "g.csv").write_text('VolumeName,"Emph', encoding="utf-8")
    assert refusal(tmp_path / "g.csv").code == "TEXT_ENCODING"
    (tmp_path / "h.csv").write_bytes(b"")
    assert refusal(tmp_path / "h.csv").code == "COLUMN_MISSING"
