"""`hilum reports snippets`: its JSON, its tables, its refusals."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from _called import Called

sys.path.insert(0, str(Path(__file__).parents[1] / "hostile"))

import fixtures_dicom as fx

from hilum.cli.reports_snippets import snippets
from hilum.errors import ContainerError, HilumError, ReportError, UsageError

REPORT = "Nodule in the lingula (series 4, image 3).\nOn the prior CT it was smaller (series 2, image 9).\n"


call = Called(snippets)


def test_a_text_file_gives_its_snippets_with_spans(tmp_path: Path) -> None:
    path = tmp_path / "report.txt"
    path.write_text(REPORT, encoding="utf-8")
    seen = call.told(path)
    now, then = seen["snippets"]
    assert (now["series"], now["image"], now["prior"], now["text"]) == (4, 3, False, "Nodule in the lingula")
    assert (then["series"], then["images"], then["prior"]) == (2, [9], True)
    assert REPORT[slice(*now["span"])] == "series 4, image 3"
    assert seen["counts"]["snippets"] == 2 and seen["counts"]["prior"] == 1


def test_standard_input_is_a_report() -> None:
    assert call.told("-", stdin="\ufeffErguss (Bild 90).".encode())["snippets"][0]["images"] == [90]


def test_a_table_is_read_row_by_row_and_faults_are_counted(tmp_path: Path) -> None:
    path = tmp_path / "reports.csv"
    small = b'"Nodule (Se 4/3), ""small"""'
    rows = [b"id,Report_Text", b"1," + small, b"2,", b"3,nan", b"4," + small]
    rows += [b"5,Rundherd \xe4 (Se 4/3)", "6,ErgÃ¼sse (Se 4/3)".encode()]
    path.write_bytes(b"\n".join(rows))
    result = call(path, "--json")
    seen = json.loads(result.stdout)
    assert result.return_value == 4
    counts = seen["counts"]
    assert [counts[n] for n in ("reports", "empty", "duplicate", "undecodable", "mojibake")] == [
        6,
        2,
        1,
        1,
        1,
    ]
    assert [s["row"] for s in seen["snippets"]] == [1, 4, 6] and seen["snippets"][0][
        "column"
    ] == "Report_Text"
    assert len(call.told(path, "--row", "1")["snippets"]) == 1


def test_columns_are_found_or_named_or_refused_with_the_nearest(tmp_path: Path) -> None:
    path = tmp_path / "reports.csv"
    path.write_text(
        "id;Findings_EN;Impressions_EN;note\n1;A (Se 4/3).;B (Se 4/5).;C (Se 4/7).\n", encoding="utf-8"
    )
    assert [s["column"] for s in call.told(path)["snippets"]] == ["Findings_EN", "Impressions_EN"]
    assert call.told(path, "--text-column", "note")["snippets"][0]["image"] == 7
    error = call.refusal(path, "--text-column", "Finding_EN")
    assert error.code == "COLUMN_MISSING" and "Findings_EN" in (error.hint or "")
    path.write_text("a,b\n1,2\n", encoding="utf-8")
    assert call.refusal(path).code == "COLUMN_MISSING"


def test_long_cells_are_whole(tmp_path: Path) -> None:
    path = tmp_path / "reports.csv"
    path.write_text("report\n" + "word " * 60_000 + "(Se 4/3)\n", encoding="utf-8")
    assert len(call.told(path)["snippets"]) == 1


@pytest.mark.parametrize(
    ("arguments", "stdin", "kind", "code"),
    [
        (["gone.txt"], None, ContainerError, "NOT_FOUND"),
        (["gone.csv"], None, ContainerError, "NOT_FOUND"),
        (["-"], b"\xff\xfe\x00", ReportError, "TEXT_ENCODING"),
        (["-", "--text-column", "x"], b"a", UsageError, "ANSWER_INVALID"),
    ],
)
def test_refusals(arguments: list[str], stdin: bytes | None, kind: type[HilumError], code: str) -> None:
    error = call.refusal(*arguments, stdin=stdin)
    assert isinstance(error, kind) and error.code == code


def test_with_a_study_every_image_has_its_place_or_the_reason_why_not(tmp_path: Path) -> None:
    refs = fx.good(tmp_path / "dicom", series_number=4)
    report = REPORT + "Further nodule (series 4, image 400)."
    result = call("-", "--json", "--dicom", tmp_path / "dicom", stdin=report.encode())
    assert result.return_value == 4
    now, then, lost = (s["places"][0] for s in json.loads(result.stdout)["snippets"])
    truth = next(r for r in refs if r.instance_number == 3)
    assert now["sop_uid"] == truth.sop_uid and now["z_mm"] == pytest.approx(truth.position_mm[2])
    assert then["refused"]["code"] == "PRIOR_REFERENCE" and lost["refused"]["code"] == "IMAGE_UNKNOWN"
    shown = call("-", "--dicom", tmp_path / "dicom", stdin=REPORT.encode())
    assert shown.return_value == 0 and "earlier" in shown.output and "2 snippets" in shown.output


def test_one_study_goes_with_one_report(tmp_path: Path) -> None:
    path = tmp_path / "reports.csv"
    path.write_text("report\nA (Se 4/3)\nB (Se 4/5)\n", encoding="utf-8")
    fx.good(tmp_path / "dicom", series_number=4)
    assert call.refusal(path, "--dicom", tmp_path / "dicom").code == "ANSWER_INVALID"
    assert (
        call.told(path, "--dicom", tmp_path / "dicom", "--row", "2")["snippets"][0]["places"][0]["image"] == 5
    )


def test_nothing_printed_can_be_markup_or_control_signs() -> None:
    shown = call("-", stdin=b"[bold]Nodule[/bold] \x1b[31m in (Se 4/3).")
    assert shown.exception is None and "\x1b[31m" not in shown.output and "[bold]" in shown.output


def test_torch_stays_out() -> None:
    code = (
        "import sys; from click.testing import CliRunner; from hilum.cli.reports_snippets import snippets;"
        "r = CliRunner().invoke(snippets, ['-', '--json'], input='Herd (Se 4/3).');"
        "assert r.exit_code == 0, r.output;"
        "sys.exit('torch' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
