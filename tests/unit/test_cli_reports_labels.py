"""`hilum reports labels`: JSON, both tables, what is counted, what is refused."""

from __future__ import annotations

import csv
import io
import json
import subprocess
import sys
from pathlib import Path

import pytest
from _called import Called

from hilum.cli import run
from hilum.cli.reports_labels import labels
from hilum.text.label_file import read_label_file
from hilum.text.vocabulary import FINDINGS, SLUGS

REPORT = "Small pleural effusion on the right.\nImpression: no nodule, emphysema in both upper lobes."


call = Called(labels)


def by_slug(report: dict) -> dict[str, dict]:
    return {label["slug"]: label for label in report["labels"]}


def table(path: Path, *rows: list[str], header: str = "VolumeName,Findings_EN,Impressions_EN") -> Path:
    out = io.StringIO()
    csv.writer(out).writerows([header.split(","), *rows])
    path.write_text(out.getvalue(), encoding="utf-8")
    return path


def test_a_text_gives_18_labels_with_spans(tmp_path: Path) -> None:
    path = tmp_path / "report.txt"
    path.write_text(REPORT, encoding="utf-8")
    seen = call.told(path)
    assert seen["source"] == "report.txt" and seen["counts"]["reports"] == 1
    found = by_slug(seen["reports"][0])
    assert tuple(found) == SLUGS
    effusion = found["pleural_effusion"]
    assert (effusion["label"], effusion["side"], effusion["section"]) == ("present", "right", "")
    assert REPORT[slice(*effusion["span"])] == effusion["sentence"] == "Small pleural effusion on the right."
    assert found["lung_nodule"]["label"] == "absent" and found["lung_nodule"]["section"] == "impression"
    assert found["emphysema"]["lobes"] == ["right upper lobe", "left upper lobe"]
    assert found["bronchiectasis"] | {"organ": ""} == {
        "finding": "Bronchiectasis", "slug": "bronchiectasis", "label": "unknown", "probability": 0.01,
        "status": "", "sentence": "", "span": None, "words": None, "section": "", "column": "",
        "side": "", "lobes": [], "organ": "",
    }  # fmt: skip


def test_columns_are_one_report_per_row_and_clinical_information_says_nothing(tmp_path: Path) -> None:
    path = table(
        tmp_path / "r.csv",
        ["a.nii.gz", "Emphysema, pleural effusion?", "No nodule.", "Consolidation."],
        header="VolumeName,ClinicalInformation_EN,Findings_EN,Impressions_EN",
    )
    seen = call.told(path)
    assert [r["id"] for r in seen["reports"]] == ["a.nii.gz"]
    found = by_slug(seen["reports"][0])
    assert found["emphysema"]["label"] == "unknown" and found["lung_nodule"]["column"] == "Findings_EN"
    assert found["consolidation"]["label"] == "present" and found["consolidation"]["section"] == "impression"
    named = call.told(path, "--text-column", "ClinicalInformation_EN")["reports"][0]
    assert {label["label"] for label in named["labels"]} == {"unknown"}


def test_named_columns_and_names_of_rows(tmp_path: Path) -> None:
    path = table(tmp_path / "r.csv", ["7", "No nodule.", "Emphysema."], header="case,one,two")
    assert call.refusal(path).code == "COLUMN_MISSING"
    both = call.told(path, "--text-column", "one", "--text-column", "two", "--id-column", "case")["reports"][
        0
    ]
    assert both["id"] == "7" and by_slug(both)["emphysema"]["column"] == "two"
    assert by_slug(call.told(path, "--text-column", "one")["reports"][0])["emphysema"]["label"] == "unknown"
    error = call.refusal(path, "--text-column", "tow")
    assert error.code == "COLUMN_MISSING" and "two" in str(error.hint)
    assert call.refusal(path, "--text-column", "two", "--id-column", "cases").code == "COLUMN_MISSING"


def test_faults_are_counted_and_bad_rows_refused(tmp_path: Path) -> None:
    path = tmp_path / "r.csv"
    rows = [
        b"VolumeName,Findings_EN", b"a,No nodule.", b"b,", b"c,nan", b"d,No nodule.",
        "e,GroÃŸer Pleuraerguss.".encode(),
        b"f,Emphysema \xff.", b"g,Emphysema,too,many", b"h,There is a nodule in the", b"",
    ]  # fmt: skip
    path.write_bytes(b"\n".join(rows))
    result = call(path, "--json")
    assert result.return_value == 4
    seen = json.loads(result.stdout)
    wanted = {
        "reports": 8,
        "empty": 2,
        "duplicate": 1,
        "mojibake": 1,
        "truncated": 1,
        "undecodable": 1,
        "ragged": 1,
    }
    assert seen["counts"] == wanted | {"refused": 2, "repaired": 1, "lost_characters": 0}
    assert [r["faults"] for r in seen["reports"]][4:7] == [["mojibake"], ["undecodable"], ["ragged"]]
    assert seen["reports"][5]["labels"] == [] and seen["reports"][5]["id"] == ""
    effusion = by_slug(seen["reports"][4])["pleural_effusion"]
    assert effusion["sentence"] == "Großer Pleuraerguss."
    assert "GroÃŸer Pleuraerguss."[slice(*effusion["words"])] == "Pleuraerguss"
    assert effusion["span"] == [0, len("GroÃŸer Pleuraerguss.")]


