"""A step of the space of scans and texts, all three losses: two gloo ranks and micro-batches against one
process. Every loss and the gradient of every trained parameter."""

import sys
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file

sys.path.insert(0, str(Path(__file__).parents[1] / "unit"))
from _joint import features, task_of

from hilum.train.ema import Average
from hilum.train.joint_data import JointBatch
from hilum.train.parallel import mean_losses, wrapped

RANKS = 2
STEP = 1
WAYS = {"whole": {}, "in parts": {"micro": 1}, "some placed": {"placed": 2, "micro": 1}}


def double(batch: JointBatch) -> JointBatch:
    names = ("both", "depths", "depth_mm", "answers", "at_mm")
    return replace(batch, **{name: getattr(batch, name).double() for name in names})


def one_step(folder, **changes):
    """Losses and gradients of a step in float64."""
    task = task_of(folder, **changes)
    object.__setattr__(task.tower, "rows", task.tower.rows.double())
    task.positive, task.groups_of = task.positive.double(), task.groups_of.double()
    model = wrapped(task.student().double(), "ddp")
    batch = double(next(iter(task.batches(STEP, torch.device("cpu")))))
    losses = task.backward(model, Average(task.student()), batch, STEP)
    found = {f"loss {k}": torch.tensor(v, dtype=torch.float64) for k, v in mean_losses(losses).items()}
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            found[f"gradient {name.removeprefix('module.')}"] = parameter.grad.detach().clone()
    return found


def work(rank, folder, cache):
    torch.set_num_threads(1)
    meet = f"file://{folder}/meet"
    dist.init_process_group("gloo", meet, timedelta(seconds=60), rank=rank, world_size=RANKS)
    found = {}
    for way, changes in WAYS.items():
        found |= {f"{way} {k}": v.contiguous() for k, v in one_step(Path(cache), **changes).items()}
    save_file(found, Path(folder) / f"rank{rank}.safetensors")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return features(tmp_path_factory.mktemp("features"))


@pytest.fixture(scope="module")
def alone(cache):
    return one_step(cache)


@pytest.fixture(scope="module")
def ranks(tmp_path_factory, cache):
    folder = tmp_path_factory.mktemp("ranks")
    torch.multiprocessing.spawn(work, args=(str(folder), str(cache)), nprocs=RANKS, join=True)
    return [load_file(folder / f"rank{r}.safetensors") for r in range(RANKS)]


def same(found, wanted):
    assert found.keys() == wanted.keys()
    for key, value in wanted.items():
        assert torch.allclose(found[key], value, rtol=1e-6, atol=1e-9), key


def test_all_three_losses_reach_every_parameter(alone):
    assert {k for k in alone if k.startswith("loss")} == {"loss report", "loss prompts", "loss snippets"}
    parts = (
        "combiner",
        "image_head",
        "image_copy",
        "text_head",
        "text_copy",
        "scale.log_scale",
        "scale.bias",
    )
    for part in parts:
        own = [v for k, v in alone.items() if k.startswith(f"gradient joint.{part}")]
        assert own and all(v.abs().max() > 0 for v in own), part


@pytest.mark.parametrize("micro", [1, 2, 3])
def test_micro_batches_are_the_whole_batch(cache, alone, micro):
    same(one_step(cache, micro=micro), alone)


@pytest.mark.parametrize("way", WAYS)
def test_two_ranks_are_one_process(ranks, cache, alone, way):
    wanted = one_step(cache, placed=2) if way == "some placed" else alone
    for found in ranks:
        same({k.removeprefix(f"{way} "): v for k, v in found.items() if k.startswith(way)}, wanted)
