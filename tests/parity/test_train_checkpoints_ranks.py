"""Checkpoints on two gloo ranks: a run goes on under FSDP2, under DDP or alone, bit for bit.

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

from hilum.errors import OutputError, WeightsError
from hilum.model.vit import ViT
from hilum.model.vit_config import ViTConfig
from hilum.objective.clip import Temperature
from hilum.train import checkpoint_state
from hilum.train.checkpoint_files import read_manifest, standing
from hilum.train.checkpoints import Checkpoints
from hilum.train.ema import Average
from hilum.train.groups import GroupRecipe, adamw_groups, parameter_groups

RANKS = 2
NET = ViTConfig(width=12, depth=2, heads=1, patch=4, layer_scale=0.5, drop_path=0.0, rescale=1.0)
RECIPE = '{"name": "tiny"}'


class Student(nn.Module):
    def __init__(self):
        super().__init__()
        self.vision = ViT(NET)
        self.projection = nn.Linear(24, 5, bias=False)
        self.temperature = Temperature()
        self.register_buffer("seen", torch.tensor(0))

    def forward(self, x):
        seen = self.vision(x)
        return self.projection(torch.cat([seen.cls, seen.patches.mean(1)], 1)) * self.temperature()


class Run:
    """A run of one of three kinds, from weights of a seed."""

    def __init__(self, kind, seed, mesh=None):
        torch.manual_seed(seed)
        if kind == "fsdp":
            self.model, module = self._sharded(mesh), self._sharded(mesh)
        else:
            self.model, module = Student(), None
        self.average = Average(self.model, module)
        if kind == "ddp":
            self.model = nn.parallel.DistributedDataParallel(self.model, find_unused_parameters=True)
        groups = parameter_groups(self.model, GroupRecipe.model_validate({}))
        self.optim = torch.optim.AdamW(adamw_groups(groups), lr=0.01)

    @staticmethod
    def _sharded(mesh):
        model = Student()
        for block in model.vision.blocks:
            fully_shard(block, mesh=mesh)
        return fully_shard(model, mesh=mesh)

    def steps(self, first, last):
        for step in range(first, last):
            scan = torch.randn((2, 1, 8, 8, 4), generator=torch.Generator().manual_seed(2 * step + rank()))
            self.optim.zero_grad()
            self.model(scan).square().mean().backward()
            self.optim.step()
            next(b for n, b in self.model.named_buffers() if n.endswith("seen")).add_(1)
            self.average.update(0.7)
            with torch.no_grad():
                # a forward pass leaves the root of the teacher whole
                self.average.module(scan)
        return self

    @property
    def parts(self):
        return self.model, self.average, self.optim

    def whole(self):
        found = checkpoint_state.run_tensors(*self.parts)
        return {n: (v.full_tensor() if isinstance(v, DTensor) else v).clone() for n, v in found.items()}


def rank():
    return dist.get_rank() if dist.is_initialized() else 0


def equal(one, other):
    return one.keys() == other.keys() and all(
        one[n].dtype == other[n].dtype and torch.equal(one[n], other[n]) for n in one
    )


def work(rank, folder):
    torch.set_num_threads(1)
    folder = Path(folder)
    dist.init_process_group(
        "gloo", f"file://{folder}/meet", timedelta(seconds=120), rank=rank, world_size=RANKS
    )
    mesh, held = init_device_mesh("cpu", (RANKS,)), {}
    runs = {kind: Run(kind, seed=1, mesh=mesh).steps(0, 2) for kind in ("fsdp", "ddp")}
    saved = {kind: run.whole() for kind, run in runs.items()}
    for kind, run in runs.items():
        Checkpoints(folder / kind).save(2, *run.parts, RECIPE)
        save_file(saved[kind], folder / f"{kind}-{rank}.safetensors")
    for kind in runs:
        for other in ("fsdp", "ddp"):
            # the root of a fresh FSDP2 model is whole after a pass, and loading must not be lost on it
            run = Run(other, seed=2, mesh=mesh).steps(7, 8)
            held[f"{kind} to {other} step"] = Checkpoints(folder / kind).load(*run.parts, RECIPE) == 2
            held[f"{kind} to {other}"] = equal(run.whole(), saved[kind])
            if kind == other:
                went_on = run.steps(2, 3).whole()
                held[f"{kind} goes on"] = equal(went_on, runs[kind].steps(2, 3).whole())
    held |= refusals(rank, folder / "damaged", runs["fsdp"], mesh)
    save_file({k: torch.tensor(v) for k, v in held.items()}, folder / f"held-{rank}.safetensors")
    dist.destroy_process_group()


def refusals(rank, folder, run, mesh):
    """A newest checkpoint with another byte in the second rank's file, another recipe, a full disk."""
    held, kept = {}, Checkpoints(folder)
    older = kept.save(1, *run.parts, RECIPE)
    saved = run.whole()
    newest = kept.save(2, *run.steps(3, 4).parts, RECIPE)
    second = sorted(newest.glob("*.safetensors"))[1]
    if rank == 0:
        data = bytearray(second.read_bytes())
        data[-3] ^= 1
        second.write_bytes(data)
    dist.barrier()
    fresh = Run("fsdp", seed=3, mesh=mesh)
    held["falls back"] = kept.load(*fresh.parts, RECIPE) == 1 and equal(fresh.whole(), saved)
    held["says so"] = [second.name in f.got for f in kept.findings] == [True]
    with pytest.raises(WeightsError, match=r"RESUME_CHANGED.*name"):
        kept.load(*fresh.parts, '{"name": "other"}')
    held["untouched"] = equal(fresh.whole(), saved)
    # wherever one rank fails, none waits for it
    for place in ("safetensors.torch.save", "hilum.train.checkpoint_files.file_facts", "os.fsync"):
        with pytest.MonkeyPatch.context() as patch:
            if rank == (0 if place == "os.fsync" else 1):
                patch.setattr(place, full)
            with pytest.raises(OutputError, match=r"OUTPUT_UNWRITABLE.*No space left"):
                kept.save(3, *fresh.parts, RECIPE)
    with pytest.MonkeyPatch.context() as patch:
        if rank == 1:
            patch.setattr("hilum.train.checkpoint_files.file_facts", full)
        with pytest.raises(WeightsError, match=r"CHECKPOINT_PARTIAL.*No space left"):
            kept.load(*fresh.parts, RECIPE)
    dist.barrier()
    held["nothing half"] = sorted(p.name for p in folder.iterdir()) == sorted([older.name, newest.name])
    return held


