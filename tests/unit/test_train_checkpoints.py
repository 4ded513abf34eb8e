"""Checkpoints of a run in one process; on ranks: parity/, killed: kill/."""

import json
import shutil

import pytest
import torch
from torch import nn

from hilum.errors import OutputError, UsageError, WeightsError
from hilum.model.vit import ViT
from hilum.model.vit_config import ViTConfig
from hilum.train import checkpoint_files, checkpoint_state
from hilum.train.checkpoint_files import MANIFEST, standing
from hilum.train.checkpoints import Checkpoints
from hilum.train.ema import Average
from hilum.train.groups import GroupRecipe, adamw_groups, parameter_groups

NET = ViTConfig(width=12, depth=2, heads=1, patch=4, layer_scale=0.5, drop_path=0.0, rescale=1.0)
RECIPE = json.dumps({"name": "tiny", "optim": {"lr": 0.01, "steps": 6}, "data": ["a", "b"]})


class Student(nn.Module):
    """A backbone with parts that get no gradient, a number, whole numbers and half precision beside it."""

    def __init__(self, seed=1):
        super().__init__()
        torch.manual_seed(seed)
        self.vision = ViT(NET)
        self.scale = nn.Parameter(torch.tensor(1.5))
        self.coarse = nn.Parameter(torch.randn(3, 2).bfloat16())
        self.register_buffer("seen", torch.tensor(0))
        self.register_buffer("centre", torch.randn(4, dtype=torch.float64))
        self.register_buffer("mask", torch.tensor([True, False]))

    def forward(self, x):
        return self.vision(x).cls.mean() * self.scale + self.coarse.float().square().sum()


class Run:
    """Model, average and optimiser, and the steps of a loop."""

    def __init__(self, seed=1, **recipe):
        self.model = Student(seed)
        self.average = Average(self.model)
        groups = parameter_groups(self.model, GroupRecipe.model_validate(recipe))
        self.optim = torch.optim.AdamW(adamw_groups(groups), lr=0.01)

    def steps(self, first, last):
        for step in range(first, last):
            scan = torch.randn((2, 1, 8, 8, 4), generator=torch.Generator().manual_seed(step))
            for group in self.optim.param_groups:
                group["lr"] = 0.01 * (step + 1)
            self.optim.zero_grad()
            self.model(scan).backward()
            self.optim.step()
            self.model.seen += 1
            self.model.centre += step / 3
            self.average.update(0.7)
        return self

    @property
    def parts(self):
        return self.model, self.average, self.optim

    def tensors(self):
        return {n: v.clone() for n, v in checkpoint_state.run_tensors(*self.parts).items()}


def same(one, other):
    assert one.keys() == other.keys()
    for name in one:
        assert one[name].dtype == other[name].dtype and one[name].shape == other[name].shape, name
        assert torch.equal(one[name], other[name]), name
    return True


@pytest.fixture(scope="module")
def trained():
    return Run().steps(0, 3)


@pytest.fixture
def saved(trained, tmp_path):
    """Two checkpoints, of steps 2 and 3; the older one is of a fresh run."""
    kept = Checkpoints(tmp_path / "checkpoints")
    kept.save(2, *Run(seed=5).steps(0, 1).parts, RECIPE)
    kept.save(3, *trained.parts, RECIPE)
    return kept


def test_all_comes_back_bit_for_bit(trained, saved):
    other = Run(seed=2)
    assert saved.load(*other.parts, RECIPE) == 3 and saved.findings == []
    assert same(trained.tensors(), other.tensors())
    kinds = {(v.dtype, v.dim()) for v in other.tensors().values()}
    assert {(torch.bfloat16, 2), (torch.int64, 0), (torch.float64, 1), (torch.bool, 1)} <= kinds
    assert {(torch.float32, n) for n in (0, 1, 2, 5)} <= kinds
    steps = [v.item() for n, v in other.tensors().items() if n.endswith("/step")]
    assert steps and set(steps) == {3.0}


def test_what_never_had_a_gradient_has_no_moments_before_and_after(trained, saved):
    other = Run(seed=2).steps(0, 1)
    other.optim.state[other.model.vision.mask_token]["step"] = torch.tensor(9.0)
    saved.load(*other.parts, RECIPE)
    assert same(trained.tensors(), other.tensors())
    assert not any(n.startswith("optim/vision.patch_2d") for n in other.tensors())
    assert other.model.vision.mask_token not in other.optim.state


def test_a_resumed_run_is_the_run(trained, saved):
    resumed = Run(seed=2)
    assert same(resumed.steps(saved.load(*resumed.parts, RECIPE), 6).tensors(), Run().steps(0, 6).tensors())


def test_a_run_resumed_before_its_first_step_is_the_run(tmp_path):
    kept, resumed = Checkpoints(tmp_path), Run(seed=2)
    kept.save(0, *Run().parts, RECIPE)
    assert same(resumed.steps(kept.load(*resumed.parts, RECIPE), 2).tensors(), Run().steps(0, 2).tensors())


