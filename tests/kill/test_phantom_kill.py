"""A killed `hilum phantom` leaves no half phantom; the next run goes on."""

import json
import os
import signal
import subprocess
import sys
import time

from hilum.phantom.batch import BatchRequest, make_batch
from hilum.phantom.write import read_truth

SCRIPT = """
import sys, torch
torch.set_num_threads(1)
from hilum.phantom.batch import BatchRequest, make_batch
make_batch(50, sys.argv[1], BatchRequest(spacing_mm=(6.0, 6.0, 6.0), work_mm=6.0, findings=()))
"""


def test_killed_run_leaves_whole_phantoms_only(tmp_path):
    process = subprocess.Popen([sys.executable, "-c", SCRIPT, str(tmp_path)])
    deadline = time.monotonic() + 120
    while not list(tmp_path.glob("synthetic-*")) and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.02)
    time.sleep(0.25)  # into the next phantom
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    stands = sorted(tmp_path.glob("synthetic-*"))
    assert stands and len(stands) < 50
    for folder in stands:
        truth = read_truth(folder)
        assert truth is not None
        files = [
            truth["image"]["path"],
            truth["organs"]["path"],
            *(r["path"] for r in truth["reports"].values()),
        ]
        assert all((folder / f).stat().st_size > 0 for f in files)
        json.loads((folder / "truth.json").read_text(encoding="utf-8"))
    request = BatchRequest(spacing_mm=(6.0, 6.0, 6.0), work_mm=6.0, findings=())
    result = make_batch(len(stands) + 1, tmp_path, request)
    assert len(result.kept) == len(stands) and len(result.made) == 1
