"""A run that is killed loses no answer, leaves no output, and asks nothing twice when it is run again."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "unit"))
import llm_stub as stub
from llm_stub import Stub

REPORTS = [f"Report {k}. {'No nodule.' if k % 2 else 'Large nodule.'}" for k in range(30)]


def command(server: Stub, folder: Path) -> list[str]:
    program = [sys.executable, "-c", "from hilum.cli import main; main()", "reports", "structure"]
    program += [str(folder / "reports.csv"), "--endpoint", server.url, "--model", "m", "--workers", "3"]
    return [*program, "--out", str(folder / "out.jsonl"), "--cache", str(folder / "cache")]


def table(folder: Path) -> None:
    folder.mkdir()
    (folder / "reports.csv").write_text("report\n" + "\n".join(REPORTS) + "\n", encoding="utf-8")


def slowly(handler: stub.Handler) -> None:
    handler.server.over.wait(0.05)
    stub.right(handler)


@pytest.mark.parametrize("answered", [1, 10, 25])
def test_kill_and_again(tmp_path: Path, answered: int) -> None:
    for name in ("undisturbed", "killed"):
        table(tmp_path / name)
    with Stub() as server:
        subprocess.run(command(server, tmp_path / "undisturbed"), check=True, timeout=60, capture_output=True)
    folder = tmp_path / "killed"
    with Stub(lambda number, report: slowly) as server:
        process = subprocess.Popen(
            command(server, folder), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        limit = time.monotonic() + 60
        while len(list((folder / "cache").glob("??/*.json"))) < answered and time.monotonic() < limit:
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        process.wait(timeout=30)
        kept = len(list((folder / "cache").glob("??/*.json")))
        assert answered <= kept < len(REPORTS) and not (folder / "out.jsonl").exists()
        before = len(server.seen)
        subprocess.run(command(server, folder), check=True, timeout=60, capture_output=True)
        assert len(server.seen) - before == len(REPORTS) - kept
        # Only what was on its way when the process died is asked a second time.
        twice = [report for report, times in Counter(server.asked).items() if times > 1]
        assert set(server.asked) == set(REPORTS) and len(twice) <= 3
    assert (folder / "out.jsonl").read_bytes() == (tmp_path / "undisturbed" / "out.jsonl").read_bytes()


def test_a_run_that_is_interrupted_says_so_and_goes_on_later(tmp_path: Path) -> None:
    folder = tmp_path / "interrupted"
    table(folder)
    with Stub(lambda number, report: slowly) as server:
        process = subprocess.Popen(command(server, folder), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        while len(list((folder / "cache").glob("??/*.json"))) < 5:
            time.sleep(0.005)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=30)
        assert process.returncode == 130 and said.decode().strip().endswith("Interrupted.")
        kept = len(list((folder / "cache").glob("??/*.json")))
        assert kept >= 5 and not (folder / "out.jsonl").exists()
        before = len(server.seen)
        subprocess.run(command(server, folder), check=True, timeout=60, capture_output=True)
        assert len(server.seen) - before == len(REPORTS) - kept