def test_moments_follow_names_where_groups_are_cut_otherwise(trained, saved):
    other = Run(seed=2, layer_decay=1.0)
    assert len(other.optim.param_groups) != len(trained.optim.param_groups)
    factors = [group["lr_factor"] for group in other.optim.param_groups]
    saved.load(*other.parts, RECIPE)
    assert same(trained.tensors(), other.tensors())
    assert [group["lr_factor"] for group in other.optim.param_groups] == factors


def unusual(seed):
    """A convolution with its channels last, and a weight of two modules."""
    torch.manual_seed(seed)
    model = nn.ModuleList([nn.Conv2d(4, 4, 3), nn.Linear(3, 3), nn.Linear(3, 3)])
    model.to(memory_format=torch.channels_last)
    model[2].weight = model[1].weight
    average, optim = Average(model), torch.optim.AdamW(model.parameters())
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    optim.step()
    return model, average, optim


def test_memory_of_any_order_and_shared_weights_come_back(tmp_path):
    kept, one, other = Checkpoints(tmp_path), unusual(1), unusual(2)
    kept.save(1, *one, RECIPE)
    kept.load(*other, RECIPE)
    expected, found = (checkpoint_state.run_tensors(*parts) for parts in (one, other))
    assert same(expected, found)
    assert all(value.stride() == found[name].stride() for name, value in expected.items())
    assert not found["optim/0.weight/exp_avg"].is_contiguous()
    assert {"model/1.weight", "model/2.weight"} < found.keys() and other[0][1].weight is other[0][2].weight


class Compiled(nn.Module):
    """What `torch.compile` puts around a part."""

    def __init__(self, module):
        super().__init__()
        self._orig_mod = module


def test_parts_compiled_or_not_have_the_same_names(trained, saved):
    other = Run(seed=2)
    for i, block in enumerate(other.model.vision.blocks):
        other.model.vision.blocks[i] = Compiled(block)
    other.average = Average(other.model)
    assert any("_orig_mod" in name for name in other.model.state_dict())
    saved.load(*other.parts, RECIPE)
    assert same(trained.tensors(), other.tensors())


def test_an_empty_place_is_a_beginning(tmp_path):
    kept, run = Checkpoints(tmp_path / "none"), Run()
    before = run.tensors()
    assert kept.latest() is None and kept.load(*run.parts, RECIPE) == 0
    assert same(before, run.tensors()) and not (tmp_path / "none").exists()


def test_the_newest_few_stand_and_leftovers_go(trained, tmp_path):
    kept = Checkpoints(tmp_path, keep=2)
    (tmp_path / ".hilum-0123.tmp").mkdir()
    (tmp_path / "notes.txt").write_text("a person's own")
    for step in (10, 20, 5, 5):
        kept.save(step, *trained.parts, RECIPE)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["000003-step-5", "000004-step-5", "notes.txt"]
    assert kept.latest() == 5, "the last one saved, also after a run went back"


def flip(folder):
    path = next(folder.glob("*.safetensors"))
    data = bytearray(path.read_bytes())
    data[-5] ^= 1
    path.write_bytes(data)


def cut(folder):
    path = next(folder.glob("*.safetensors"))
    path.write_bytes(path.read_bytes()[:-1])


def stray(folder):
    path = next(folder.glob("*.safetensors"))
    shutil.copy(path, path.with_name("zz.safetensors"))


def edited(folder):
    path = folder / MANIFEST
    path.write_text(path.read_text().replace('"step": 3', '"step": 4'))


DAMAGE = {
    "a byte": flip,
    "cut": cut,
    "gone": lambda folder: next(folder.glob("*.safetensors")).unlink(),
    "stray": stray,
    "edited": edited,
    "no manifest": lambda folder: (folder / MANIFEST).unlink(),
    "no json": lambda folder: (folder / MANIFEST).write_text("{"),
    "a list": lambda folder: (folder / MANIFEST).write_text("[]"),
}


@pytest.mark.parametrize("how", DAMAGE)
def test_a_damaged_one_is_passed_over_and_said(how, saved):
    newest, older = standing(saved.folder)
    DAMAGE[how](newest)
    run, expected = Run(seed=2), Run(seed=5).steps(0, 1)
    assert saved.latest() == (3 if how == "a byte" else 2), "sizes hold where a byte is another"
    assert saved.load(*run.parts, RECIPE) == 2
    (finding,) = saved.findings
    assert finding.code == "CHECKPOINT_PARTIAL" and finding.where == str(newest)
    assert same(run.tensors(), expected.tensors())
    # it does not count among those that are kept, and goes when a new one stands
    third = saved.save(3, *run.parts, RECIPE)
    assert standing(saved.folder) == [third, older]


def test_one_that_cannot_be_read_is_passed_over(saved, monkeypatch):
    newest, real = standing(saved.folder)[0], checkpoint_files.sha256_of

    def unreadable(path):
        if path.parent == newest:
            raise OSError(5, "Input/output error")
        return real(path)

    monkeypatch.setattr(checkpoint_files, "sha256_of", unreadable)
    assert saved.load(*Run(seed=2).parts, RECIPE) == 2
    assert "Input/output error" in saved.findings[0].got


