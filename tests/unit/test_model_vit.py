"""The backbone: sizes, patch sizes, masks, noise, refusals."""

import math
import subprocess
import sys

import pytest
import torch
from torch.nn import functional as F

from hilum.errors import InputRefused, UsageError, WeightsError
from hilum.io.weights import preset_data
from hilum.model.patch import inflate_kernel, patch_sizes, resize_kernel
from hilum.model.preset import BackbonePreset, Preset, build, preset_from
from hilum.model.rope import draw_rescale, periods
from hilum.model.vit import ViT
from hilum.model.vit_config import ViTConfig

TINY = ViTConfig(width=24, depth=3, heads=1, patch=4, layer_scale=0.5, drop_path=0.4)


def count(module):
    return sum(p.numel() for p in module.parameters())


def tiny(seed=0, **changes):
    model = ViT(ViTConfig(**{**TINY.__dict__, **changes}))
    model.reset(torch.Generator().manual_seed(seed))
    return model


def drawn(*shape, seed=0, dtype=torch.float32):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def test_the_base_model_has_the_published_size():
    with torch.device("meta"):
        model = build(preset_from(preset_data("flexict-base")))
    assert count(model) == 143_999_424
    assert [count(block) for block in model.blocks] == [8_968_320] * 16
    assert (count(model.patch_2d), count(model.patch_3d)) == (56_160, 443_232)
    assert count(model.norm) + model.cls.numel() + model.registers.numel() + model.mask_token.numel() == 6_912


def test_periods_are_the_published_ones():
    like = torch.empty(0, dtype=torch.float64)
    flat, deep = periods(72, 2, 100.0, like), periods(72, 3, 100.0, like)
    assert (len(flat), len(deep)) == (18, 12)
    assert flat[0] == deep[0] == 1
    assert flat[-1].item() == pytest.approx(77.4, abs=0.05)
    assert deep[-1].item() == pytest.approx(16.7, abs=0.05)
    assert torch.equal(flat[:12], deep)


@pytest.mark.parametrize("size", [(16, 16), (8, 16), (12, 9), (24, 32)])
@pytest.mark.parametrize("axes", [2, 3])
def test_an_enlarged_patch_gives_the_same_token(axes, size):
    old, new = (8,) * axes, (*size, 16)[:axes]
    weight = drawn(3, 2, *old, dtype=torch.float64)
    patch = drawn(4, 2, *old, seed=1, dtype=torch.float64)
    bigger = F.interpolate(patch, size=new, mode="bicubic" if axes == 2 else "trilinear", antialias=axes == 2)
    there = torch.einsum("bcn,wcn->bw", bigger.flatten(2), resize_kernel(weight, new).flatten(2))
    here = torch.einsum("bcn,wcn->bw", patch.flatten(2), weight.flatten(2))
    assert torch.allclose(there, here, atol=1e-9)


def test_the_base_size_uses_the_kernel_as_it_is():
    weight = drawn(3, 1, 8, 8, 8)
    assert resize_kernel(weight, (8, 8, 8)) is weight
    model, image = tiny().eval(), drawn(1, 1, 8, 8, 8)
    assert torch.equal(model(image).patches, model(image, patch=4).patches)


def test_smaller_patches_are_read_too():
    weight = drawn(3, 1, 8, 8, dtype=torch.float64)
    smooth = F.interpolate(
        drawn(5, 1, 4, 4, seed=1, dtype=torch.float64), size=8, mode="bicubic", antialias=True
    )
    small = F.interpolate(smooth, size=4, mode="bicubic", antialias=True)
    kernel = resize_kernel(weight, (4, 4))
    # of what a small patch can hold, least squares gives nearly all
    there = torch.einsum("bcn,wcn->bw", small.flatten(2), kernel.flatten(2))
    here = torch.einsum("bcn,wcn->bw", smooth.flatten(2), weight.flatten(2))
    assert (there - here).norm() < 0.2 * here.norm()


