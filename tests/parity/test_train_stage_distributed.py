"""A step of every stage: two gloo ranks (DDP, FSDP2) and micro-batches against one process.

Every loss and every parameter's gradient, projection and temperature included. In float64, so that what
differs is no rounding: KoLeo of small networks makes 1e-5 of 1e-7.
"""

import sys
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from torch.distributed.tensor import DTensor

sys.path.insert(0, str(Path(__file__).parents[1] / "unit"))
from _stages import tiny_recipe, tiny_store, tiny_task

from hilum.train.ema import Average
from hilum.train.parallel import mean_losses, wrapped

RANKS = 2
GRAM = {"dino": 0.5, "ibot": 1.0, "koleo": 0.1, "gram": 1.5}
DISTIL = {"teachers": [{"teacher": "blocks", "weight": 1.0}], "fit_scans": 8}
MIDDLE = {"side_vox": 16, "part_side_vox": 8, "whole_vox": "middle", "part_vox": [4, 8], "parts": 2}
STAGES = {
    "slices": ("flexict-2d", {}),
    "volumes": ("flexict-3d", {"losses": GRAM, "gram_teacher": "."}),
    "text": ("flexict-text", {}),
    "distil": ("flexict-3d", {"distil": DISTIL, "volumes": MIDDLE}),
}
WAYS = {"ddp": {}, "ddp in parts": {"micro": 1}, "fsdp": {}, "fsdp in parts": {"micro": 1}}


def double(batch):
    """The batch with views in float64."""
    views = batch.views
    anchor = None if views.anchor is None else views.anchor.double()
    return replace(
        batch, views=replace(views, whole=views.whole.double(), parts=views.parts.double(), anchor=anchor)
    )


def one_step(store, stage, step, how="ddp", **changes):
    """Losses and gradients of a step."""
    method, more = STAGES[stage]
    recipe = tiny_recipe(method, **more, **changes)
    task = tiny_task(store, recipe)
    if recipe.losses.gram:
        torch.manual_seed(11)
        vision = task.student().vision.double()
        task.start.anchor = lambda: vision
    model = wrapped(task.student().double(), how)
    shards = how == "fsdp" and dist.is_initialized()
    average = Average(model, wrapped(task.student().double(), how) if shards else None)
    if not shards:
        average.module.double()
    model.train()
    losses = task.backward(model, average, double(next(task.batches(step, torch.device("cpu")))), step)
    found = {
        f"loss {name}": torch.tensor(value, dtype=torch.float64)
        for name, value in mean_losses(losses).items()
    }
    for name, parameter in model.named_parameters():
        grad = parameter.grad
        if grad is not None:
            whole = grad.full_tensor() if isinstance(grad, DTensor) else grad
            found[f"gradient {name.removeprefix('module.')}"] = whole.detach().clone()
    return found


def work(rank, folder, store):
    torch.set_num_threads(1)
    meet = f"file://{folder}/meet"
    dist.init_process_group("gloo", meet, timedelta(seconds=60), rank=rank, world_size=RANKS)
    found = {}
    for stage in STAGES:
        for way, changes in WAYS.items():
            for key, value in one_step(Path(store), stage, 1, way.split()[0], **changes).items():
                found[f"{stage} {way} {key}"] = value.contiguous()
    save_file(found, Path(folder) / f"rank{rank}.safetensors")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return tiny_store(tmp_path_factory.mktemp("store"), scans=4)


@pytest.fixture(scope="module")
def ranks(tmp_path_factory, store):
    folder = tmp_path_factory.mktemp("ranks")
    torch.multiprocessing.spawn(work, args=(str(folder), str(store)), nprocs=RANKS, join=True)
    return [load_file(folder / f"rank{r}.safetensors") for r in range(RANKS)]


@pytest.fixture(scope="module")
def alone(store):
    return {stage: one_step(store, stage, 1) for stage in STAGES}


def same(found, wanted):
    """Every loss and gradient, and none besides."""
    assert found.keys() == wanted.keys()
    for key, value in wanted.items():
        assert torch.allclose(found[key], value, rtol=1e-6, atol=1e-9), key


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("micro", [1, 2])
def test_micro_batches_are_the_whole_batch(store, alone, stage, micro):
    same(one_step(store, stage, 1, micro=micro), alone[stage])


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("stage", STAGES)
def test_two_ranks_equal_one_process(ranks, alone, stage, way):
    for found in ranks:
        prefix = f"{stage} {way} "
        own = {k.removeprefix(prefix): v for k, v in found.items() if k.startswith(prefix)}
        own = {k: v for k, v in own.items() if k.split()[0] in ("loss", "gradient")}
        same(own, alone[stage])


@pytest.mark.parametrize("stage", STAGES)
def test_every_trained_parameter_has_a_gradient(alone, stage, store):
    method, more = STAGES[stage]
    student = tiny_task(store, tiny_recipe(method, **more)).student()
    trained = {f"gradient {name}" for name, p in student.named_parameters() if p.requires_grad}
    assert trained == {key for key in alone[stage] if key.startswith("gradient")}
    biggest = {key: float(alone[stage][key].abs().max()) for key in trained}
    # an adaptor's last map starts at zero: what is before it follows after one step
    before = "gradient distil.heads."
    still = [k for k, v in biggest.items() if not v and not k.startswith(before)]
    assert not still and any(v for k, v in biggest.items() if k.startswith(before)) == (stage == "distil")
    needs = {"text": {"gradient projection.weight", "gradient temperature.log_scale"}}
    assert needs.get(stage, set()) <= trained
