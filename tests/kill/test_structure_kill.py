"""A run that is killed loses no answer, leaves no output, and asks nothing twice when it is run again."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
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


class Holding:
    """Answers the first so many requests and holds the others until it is told to go on."""

    def __init__(self, answered: int) -> None:
        self.answered, self.go = answered, threading.Event()

    def __call__(self, number: int, report: str) -> stub.Behaviour:
        return stub.right if number < self.answered or self.go.is_set() else self.held

    def held(self, handler: stub.Handler) -> None:
        self.go.wait(180)
        handler.close_connection = True


def kept(folder: Path) -> int:
    return len(list((folder / "cache").glob("??/*.json")))


def hears_interrupts() -> None:
    """Jobs that a shell puts into the background inherit an ignored SIGINT, and so would the run."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def stopped(server: Stub, folder: Path, answered: int, how: signal.Signals) -> subprocess.Popen[bytes]:
    """A run that got `answered` answers and was then sent a signal, with questions on their way."""
    process = subprocess.Popen(
        command(server, folder),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        preexec_fn=hears_interrupts,
    )
    limit = time.monotonic() + 120
    while (kept(folder) < answered or len(server.seen) < answered + 3) and time.monotonic() < limit:
        time.sleep(0.005)
    process.send_signal(how)
    return process


def gone_on(server: Stub, folder: Path, holding: Holding) -> None:
    """The second run asks what is not kept, and only that."""
    before, missing = len(server.seen), len(REPORTS) - kept(folder)
    holding.go.set()
    subprocess.run(command(server, folder), check=True, timeout=180, capture_output=True)
    assert len(server.seen) - before == missing and set(server.asked) == set(REPORTS)
    # Only what was on its way when the process ended is asked a second time.
    assert len([report for report, times in Counter(server.asked).items() if times > 1]) <= 3


@pytest.mark.parametrize("answered", [1, 10, 25])
def test_kill_and_again(tmp_path: Path, answered: int) -> None:
    for name in ("undisturbed", "killed"):
        table(tmp_path / name)
    with Stub() as server:
        whole = command(server, tmp_path / "undisturbed")
        subprocess.run(whole, check=True, timeout=180, capture_output=True)
    folder = tmp_path / "killed"
    with Stub(holding := Holding(answered)) as server:
        process = stopped(server, folder, answered, signal.SIGKILL)
        process.communicate(timeout=60)
        assert kept(folder) == answered and not (folder / "out.jsonl").exists()
        gone_on(server, folder, holding)
    assert (folder / "out.jsonl").read_bytes() == (tmp_path / "undisturbed" / "out.jsonl").read_bytes()


def test_a_run_that_is_interrupted_says_so_and_goes_on_later(tmp_path: Path) -> None:
    folder = tmp_path / "interrupted"
    table(folder)
    with Stub(holding := Holding(5)) as server:
        process = stopped(server, folder, 5, signal.SIGINT)
        _, said = process.communicate(timeout=60)
        assert process.returncode == 130 and said.decode().strip().endswith("Interrupted.")
        assert kept(folder) == 5 and not (folder / "out.jsonl").exists()
        gone_on(server, folder, holding)