def test_kernels_are_resized_in_full_precision_under_autocast():
    weight = drawn(3, 1, 8, 8, 8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = resize_kernel(weight, (16, 16, 16))
    assert inside.dtype == torch.float32
    assert torch.equal(inside, resize_kernel(weight, (16, 16, 16)))


@pytest.mark.parametrize(("patch", "grid"), [(4, (4, 8, 6)), (8, (2, 4, 3)), ((2, 8, 4), (8, 4, 6))])
def test_a_patch_size_changes_the_grid_and_no_parameter(patch, grid):
    model, image = tiny().eval(), drawn(2, 1, 16, 32, 24)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    out = model(image, patch=patch)
    assert out.grid == grid and out.patches.shape == (2, math.prod(grid), 24)
    assert out.cls.shape == (2, 24) and out.registers.shape == (2, 4, 24)
    after = model.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    assert set(before) == {name for name, _ in model.named_parameters()}


def test_slices_and_volumes_share_everything_but_their_embedding():
    def touched(image):
        model = tiny().eval()
        out = model(image, mask=torch.zeros(1, 4, dtype=torch.bool))
        (out.patches.sum() + out.cls.sum() + out.registers.sum()).backward()
        return {name for name, p in model.named_parameters() if p.grad is not None}

    flat, deep = touched(drawn(1, 1, 8, 8)), touched(drawn(1, 1, 8, 8, 4))
    every = {name for name, _ in tiny().named_parameters()}
    assert flat == {name for name in every if not name.startswith("patch_3d")}
    assert deep == {name for name in every if not name.startswith("patch_2d")}


def test_layers_come_in_the_order_asked_for_and_lie_on_the_grid():
    model, image = tiny().eval(), drawn(2, 1, 8, 12, 4)
    first, last, again = model.intermediate(image, [0, 2, 0])
    assert torch.equal(last.patches, model(image).patches)
    assert torch.equal(first.cls, again.cls) and not torch.equal(first.cls, last.cls)
    maps = last.maps()
    assert maps.shape == (2, 24, 2, 3, 1)
    assert torch.equal(maps[1, :, 1, 2, 0], last.patches[1, 1 * 3 + 2])
    raw = model.intermediate(image, [2], norm=False)[0]
    assert torch.allclose(model.norm(raw.patches), last.patches, atol=1e-6)
    # a norm done twice would pass the line above
    assert not torch.allclose(raw.patches, last.patches, atol=1e-2)
    assert model.intermediate(image[:, :, :, :, 0], [1])[0].maps().shape == (2, 24, 2, 3)


def test_a_hidden_patch_is_the_mask_token():
    model, image = tiny().eval(), drawn(2, 1, 8, 8)
    with torch.no_grad():
        model.mask_token.normal_()
    mask = torch.tensor([[True, False, False, True], [False, False, False, False]])
    other = image.clone()
    other[0, 0, :4, :4] = 9.0
    other[0, 0, 4:, 4:] = -9.0
    assert torch.equal(model(image, mask=mask).patches, model(other, mask=mask).patches)
    assert not torch.allclose(model(image).patches, model(other).patches)
    hidden, open_ = model(image, mask=mask).patches, model(image).patches
    assert torch.allclose(hidden[1], open_[1], atol=1e-6) and not torch.allclose(hidden[0], open_[0])
    with torch.no_grad():
        model.mask_token[0] += 1.0
    assert not torch.allclose(model(image, mask=mask).patches[0], hidden[0])


def test_the_mask_token_starts_at_zero_and_learns():
    model = tiny()
    assert model.mask_token.eq(0).all()
    model.eval()
    model(drawn(1, 1, 8, 8), mask=torch.tensor([[True, False, False, False]])).patches[:, 1].sum().backward()
    assert model.mask_token.grad.abs().sum() > 0


def test_noise_is_for_training_only():
    model, image = tiny(), drawn(5, 1, 8, 8)
    noise = model.draw(5, torch.Generator().manual_seed(1))
    assert noise.kept.shape == (3, 2, 3)
    assert all(len(set(rows.tolist())) == 3 for rows in noise.kept.flatten(0, 1))
    model.eval()
    assert torch.equal(model(image, noise=noise).cls, model(image).cls)
    plain = model(image).cls
    model.train()
    assert not torch.allclose(model(image, noise=noise).cls, plain)


def test_equal_seeds_give_equal_steps():
    model, image = tiny(), drawn(5, 1, 8, 8)
    one, two, other = (
        model(image, noise=model.draw(5, torch.Generator().manual_seed(seed))).cls for seed in (1, 1, 2)
    )
    assert torch.equal(one, two) and not torch.equal(one, other)


def test_a_dropped_branch_is_right_on_average():
    model, image = tiny(rescale=1.0, depth=1), drawn(5, 1, 4, 4)
    with torch.no_grad():
        # attention alone: what comes behind it is not linear in what it drops
        model.blocks[0].scale_mlp.zero_()
        model.norm = torch.nn.Identity()
    generator = torch.Generator().manual_seed(0)
    draws = [model(image, noise=model.draw(5, generator)).cls.detach() for _ in range(500)]
    mean, spread = torch.stack(draws).mean(0), torch.stack(draws).std(0) / 500**0.5
    model.eval()
    assert ((mean - model(image).cls).abs() < 5 * spread + 1e-6).all()
    assert spread.max() > 0


def test_the_rescale_is_log_uniform():
    generator = torch.Generator().manual_seed(0)
    logs = torch.stack([draw_rescale(2.0, generator) for _ in range(4000)]).log2()
    assert logs.min() > -1 and logs.max() < 1 and logs.mean().abs() < 0.03
    assert logs.var().item() == pytest.approx(1 / 3, rel=0.05)
    assert draw_rescale(1.0, generator) == 1


def test_training_without_its_noise_is_refused():
    model = tiny()
    with pytest.raises(UsageError, match=r"CONFIG_VALUE.*model\.draw\(2"):
        model(drawn(2, 1, 8, 8))
    with pytest.raises(UsageError, match=r"CONFIG_VALUE.*noise of 3 scans"):
        model(drawn(2, 1, 8, 8), noise=model.draw(3))
    with pytest.raises(UsageError, match=r"CONFIG_VALUE.*2 blocks"):
        model(drawn(2, 1, 8, 8), noise=tiny(depth=2).draw(2))
    calm = tiny(drop_path=0.0, rescale=1.0)
    assert torch.equal(calm(drawn(2, 1, 8, 8)).cls, calm.eval()(drawn(2, 1, 8, 8)).cls)


def gradients(**changes):
    model, image = tiny(**changes), drawn(4, 1, 8, 8, 8)
    out = model(image, patch=4, noise=model.draw(4, torch.Generator().manual_seed(5)))
    (out.cls.square().sum() + out.patches.sin().sum()).backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def test_activations_computed_again_give_the_same_gradients():
    kept, again = gradients(), gradients(checkpoint=True)
    assert kept.keys() == again.keys()
    assert all(torch.equal(kept[name], again[name]) for name in kept)


@pytest.mark.parametrize("checkpoint", [False, True])
def test_it_trains_under_autocast_and_runs_in_bfloat16(checkpoint):
    model, image = tiny(checkpoint=checkpoint), drawn(5, 1, 8, 8, 8)
    noise = model.draw(5, torch.Generator().manual_seed(0))
    exact = model(image, noise=noise).patches
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = model(image, patch=4, noise=noise)
    assert (out.patches - exact).abs().max() < 0.2
    out.patches.square().mean().backward()
    grads = [p.grad for name, p in model.named_parameters() if not name.startswith(("patch_2d", "mask"))]
    assert all(grad.dtype == torch.float32 and grad.isfinite().all() for grad in grads)
    half = model.bfloat16()(image.bfloat16(), noise=noise).patches
    assert half.dtype == torch.bfloat16 and (half - exact).abs().max() < 0.3


def test_parameters_follow_the_generator_alone():
    one, two, other = tiny(1), tiny(1), tiny(2)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))
    assert not torch.equal(one.cls, other.cls)
    with torch.device("meta"):
        empty = ViT(TINY)
    empty.to_empty(device="cpu").reset(torch.Generator().manual_seed(1))
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), empty.parameters(), strict=True))


