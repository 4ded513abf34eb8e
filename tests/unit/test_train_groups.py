"""Parameter groups: every parameter once, each as its module asks, and what an optimiser makes of them."""

import pytest
import torch
from torch import nn

from hilum.errors import UsageError
from hilum.io.weights import preset_data
from hilum.model.dino_head import DinoHead, DinoHeadConfig
from hilum.model.preset import build, preset_from
from hilum.model.vit import ViT
from hilum.model.vit_config import ViTConfig
from hilum.objective.clip import Temperature
from hilum.train.groups import (
    GroupRecipe,
    adamw_groups,
    check_groups,
    group_rows,
    parameter_groups,
    set_rates,
)
from hilum.train.schedule import Rates

RECIPE = GroupRecipe.model_validate({})
RATES = Rates(lr=1.0, last_lr=0.0, weight_decay=0.04, ema=0.99, temperature=0.07)


class Student(nn.Module):
    def __init__(self):
        super().__init__()
        self.vision = ViT(ViTConfig(width=24, depth=3, heads=1, patch=4))
        self.dino = DinoHead(DinoHeadConfig(24, hidden=16, bottleneck=8, prototypes=10))
        self.projection = nn.Linear(48, 8, bias=False)
        self.temperature = Temperature()
        self.text = nn.Sequential(nn.Embedding(9, 8), nn.RMSNorm(8), nn.Linear(8, 8))


def by_name(model, recipe=RECIPE):
    groups = parameter_groups(model, recipe)
    return {name: group.how for group in groups for name in group.parameters}


def test_every_parameter_is_in_one_group():
    model = Student()
    groups = parameter_groups(model, RECIPE)
    names = [name for group in groups for name in group.parameters]
    assert sorted(names) == sorted(name for name, _ in model.named_parameters())
    assert len({group.how for group in groups}) == len(groups)
    assert [group.how for group in groups] == sorted(group.how for group in groups)
    assert sum(group.count for group in groups) == sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize(
    ("name", "lr_factor", "decays"),
    [
        ("vision.patch_2d.weight", 0.2 * 0.9**4, True),
        ("vision.patch_3d.bias", 0.2 * 0.9**4, False),
        ("vision.cls", 0.9**4, False),
        ("vision.registers", 0.9**4, False),
        ("vision.mask_token", 0.9**4, False),
        ("vision.blocks.0.attention.qkv.weight", 0.9**3, True),
        ("vision.blocks.2.mlp.up.weight", 0.9, True),
        ("vision.blocks.2.mlp.up.bias", 0.9, False),
        ("vision.blocks.1.norm_mlp.weight", 0.9**2, False),
        ("vision.blocks.1.scale_attention", 0.9**2, False),
        ("vision.norm.weight", 1.0, False),
        ("projection.weight", 1.0, True),
        ("temperature.log_scale", 1.0, False),
        ("text.0.weight", 1.0, True),
        ("text.1.weight", 1.0, False),
        ("dino.layers.0.weight", 1.0, True),
        ("dino.last.weight", 1.0, True),
    ],
)
def test_each_is_trained_as_the_method_says(name, lr_factor, decays):
    how = by_name(Student())[name]
    assert how.lr_factor == pytest.approx(lr_factor)
    assert how.decays == decays
    assert how.last == (name == "dino.last.weight")


def test_nothing_but_maps_decays():
    decaying = {name for name, how in by_name(Student()).items() if how.decays}
    maps = {"qkv", "proj", "up", "down", "patch_2d", "patch_3d", "projection", "last", "text", "layers"}
    assert decaying and all(name.endswith(".weight") and maps & set(name.split(".")) for name in decaying)
    assert not any("norm" in name or "text.1" in name for name in decaying)


def test_a_norm_over_more_axes_does_not_decay_and_a_wide_scale_does_not_pass_as_one():
    model = nn.Sequential(nn.LayerNorm((2, 3)), nn.Linear(3, 3))
    assert {name for name, how in by_name(model).items() if how.decays} == {"1.weight"}


def test_the_recipes_numbers_are_used():
    flat = by_name(Student(), GroupRecipe(layer_decay=1.0, patch_factor=1.0))
    assert {how.lr_factor for how in flat.values()} == {1.0}
    steep = by_name(Student(), GroupRecipe(layer_decay=0.5, patch_factor=0.1))
    assert steep["vision.patch_2d.weight"].lr_factor == pytest.approx(0.1 / 16)


@pytest.mark.parametrize("wrong", [{"layer_decay": 0.0}, {"patch_factor": 1.5}, {"layer_decai": 0.9}])
def test_numbers_out_of_range_are_refused(wrong):
    with pytest.raises(ValueError):
        GroupRecipe.model_validate(wrong)


