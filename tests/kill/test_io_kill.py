"""A writer that is killed or fails leaves no half file under a final name (rows G02, G03)."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from hilum.errors import OutputError
from hilum.io.atomic import atomic_folder, atomic_write

SLOW_FILE = """
import sys, time
from hilum.io.atomic import atomic_write
with atomic_write(sys.argv[1]) as file:
    while True:
        file.write(b"x" * 4096); file.flush(); print("writing", flush=True); time.sleep(0.01)
"""
SLOW_FOLDER = """
import sys, time
from hilum.io.atomic import atomic_folder
with atomic_folder(sys.argv[1], overwrite=True) as folder:
    for k in range(10**6):
        (folder / f"{k}.bin").write_bytes(b"x" * 4096); print("writing", flush=True); time.sleep(0.01)
"""


@pytest.mark.parametrize("script", [SLOW_FILE, SLOW_FOLDER])
@pytest.mark.parametrize("existing", [False, True])
def test_sigkill_in_the_middle(tmp_path: Path, script: str, existing: bool) -> None:
    final = tmp_path / "result"
    if existing and script is SLOW_FILE:
        final.write_bytes(b"old")
    if existing and script is SLOW_FOLDER:
        final.mkdir()
        (final / "old").write_bytes(b"old")
    with subprocess.Popen([sys.executable, "-c", script, str(final)], stdout=subprocess.PIPE) as child:
        assert child.stdout is not None and child.stdout.readline() == b"writing\n"
        time.sleep(0.05)
        os.kill(child.pid, signal.SIGKILL)
        assert child.wait() == -signal.SIGKILL
    if existing:
        kept = final if final.is_file() else final / "old"
        assert kept.read_bytes() == b"old"
        assert final.is_file() or [p.name for p in final.iterdir()] == ["old"]
    else:
        assert not final.exists()
    left = [p.name for p in tmp_path.iterdir() if p.name != "result"]
    assert all(name.startswith(".hilum-") and name.endswith(".tmp") for name in left)


class Disk(Exception):
    """Stands for any failure while writing."""


def test_a_failure_removes_what_was_begun(tmp_path: Path) -> None:
    (tmp_path / "old").write_bytes(b"old")
    with pytest.raises(Disk), atomic_write(tmp_path / "old") as file:
        file.write(b"new")
        raise Disk
    with pytest.raises(Disk), atomic_folder(tmp_path / "folder") as folder:
        (folder / "a").write_bytes(b"a")
        raise Disk
    assert [p.name for p in tmp_path.iterdir()] == ["old"] and (tmp_path / "old").read_bytes() == b"old"


@pytest.mark.parametrize("failing", ["fsync", "replace"])
def test_full_disk_at_the_last_step(tmp_path: Path, failing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    if failing == "fsync":
        monkeypatch.setattr(os, "fsync", full)
    else:
        monkeypatch.setattr(Path, "replace", full)
        monkeypatch.setattr(Path, "rename", full)
    with pytest.raises(OSError), atomic_write(tmp_path / "x") as file:
        file.write(b"x")
    with pytest.raises(OSError), atomic_folder(tmp_path / "y") as folder:
        (folder / "a").write_bytes(b"a")
    assert list(tmp_path.iterdir()) == []


def test_good_writes(tmp_path: Path) -> None:
    with atomic_write(tmp_path / "x") as file:
        file.write(b"abc")
        file.seek(0)
        file.write(b"A")
        assert not (tmp_path / "x").exists()
    assert (tmp_path / "x").read_bytes() == b"Abc"
    with atomic_folder(tmp_path / "y") as folder:
        (folder / "sub").mkdir()
        (folder / "sub" / "a").write_bytes(b"1")
    with pytest.raises(OutputError, match="OUTPUT_EXISTS"), atomic_folder(tmp_path / "y"):
        pass
    with atomic_folder(tmp_path / "y", overwrite=True) as folder:
        (folder / "b").write_bytes(b"2")
    assert [p.name for p in (tmp_path / "y").iterdir()] == ["b"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["x", "y"]


def test_outputs_that_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x")
    (tmp_path / "link").symlink_to(tmp_path)
    for path in (tmp_path / "gone" / "x", tmp_path / "file" / "x"):
        with pytest.raises(OutputError, match="OUTPUT_UNWRITABLE"), atomic_write(path):
            pass
        with pytest.raises(OutputError, match="OUTPUT_UNWRITABLE"), atomic_folder(path):
            pass
    for path in (tmp_path / "file", tmp_path / "link"):
        with pytest.raises(OutputError, match="OUTPUT_EXISTS"), atomic_folder(path, overwrite=True):
            pass
    with pytest.raises(OutputError, match="OUTPUT_EXISTS"), atomic_write(tmp_path):
        pass