def test_a_volume_of_equal_slices_has_its_slices_tokens():
    model, image = tiny().eval(), drawn(2, 1, 8, 12)
    model.inflate()
    flat = model.patch_2d(image, (4, 4))
    deep = model.patch_3d(image[..., None].expand(-1, -1, -1, -1, 8), (4, 4, 4)).unflatten(1, (6, 2))
    assert torch.allclose(deep[:, :, 0], flat, atol=1e-6) and torch.allclose(deep[:, :, 1], flat, atol=1e-6)
    model.inflate("centre")
    volume = torch.zeros(2, 1, 8, 12, 4)
    volume[..., 2] = image
    assert torch.allclose(model.patch_3d(volume, (4, 4, 4)), flat, atol=1e-6)


def test_an_unknown_inflation_is_refused():
    with pytest.raises(UsageError, match="CONFIG_VALUE"):
        # past the annotation, as a recipe's text would come
        inflate_kernel.__wrapped__(drawn(2, 1, 4, 4), 4, "middle")


def test_coordinates_in_mm_see_the_same_place_in_a_wider_voxel():
    model = tiny(extent_mm=300.0).eval()
    image = drawn(1, 1, 8, 8, 8)
    near, far = (model(image, spacing_mm=(s, s, s)).cls for s in (2.0, 3.0))
    assert not torch.allclose(near, far)
    # two grids of the same millimetres: patches of 4 voxels at 2 mm, of 8 at 1 mm
    wide = F.interpolate(image, scale_factor=2.0, mode="trilinear")
    table = [model._table((2, 2, 2), (p,) * 3, (s,) * 3, image, None).cos for p, s in ((4, 2.0), (8, 1.0))]
    assert torch.allclose(*table)
    assert model(wide, patch=8, spacing_mm=(1.0, 1.0, 1.0)).grid == (2, 2, 2)


