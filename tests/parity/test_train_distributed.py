"""Three steps of groups, rates, clipping and averaging: two gloo ranks, under DDP and FSDP2, against one.

One spawn runs everything. CLS and temperature have one row: one of the ranks holds nothing of them.
"""

from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from hilum.errors import RunError, UsageError
from hilum.model.vit import ViT
from hilum.model.vit_config import ViTConfig
from hilum.objective.clip import Temperature
from hilum.train.clipping import clip_by_part, gradient_norm
from hilum.train.ema import Average
from hilum.train.groups import GroupRecipe, adamw_groups, parameter_groups, set_rates
from hilum.train.schedule import Schedules

RANKS, STEPS, SCANS, LARGEST = 2, 3, 4, 0.05
NET = ViTConfig(width=12, depth=2, heads=1, patch=4, layer_scale=0.5, drop_path=0.0, rescale=1.0)
RATES = Schedules.model_validate(
    {
        "lr": {"peak": 0.02, "rise": 2},
        "weight_decay": {"peak": 0.3},
        "ema": {"peak": 0.5, "end": 0.9, "steps": STEPS},
    }
)


class Student(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(1)
        self.vision = ViT(NET)
        self.projection = nn.Linear(24, 5, bias=False)
        self.temperature = Temperature()
        self.register_buffer("centre", torch.zeros(5))
        for parameter in self.parameters():
            if parameter.dim() > 1:  # the usual start makes gradients of nothing
                nn.init.normal_(parameter, std=0.3)

    def forward(self, x):
        seen = self.vision(x)
        return self.projection(torch.cat([seen.cls, seen.patches.mean(1)], 1)) * self.temperature()


def scans(step):
    return torch.randn((SCANS, 1, 8, 8, 4), generator=torch.Generator().manual_seed(step))


def sharded(mesh):
    model = Student()
    for block in model.vision.blocks:
        fully_shard(block, mesh=mesh)
    return fully_shard(model, mesh=mesh)


def whole(value):
    return (value.full_tensor() if isinstance(value, DTensor) else value).detach().clone()


def train(model, own, module=None):
    """What a run leaves: norms, gradients, parameters, the average, and what the teacher says."""
    average, found = Average(model, module), {}
    optim = torch.optim.AdamW(adamw_groups(parameter_groups(model, GroupRecipe.model_validate({}))), eps=1e-2)
    for step in range(STEPS):
        rates = RATES.at(step, SCANS)
        set_rates(optim, rates)
        optim.zero_grad()
        model(scans(step)[own]).square().mean().backward()
        norms = clip_by_part(model, LARGEST)
        found |= {f"norm {part} {step}": norm for part, norm in norms.items()}
        for name, parameter in model.named_parameters():
            if parameter.grad is not None:
                found[f"gradient {name.removeprefix('module.')} {step}"] = whole(parameter.grad)
        optim.step()
        with torch.no_grad():
            model.get_buffer(next(n for n, _ in model.named_buffers() if n.endswith("centre"))).add_(1.0)
            average.update(rates.ema)
            found[f"teacher {step}"] = average.module(scans(9)).clone()
    found |= {f"average {name}": value for name, value in average.tensors().items()}
    return found | {f"model {n.removeprefix('module.')}": whole(p) for n, p in model.named_parameters()}


def refusals(mesh):
    """A sharded model without a twin, with a twin in one piece, and a shard that is no number."""
    said = []
    model = sharded(mesh)
    for module in (None, Student()):
        with pytest.raises(UsageError) as caught:
            Average(model, module)
        said.append("sharded" in str(caught.value) or "Shard" in str(caught.value))
    model(scans(0)).sum().backward()
    local = model.projection.weight.grad.to_local()
    local[:1] = float("nan") if dist.get_rank() == 1 else local[:1]
    with pytest.raises(RunError) as caught:
        clip_by_part(model, 1.0)
    return torch.tensor([*said, "projection" in str(caught.value)])


def mixed(mesh):
    """Norm of two shards and a plain tensor; what this rank's own shards alone would say."""
    model = sharded(mesh)
    model(scans(0)).sum().backward()
    gradients = [model.projection.weight.grad, model.vision.cls.grad]
    own = [g.to_local() for g in gradients]
    expected = torch.cat([whole(g).flatten() for g in gradients] + [torch.ones(7)]).norm()
    return torch.stack([gradient_norm([*gradients, torch.ones(7)]), expected, gradient_norm(own)])


def work(rank, folder):
    torch.set_num_threads(1)
    meet = f"file://{folder}/meet"
    dist.init_process_group("gloo", meet, timedelta(seconds=60), rank=rank, world_size=RANKS)
    mesh, own = init_device_mesh("cpu", (RANKS,)), slice(2 * rank, 2 * rank + 2)
    ddp = nn.parallel.DistributedDataParallel(Student(), find_unused_parameters=True)
    found = {f"ddp {key}": value for key, value in train(ddp, own).items()}
    found |= {f"fsdp {key}": v for key, v in train(sharded(mesh), own, sharded(mesh)).items()}
    found |= {"mixed": mixed(mesh), "refused": refusals(mesh)}
    save_file({k: v.contiguous() for k, v in found.items()}, Path(folder) / f"rank{rank}.safetensors")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    torch.multiprocessing.spawn(work, args=(str(folder),), nprocs=RANKS, join=True)
    return [load_file(folder / f"rank{r}.safetensors") for r in range(RANKS)]


@pytest.fixture(scope="module")
def alone():
    return train(Student(), slice(None))


@pytest.mark.parametrize("way", ["ddp", "fsdp"])
@pytest.mark.parametrize("what", ["norm", "gradient", "model", "average", "teacher"])
def test_two_ranks_equal_one_process(ranks, alone, way, what):
    keys = [key for key in alone if key.startswith(what)]
    assert keys
    for key in keys:
        for found in ranks:
            value = found[f"{way} {key}"]
            assert value.shape == alone[key].shape and value.dtype == alone[key].dtype, key
            assert torch.allclose(value, alone[key], rtol=1e-4, atol=1e-5), key


@pytest.mark.parametrize("way", ["ddp", "fsdp"])
def test_the_average_is_the_same_on_both_ranks_bit_for_bit(ranks, way):
    keys = [key for key in ranks[0] if key.startswith(f"{way} average")]
    assert len(keys) == len(Student().state_dict())
    assert all(torch.equal(ranks[0][key], ranks[1][key]) for key in keys)


def test_the_run_is_about_something(alone):
    """Every part is cut, every exported tensor that is used moves, and the average is not the model."""
    norms = [value for key, value in alone.items() if key.startswith("norm")]
    assert len(norms) == 3 * STEPS and all(norm > LARGEST for norm in norms)
    unused = {"average vision.mask_token", "average vision.patch_2d.weight", "average vision.patch_2d.bias"}
    for name, start in Student().state_dict().items():
        moved = not torch.equal(alone[f"average {name}"], start)
        assert moved == (f"average {name}" not in unused), name
    gaps = [
        (alone[f"average {n}"] - alone[f"model {n}"]).abs().max() for n, _ in Student().named_parameters()
    ]
    assert max(gaps) > 1e-3
    assert alone["average centre"].tolist() == pytest.approx([2.0] * 5, abs=1.0)


def test_the_norm_is_over_all_shards_and_counts_what_is_whole_once(ranks):
    own = []
    for found in ranks:
        norm, expected, part = found["mixed"]
        assert norm == pytest.approx(expected.item(), rel=1e-5)
        own.append(part.item())
        assert part < 0.95 * expected, "a rank's own shards say less: the test can fail"
    assert own[0] != own[1]


def test_what_is_sharded_otherwise_or_no_number_is_refused_on_both_ranks(ranks):
    assert all(found["refused"].all() for found in ranks)
