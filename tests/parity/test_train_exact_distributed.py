"""A step of EXACT: two gloo ranks (DDP, FSDP2) and micro-batches against one process, value and gradient.

Scans without masks and labels that are unknown lie unevenly on the ranks. In float64.
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
from _exact import mixed_shapes, tiny_recipe, tiny_scans, tiny_stores, tiny_task

from hilum.train.ema import Average
from hilum.train.parallel import mean_losses, wrapped

RANKS = 2
RULES = {
    "published": {"convention": "paper", "rule": {"k_low": 2, "k_high": 9}},
    "soft, lse": {"rule": {"gate": "soft", "pool": "lse"}},
    "either, volume": {"rule": {"gate": "either", "pool": "volume"}, "losses": {"prior": 0.6}},
    "given": {"rule": {"gate": "given", "k_low": 2, "k_high": 9}},
    "low rank": {"adapt": "lora", "start": ".", "lora_rank": 2},
}
WAYS = {"ddp": {}, "ddp in parts": {"micro": 1}, "fsdp": {}, "fsdp in parts": {"micro": 1}}


def one_step(stores, rule, how="ddp", mixed=None, **changes):
    """Losses and gradients of a step."""
    scans = tiny_scans(*stores)
    if mixed is not None:
        scans = mixed_shapes(scans, mixed)
    task = tiny_task(scans, tiny_recipe(**{**RULES[rule], **changes}))
    model = wrapped(task.student().double(), how)
    shards = how == "fsdp" and dist.is_initialized()
    average = Average(model, wrapped(task.student().double(), how) if shards else None)
    model.train()
    batch = next(task.batches(1, torch.device("cpu")))
    batch = tuple(replace(group, scan=group.scan.double()) for group in batch)
    losses = task.backward(model, average, batch, 1)
    found = {f"loss {k}": torch.tensor(v, dtype=torch.float64) for k, v in mean_losses(losses).items()}
    for name, parameter in model.named_parameters():
        grad = parameter.grad
        if grad is not None:
            whole = grad.full_tensor() if isinstance(grad, DTensor) else grad
            found[f"gradient {name.removeprefix('module.')}"] = whole.detach().clone()
    return found


def work(rank, folder, store, masks):
    torch.set_num_threads(1)
    meet = f"file://{folder}/meet"
    dist.init_process_group("gloo", meet, timedelta(seconds=60), rank=rank, world_size=RANKS)
    found = {}
    for rule in RULES:
        for way, changes in WAYS.items():
            for key, value in one_step((Path(store), Path(masks)), rule, way.split()[0], **changes).items():
                found[f"{rule} {way} {key}"] = value.contiguous()
    save_file(found, Path(folder) / f"rank{rank}.safetensors")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def stores(tmp_path_factory):
    return tiny_stores(tmp_path_factory.mktemp("store"))


@pytest.fixture(scope="module")
def ranks(tmp_path_factory, stores):
    folder = tmp_path_factory.mktemp("ranks")
    args = (str(folder), *map(str, stores))
    torch.multiprocessing.spawn(work, args=args, nprocs=RANKS, join=True)
    return [load_file(folder / f"rank{r}.safetensors") for r in range(RANKS)]


@pytest.fixture(scope="module")
def alone(stores):
    return {rule: one_step(stores, rule) for rule in RULES}


def same(found, wanted):
    """Every loss and gradient, and none besides."""
    assert found.keys() == wanted.keys()
    for key, value in wanted.items():
        # losses are float32 from the maps on
        assert torch.allclose(found[key], value, rtol=2e-5, atol=1e-8), key


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("micro", [1, 3])
def test_micro_batches_are_the_whole_batch(stores, alone, rule, micro):
    same(one_step(stores, rule, micro=micro), alone[rule])


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("rule", RULES)
def test_two_ranks_equal_one_process(ranks, alone, rule, way):
    for found in ranks:
        prefix = f"{rule} {way} "
        own = {k.removeprefix(prefix): v for k, v in found.items() if k.startswith(prefix)}
        same({k: v for k, v in own.items() if k.split()[0] in ("loss", "gradient")}, alone[rule])


@pytest.mark.parametrize("rule", RULES)
def test_every_trained_parameter_has_a_gradient(alone, rule, stores):
    task = tiny_task(tiny_scans(*stores), tiny_recipe(**RULES[rule]))
    trained = {f"gradient {name}" for name, p in task.student().named_parameters() if p.requires_grad}
    assert trained == {key for key in alone[rule] if key.startswith("gradient")}
    still = [key for key in trained if not alone[rule][key].abs().max()]
    # what multiplies LoRA's zeros follows after one step
    assert all(key.endswith("down") for key in still)


def test_scans_of_several_shapes_are_one_batch(stores, tmp_path):
    whole = one_step(stores, "published", mixed=tmp_path)
    same(one_step(stores, "published", mixed=tmp_path, micro=2), whole)
    assert all(torch.isfinite(value).all() for value in whole.values())
