"""Tables, workbooks and XML that are damaged, odd or hostile; paths that leave their root."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest

from hilum.errors import ContainerError, InputRefused, ReportError
from hilum.io.confine import confined, relative_to
from hilum.io.safe_xml import MAX_DEPTH, parse_xml
from hilum.io.table import read_table, said, tri_state

SHEET = "xl/worksheets/sheet1.xml"
NS = 'xmlns="http://schemas.openxmlformats.org/spreadsheetml/2006/main"'


def workbook(path: Path, sheet: str, shared: str | None = None) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as book:
        book.writestr(SHEET, sheet)
        if shared is not None:
            book.writestr("xl/sharedStrings.xml", shared)
    return path


def test_a_workbook_gives_the_same_rows_as_a_csv(tmp_path):
    shared = f"<sst {NS}><si><t>study id</t></si><si><r><t>two </t></r><r><t>runs</t></r></si></sst>"
    sheet = (
        f"<worksheet {NS}><sheetData>"
        '<row r="1"><c r="A1" t="s"><v>0</v></c><c r="C1" t="inlineStr"><is><t>text</t></is></c></row>'
        '<row r="2"><c r="A2"><v>17</v></c><c r="C2" t="s"><v>1</v></c></row>'
        '<row r="3"><c r="C3" t="str"><v>of a formula</v></c></row>'
        "</sheetData></worksheet>"
    )
    rows = read_table(workbook(tmp_path / "a.xlsx", sheet, shared), ("study id", "text"))
    assert rows == [{"study id": "17", "text": "two runs"}, {"study id": "", "text": "of a formula"}]
    (tmp_path / "a.csv").write_text("study id,text\n17,two runs\n,of a formula\n", encoding="utf-8-sig")
    assert read_table(tmp_path / "a.csv") == rows


@pytest.mark.parametrize(
    "content",
    [
        '<!DOCTYPE x [<!ENTITY a "ha"><!ENTITY b "&a;&a;">]><x>&b;</x>',
        '<!DOCTYPE x SYSTEM "file:///etc/passwd"><x/>',
        '<!DOCTYPE x [<!ENTITY a SYSTEM "file:///etc/passwd">]><x>&a;</x>',
        "<x>&undeclared;</x>",
        "<a>" * (MAX_DEPTH + 2) + "</a>" * (MAX_DEPTH + 2),
        "<x><y></x>",
        "",
        "no xml at all",
    ],
)
def test_dangerous_and_broken_xml_is_refused(content, tmp_path):
    with pytest.raises(ContainerError) as refused:
        parse_xml(content.encode(), "file.xml")
    assert refused.value.code == "XML_DANGEROUS"
    with pytest.raises(InputRefused):
        read_table(workbook(tmp_path / "a.xlsx", content))


def test_plain_xml_is_read_without_namespaces():
    root = parse_xml(b'<?xml version="1.0"?><n:a xmlns:n="u"><b k="1">x<c/>y</b><b> z </b></n:a>', "")
    assert root.name == "a" and [b.text for b in root.all("b")] == ["xy", " z "]
    assert root.word("b/c") == "" and root.word("b/d") == "" and root.word("b") == "xy"
    assert root.all("b")[0].attributes == {"k": "1"}


def test_workbooks_that_are_none(tmp_path):
    (tmp_path / "a.xlsx").write_bytes(b"PK\x03\x04 cut")
    with pytest.raises(ContainerError):
        read_table(tmp_path / "a.xlsx")
    with zipfile.ZipFile(tmp_path / "b.xlsx", "w") as book:
        book.writestr("word/document.xml", "<x/>")
    with pytest.raises(ContainerError):
        read_table(tmp_path / "b.xlsx")
    with pytest.raises(ContainerError) as missing:
        read_table(tmp_path / "c.xlsx")
    assert missing.value.code == "NOT_FOUND"


def test_a_column_that_is_not_there_is_named_with_its_neighbour(tmp_path):
    (tmp_path / "a.csv").write_text("VolumeNames,Findings_EN\na,b\n")
    with pytest.raises(ReportError) as refused:
        read_table(tmp_path / "a.csv", ("VolumeName",))
    assert refused.value.code == "COLUMN_MISSING" and "VolumeNames" in (refused.value.hint or "")
    (tmp_path / "empty.csv").write_text("")
    with pytest.raises(ReportError):
        read_table(tmp_path / "empty.csv", ("VolumeName",))


def test_tables_with_other_separators_marks_and_bytes(tmp_path):
    (tmp_path / "a.csv").write_bytes(b"\xef\xbb\xbfa;b\n1;\xff\n2\n")
    assert read_table(tmp_path / "a.csv") == [{"a": "1", "b": "\ufffd"}, {"a": "2", "b": ""}]
    (tmp_path / "b.tsv").write_text("a\tb\n1,5\t2\n")
    assert read_table(tmp_path / "b.tsv") == [{"a": "1,5", "b": "2"}]


@pytest.mark.parametrize(
    ("cell", "label"),
    [("1", 1), ("0", 0), ("1.0", 1), ("0.0", 0), ("-1", None), ("", None), ("nan", None), (None, None),
     ("2", None), ("0.5", None), ("True", 1), ("False", 0), ("Censored", None), ("inf", None)],
)  # fmt: skip
def test_blank_minus_one_and_odd_labels_are_unknown(cell, label):
    assert tri_state(cell) == label


def test_what_tables_write_for_nothing():
    assert [said(t) for t in ("Not given.", "NaN", " none ", None, "0", "Not given. Later")] == [
        "", "", "", "", "0", "Not given. Later"
    ]  # fmt: skip


@pytest.mark.parametrize(
    "path",
    [
        "../x",
        "a/../../x",
        "/etc/passwd",
        "C:\\x",
        "c:/x",
        "\\\\host\\x",
        "http://x/y",
        "",
        "a/\0b",
        "..\\x",
    ],
)
def test_paths_that_leave_the_root(path, tmp_path):
    with pytest.raises(ReportError) as refused:
        confined(tmp_path, path)
    assert refused.value.code == "PATH_ESCAPE"


def test_paths_that_stay(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "in")
    (tmp_path / "out").symlink_to(tmp_path.parent)
    for path in (".", "in", "a b/ü.nii.gz", "link/x", "in/...x"):
        assert confined(tmp_path, path).resolve().is_relative_to(tmp_path.resolve())
    with pytest.raises(ReportError):
        confined(tmp_path, "out/x")
    assert relative_to(tmp_path, tmp_path / "in" / "x") == "in/x"
    with pytest.raises(ReportError):
        relative_to(tmp_path / "in", tmp_path)
