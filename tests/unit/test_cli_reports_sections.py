"""`hilum reports sections`: headings, columns, characters, refusals."""

from __future__ import annotations

import json
from pathlib import Path

from _called import Called

from hilum.cli.reports_sections import sections
from hilum.errors import HilumError

REPORT = "CT Thorax.\nIndication: cough [b].\n\nFindings:\n No nodule.\nImpression: normal.\nComparison:\n"


call = Called(sections)


def test_a_text_is_cut_at_its_headings() -> None:
    seen = json.loads(call("-", "--json", stdin=REPORT.encode()).stdout)
    found = seen["reports"][0]["sections"]
    assert [(s["kind"], s["text"]) for s in found] == [
        ("", "CT Thorax."), ("history", "cough [b]."), ("findings", "No nodule."), ("impression", "normal."),
        ("comparison", ""),
    ]  # fmt: skip
    assert all(REPORT[slice(*s["span"])] == s["text"] for s in found)
    assert seen["counts"] == {
        "reports": 1, "refused": 0, "body": 1, "comparison": 1, "findings": 1, "history": 1, "impression": 1,
    }  # fmt: skip


def test_columns_name_sections_and_a_bad_row_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "r.csv"
    path.write_bytes(b"VolumeName,Findings_EN,Impressions_EN\na,Clear.,Normal.\nb,Clear \xff,Normal.\nc,,\n")
    result = call(path, "--json")
    assert result.return_value == 4
    told = json.loads(result.stdout)["reports"]
    assert [(s["kind"], s["column"]) for s in told[0]["sections"]] == [
        ("findings", "Findings_EN"), ("impression", "Impressions_EN"),
    ]  # fmt: skip
    assert told[1]["faults"] == ["undecodable"] and told[1]["sections"] == []
    assert told[2]["faults"] == ["empty"] and told[2]["sections"] == []


def test_what_is_shown_is_plain_and_a_missing_file_has_a_code(tmp_path: Path) -> None:
    shown = call("-", stdin=REPORT.encode())
    assert shown.return_value == 0 and "cough [b]." in shown.stdout and "1 reports" in shown.stderr
    error = call(tmp_path / "gone.csv").exception
    assert isinstance(error, HilumError) and error.code == "NOT_FOUND"