def test_a_wrapper_changes_no_group():
    model = Student()
    plain, wrapped = by_name(model), by_name(nn.ModuleDict({"module": torch.compile(model, backend="eager")}))
    assert {name.removeprefix("module._orig_mod."): how for name, how in wrapped.items()} == plain


def test_frozen_parameters_have_no_group():
    model = Student()
    model.vision.requires_grad_(False)
    assert not any(name.startswith("vision") for name in by_name(model))
    with pytest.raises(UsageError, match="one at least"):
        parameter_groups(model.requires_grad_(False), RECIPE)


def test_a_shared_parameter_is_taken_once_or_refused():
    model = Student()
    model.again = model.projection
    assert len(by_name(model)) == len(by_name(Student()))
    model.slow = nn.Linear(24, 24)
    model.slow.weight = model.vision.blocks[0].attention.proj.weight
    with pytest.raises(UsageError, match=r"blocks\.0\.attention\.proj\.weight.*slow\.weight"):
        parameter_groups(model, RECIPE)


def test_a_list_that_is_not_exactly_the_model_is_refused():
    model = Student()
    groups = [list(group.parameters.values()) for group in parameter_groups(model, RECIPE)]
    check_groups(model, groups)
    with pytest.raises(UsageError, match=r"missing \['dino.layers.0.weight'"):
        check_groups(model, [[p for p in g if p is not model.dino.layers[0].weight] for g in groups])
    with pytest.raises(UsageError, match=r"twice \['vision.cls'\]"):
        check_groups(model, [*groups, [model.vision.cls]])
    with pytest.raises(UsageError, match="another model 1"):
        check_groups(model, [*groups, [nn.Parameter(torch.zeros(1))]])
    model.temperature.requires_grad_(False)
    with pytest.raises(UsageError, match=r"frozen \['temperature.log_scale'\]"):
        check_groups(model, groups)


def test_an_optimiser_steps_each_group_at_its_rate():
    """AdamW's first step is the learning rate times the gradient's sign: groups can be read off the steps."""
    model = Student()
    optim = torch.optim.AdamW(adamw_groups(parameter_groups(model, RECIPE)))
    set_rates(optim, RATES._replace(weight_decay=0.0))
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optim.step()
    for name, how in by_name(model).items():
        moved = (before[name] - model.get_parameter(name)).detach()
        expected = torch.full_like(moved, 0.0 if how.last else how.lr_factor)
        assert torch.allclose(moved, expected, rtol=1e-4, atol=1e-6), name


def test_weight_decay_reaches_maps_alone():
    model = Student()
    optim = torch.optim.AdamW(adamw_groups(parameter_groups(model, RECIPE)))
    set_rates(optim, RATES._replace(last_lr=1.0, weight_decay=0.5))
    for parameter in model.parameters():
        parameter.data.fill_(1.0)
        parameter.grad = torch.zeros_like(parameter)
    optim.step()
    for name, how in by_name(model).items():
        left = 1 - 0.5 * how.lr_factor if how.decays else 1.0
        parameter = model.get_parameter(name)
        assert torch.allclose(parameter, torch.full_like(parameter, left)), name


def test_the_table_adds_up_and_shows_what_rests():
    groups = parameter_groups(Student(), RECIPE)
    rows = group_rows(groups, RATES)
    assert sum(row.parameters for row in rows) == sum(p.numel() for p in Student().parameters())
    resting = [row for row in rows if row.lr == 0]
    assert [row.first for row in resting] == ["dino.last.weight"] and resting[0].parameters == 80
    assert {row.weight_decay for row in rows} == {0.0, 0.04}


def test_the_base_model_has_one_group_per_layer_and_kind():
    with torch.device("meta"):
        model = build(preset_from(preset_data("flexict-base")))
    rows = group_rows(parameter_groups(model, RECIPE), RATES)
    assert sum(row.parameters for row in rows) == 143_999_424
    # 16 blocks and the patch embeddings with and without decay, the tokens, the last norm
    assert len(rows) == 2 * 17 + 2
    assert min(row.lr for row in rows) == pytest.approx(0.2 * 0.9**17)


def test_a_text_tower_has_a_factor_of_its_own():
    from _stages import TinyTower

    model = nn.ModuleDict({"text": TinyTower(), "projection": nn.Linear(4, 3)})
    groups = parameter_groups(model, GroupRecipe.model_validate({"text_factor": 0.05}))
    factors = {name: group.how.lr_factor for group in groups for name in group.parameters}
    assert {n: f for n, f in factors.items() if n.startswith("text.")} == {
        "text.table.weight": 0.05, "text.mix.weight": 0.05, "text.mix.bias": 0.05,
    }  # fmt: skip
    assert factors["projection.weight"] == 1.0