def test_none_that_is_whole_is_refused_and_nothing_is_touched(saved):
    for folder in standing(saved.folder):
        flip(folder)
    run = Run(seed=2)
    before = run.tensors()
    with pytest.raises(WeightsError, match="CHECKPOINT_PARTIAL"):
        saved.load(*run.parts, RECIPE)
    assert len(saved.findings) == 2 and same(before, run.tensors())


def test_a_foreign_recipe_is_refused_by_its_keys(saved):
    run, foreign = Run(seed=2), json.loads(RECIPE)
    before = run.tensors()
    foreign["optim"] = {"lr": 0.02, "steps": 6, "clip": 1.0}
    with pytest.raises(WeightsError, match="RESUME_CHANGED") as caught:
        saved.load(*run.parts, json.dumps(foreign))
    assert caught.value.expected == "optim.clip = nothing, optim.lr = 0.01"
    assert caught.value.got == "optim.clip = 1.0, optim.lr = 0.02"
    assert same(before, run.tensors())
    assert saved.load(*run.parts, json.dumps(json.loads(RECIPE), indent=2)) == 3, "spaces are no change"


def lacking():
    run = Run()
    del run.model.scale
    run.model.scale = 1.0
    groups = parameter_groups(run.model, GroupRecipe.model_validate({}))
    run.average, run.optim = Average(run.model), torch.optim.AdamW(adamw_groups(groups))
    return run


def wider():
    run = Run()
    run.model.centre = torch.zeros(5, dtype=torch.float64)
    run.average = Average(run.model)
    return run


def coarser():
    run = Run()
    run.model.centre = torch.zeros(4)
    run.average = Average(run.model)
    return run


def frozen():
    run = Run()
    run.model.vision.blocks[0].requires_grad_(False)
    run.optim = torch.optim.AdamW(adamw_groups(parameter_groups(run.model, GroupRecipe.model_validate({}))))
    return run


@pytest.mark.parametrize(
    ("other", "named"),
    [(lacking, "model/scale"), (wider, "centre"), (coarser, "float64"), (frozen, "blocks.0")],
)
def test_another_model_is_refused_by_name(other, named, saved):
    run = other()
    before = run.tensors()
    with pytest.raises(WeightsError, match=f"WEIGHTS_KEYS.*{named}"):
        saved.load(*run.parts, RECIPE)
    assert same(before, run.tensors())


def test_an_optimiser_of_another_model_is_refused(saved):
    run, other = Run(), Run()
    with pytest.raises(UsageError, match="CONFIG_VALUE"):
        saved.save(4, run.model, run.average, other.optim, RECIPE)
    run.optim.state[run.model.coarse]["history"] = [1, 2]
    with pytest.raises(UsageError, match=r"CONFIG_VALUE.*history of coarse"):
        saved.save(4, *run.parts, RECIPE)
    assert saved.latest() == 3
    with pytest.raises(UsageError, match="CONFIG_VALUE"):
        Checkpoints(saved.folder, keep=0)


def test_a_save_that_fails_leaves_what_stood(trained, saved, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    before = {p: p.read_bytes() for p in saved.folder.rglob("*") if p.is_file()}
    with monkeypatch.context() as patch:
        patch.setattr("safetensors.torch.save", full)
        with pytest.raises(OutputError, match=r"OUTPUT_UNWRITABLE.*No space left"):
            saved.save(9, *trained.parts, RECIPE)
    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", full)
        with pytest.raises(OutputError, match=r"OUTPUT_UNWRITABLE.*No space left"):
            saved.save(9, *trained.parts, RECIPE)
    (saved.folder / "file").touch()
    with pytest.raises(OutputError, match="OUTPUT_UNWRITABLE"):
        Checkpoints(saved.folder / "file").save(9, *trained.parts, RECIPE)
    (saved.folder / "file").unlink()
    assert {p: p.read_bytes() for p in saved.folder.rglob("*") if p.is_file()} == before
    assert not list(saved.folder.glob(".hilum*"))


def test_a_newer_format_is_not_passed_over(saved):
    path = standing(saved.folder)[0] / MANIFEST
    path.write_text(path.read_text().replace('"format": 1', '"format": 2'))
    with pytest.raises(WeightsError, match="FORMAT_NEWER"):
        saved.load(*Run().parts, RECIPE)


def test_nothing_on_disk_is_code(saved):
    names = {path.name for folder in standing(saved.folder) for path in folder.iterdir()}
    assert {name.rpartition(".")[2] for name in names} == {"safetensors", "json"}
    manifest = json.loads((standing(saved.folder)[0] / MANIFEST).read_text())
    assert {"step", "identity", "world", "format"} <= manifest.keys()
    assert manifest["world"] == 1 and manifest["tensors"]["model/coarse"] == ["bfloat16", 3, 2]
