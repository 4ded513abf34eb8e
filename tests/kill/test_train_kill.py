"""`hilum train` killed with SIGKILL at any moment goes on, and ends as the run that was never killed."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

from safetensors.torch import load_file

sys.path.insert(0, str(Path(__file__).parents[1] / "unit"))
from _stages import phantom_cohort

STEPS = 8
RECIPE = f"""
name = "tiny"
method = "flexict-3d"
backbone = "flexict-nano"
synthetic = true
steps = {STEPS}
batch = 2
threads = 1
precision = "fp32"
checkpoint_every = 1
[[data]]
cohort = "prepared"
prep = "flexict-3d-4mm"
[volumes]
field_vox = 80
side_vox = 32
part_side_vox = 16
whole_vox = [40, 80]
part_vox = [8, 20]
parts = 1
[heads]
hidden = 16
bottleneck = 8
prototypes = 8
[rates]
lr = {{ peak = 1e-3 }}
"""


def start(recipe, out):
    command = [sys.executable, "-m", "hilum", "train", str(recipe), "--out", str(out)]
    return subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)


def steps_done(out):
    log = out / "log.jsonl"
    return len(log.read_text().splitlines()) if log.exists() else 0


def test_a_run_killed_twice_ends_as_one_that_was_not(tmp_path):
    phantom_cohort(tmp_path)
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(RECIPE)
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    undisturbed = start(recipe, whole)
    rng = random.Random(4)
    for least in (2, 5):
        run = start(recipe, cut)
        while steps_done(cut) < least and run.poll() is None:
            time.sleep(0.01)
        time.sleep(rng.uniform(0, 0.3))
        os.kill(run.pid, signal.SIGKILL)
        assert run.wait() == -signal.SIGKILL, "killed before its end, or nothing was tried"
    assert start(recipe, cut).wait() == 0 and undisturbed.wait() == 0
    for name in ("encoder/model.safetensors", "encoder-heads.safetensors"):
        one, other = load_file(whole / name), load_file(cut / name)
        assert one.keys() == other.keys() and all((one[k] == other[k]).all() for k in one), name
    losses = {}
    for line in (cut / "log.jsonl").read_text().splitlines():
        row = json.loads(line)
        told = {k: v for k, v in row.items() if k != "seconds"}
        # a step that ran twice said the same twice
        assert losses.setdefault(row["step"], told) == told
    assert sorted(losses) == list(range(STEPS))