@pytest.mark.parametrize("spacing_mm", [None, (1.0, 1.0), (1.0, 1.0, 0.0), (1.0, math.nan, 1.0)])
def test_coordinates_in_mm_need_voxel_sizes(spacing_mm):
    with pytest.raises(InputRefused, match="SPACING_INVALID"):
        tiny(extent_mm=300.0).eval()(drawn(1, 1, 8, 8, 8), spacing_mm=spacing_mm)


@pytest.mark.parametrize(
    ("shape", "code"),
    [
        ((1, 8, 8), "MODEL_INPUT"),
        ((1, 1, 8, 8, 8, 8), "MODEL_INPUT"),
        ((1, 2, 8, 8), "MODEL_INPUT"),
        ((1, 2, 8, 8, 8), "MODEL_INPUT"),
        ((1, 1, 8, 3), "PATCH_GRID"),
        ((1, 1, 8, 8, 2), "PATCH_GRID"),
        ((1, 1, 8, 10, 8), "PATCH_GRID"),
        ((1, 1, 8, 0), "PATCH_GRID"),
    ],
)
def test_a_picture_that_does_not_fit_is_refused(shape, code):
    with pytest.raises(InputRefused, match=code):
        tiny().eval()(torch.zeros(shape))


def test_whole_numbers_are_no_prepared_picture():
    with pytest.raises(InputRefused, match=r"MODEL_INPUT.*int16"):
        tiny().eval()(torch.zeros(1, 1, 8, 8, dtype=torch.int16))


@pytest.mark.parametrize(
    "mask", [torch.zeros(1, 3, dtype=torch.bool), torch.zeros(1, 4), torch.zeros(2, 4, dtype=torch.bool)]
)
def test_a_mask_that_does_not_fit_is_refused(mask):
    with pytest.raises(InputRefused, match=r"MODEL_INPUT.*one bit per patch"):
        tiny().eval()(torch.zeros(1, 1, 8, 8), mask=mask)


@pytest.mark.parametrize("patch", [0, -4, 257, (4, 4, 4), (4,)])
def test_a_patch_that_is_none_is_refused(patch):
    with pytest.raises(UsageError, match="CONFIG_VALUE"):
        tiny().eval()(torch.zeros(1, 1, 8, 8), patch=patch)
    assert patch_sizes(4, 3) == (4, 4, 4)


@pytest.mark.parametrize("layers", [[3], [-1], []])
def test_a_layer_that_is_not_there_is_refused(layers):
    with pytest.raises(UsageError, match="CONFIG_VALUE"):
        tiny().eval().intermediate(torch.zeros(1, 1, 8, 8), layers)


@pytest.mark.parametrize(
    "wrong",
    [
        {"width": 0},
        {"width": 100},
        {"heads": 5},
        {"depth": -1},
        {"patch": 0},
        {"registers": -1},
        {"layer_scale": math.nan},
        {"layer_scale": 0.0},
        {"norm_eps": math.inf},
        {"drop_path": 1.0},
        {"drop_path": math.nan},
        {"rope_base": 1.0},
        {"rescale": 0.5},
        {"rescale": math.nan},
        {"extent_mm": math.nan},
        {"extent_mm": -1.0},
        {"width": True},
        {"patch_z": 0},
        {"patch_z": True},
        {"heads": 9, "width": 90, "slices": False},
    ],
)
def test_numbers_that_make_no_network_are_refused(wrong):
    with pytest.raises(WeightsError, match=rf"CONFIG_VALUE.*{next(iter(wrong))}"):
        ViTConfig(**wrong)


