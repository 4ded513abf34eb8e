"""The store: what goes in comes out, one flipped byte is named, writers do not meet."""

from __future__ import annotations

import json
import multiprocessing
import multiprocessing.synchronize
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import blosc2
import numpy as np
import pytest
import torch
from _store_scans import write_scans
from hypothesis import given, settings
from hypothesis import strategies as st

from hilum.cohort.pipeline import to_store
from hilum.cohort.prep_presets import Codec, pipeline
from hilum.cohort.store import open_store, verify_store
from hilum.cohort.store_chunks import EDGE, bad_chunks, encode, read_box
from hilum.cohort.store_write import Outcome, StoreJob, prepare_store
from hilum.errors import ContainerError, OutputError, UsageError
from hilum.io.limits import Answers
from hilum.io.lock import OWNER
from hilum.io.open import open_volume

NATIVE = pipeline("native")


@pytest.fixture(scope="module")
def scans(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return write_scans(tmp_path_factory.mktemp("scans"), 3)


def jobs_of(scans: list[Path]) -> list[StoreJob]:
    return [StoreJob(f"case/{i}", str(path)) for i, path in enumerate(scans)]


def content(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.fixture(scope="module")
def made(scans: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("made") / "store"
    prepare_store(jobs_of(scans), root, NATIVE, where="here")
    return root


def copied(made: Path, to: Path) -> Path:
    for name, data in content(made).items():
        (to / name).parent.mkdir(parents=True, exist_ok=True)
        (to / name).write_bytes(data)
    return to


@pytest.mark.parametrize("codec", ["zstd", "lz4"])
@pytest.mark.parametrize("dtype", [np.int16, np.float16])
def test_boxes_are_those_of_the_array(tmp_path: Path, dtype: type, codec: Codec) -> None:
    rng = np.random.default_rng(0)
    values = rng.normal(0, 500, (70, 33, 65)).astype(dtype)
    values[:32, :32, :32] = 0  # a chunk that Blosc2 does not store
    values[32:64, :32, 32:64] = -1000  # one that it stores as a single value
    frame, table = encode(values, codec)
    path = tmp_path / "a.b2nd"
    path.write_bytes(frame)
    assert 0 in table.lengths and len(table.lengths) == 3 * 2 * 3
    for _ in range(40):
        start = [int(rng.integers(n)) for n in values.shape]
        size = [int(rng.integers(1, n - s + 1)) for n, s in zip(values.shape, start, strict=True)]
        box = read_box(path, table, tuple(start), tuple(size), "k")
        wanted = values[tuple(slice(s, s + n) for s, n in zip(start, size, strict=True))]
        assert box.dtype == wanted.dtype and np.array_equal(box, wanted)


def test_any_blosc2_reader_opens_the_file(made: Path, scans: list[Path]) -> None:
    store = open_store(made)
    row = store.row("case/1")
    array = blosc2.open(str(store.path_of(row)), mode="r")
    assert array.chunks == (EDGE,) * 3 and array.dtype == np.int16
    hu = open_volume(scans[1]).hu.clip(-1024)
    assert np.array_equal(array[:], hu) and np.array_equal(store.read("case/1"), hu)
    assert np.allclose(row.affine, open_volume(scans[1]).geometry.affine_ras)


def test_boxes_outside_and_wrong_types_are_refused(tmp_path: Path) -> None:
    frame, table = encode(np.ones((40, 40, 40), dtype=np.int16))
    (tmp_path / "a").write_bytes(frame)
    for start, size in (((0, 0, 0), (41, 1, 1)), ((-1, 0, 0), (2, 2, 2)), ((0, 0, 0), (0, 1, 1))):
        with pytest.raises(UsageError, match="GRID_MISMATCH"):
            read_box(tmp_path / "a", table, start, size, "k")
    for wrong in (np.ones((4, 4, 4)), np.ones((4, 4), dtype=np.int16)):
        with pytest.raises(UsageError, match="DTYPE"):
            encode(wrong)


def test_a_sound_store_verifies(made: Path) -> None:
    seen: list[str] = []
    assert verify_store(made, on_scan=seen.append) == []
    assert seen == ["case/0", "case/1", "case/2"] == list(open_store(made).keys)
    assert not (made / OWNER).exists()


@pytest.fixture(scope="module")
def flipped(made: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return copied(made, tmp_path_factory.mktemp("flip"))


@settings(max_examples=40, deadline=None)
@given(where=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7), which=st.integers(0, 2))
def test_one_flipped_bit_is_named(flipped: Path, where: float, bit: int, which: int) -> None:
    root = flipped
    store = open_store(root)
    key = store.keys[which]
    row = store.row(key)
    path = store.path_of(row)
    data = bytearray(path.read_bytes())
    at = int(where * len(data))
    data[at] ^= 1 << bit
    path.write_bytes(data)
    faults = verify_store(root)
    assert [f.key for f in faults] == [key] and faults[0].file.endswith(".b2nd")
    last = row.first + sum(row.lengths)
    if row.first <= at < last:
        hit = next(
            i
            for i, (o, n) in enumerate(zip(row.table.offsets(), row.lengths, strict=True))
            if o <= at < o + n
        )
        assert [f.chunk for f in faults] == [hit]
        with pytest.raises(ContainerError, match="STORE_DAMAGED") as caught:
            store.read(key)
        assert repr(key) in caught.value.message and f"chunk {hit} " in caught.value.message
        # a box elsewhere in the scan is still read
        corner = np.array(np.unravel_index(hit, row.table.grid)) * EDGE
        other = tuple(0 if c >= EDGE else min(EDGE, n - 1) for c, n in zip(corner, row.shape, strict=True))
        if any(o // EDGE != c // EDGE for o, c in zip(other, corner, strict=True)):
            assert store.read(key, other, (1, 1, 1)).shape == (1, 1, 1)
    else:
        assert [f.chunk for f in faults] == [None]
    data[at] ^= 1 << bit
    path.write_bytes(data)


@pytest.mark.parametrize("name", ["store.json", "index.parquet", "refused.json", "record"])
def test_a_flipped_bit_beside_the_values_is_seen(made: Path, tmp_path: Path, name: str) -> None:
    for part in (0.1, 0.5, 0.9):
        root = copied(made, tmp_path / str(part))
        path = next((root / "scans").glob("*.json")) if name == "record" else root / name
        data = bytearray(path.read_bytes())
        data[int(part * len(data))] ^= 1
        path.write_bytes(data)
        if name in ("store.json", "index.parquet"):
            with pytest.raises(ContainerError, match=r"STORE_DAMAGED|FORMAT_NEWER"):
                open_store(root)
        else:
            assert [Path(f.file).name for f in verify_store(root)] == [path.name]


def test_truncated_missing_and_stray_files_are_named(made: Path, tmp_path: Path) -> None:
    root = copied(made, tmp_path)
    store = open_store(root)
    first, second, third = (store.path_of(row) for row in store.rows.values())
    first.write_bytes(first.read_bytes()[:-2000])
    second.unlink()
    (root / "scans" / "stray.b2nd").write_bytes(b"x")
    faults = verify_store(root)
    assert [(f.key, f.file.split("/")[1]) for f in faults] == [
        *(("case/0", first.name) for f in faults[:-2]),
        ("case/1", second.name),
        ("", "stray.b2nd"),
    ]
    with pytest.raises(ContainerError, match="STORE_DAMAGED"):
        store.read("case/1")
    assert third.exists()


def test_damage_is_mended_by_preparing_again(scans: list[Path], made: Path, tmp_path: Path) -> None:
    root = copied(made, tmp_path)
    store = open_store(root)
    path = store.path_of(store.row("case/2"))
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)
    (root / "store.json").write_bytes(b"{}")
    (root / "scans" / "stray.json").write_bytes(b"{}")
    summary = prepare_store(jobs_of(scans), root, NATIVE, where="here")
    assert (summary.made, summary.kept) == (1, 2)
    assert content(root) == content(made)


def test_processes_give_the_same_store(scans: list[Path], made: Path, tmp_path: Path) -> None:
    torch.set_num_threads(2)
    seen: list[Outcome] = []
    root = tmp_path / "new" / "store"
    summary = prepare_store(reversed(jobs_of(scans)), root, "native", workers=2, on_outcome=seen.append)
    assert summary.made == 3 and {o.status for o in seen} == {"made"}
    assert content(root) == content(made)


def test_ray_gives_the_same_store(scans: list[Path], made: Path, tmp_path: Path) -> None:
    pytest.importorskip("ray")
    # in a process of its own: Ray leaves threads and sockets behind, which this run counts as errors
    code = (
        "import sys; from hilum.cohort.store_write import *\n"
        "jobs = [StoreJob(f'case/{i}', p) for i, p in enumerate(sys.argv[2:])]\n"
        "jobs.append(StoreJob('gone', '/gone'))\n"
        "s = prepare_store(jobs, sys.argv[1], 'native', workers=2, where='ray')\n"
        "assert s.made == 3 and [o.error['code'] for o in s.refused] == ['NOT_FOUND'], s\n"
        "s = prepare_store(jobs[:-1], sys.argv[1], 'native', workers=2, where='ray')\n"
        "assert s.kept == 3 and not s.refused, s\n"
    )
    root = tmp_path / "store"
    subprocess.run([sys.executable, "-c", code, str(root), *map(str, scans)], check=True, timeout=300)
    assert content(root) == content(made)


def test_without_ray_the_extra_is_named(
    scans: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UsageError, match=r"EXTRA_MISSING.*cluster"):
        prepare_store(jobs_of(scans), tmp_path / "s", NATIVE, where="ray")


def test_refused_scans_are_listed_and_the_rest_goes_on(scans: list[Path], tmp_path: Path) -> None:
    bad = tmp_path / "Mustermann.nii.gz"
    bad.write_bytes(scans[0].read_bytes()[:3000])
    jobs = [StoreJob("bad", str(bad)), *jobs_of(scans), StoreJob("gone", str(tmp_path / "nothing"))]
    root = tmp_path / "store"
    summary = prepare_store(jobs, root, NATIVE, where="here")
    assert (summary.made, summary.kept) == (3, 0)
    assert [(o.key, o.error and o.error["code"]) for o in summary.refused] == [
        ("bad", "GZ_TRUNCATED"),
        ("gone", "NOT_FOUND"),
    ]
    said = json.loads((root / "refused.json").read_text())
    assert [entry["key"] for entry in said] == ["bad", "gone"]
    assert "Mustermann" not in (root / "refused.json").read_text()
    assert verify_store(root) == []
    again = prepare_store(jobs, root, NATIVE, where="here")
    assert (again.made, again.kept, again.refused) == (0, 3, summary.refused)


def test_a_changed_input_or_job_list_changes_the_store(scans: list[Path], tmp_path: Path) -> None:
    root = tmp_path / "store"
    jobs = jobs_of(scans)
    prepare_store(jobs[:2], root, NATIVE, where="here")
    true_hash = open_store(root).row("case/0").source_sha256
    jobs[0] = replace(jobs[0], sha256=true_hash)
    assert prepare_store(jobs[:2], root, NATIVE, where="here").kept == 2
    jobs[0] = replace(jobs[0], path=str(scans[2]), sha256="0" * 64)
    summary = prepare_store(jobs[:1], root, NATIVE, where="here")
    assert (summary.made, summary.kept) == (1, 0)
    store = open_store(root)
    assert store.keys == ("case/0",) and store.row("case/0").source_sha256 != true_hash
    assert len(list((root / "scans").iterdir())) == 2


def test_another_preparation_is_refused(scans: list[Path], made: Path, tmp_path: Path) -> None:
    root = copied(made, tmp_path)
    before = content(root)
    with pytest.raises(UsageError, match=r"RESUME_CHANGED.*spacing_mm"):
        prepare_store(jobs_of(scans), root, "flexict-3d", where="here")
    with pytest.raises(UsageError, match="KEY_DUPLICATE"):
        prepare_store([*jobs_of(scans), StoreJob("case/0", "x")], root, NATIVE)
    with pytest.raises(UsageError, match="PRESET_UNKNOWN"):
        prepare_store(jobs_of(scans), root, "flexict")
    assert content(root) == before


def test_answers_reach_the_reader(scans: list[Path], tmp_path: Path) -> None:
    import nibabel as nib

    image = nib.load(scans[0])
    bare = nib.Nifti1Image(np.asarray(image.dataobj), None)
    bare.header.set_zooms((5.0, 5.0, 6.0))
    bare.header.set_xyzt_units("mm")
    bare.header["sform_code"] = bare.header["qform_code"] = 0
    nib.save(bare, tmp_path / "bare.nii.gz")
    path = str(tmp_path / "bare.nii.gz")
    root = tmp_path / "store"
    refused = prepare_store([StoreJob("a", path)], root, NATIVE, where="here").refused
    assert [o.error and o.error["code"] for o in refused] == ["ORIENTATION_UNKNOWN"]
    assert prepare_store([StoreJob("a", path, Answers(assume="LPS"))], root, NATIVE, where="here").made == 1


def test_a_fault_of_one_scan_does_not_stop_the_others(
    scans: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import hilum.io.open as front

    real = front.open_volume

    def faulty(path: str, **more: object) -> object:
        if "scan1" in path:
            raise ZeroDivisionError("seven")
        if "scan2" in path:
            raise MemoryError
        return real(path, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(front, "open_volume", faulty)
    summary = prepare_store(jobs_of(scans), tmp_path / "s", NATIVE, where="here")
    codes = [o.error and o.error["code"] for o in summary.refused]
    assert summary.made == 1 and codes == ["INTERNAL", "MEMORY_PLAN"]


def test_a_full_disk_stops_and_the_rest_is_kept(
    scans: list[Path], made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "s"
    real, calls = os.fsync, []

    def full(descriptor: int) -> None:
        calls.append(descriptor)
        if len(calls) > 9:
            raise OSError(28, "No space left on device")
        real(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        prepare_store(jobs_of(scans), root, NATIVE, where="here")
    with pytest.raises(ContainerError, match=r"NOT_FOUND.*stopped"):
        open_store(root)
    monkeypatch.undo()
    summary = prepare_store(jobs_of(scans), root, NATIVE, where="here")
    assert summary.kept >= 1 and summary.made + summary.kept == 3
    assert content(root) == content(made)


def hold(root: str, ready: multiprocessing.synchronize.Event, go: multiprocessing.synchronize.Event) -> None:
    from hilum.io.lock import output_lock

    with output_lock(Path(root), 0.0):
        ready.set()
        go.wait(60)


def test_the_second_writer_is_told_of_the_first_or_waits(scans: list[Path], tmp_path: Path) -> None:
    root = tmp_path / "store"
    (root / "scans").mkdir(parents=True)
    context = multiprocessing.get_context("spawn")
    ready, go = context.Event(), context.Event()
    other = context.Process(target=hold, args=(str(root), ready, go))
    other.start()
    assert ready.wait(60)
    with pytest.raises(OutputError, match=rf"OUTPUT_LOCKED.*held by {other.pid}@"):
        prepare_store(jobs_of(scans), root, NATIVE, where="here")
    assert list((root / "scans").iterdir()) == [] and not (root / "store.json").exists()
    go.set()
    assert prepare_store(jobs_of(scans), root, NATIVE, where="here", wait_s=60).made == 3
    other.join()
    assert verify_store(root) == []


def test_what_is_no_store(tmp_path: Path, made: Path) -> None:
    with pytest.raises(ContainerError, match="NOT_FOUND"):
        open_store(tmp_path)
    root = copied(made, tmp_path / "newer")
    facts = json.loads((root / "store.json").read_text())
    (root / "store.json").write_text(json.dumps({**facts, "format": 99}))
    with pytest.raises(ContainerError, match="FORMAT_NEWER"):
        open_store(root)
    with pytest.raises(ContainerError, match="FORMAT_NEWER"):
        prepare_store([], root, NATIVE, where="here")
    with pytest.raises(ContainerError, match="NOT_FOUND"):
        open_store(made).read("nobody")
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(OutputError, match="OUTPUT_UNWRITABLE"):
        prepare_store([], tmp_path / "file" / "s", NATIVE, where="here")


def test_any_key_is_a_safe_file_name(scans: list[Path], tmp_path: Path) -> None:
    keys = ["../../evil", "/etc/passwd", "Müller, Jörg", "a" * 400, "", "\ud800", "x\x00y", "CON"]
    root = tmp_path / "deep" / "store"
    jobs = [StoreJob(key, str(scans[0])) for key in keys[:5]]
    prepare_store(jobs, root, NATIVE, where="here")
    assert sorted(open_store(root).keys) == sorted(keys[:5])
    names = [p.name for p in (root / "scans").iterdir()]
    assert len(names) == 10 and all(len(n.split(".")[0]) == 24 for n in names)
    assert [p.name for p in (tmp_path / "deep").iterdir()] == ["store"]


def test_float16_and_chunk_list(scans: list[Path], tmp_path: Path) -> None:
    half = replace(NATIVE, name="half", dtype="float16", values="thousandth")
    volume = open_volume(scans[0])
    stored = to_store(half, volume)
    assert (
        stored.values.dtype == np.float16
        and np.abs(stored.values - volume.hu.clip(-1024) / 1000).max() < 1e-3
    )
    frame, table = encode(stored.values)
    assert bad_chunks(frame, table) == []
    assert bad_chunks(frame[:-5000], table) != []
