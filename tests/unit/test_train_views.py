"""Views show what their boxes say, are a function of the generator alone, and stay within their recipe."""

import math

import pytest
import torch
from pydantic import ValidationError

from hilum.train.intensity import IntensityRecipe, bend, coarsen, smooth, vary
from hilum.train.views import Box, show, stack_views
from hilum.train.views_slice import SliceViewRecipe, draw_area, draw_sides, slice_views
from hilum.train.views_volume import VolumeViewRecipe, draw_box, pad_to, volume_views

OFF = {f"{name}_chance": 0.0 for name in ("noise", "smooth", "scale", "coarse", "gamma")}


def dice(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def places(*shape: int) -> list[torch.Tensor]:
    """One picture per axis: each voxel holds where it lies along it."""
    grids = torch.meshgrid(*(torch.arange(n, dtype=torch.float32) for n in shape), indexing="ij")
    return [grid[None] for grid in grids]


def blob(*shape: int) -> torch.Tensor:
    return torch.randn(1, *shape, generator=dice(7))


@pytest.mark.parametrize(
    ("shape", "box", "side"),
    [
        ((30, 40), Box((3, 5), (20, 30), (1,)), 50),
        ((30, 40), Box((0, 9), (30, 12)), 24),
        ((20, 24, 28), Box((2, 0, 8), (10, 24, 15), (0, 2)), 32),
    ],
)
def test_a_view_shows_its_box(shape, box, side):
    for axis, picture in enumerate(places(*shape)):
        view = show(picture, box, side)[0]
        assert view.shape == (side,) * len(shape)
        at = (torch.arange(side) + 0.5) * box.size[axis] / side - 0.5 + box.start[axis]
        at = at.flip(0) if axis in box.flipped else at
        # borders of a box are repeated, so its outermost voxels are nearer to each other
        inner = slice(side // 4, side - side // 4)
        line = view.movedim(axis, 0)[inner].flatten(1)
        torch.testing.assert_close(line, at[inner, None].float().expand_as(line), rtol=0, atol=2e-2)


def test_a_box_of_the_views_own_size_is_copied():
    volume = blob(20, 22, 24)
    view = show(volume, Box((1, 2, 3), (16, 16, 16)), 16)
    torch.testing.assert_close(view, volume[:, 1:17, 2:18, 3:19])


def small(**changes) -> VolumeViewRecipe:
    base = {"side_vox": 16, "part_side_vox": 8, "whole_vox": (8, 16), "part_vox": (2, 4), "parts": 3}
    return VolumeViewRecipe.model_validate(base | changes)


def test_volume_views_stay_within_their_recipe():
    flips = set()
    for seed in range(40):
        views = volume_views(blob(18, 16, 30), small(), dice(seed))
        assert views.whole.shape == (2, 1, 16, 16, 16) and views.parts.shape == (3, 1, 8, 8, 8)
        for index, box in enumerate(views.boxes):
            low, high = (8, 16) if index < 2 else (2, 4)
            ends = [a + n for a, n in zip(box.start, box.size, strict=True)]
            assert all(low <= n <= high for n in box.size) and min(box.start) >= 0
            assert all(end <= n for end, n in zip(ends, (18, 16, 30), strict=True))
            assert index == 0 or not box.flipped
        flips.add(views.boxes[0].flipped)
    assert len(flips) == 8
    sizes = {volume_views(blob(18, 16, 30), small(), dice(s)).boxes[0].size[0] for s in range(40)}
    assert sizes == set(range(8, 17))


def test_views_are_what_their_boxes_show():
    volume = blob(18, 16, 30)
    views = volume_views(volume, small(), dice(3))
    for view, box in zip((*views.whole, *views.parts), views.boxes, strict=True):
        torch.testing.assert_close(view, show(volume, box, view.shape[-1]))


def test_a_report_is_shown_the_middle():
    recipe = small(whole_vox="middle", wholes=1, flip_chance=0.0, part_vox=(3, 4))
    volume = blob(20, 16, 25)
    views = volume_views(volume, recipe, dice())
    torch.testing.assert_close(views.whole[0], volume[:, 2:18, :, 4:20])


def test_a_short_scan_is_padded_with_its_smallest_value():
    volume = blob(16, 9, 4)
    padded = pad_to(volume, 12)
    assert padded.shape == (1, 16, 12, 12)
    torch.testing.assert_close(padded[:, :, 1:10, 4:8], volume)
    padded[:, :, 1:10, 4:8] = volume.min()
    assert bool((padded == volume.min()).all())
    assert pad_to(volume, 4) is volume


def test_the_same_generator_gives_the_same_views():
    volume, picture = blob(16, 20, 18), blob(40, 40)
    recipe = SliceViewRecipe.model_validate({})
    sides = draw_sides(recipe, dice())
    for make in (
        lambda seed: volume_views(volume, small(), dice(seed)),
        lambda seed: slice_views(picture, sides, recipe, dice(seed)),
    ):
        one, two, other = make(5), make(5), make(6)
        assert torch.equal(one.whole, two.whole) and torch.equal(one.parts, two.parts)
        assert one.boxes == two.boxes != other.boxes
    assert torch.equal(volume, blob(16, 20, 18)) and torch.equal(picture, blob(40, 40))


def test_boxes_of_slices_have_the_share_and_the_aspect_asked_for():
    shares = []
    for seed in range(200):
        box = draw_area((200, 240), (0.05, 0.32), (0.75, 4 / 3), (0.0, 0), dice(seed))
        (a, b), area = box.size, math.prod(box.size) / (200 * 240)
        shares.append(area)
        assert 0.045 <= area <= 0.33 and 0.73 <= b / a <= 1.37 and not box.flipped
        assert box.start[0] + a <= 200 and box.start[1] + b <= 240
    assert min(shares) < 0.08 and max(shares) > 0.28


def test_a_slice_that_nothing_fits_shows_its_middle():
    box = draw_area((10, 100), (0.9, 1.0), (0.75, 4 / 3), (1.0, 0), dice())
    assert box == Box((0, 43), (10, 13), (0,))


def test_sides_are_drawn_as_often_as_said():
    chances = (0.3, 0.3, 0.3, 0.05, 0.05)
    sides = [{"whole": 16 * (i + 1), "parts": 8, "weight": w} for i, w in enumerate(chances)]
    recipe = SliceViewRecipe.model_validate({"sides": sides})
    generator = dice()
    drawn = [draw_sides(recipe, generator).whole // 16 - 1 for _ in range(4000)]
    for index, chance in enumerate(chances):
        assert drawn.count(index) / 4000 == pytest.approx(chance, abs=0.03)


def test_one_chain_of_values_is_shared_by_all_views_and_kept_from_the_anchor():
    intensity = IntensityRecipe.model_validate(OFF | {"scale_chance": 1.0, "scale": (1.2, 1.21)})
    recipe = SliceViewRecipe.model_validate(
        {"sides": [{"whole": 32, "parts": 16, "anchor": 32}], "intensity": intensity}
    )
    picture = blob(64, 64)
    views = slice_views(picture, recipe.sides[0], recipe, dice(2))
    assert views.anchor is not None
    factors = views.whole / views.anchor
    assert (
        float(factors.min()) == pytest.approx(float(factors.max()), abs=1e-3) and float(factors.mean()) > 1.19
    )
    for view, box in zip(views.parts, views.boxes[2:], strict=True):
        torch.testing.assert_close(view, float(factors.mean()) * show(picture, box, 16), rtol=1e-3, atol=1e-3)


def test_views_of_a_batch_have_views_first():
    scans = [volume_views(blob(16, 16, 16) + i, small(anchor=i < 2), dice(i)) for i in range(3)]
    batch = stack_views(scans)
    assert batch.whole.shape == (2, 3, 1, 16, 16, 16) and batch.parts.shape[:2] == (3, 3)
    assert torch.equal(batch.whole[1, 2], scans[2].whole[1]) and batch.anchor is None
    both = stack_views(scans[:2])
    assert both.anchor is not None and torch.equal(both.anchor[0, 1], scans[1].anchor[0])


def test_no_chance_changes_nothing():
    picture = blob(12, 14)
    assert vary(picture, IntensityRecipe.model_validate(OFF), dice()) is picture


@pytest.mark.parametrize("name", ["noise", "smooth", "scale", "coarse", "gamma"])
def test_each_change_happens_alone(name):
    picture = blob(24, 20)
    changed = vary(picture, IntensityRecipe.model_validate(OFF | {f"{name}_chance": 1.0}), dice(1))
    assert changed.shape == picture.shape and not torch.equal(changed, picture)
    assert bool(torch.isfinite(changed).all())


def test_noise_is_as_strong_as_said():
    recipe = IntensityRecipe.model_validate(OFF | {"noise_chance": 1.0, "noise_variance": (0.04, 0.0401)})
    assert float(vary(torch.zeros(1, 200, 200), recipe, dice()).std()) == pytest.approx(0.2, rel=0.03)


@pytest.mark.parametrize("shape", [(31, 33), (15, 17, 13)])
def test_smoothing_is_a_gaussian(shape):
    point = torch.zeros(1, *shape)
    middle = tuple(n // 2 for n in shape)
    point[0, *middle] = 1.0
    soft = smooth(point, 1.0)
    assert float(soft.sum()) == pytest.approx(1.0, abs=1e-5)
    aside = soft[0, middle[0] + 1, *middle[1:]]
    assert float(aside / soft[0, *middle]) == pytest.approx(math.exp(-0.5), abs=1e-5)
    torch.testing.assert_close(smooth(torch.full((1, *shape), 3.0), 0.7), torch.full((1, *shape), 3.0))


def test_coarse_voxels_lose_detail_and_keep_the_level():
    checks = (torch.arange(64) % 2).float().expand(1, 64, 64)
    assert float(coarsen(checks, 0.5).std()) < 0.01 and float(coarsen(checks, 0.5).mean()) == 0.5
    torch.testing.assert_close(coarsen(checks, 1.0), checks)


def test_gamma_keeps_order_mean_and_deviation():
    picture = blob(40, 40)
    bent = bend(picture, 1.4)
    assert torch.equal(bent.flatten().argsort(), picture.flatten().argsort())
    assert float(bent.mean()) == pytest.approx(float(picture.mean()), abs=1e-5)
    assert float(bent.std()) == pytest.approx(float(picture.std()), abs=1e-4)
    flat = torch.full((1, 5, 5), 2.0)
    assert bend(flat, 1.4) is flat


@pytest.mark.parametrize(
    ("model", "wrong"),
    [
        (SliceViewRecipe, {"whole_area": (0.5, 0.3)}),
        (SliceViewRecipe, {"part_area": (0.0, 0.3)}),
        (SliceViewRecipe, {"whole_area": (0.5, 1.2)}),
        (SliceViewRecipe, {"aspect": (0.0, 1.0)}),
        (SliceViewRecipe, {"sides": ()}),
        (SliceViewRecipe, {"flip": 0.5}),
        (VolumeViewRecipe, {"whole_vox": (100, 200)}),
        (VolumeViewRecipe, {"part_vox": (0, 4)}),
        (VolumeViewRecipe, {"part_vox": (9, 4)}),
        (VolumeViewRecipe, {"flip_chance": 1.5}),
        (IntensityRecipe, {"gamma_chance": -0.1}),
        (IntensityRecipe, {"smooth_vox": (0.0, 1.0)}),
        (IntensityRecipe, {"coarse_zoom": (0.5, 1.5)}),
        (IntensityRecipe, {"noise_variance": (0.2, 0.1)}),
    ],
)
def test_recipes_that_make_no_sense_are_refused(model, wrong):
    with pytest.raises(ValidationError):
        model.model_validate(wrong)


def test_a_region_never_leaves_a_scan_that_is_smaller():
    assert draw_box((3, 50, 50), (8, 16), dice()).size[0] == 3