def test_presets_are_checked_key_by_key():
    good = preset_data("flexict-nano")
    with pytest.raises(WeightsError, match=r"CONFIG_KEY.*Did you mean registers"):
        preset_from({**good, "net": {**good["net"], "registrs": 4}})
    with pytest.raises(WeightsError, match=r"CONFIG_KEY.*pool_ml"):
        preset_from({**good, "pool_ml": {}})
    with pytest.raises(WeightsError, match=r"CONFIG_VALUE.*got os.system"):
        preset_from({**good, "network": "os.system"})
    with pytest.raises(WeightsError, match=r"CONFIG_VALUE.*network"):
        preset_from({k: v for k, v in good.items() if k != "network"})
    # where a reader of scans is asked for, a backbone is refused by its kind
    with pytest.raises(WeightsError, match=r"CONFIG_VALUE.*expected ynet, cam, .*; got vit"):
        Preset.from_dict(good)
    with pytest.raises(WeightsError, match=r"CONFIG_VALUE.*expected vit; got ynet"):
        BackbonePreset.from_dict(preset_data("phantom-small"))
    with pytest.raises(WeightsError, match=r"CONFIG_VALUE.*drop_path"):
        preset_from({**good, "net": {**good["net"], "drop_path": math.nan}})


def test_bfloat16_angles_are_an_option():
    fine, coarse = tiny().eval(), tiny(rope_bf16=True).eval()
    for parameter in fine.parameters():
        torch.nn.init.normal_(parameter, std=0.3, generator=torch.Generator().manual_seed(1))
    coarse.load_state_dict(fine.state_dict())
    image = drawn(1, 1, 28, 28)
    difference = (fine(image).patches - coarse(image).patches).abs().max()
    assert 1e-4 < difference < 0.1
    assert coarse(image).cls.dtype == torch.float32


COMPILED = """
import torch, warnings
warnings.simplefilter("error")
from hilum.model.vit import ViT
from hilum.model.vit_config import ViTConfig
for checkpoint, shape, patch in ((False, (8, 16, 24), (2, 4, 8)), (True, (8, 8), None)):
    config = ViTConfig(width=24, depth=2, heads=2, patch=4, drop_path=0.5, checkpoint=checkpoint)
    model = ViT(config)
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    noise = model.draw(4, torch.Generator().manual_seed(0))
    image = torch.randn(4, 1, *shape)
    mask = torch.rand(4, model(image, patch=patch, noise=noise).patches.shape[1]) < 0.5
    ours = compiled(image, patch=patch, mask=mask, noise=noise)
    plain = model(image, patch=patch, mask=mask, noise=noise)
    assert ours.grid == plain.grid
    torch.testing.assert_close(ours.patches, plain.patches)
    grads = [torch.autograd.grad(o.patches.square().sum(), model.cls)[0] for o in (ours, plain)]
    torch.testing.assert_close(*grads)
print("one graph")
"""


@pytest.mark.slow
def test_it_compiles_into_one_graph():
    # a process of its own: the shape checks of the test run are no part of the graph
    done = subprocess.run([sys.executable, "-c", COMPILED], capture_output=True, text=True, timeout=300)
    assert done.stdout == "one graph\n", done.stderr[-3000:]


def test_patches_of_another_depth_and_no_slices():
    # SPECTRE's kind: 90 channels a head would not do for slices
    config = ViTConfig(
        width=90, depth=2, heads=1, patch=4, patch_z=2, slices=False, registers=0, qkv_bias=True
    )
    model = ViT(config).eval()
    assert model.patch_3d.weight.shape == (90, 1, 4, 4, 2)
    assert not any(name.startswith("patch_2d") for name in model.state_dict())
    assert model.state_dict()["blocks.0.attention.qkv.bias"].abs().max() == 0
    out = model(torch.zeros(1, 1, 8, 4, 6))
    assert out.grid == (2, 1, 3) and out.registers.shape == (1, 0, 90)
    assert torch.equal(out.patches, model(torch.zeros(1, 1, 8, 4, 6), patch=(4, 4, 2)).patches)
    with pytest.raises(InputRefused, match=r"MODEL_INPUT.*expected \(B, C, X, Y, Z\); got"):
        model(torch.zeros(1, 1, 8, 8))
    with pytest.raises(UsageError, match=r"CONFIG_VALUE.*slices"):
        model.inflate()


def test_inflation_is_as_deep_as_the_patch():
    model = tiny(patch_z=2)
    model.inflate()
    assert model.patch_3d.weight.shape[2:] == (4, 4, 2)
    assert torch.allclose(model.patch_3d.weight.sum(-1), model.patch_2d.weight)


def test_new_numbers_leave_states_and_sizes_as_they_were():
    data = preset_data("flexict-nano")["net"]
    assert set(ViTConfig().__dict__) - set(data) == {
        "patch_z",
        "slices",
        "qkv_bias",
        "rope_full",
        "rope_reversed",
    }
    full = periods(90, 3, 1000.0, torch.empty(0, dtype=torch.float64), full=True)
    assert len(full) == 15 and full[-1].item() == pytest.approx(1000 ** (14 / 15))
