"""`kill -9` of a saving process at every file operation and at moments between: a whole checkpoint stands."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "unit"))
from checkpoint_run import load, save

SCRIPT = """
import os, signal, sys, time
from pathlib import Path
import torch
torch.set_num_threads(1)
sys.path.insert(0, sys.argv[1])
from checkpoint_run import save

save(Path(sys.argv[2]), 1)  # what is imported late is imported

def killed_at(operation):
    # every file operation of Python says its name before it happens
    left = [operation]
    def hook(event, args):
        if event == "open" or (event.startswith(("os.", "shutil.")) and event != "os.kill"):
            left[0] -= 1
            if left[0] < 0:
                os.kill(os.getpid(), signal.SIGKILL)
    sys.addaudithook(hook)

for line in sys.stdin:
    folder, step, operation, seconds = line.split()
    pid = os.fork()
    if pid == 0:
        if int(operation) >= 0:
            killed_at(int(operation))
        while True:
            save(Path(folder), int(step))
            if int(operation) >= 0:
                os._exit(0)
    if int(operation) < 0:
        time.sleep(float(seconds))
        os.kill(pid, signal.SIGKILL)
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
"""

Attempt = Callable[[Path, int, int, float], int]


@pytest.fixture(scope="module")
def attempt(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Attempt]:
    """Saves in a process of its own until an operation, or for some seconds; how that process ended."""
    unit, first = Path(__file__).parents[1] / "unit", tmp_path_factory.mktemp("first")
    command = [sys.executable, "-c", SCRIPT, str(unit), str(first)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdin is not None and server.stdout is not None
        into, out = server.stdin, server.stdout

        def run(folder: Path, step: int, operation: int, seconds: float) -> int:
            into.write(f"{folder} {step} {operation} {seconds}\n")
            into.flush()
            return int(out.readline())

        yield run
        into.close()


def whole(folder: Path) -> int:
    """The step of what is loaded; every number of it is that step's, and nothing was passed over."""
    step, tensors, findings = load(folder)
    assert findings == []
    assert len(tensors) > 6
    assert all(torch.equal(value, torch.full_like(value, step)) for value in tensors.values())
    return step


def test_killed_at_every_file_operation(attempt: Attempt, tmp_path: Path) -> None:
    for step in (1, 2):
        save(tmp_path, step)
    reached, step = 0, 3
    while attempt(tmp_path, step, reached, 0) == -9:
        now = whole(tmp_path)
        assert now in (step - 1, step)
        step, reached = now + 1, reached + 1
    assert reached > 15, "files, renames and removals"
    assert whole(tmp_path) == step
    assert len(list(tmp_path.iterdir())) == 2, "nothing is left of those that were killed"


def test_killed_at_any_moment(attempt: Attempt, tmp_path: Path) -> None:
    save(tmp_path, 1)
    before = 1
    for step in range(2, 12):
        assert attempt(tmp_path, step, -1, 0.004 * step) == -9
        now = whole(tmp_path)
        assert now in (before, step)
        before = now
    save(tmp_path, 20)
    assert whole(tmp_path) == 20 and not list(tmp_path.glob(".hilum*"))
