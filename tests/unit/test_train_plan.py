"""The memory plan against what a process of its own really used, with and without checkpoints."""

import json
import os
import subprocess
import sys
from dataclasses import asdict, replace

import pytest

from hilum.errors import InputRefused, UsageError
from hilum.io.weights import preset_data
from hilum.model.preset import preset_from
from hilum.model.vit_config import ViTConfig
from hilum.train.plan import View, memory_plan, token_count

FACTOR = 1.25
"""How far the plan may be from the peak, either way."""

DEEP = ViTConfig(width=192, depth=8, heads=4, patch=8, drop_path=0.0, rescale=1.0)
WIDE = ViTConfig(width=1152, depth=4, heads=12, patch=8, drop_path=0.0, rescale=1.0)
MANY, FEW = View((80, 80, 80), 2), View((16, 16, 16), 1)

STEPS = """
import copy, json, sys
from pathlib import Path
import torch
from hilum.model.vit import ViT
from hilum.model.vit_config import ViTConfig

def peak():
    # not ru_maxrss: a child begins with what its parent had, and a test run may have had gigabytes
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024

def step(model, optim, scans):
    optim.zero_grad()
    out = model(scans)
    (out.cls.square().mean() + out.patches.square().mean()).backward()
    optim.step()

config, shape, count = json.loads(sys.argv[1])
torch.set_num_threads(1)
small = ViT(ViTConfig(width=24, depth=1, heads=1, drop_path=0.0, rescale=1.0))
step(small, torch.optim.AdamW(small.parameters()), torch.randn(1, 1, 8, 8, 8))
scans = torch.randn(count, 1, *shape)
before = peak()
model = ViT(ViTConfig(**config))
average = copy.deepcopy(model).requires_grad_(False)
optim = torch.optim.AdamW(model.parameters(), foreach=False)
for _ in range(2):
    step(model, optim, scans)
print(peak() - before)
"""


def measured_mib(config, view):
    job = json.dumps([asdict(config), view.shape, view.pictures])
    # what is freed goes back at once: holes that glibc keeps for later are not the step's
    env = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536"}
    command = [sys.executable, "-c", STEPS, job]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=env)
    assert done.returncode == 0, done.stderr
    return float(done.stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells the peak of one process")
@pytest.mark.parametrize(
    ("config", "view"),
    [(DEEP, MANY), (replace(DEEP, checkpoint=True), MANY), (WIDE, FEW)],
    ids=["activations", "checkpoints", "parameters"],
)
def test_the_plan_is_near_the_peak_of_a_run(config, view):
    planned, peak = memory_plan(config, [view]).total, measured_mib(config, view)
    assert peak > 100, "large against what a process needs anyway"
    assert planned / FACTOR < peak < planned * FACTOR, f"{planned:.0f} MiB planned, {peak:.0f} used"


def test_checkpoints_would_fail_the_measure_if_the_plan_ignored_them():
    ignored, planned = memory_plan(DEEP, [MANY]), memory_plan(replace(DEEP, checkpoint=True), [MANY])
    assert ignored[:4] == planned[:4] and ignored.total > FACTOR**2 * planned.total


def test_the_base_model_at_the_papers_crop():
    base = preset_from(preset_data("flexict-base")).net
    crop = View((160, 160, 160), 1)
    assert token_count(base, crop) == 5 + 20**3
    assert token_count(base, crop._replace(patch=16)) == 5 + 10**3
    assert token_count(base, View((256, 256), 1)) == 5 + 32**2
    plan = memory_plan(base, [crop], others=56_576)
    assert plan.parameters == pytest.approx((143_999_424 + 56_576) * 4 / 2**20)
    assert plan.moments == 2 * plan.parameters == 2 * plan.gradients == 2 * plan.average
    assert plan.total == pytest.approx(5 * plan.parameters + plan.activations)


def test_views_of_a_step_add_up():
    large, small = View((160,) * 3, 2), View((80,) * 3, 8)
    config = replace(DEEP, checkpoint=False)
    alone = memory_plan(config, [large]).activations
    both = memory_plan(config, [large, small]).activations
    twice = memory_plan(config, [large, large._replace(pictures=2)]).activations
    assert alone < both < twice
    assert both - alone == pytest.approx((8 * 1005) * 192 * 4 * (8 * 20 + 3) / 2**20)


@pytest.mark.parametrize(
    ("views", "error"),
    [
        ([], UsageError),
        ([View((16, 16, 16), 0)], UsageError),
        ([View((16, 16, 16), 1, patch=-8)], UsageError),
        ([View((16, 16, 20), 1)], InputRefused),
        ([View((16, 16, 0), 1)], InputRefused),
        ([View((16, 16, 16), 1, patch=32)], InputRefused),
    ],
)
def test_what_is_no_view_is_refused(views, error):
    with pytest.raises(error, match=r"CONFIG_VALUE|PATCH_GRID"):
        memory_plan(DEEP, views)
