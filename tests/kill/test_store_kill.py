"""`kill -9` in the middle of preparing, at many moments, and again: the same store, bit for bit."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from hilum.cohort.store import verify_store
from hilum.geometry import Geometry
from hilum.io.lock import OWNER
from hilum.io.nifti import write_nifti

SCRIPT = """
import sys
from pathlib import Path
from hilum.cohort.store_write import StoreJob, prepare_store
root, where, *paths = sys.argv[1:]
jobs = [StoreJob(Path(path).name, path) for path in paths]
print("begun", flush=True)
prepare_store(jobs, root, "native", workers=2, where=where,
              on_outcome=lambda outcome: print(outcome.status, flush=True))
"""
COUNT = 6


@pytest.fixture(scope="module")
def scans(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("scans")
    affine = np.diag([4.0, 4.0, 5.0, 1.0])
    x, y = np.meshgrid(np.linspace(-1, 1, 96), np.linspace(-1, 1, 80), indexing="ij")
    for seed in range(COUNT):
        hu = np.full((96, 80, 60), -1000.0)
        hu[x**2 + y**2 < 0.8] = 40.0
        hu[(abs(x) - 0.4) ** 2 + y**2 < 0.09] = -850.0
        hu += np.random.default_rng(seed).normal(0, 15, hu.shape)
        write_nifti(folder / f"{seed}.nii.gz", hu.round().astype(np.int16), Geometry(hu.shape, affine))
    return [str(folder / f"{seed}.nii.gz") for seed in range(COUNT)]


def content(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def start(root: Path, where: str, scans: list[str]) -> subprocess.Popen:
    command = [sys.executable, "-c", SCRIPT, str(root), where, *scans]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, start_new_session=True
    )


def finish(root: Path, where: str, scans: list[str]) -> list[bytes]:
    with start(root, where, scans) as child:
        assert child.stdout is not None
        lines = child.stdout.read().split()[1:]
    assert child.returncode == 0
    return lines


@pytest.fixture(scope="module")
def undisturbed(scans: list[str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    root = tmp_path_factory.mktemp("whole") / "store"
    assert finish(root, "here", scans) == [b"made"] * COUNT
    assert verify_store(root) == []
    return content(root)


@pytest.mark.parametrize("where", ["here", "processes"])
def test_killed_again_and_again(
    scans: list[str], undisturbed: dict[str, bytes], tmp_path: Path, where: str
) -> None:
    root = tmp_path / "store"
    kept = 0
    for attempt in range(3):
        with start(root, where, scans) as child:
            assert child.stdout is not None and child.stdout.readline() == b"begun\n"
            # one more scan each time, then a moment into the next: values or record half written
            while (line := child.stdout.readline()) == b"kept\n":
                pass
            assert line == b"made\n"
            time.sleep(0.004 * attempt)
            os.killpg(child.pid, signal.SIGKILL)
            assert child.wait() == -signal.SIGKILL
        assert not (root / "index.parquet").exists(), "it was killed before the end"
        now = len(list((root / "scans").glob("*.json")))
        assert kept < now < COUNT
        kept = now
    # what a killed writer may leave behind, whether or not it did here
    (root / "scans" / ".hilum-0123456789abcdef.tmp").write_bytes(b"half")
    (root / OWNER).write_text("1@elsewhere")
    half = next((root / "scans").glob("*.b2nd"))
    half.with_suffix(".json").unlink()
    lines = finish(root, where, scans)
    assert lines.count(b"kept") == kept - 1 and lines.count(b"made") == COUNT - kept + 1
    assert content(root) == undisturbed
    assert verify_store(root) == []


def test_killed_while_the_index_is_written(
    scans: list[str], undisturbed: dict[str, bytes], tmp_path: Path
) -> None:
    root = tmp_path / "store"
    script = SCRIPT.replace(
        "root, where",
        "import os, signal, hilum.cohort.store_write as w\n"
        "real = w._write\n"
        "def write(path, content):\n"
        "    if path.name == 'store.json' and b'refused' in content: os.kill(os.getpid(), signal.SIGKILL)\n"
        "    real(path, content)\n"
        "w._write = write\n"
        "root, where",
    )
    child = subprocess.run([sys.executable, "-c", script, str(root), "here", *scans], stdout=subprocess.PIPE)
    assert child.returncode == -signal.SIGKILL and (root / "index.parquet").exists()
    assert set(finish(root, "here", scans)) == {b"kept"}
    assert content(root) == undisturbed
