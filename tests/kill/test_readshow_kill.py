"""A killed save leaves no folder under the final name, and the next one succeeds."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "unit"))
from readshow_standin import Standin, chest, straight_grid

import hilum

UNIT = Path(__file__).parents[1] / "unit"

SCRIPT = """
import sys, time
sys.path.insert(0, sys.argv[1])
from readshow_standin import Standin, chest, straight_grid
import hilum
from hilum.show import album, save

album.WIDTH_PX = 32
stop = sys.argv[3]

def hang(step):
    if step == stop:
        print("there", flush=True)
        time.sleep(120)

reading = hilum.read(chest(straight_grid((42, 32, 28), (9.0, 9.0, 10.0))), model=Standin(grid_mm=6.0))
save.save(reading, sys.argv[2], progress=hang)
"""


@pytest.mark.parametrize("step", ["write maps", "write page"])
def test_kill_during_save(step: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(UNIT), str(out), step], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "there\n"
    time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait(timeout=30)
    process.stdout.close()
    assert not out.exists()
    left = [p.name for p in tmp_path.iterdir()]
    assert all(name.startswith(".hilum-") and name.endswith(".tmp") for name in left)
    small = chest(straight_grid((42, 32, 28), (9.0, 9.0, 10.0)))
    hilum.read(small, model=Standin(grid_mm=6.0)).save(out)
    assert (out / "index.html").is_file() and (out / "receipt.json").is_file()