def full(*_, **__):
    raise OSError(28, "No space left on device")


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    torch.multiprocessing.spawn(work, args=(str(folder),), nprocs=RANKS, join=True)
    return folder


HELD = [
    *(
        f"{one} to {other}{what}"
        for one in ("fsdp", "ddp")
        for other in ("fsdp", "ddp")
        for what in ("", " step")
    ),
    *("fsdp goes on", "ddp goes on", "falls back", "says so", "untouched", "nothing half"),
]


@pytest.mark.parametrize("what", HELD)
def test_on_both_ranks(ranks, what):
    for r in range(RANKS):
        held = load_file(ranks / f"held-{r}.safetensors")
        assert held.keys() == set(HELD)
        assert bool(held[what]), r


@pytest.mark.parametrize("kind", ["fsdp", "ddp"])
def test_one_process_goes_on_from_two_ranks(ranks, kind):
    run, saved = Run("alone", seed=2), load_file(ranks / f"{kind}-0.safetensors")
    assert not equal(run.whole(), saved)
    assert Checkpoints(ranks / kind).load(*run.parts, RECIPE) == 2
    assert equal(run.whole(), saved)
    assert any(name.startswith("optim/vision.cls/") for name in saved)


def test_each_rank_wrote_its_part(ranks):
    for kind in ("fsdp", "ddp"):
        (folder,) = standing(ranks / kind)
        manifest = read_manifest(folder)
        counts = [numbers(folder / name) for name in manifest.files]
        assert manifest.world == RANKS and len(counts) == RANKS
        assert sum(counts) == numbers(ranks / f"{kind}-0.safetensors"), "none is missing or written twice"
        assert max(counts) < 0.7 * sum(counts)


def numbers(path):
    return sum(value.numel() for value in load_file(path).values())
