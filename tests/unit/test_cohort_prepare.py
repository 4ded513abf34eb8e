"""From a data set to its manifest: refusals listed, runs resumed, workers that die, one writer, splits."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from _cohort_layouts import AFFINE, chest, plain_cohort, save, table

from hilum.cli import run
from hilum.cohort import prepare as prepare_module
from hilum.cohort.judge import Judgement, Refusal, judge
from hilum.cohort.manifest import SCHEMA, Manifest, read_manifest
from hilum.cohort.prepare import PrepareOptions, prepare
from hilum.cohort.records import ScanRecord, answers_from_json, answers_to_json
from hilum.cohort.sources.registry import MODULES, source_for, source_named
from hilum.cohort.splits import assign, parse_shares, split_of
from hilum.cohort.workers import run_jobs
from hilum.errors import ContainerError, HilumError, OutputError, ReportError, UsageError, WeightsError
from hilum.io.limits import Answers, Placement
from hilum.io.lock import output_lock

HERE = PrepareOptions(workers=0)


def spoil(root: Path, number: int) -> None:
    file = root / f"scans/{number:03d}.nii.gz"
    file.write_bytes(file.read_bytes()[:-2000])


def test_a_cohort_with_five_percent_bad_finishes_with_a_table(tmp_path, capsys):
    root = plain_cohort(tmp_path / "data", 40)
    spoil(root, 7)
    save(root / "scans/021.nii.gz", np.full((48, 40, 32), 5, dtype=np.int16))
    code = run(["prepare", str(root), "--out", str(tmp_path / "out"), "--workers", "1"])
    shown = capsys.readouterr().out
    assert code == 4
    assert "38 of 40 scans are fit" in shown and "GZ_TRUNCATED" in shown and "NOT_HU" in shown
    with (tmp_path / "out/refused.csv").open(encoding="utf-8") as file:
        refused = list(csv.DictReader(file))
    assert [(r["path"], r["code"]) for r in refused] == [
        ("scans/007.nii.gz", "GZ_TRUNCATED"),
        ("scans/021.nii.gz", "NOT_HU"),
    ]
    assert all(r["reason"] for r in refused)
    assert len(read_manifest(tmp_path / "out")) == 38


def test_json_says_the_same_and_all_fit_is_zero(tmp_path, capsys):
    root = plain_cohort(tmp_path / "data", 2, report="Lungs are clear and the heart is of normal size.")
    assert run(["prepare", str(root), "--out", str(tmp_path / "out"), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["scans"], told["refused"], told["source"]) == (2, [], "csv")
    assert told["reports"] == {"duplicate": 1, "whole": 1}


def test_the_manifest_gives_back_what_went_in(tmp_path):
    labels = {"Lung nodule": lambda i: ("1", "0", "", "-1")[i], "label:covid": lambda i: str(i % 2)}
    root = plain_cohort(
        tmp_path / "data", 4, split=lambda i: "train" if i < 3 else "test",
        findings=lambda i: f"A nodule of {i + 3} mm in the left upper lobe.", **labels,
        **{"mask:nodule": lambda i: f"scans/{i:03d}.nii.gz"},
    )  # fmt: skip
    prepared = prepare(root, tmp_path / "out", HERE)
    manifest = read_manifest(tmp_path / "out")
    rows = list(manifest.rows())
    assert manifest.table.equals(prepared.manifest.table) and manifest.table.schema.equals(SCHEMA)
    assert [r.record.labels["lung_nodule"] for r in rows] == [1, 0, None, None]
    assert [r.record.labels["covid"] for r in rows] == [0, 1, 0, 1]
    assert manifest.splits() == ["test", "train"] and len(manifest.only("train")) == 3
    assert rows[2].record.text["findings"].startswith("A nodule of 5 mm")
    assert rows[0].record.masks[0].name == "nodule"
    assert rows[0].judged.shape == (48, 40, 32) and rows[0].judged.axcodes == "LAS"
    np.testing.assert_allclose(rows[0].judged.spacing_mm, (8.0, 9.0, 7.5))
    volume = manifest.open(rows[1])
    assert volume.provenance.sha256 == rows[1].judged.sha256
    assert rows[1].record.patient == "table:p1"


def test_equal_data_give_equal_bytes_whatever_the_workers(tmp_path):
    root = plain_cohort(tmp_path / "data", 5)
    spoil(root, 2)
    prepare(root, tmp_path / "a", HERE)
    prepare(root, tmp_path / "b", PrepareOptions(workers=2))
    for name in ("manifest.parquet", "refused.csv", "prepare.json"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_a_second_run_reads_only_what_changed(tmp_path, monkeypatch):
    root = plain_cohort(tmp_path / "data", 4)
    prepare(root, tmp_path / "out", HERE)
    save(root / "scans/001.nii.gz", seed=77)
    read = []
    monkeypatch.setattr(prepare_module, "_judge_one", lambda job: read.append(job[0].path) or judge(*job[:2]))
    again = prepare(root, tmp_path / "out", HERE)
    assert read == ["scans/001.nii.gz"] and again.kept == 3


KILLED = """
import sys
from hilum.cohort.prepare import PrepareOptions, prepare
prepare(sys.argv[1], sys.argv[2], PrepareOptions(workers=0))
"""


def test_killed_in_the_middle_and_again_is_as_undisturbed(tmp_path):
    root = plain_cohort(tmp_path / "data", 60)
    process = subprocess.Popen([sys.executable, "-c", KILLED, str(root), str(tmp_path / "out")])
    deadline = time.monotonic() + 60
    while len(list(tmp_path.glob("out/judged/*/*.json"))) < 3 and time.monotonic() < deadline:
        time.sleep(0.005)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    judged = len(list(tmp_path.glob("out/judged/*/*.json")))
    assert 3 <= judged < 60 and not (tmp_path / "out/manifest.parquet").exists()
    again = prepare(root, tmp_path / "out", HERE)
    prepare(root, tmp_path / "undisturbed", HERE)
    assert again.kept >= judged - 1
    for name in ("manifest.parquet", "refused.csv", "prepare.json"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "undisturbed" / name).read_bytes()


def _dies_on_three(job: int) -> int:
    if job == 3:
        os._exit(9)
    return job * job


def test_a_worker_that_dies_costs_its_own_job_only():
    ends = list(run_jobs(_dies_on_three, range(9), 2))
    assert [e.job for e in ends] == list(range(9))
    assert [e.job for e in ends if e.died] == [3]
    assert [e.result for e in ends if not e.died] == [j * j for j in range(9) if j != 3]


def _judge_or_die(job):
    if job[0].path.endswith("001.nii.gz"):
        os.kill(os.getpid(), signal.SIGSEGV)
    return judge(job[0], job[1], mode=job[2])


def test_a_scan_that_kills_its_reader_is_one_refusal_and_is_tried_again(tmp_path, monkeypatch):
    root = plain_cohort(tmp_path / "data", 4)
    monkeypatch.setattr(prepare_module, "_judge_one", _judge_or_die)
    prepared = prepare(root, tmp_path / "out", PrepareOptions(workers=2))
    assert [(r.path, r.code) for r in prepared.refusals] == [("scans/001.nii.gz", "WORKER_DIED")]
    assert len(prepared.manifest) == 3
    monkeypatch.undo()
    assert len(prepare(root, tmp_path / "out", HERE).manifest) == 4


HOLDER = """
import sys, time
from hilum.io.lock import output_lock
with output_lock(sys.argv[1]):
    print("held", flush=True)
    time.sleep(float(sys.argv[2]))
