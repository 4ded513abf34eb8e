"""A tree of DICOM files: series found by headers, patients hashed, damaged ones refused, the rest goes on."""

from __future__ import annotations

import shutil

from fixtures_dicom import edit, files, good, patch, setting

from hilum.cli import run
from hilum.cohort.manifest import read_manifest
from hilum.cohort.prepare import PrepareOptions, prepare
from hilum.cohort.sources.base import SourceOptions

HERE = PrepareOptions(workers=0)


def test_series_become_scans_whatever_the_folders_are_called(tmp_path, capsys):
    root = tmp_path / "data"
    good(root / "CANARY^PHI" / "a", seed="a", patient_id="CANARY-1")
    good(root / "CANARY^PHI" / "b", seed="b", patient_id="CANARY-1", noise=4)
    good(root / "mixed", seed="c", patient_id="CANARY-2", noise=5)
    good(root / "elsewhere", seed="d", patient_id="CANARY-3", noise=6)
    for file in files(root / "elsewhere"):  # two series in one folder
        shutil.move(file, root / "mixed" / f"d-{file.name}")
    (root / "elsewhere/notes.txt").write_text("no image")
    good(root / "cut", seed="e", patient_id="CANARY-4")
    patch(files(root / "cut")[3], lambda content: content[:-100])
    good(root / "gone", seed="f", patient_id="CANARY-5")
    for file in files(root / "gone"):
        patch(file, lambda content: content[:-100])
    assert run(["prepare", str(root), "--out", str(tmp_path / "out")]) == 4
    assert "4 of 6 scans are fit" in capsys.readouterr().out
    manifest = read_manifest(tmp_path / "out")
    rows = list(manifest.rows())
    assert manifest.source == "dicom"
    assert len({r.judged.series_uid for r in rows}) == 4 and all(r.judged.sop_uids for r in rows)
    assert len({r.record.patient for r in rows}) == 3
    assert all(r.record.series == r.judged.series_uid for r in rows)
    assert sum(r.record.path == "mixed" for r in rows) == 2
    for row in rows:
        assert manifest.open(row).provenance.series_uid == row.judged.series_uid
    for name in ("manifest.parquet", "prepare.json"):
        assert b"CANARY-" not in (tmp_path / "out" / name).read_bytes()


def test_a_series_right_in_the_root(tmp_path):
    good(tmp_path / "data", patient_id="X1")
    prepared = prepare(tmp_path / "data", tmp_path / "out", HERE)
    assert [r.record.path for r in prepared.manifest.rows()] == ["."] and not prepared.refusals


def test_patients_are_keyed_hashes(tmp_path):
    good(tmp_path / "data/a", patient_id="X1")

    def patient(secret: bytes, out: str) -> str:
        options = PrepareOptions(workers=0, of_source=SourceOptions(secret=secret))
        return next(iter(prepare(tmp_path / "data", tmp_path / out, options).manifest.rows())).record.patient

    first, second = patient(b"one", "o1"), patient(b"two", "o2")
    assert first != second and first == patient(b"one", "o3") and "X1" not in first


def test_a_series_of_two_patients_is_refused_and_one_without_patient_says_so(tmp_path):
    good(tmp_path / "data/a", seed="a", patient_id="X1")
    edit(files(tmp_path / "data/a")[:3], setting(PatientID="X2"))
    good(tmp_path / "data/b", seed="b", patient_id="X1")
    edit(files(tmp_path / "data/b"), setting(PatientID=""))
    prepared = prepare(tmp_path / "data", tmp_path / "out", HERE)
    assert [r.code for r in prepared.refusals] == ["SCAN_KNOWN_BROKEN"]
    assert "2 patients" in prepared.refusals[0].reason
    row = next(iter(prepared.manifest.rows()))
    assert row.record.patient.startswith("dicom-study:") and "no PatientID" in row.record.notes[0]