def test_a_good_table_is_exit_0_and_a_cut_one_is_counted(tmp_path: Path) -> None:
    path = table(tmp_path / "r.csv", ["a", "No nodule.", "Normal."])
    assert call(path).return_value == 0
    path.write_bytes(b'VolumeName,Findings_EN\na,"No nodule."\nb,"Emphysema in both')
    seen = call.told(path)
    assert [r["faults"] for r in seen["reports"]] == [[], ["truncated"]]


def test_the_long_table_and_the_summary_on_stderr(tmp_path: Path) -> None:
    path = table(tmp_path / "r.csv", ["=1+1", "- Nodule in the right lung.", ""], ["b", "", ""])
    result = call(path, "--csv")
    rows = list(csv.DictReader(io.StringIO(result.stdout)))
    assert len(rows) == 36 and [r["finding"] for r in rows[:18]] == [f.name for f in FINDINGS]
    nodule = rows[SLUGS.index("lung_nodule")]
    assert nodule["label"] == "present" and nodule["side"] == "right"
    assert nodule["id"] == "'=1+1" and nodule["sentence"] == "'- Nodule in the right lung."
    assert result.stderr.strip() == "2 reports, 1 empty"


def test_the_wide_table_is_read_by_the_label_file_reader(tmp_path: Path) -> None:
    path = table(tmp_path / "r.csv", ["a", "Nodule in the left lung. No pleural effusion.", ""])
    (tmp_path / "out.csv").write_text(call(path, "--wide").stdout, encoding="utf-8")
    read = read_label_file(tmp_path / "out.csv")
    assert read.of("a", "lung_nodule") == "present" and read.of("a", "pleural_effusion") == "absent"
    assert read.of("a", "emphysema") == "unknown"


def test_standard_input_is_a_text_or_with_a_column_a_table() -> None:
    assert by_slug(call.told("-", stdin=b"Emphysema.")["reports"][0])["emphysema"]["label"] == "present"
    seen = call.told("-", "--text-column", "t", stdin=b"t,u\nEmphysema.,x\nNo emphysema.,y\n")
    assert [by_slug(r)["emphysema"]["label"] for r in seen["reports"]] == ["present", "absent"]


def test_what_is_shown_is_plain(tmp_path: Path) -> None:
    path = table(tmp_path / "r.csv", ["[red]a", "Emphysema [bold]\x1b[31m in both lungs.", ""], ["b", "", ""])
    shown = call(path)
    assert shown.return_value == 0 and "\x1b" not in shown.stdout and "[bold]" in shown.stdout
    assert "[red]a" in shown.stdout and "empty" in shown.stdout
    many = table(tmp_path / "m.csv", *[[str(k), "Emphysema.", f"{k}"] for k in range(30)])
    assert "Emphysema" in call(many).stdout and "30 reports" in call(many).stderr


def test_refusals_have_codes(tmp_path: Path) -> None:
    assert call.refusal(tmp_path / "gone.csv").code == "NOT_FOUND"
    path = tmp_path / "r.txt"
    path.write_bytes(b"Emphysema \xff")
    assert call.refusal(path).code == "TEXT_ENCODING"
    assert call.refusal(path, "--text-column", "x").code == "ANSWER_INVALID"
    assert call.refusal(path, "--csv", "--json").code == "ANSWER_INVALID"
    (tmp_path / "e.csv").write_bytes(b"")
    assert call.refusal(tmp_path / "e.csv").code == "COLUMN_MISSING"


def test_the_group_finds_its_commands(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = table(tmp_path / "r.csv", ["a", "Emphysema.", ""])
    assert run(["reports", "labels", str(path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["counts"]["reports"] == 1


def test_neither_torch_nor_numpy_is_loaded() -> None:
    code = (
        "import sys; from click.testing import CliRunner; from hilum.cli.reports_labels import labels;"
        "r = CliRunner().invoke(labels, ['-', '--json'], input='Emphysema.');"
        "assert r.exception is None, r.exception; print([m for m in ('torch', 'numpy') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.stdout.strip() == "[]", done.stderr