"""


def _holder(folder: Path, seconds: float) -> subprocess.Popen:
    folder.mkdir(exist_ok=True)
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(folder), str(seconds)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None and process.stdout.readline().strip() == "held"
    return process


def test_two_writers_refuse_with_the_others_name_or_wait(tmp_path):
    root = plain_cohort(tmp_path / "data", 1)
    process = _holder(tmp_path / "out", 60)
    with pytest.raises(OutputError) as refused:
        prepare(root, tmp_path / "out", HERE)
    assert refused.value.code == "OUTPUT_LOCKED" and f"{process.pid}@" in str(refused.value)
    process.kill()
    process.communicate()
    assert len(prepare(root, tmp_path / "out", HERE).manifest) == 1  # the lock went with its process
    process = _holder(tmp_path / "out", 1.0)
    with output_lock(tmp_path / "out", wait_s=30):
        assert process.wait(timeout=5) == 0
    process.communicate()


def test_paths_are_confined_to_the_root(tmp_path):
    outside = save(tmp_path / "outside.nii.gz")
    root = plain_cohort(tmp_path / "data", 1)
    (root / "scans/link.nii.gz").symlink_to(outside)
    rows = [{"path": p, "patient": f"p{i}"} for i, p in enumerate(
        ["../outside.nii.gz", str(outside), "file:///etc/passwd", "scans/link.nii.gz", "scans/000.nii.gz"]
    )]  # fmt: skip
    table(root / "cohort.csv", rows)
    prepared = prepare(root, tmp_path / "out", HERE)
    assert [r.code for r in prepared.refusals] == ["PATH_ESCAPE"] * 4
    assert [r.record.path for r in prepared.manifest.rows()] == ["scans/000.nii.gz"]


def test_a_manifest_that_names_paths_outside_is_refused(tmp_path):
    prepared = prepare(plain_cohort(tmp_path / "data", 1), tmp_path / "out", HERE)
    row = next(iter(prepared.manifest.rows()))
    evil = ScanRecord("k", "../../etc/passwd", "p")
    Manifest.of([type(row)(evil, row.judged)], "csv").write(tmp_path / "evil.parquet")
    with pytest.raises(ReportError) as refused:
        read_manifest(tmp_path / "evil.parquet", tmp_path)
    assert refused.value.code == "PATH_ESCAPE"


def test_damaged_foreign_and_newer_manifests_are_refused(tmp_path):
    prepare(plain_cohort(tmp_path / "data", 1), tmp_path / "out", HERE)
    file = tmp_path / "out/manifest.parquet"
    held = pq.read_table(file)
    whole = file.read_bytes()
    for content in (whole[:-50], whole[: len(whole) // 2], b"PAR1", b""):
        file.write_bytes(content)
        with pytest.raises(ReportError) as refused:
            read_manifest(file)
        assert refused.value.code == "MANIFEST_DAMAGED"
    pq.write_table(held.replace_schema_metadata({"hilum.format": "99"}), file)
    with pytest.raises(WeightsError) as newer:
        read_manifest(file)
    assert newer.value.code == "FORMAT_NEWER"
    pq.write_table(held.drop_columns(["sha256"]), file)
    with pytest.raises(ReportError, match="sha256"):
        read_manifest(file)
    with pytest.raises(ContainerError):
        read_manifest(tmp_path / "nothing")


def test_a_missing_column_is_named_with_the_nearest(tmp_path):
    root = plain_cohort(tmp_path / "data", 1)
    content = (root / "cohort.csv").read_text().replace("patient", "patient_id")
    (root / "cohort.csv").write_text(content)
    with pytest.raises(ReportError) as refused:
        prepare(root, tmp_path / "out", HERE)
    assert refused.value.code == "COLUMN_MISSING" and "patient_id" in str(refused.value)
    assert not (tmp_path / "out").exists()


def test_reports_with_faults_are_counted_and_their_scans_kept(tmp_path, capsys):
    whole = "The trachea is central. There is a nodule of 7 mm in the right lower lobe."
    texts = [
        whole, whole.upper(), "", "nan", "GefÃ¤ÃŸe unauffÃ¤llig, Lunge frei.",
        "The heart is enlarged and there is fluid in both...", "Emphysema in both upper lobes, no effusion.",
    ]  # fmt: skip
    root = plain_cohort(tmp_path / "data", len(texts) + 1, report=lambda i: [*texts, "Lunge \x00?"][i])
    raw = (root / "cohort.csv").read_bytes()
    (root / "cohort.csv").write_bytes(raw.replace(b"Lunge \x00?", b"Lunge \xff\xfe frei, Herz normal"))
    assert run(["prepare", str(root), "--out", str(tmp_path / "out")]) == 0
    shown = capsys.readouterr().out
    manifest = read_manifest(tmp_path / "out")
    rows = list(manifest.rows())
    assert [r.text_fault for r in rows] == [
        "", "duplicate", "empty", "empty", "mojibake", "truncated", "", "undecodable"
    ]  # fmt: skip
    for told in ("1 duplicate", "2 empty", "1 mojibake", "1 truncated", "1 undecodable", "2 whole"):
        assert told in shown
    assert rows[0].text_group == rows[1].text_group != rows[6].text_group


def test_splits_go_by_patient_and_do_not_move_when_others_come():
    records = [ScanRecord(f"{p}-{i}", "x", f"t:{p}") for p in range(400) for i in range(2)]
    shares = parse_shares("train=0.8,val=0.1,test=0.1")
    chosen = assign(records, shares, seed=5)
    assert all(chosen[f"{p}-0"] == chosen[f"{p}-1"] for p in range(400))
    counts = {name: sum(v == name for v in chosen.values()) / len(chosen) for name in shares}
    assert abs(counts["train"] - 0.8) < 0.05 and abs(counts["test"] - 0.1) < 0.05
    fewer = assign(records[:100], shares, seed=5)
    assert all(chosen[key] == fewer[key] for key in fewer)
    assert chosen != assign(records, shares, seed=6)
    assert split_of("t:1", {"train": 1.0}) == "train"


def test_given_splits_are_kept_and_a_patient_in_two_is_a_leak(tmp_path):
    given = [ScanRecord("a", "a", "p1", split="train"), ScanRecord("b", "b", "p1")]
    assert assign(given) == {"a": "train", "b": "train"}
    root = plain_cohort(tmp_path / "data", 2, split=lambda i: ("train", "test")[i])
    with (root / "cohort.csv").open() as file:
        rows = list(csv.DictReader(file))
    table(root / "cohort.csv", [r | {"patient": "one"} for r in rows])
    with pytest.raises(ReportError) as refused:
        prepare(root, tmp_path / "out", HERE)
    assert refused.value.code == "PATIENT_LEAK" and not (tmp_path / "out").exists()
    ignored = PrepareOptions(workers=0, keep_splits=False, shares={"train": 0.5, "test": 0.5})
    assert len(prepare(root, tmp_path / "out", ignored).manifest.splits()) == 1


@pytest.mark.parametrize("told", ["train=0.5", "train=2,test=-1", "train=x", "left=0.5,right=0.5", ""])
def test_shares_that_make_no_sense_are_usage_errors(told):
    with pytest.raises(UsageError):
        parse_shares(told)


def test_answers_survive_the_manifest():
    answers = Answers(
        series="1.2.3", rescale=(1.0, -1024.0), placement=Placement((1.0,) * 12, 2.0, -8.0, (4, 5, 6))
    )
    assert answers_from_json(answers_to_json(answers)) == answers
    assert answers_to_json(Answers()) == "" and answers_from_json("") == Answers()


def test_unknown_sources_and_folders(tmp_path):
    for name in MODULES:
        assert source_named(name).name == name
    with pytest.raises(UsageError, match="phantom"):
        source_named("phantoms")
    with pytest.raises(ContainerError) as refused:
        source_for(tmp_path)
    assert refused.value.code == "SOURCE_UNKNOWN"
    with pytest.raises(ContainerError):
        source_for(tmp_path / "nothing")


def test_nothing_is_written_below_the_data_set(tmp_path):
    root = plain_cohort(tmp_path / "data", 1)
    with pytest.raises(OutputError) as refused:
        prepare(root, root / "out", HERE)
    assert refused.value.code == "OUTPUT_INSIDE_INPUT" and not (root / "out").exists()


def test_cells_that_a_spreadsheet_would_run_are_prefixed(tmp_path):
    refusal = Refusal("=cmd()", "@x", "NOT_HU", "why\nnot", "")
    line = prepare_module.refused_table([refusal]).splitlines()[1]
    assert line == "'=cmd(),'@x,NOT_HU,why not,"


def test_the_journal_is_not_believed_when_it_is_damaged(tmp_path):
    root = plain_cohort(tmp_path / "data", 2)
    prepare(root, tmp_path / "out", HERE)
    for file in (tmp_path / "out/judged").rglob("*.json"):
        file.write_text(file.read_text()[:40])
    assert prepare(root, tmp_path / "out", HERE).kept == 0


def test_judge_never_raises(tmp_path):
    save(tmp_path / "a.nii.gz")
    good = judge(ScanRecord("a", "a.nii.gz", "p"), tmp_path)
    assert isinstance(good, Judgement) and len(good.print_top) == 4096 and good.kind == "nifti"
    for path in ("missing.nii.gz", "../a.nii.gz", ""):
        assert isinstance(judge(ScanRecord("a", path, "p"), tmp_path), Refusal)
    known = judge(ScanRecord("a", "a.nii.gz", "p", broken="said so"), tmp_path)
    assert isinstance(known, Refusal) and known.code == "SCAN_KNOWN_BROKEN" and "said so" in known.reason


def test_a_table_in_place_of_a_header(tmp_path):
    stored = (chest().astype(np.int32) + 8192).astype(np.uint16)
    save(tmp_path / "raw.nii.gz", stored, np.eye(4))
    rows = tuple(float(v) for v in AFFINE[:3].ravel())
    record = ScanRecord(
        "a", "raw.nii.gz", "p", answers=Answers(placement=Placement(rows, 1.0, -8192.0, (48, 40, 32)))
    )
    judged = judge(record, tmp_path)
    assert isinstance(judged, Judgement) and abs(judged.hu_p50 + 1000) < 60
    wrong = ScanRecord(
        "a", "raw.nii.gz", "p", answers=Answers(placement=Placement(rows, 1.0, 0.0, (48, 40, 33)))
    )
    refused = judge(wrong, tmp_path)
    assert isinstance(refused, Refusal) and refused.code == "GRID_MISMATCH"


def test_phantoms_come_from_their_truth(tmp_path):
    from hilum.cohort.sources import phantom as source
    from hilum.phantom.batch import BatchRequest, make_batch
    from hilum.phantom.write import FORMAT

    assert source.FORMAT == FORMAT
    make_batch(2, tmp_path / "ph", BatchRequest(spacing_mm=(6.0, 6.0, 6.0), work_mm=6.0))
    (tmp_path / "ph/synthetic-odd").mkdir()
    (tmp_path / "ph/synthetic-odd/truth.json").write_text("{}")
    prepared = prepare(tmp_path / "ph", tmp_path / "out", HERE)
    assert prepared.manifest.source == "phantom" and [r.code for r in prepared.refusals] == [
        "SCAN_KNOWN_BROKEN"
    ]
    truth = json.loads(next(iter(sorted((tmp_path / "ph").glob("synthetic-0*/truth.json")))).read_text())
    row = next(iter(prepared.manifest.rows()))
    assert dict(row.record.labels) == truth["labels"]
    assert row.judged.sha256 == truth["image"]["sha256"] and row.record.patient == "phantom:0"
    names = {m.name for m in row.record.masks}
    assert {"region/lung", "organ/global"} <= names
    assert all(prepared.manifest.mask_path(m).is_file() for m in row.record.masks)


def test_errors_are_typed_all_through(tmp_path):
    root = plain_cohort(tmp_path / "data", 1)
    (tmp_path / "file").write_text("x")
    with pytest.raises(HilumError):
        prepare(root, tmp_path / "file/out", HERE)


def test_prepare_fills_a_store_and_verify_names_what_was_touched(tmp_path, capsys):
    root = plain_cohort(tmp_path / "data", 3)
    spoil(root, 1)
    out = tmp_path / "out"
    assert run(["prepare", str(root), "--out", str(out), "--prep", "radfinder", "--json"]) == 4
    told = json.loads(capsys.readouterr().out)
    assert told["scans"] == 2 and (told["store"]["made"], told["store"]["refused"]) == (2, [])
    assert run(["prepare", str(root), "--out", str(out), "--prep", "radfinder"]) == 4
    assert "0 scans prepared, 2 kept" in " ".join(capsys.readouterr().out.split())
    assert run(["prepare", str(out), "--verify"]) == 0
    assert "0 faults in manifest.parquet, store-radfinder" in " ".join(capsys.readouterr().out.split())
    assert run(["prepare", str(out / "store-radfinder"), "--verify"]) == 0
    largest = max((out / "store-radfinder").rglob("*"), key=lambda p: p.stat().st_size if p.is_file() else 0)
    content = bytearray(largest.read_bytes())
    content[len(content) // 2] ^= 1
    largest.write_bytes(content)
    capsys.readouterr()
    assert run(["prepare", str(out), "--verify", "--json"]) == 3
    faults = json.loads(capsys.readouterr().out)["faults"]
    assert faults and all(f["file"].startswith("store-radfinder/") for f in faults)
    (out / "manifest.parquet").write_bytes(b"PAR1")
    assert run(["prepare", str(out), "--verify"]) == 3
    assert "MANIFEST_DAMAGED" in capsys.readouterr().out


def test_prepare_needs_a_place_and_a_preset_that_is_one(tmp_path, capsys):
    root = plain_cohort(tmp_path / "data", 1)
    assert run(["prepare", str(root)]) == 2
    assert run(["prepare", str(root), "--out", str(tmp_path / "out"), "--prep", "radfindr"]) == 2
    assert not (tmp_path / "out").exists()
    (tmp_path / "empty").mkdir()
    assert run(["prepare", str(tmp_path / "empty"), "--verify"]) == 3


def test_a_recipe_says_what_options_say(tmp_path, capsys):
    root = plain_cohort(tmp_path / "data", 3)
    recipe = tmp_path / "cohort.toml"
    recipe.write_text('root = "data"\nout = "out"\nsplit = "train=0.5,test=0.5"\nworkers = 1\nseed = 3\n')
    assert run(["prepare", str(recipe), "--seed", "4", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["scans"] == 3
    receipt = json.loads((tmp_path / "out/prepare.json").read_text())
    assert receipt["seed"] == 4 and receipt["shares"] == {"train": 0.5, "test": 0.5}
    assert Path(receipt["root"]) == root
    for text, told in (
        ('root = "data"\nout = "o"\nsplitt = "keep"', "Did you mean split?"),
        ('root = "data"\nout = "o"\nworkers = 0', "CONFIG_VALUE"),
        ('root = "data"\nout = 3', "CONFIG_VALUE"),
        ('root = "data"\nout = "o"\nverify = true', "CONFIG_KEY"),
        ('out = "o"', "CONFIG_KEY"),
        ("root = ", "CONFIG_FILE"),
        ('root = "data"', "--out"),
    ):
        recipe.write_text(text)
        assert run(["prepare", str(recipe)]) == 2
        assert told in capsys.readouterr().err
    assert not (tmp_path / "o").exists()
    shipped = Path(__file__).parents[2] / "recipes/cohort-phantoms.toml"
    copy = tmp_path / "recipes/cohort-phantoms.toml"
    copy.parent.mkdir()
    copy.write_text(shipped.read_text())
    assert run(["prepare", str(copy)]) == 3  # its phantoms are not made yet, everything else is right
    assert "NOT_FOUND" in capsys.readouterr().err
