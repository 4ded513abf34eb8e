"""Masks hide exactly what was asked for, in blocks, alike for a seed."""

import itertools

import pytest
import torch

from hilum.errors import UsageError
from hilum.objective.masks import MaskPlan, box_sides, patch_mask, view_masks, view_ratios

SLICES = [(16, 16), (32, 32), (14, 7), (3, 40), (1, 9), (1, 1)]
VOLUMES = [(20, 20, 20), (10, 10, 10), (20, 10, 10), (5, 5, 5), (3, 7, 2), (1, 6, 6)]


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("grid", SLICES + VOLUMES)
def test_density_is_exact(grid):
    patches = torch.Size(grid).numel()
    for seed, ratio in enumerate((0.0, 0.1, 0.123, 0.2, 0.3, 0.37, 0.5, 0.75, 0.99, 1.0)):
        mask = patch_mask(grid, ratio, seeded(seed))
        assert mask.shape == grid
        assert int(mask.sum()) == round(ratio * patches), ratio


def test_what_the_published_code_overshoots_is_exact():
    """Asked for .1, .3 and .5 of 20³ patches it hides .124, .356 and .520."""
    for ratio, count in ((0.1, 800), (0.3, 2400), (0.5, 4000)):
        assert {int(patch_mask((20, 20, 20), ratio, seeded(s)).sum()) for s in range(8)} == {count}


@pytest.mark.parametrize("grid", [(16, 16), (8, 8, 8), (12, 6, 6)])
def test_half_of_the_views_have_evenly_spaced_ratios(grid):
    masks = view_masks(grid, 8, seeded(3))
    patches = torch.Size(grid).numel()
    shares = sorted(round(int(m.sum()) / patches, 6) for m in masks)
    wanted = [0.0] * 4 + [round(round(patches * r) / patches, 6) for r in view_ratios(8, MaskPlan())]
    assert shares == wanted
    assert view_ratios(8, MaskPlan()) == pytest.approx([0.1, 0.1 + 0.4 / 3, 0.1 + 0.8 / 3, 0.5])


def test_which_views_are_masked_is_drawn():
    whole = {tuple((view_masks((8, 8), 6, seeded(s)).flatten(1).sum(1) == 0).tolist()) for s in range(12)}
    assert len(whole) > 3


@pytest.mark.parametrize(("views", "ratios"), [(0, []), (1, [0.3]), (2, [0.3]), (3, [0.1, 0.5])])
def test_few_views(views, ratios):
    assert view_ratios(views, MaskPlan()) == pytest.approx(ratios)
    masks = view_masks((6, 6, 6), views, seeded())
    assert sorted(masks.flatten(1).sum(1).tolist())[views - len(ratios) :] == [round(216 * r) for r in ratios]


@pytest.mark.parametrize("grid", [(16, 16), (9, 8, 7)])
def test_a_seed_gives_its_masks_again(grid):
    first, again, other = (view_masks(grid, 6, seeded(s)) for s in (5, 5, 6))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    state = torch.get_rng_state()
    view_masks(grid, 6, seeded(1))
    assert torch.equal(state, torch.get_rng_state()), "nothing is drawn from the global generator"


def like_neighbours(mask):
    """How often a hidden patch's neighbour is hidden too, less how often any patch is."""
    pairs, hidden = 0, 0
    for axis in range(mask.dim()):
        a, b = mask.narrow(axis, 0, mask.shape[axis] - 1), mask.narrow(axis, 1, mask.shape[axis] - 1)
        pairs, hidden = pairs + int(a.sum()), hidden + int((a & b).sum())
    return hidden / pairs - float(mask.float().mean())


@pytest.mark.parametrize("grid", [(32, 32), (20, 20, 20)])
@pytest.mark.parametrize("ratio", [0.1, 0.3, 0.5])
def test_masks_are_blocks_not_grains(grid, ratio):
    for seed in range(5):
        mask = patch_mask(grid, ratio, seeded(seed))
        grains = torch.rand(grid, generator=seeded(seed)) < ratio
        assert like_neighbours(mask) > 0.25
        assert abs(like_neighbours(grains)) < 0.1


def test_every_region_of_a_volume_is_hidden_at_some_time():
    often = sum(patch_mask((12, 12, 12), 0.3, seeded(s)).float() for s in range(100)) / 100
    regions = often.reshape(4, 3, 4, 3, 4, 3).mean((1, 3, 5))
    assert often.mean() == pytest.approx(0.3, abs=0.001)
    assert regions.min() > 0.08
    assert regions.max() < 0.7


def test_a_small_share_is_a_few_whole_boxes():
    """.05 of 20³ is 400 patches: one to three boxes of .02 to .05, so most rows of the grid are untouched."""
    for seed in range(10):
        mask = patch_mask((20, 20, 20), 0.05, seeded(seed))
        assert all(mask.any(axis).any(axis - 1 if axis else 0).sum() < 20 for axis in range(3))


def test_boxes_have_the_volume_and_aspect_asked_for():
    for log_a, log_b in itertools.product((-0.3, 0.0, 0.3), repeat=2):
        sides = box_sides((100, 100, 100), 0.04, (log_a, log_b, -log_a - log_b))
        assert torch.tensor(sides).prod() / 1e6 == pytest.approx(0.04, rel=0.05)
    assert box_sides((40, 20, 20), 0.125, (0, 0, 0)) == [20, 10, 10], "a box has the shape of its scan"
    assert box_sides((2, 50), 0.0001, (0, 0)) == [1, 1]
    assert box_sides((4, 4), 1.0, (1.0, -1.0)) == [4, 1]


@pytest.mark.parametrize(
    ("grid", "ratio"), [((4,), 0.5), ((2, 2, 2, 2), 0.5), ((0, 4), 0.5), ((4, 4), -0.1), ((4, 4), 1.01)]
)
def test_a_grid_or_ratio_of_nothing_is_refused(grid, ratio):
    with pytest.raises(UsageError, match="CONFIG_VALUE"):
        patch_mask(grid, ratio, seeded())


def test_a_ratio_that_is_no_number_is_refused():
    with pytest.raises(UsageError, match="CONFIG_VALUE"):
        patch_mask((4, 4), float("nan"), seeded())


@pytest.mark.parametrize(
    "wrong",
    [
        {"hidden_views": 1.5},
        {"ratios": (0.5, 0.1)},
        {"ratios": (0.1, float("nan"))},
        {"volumes": (-0.1, 0.2)},
        {"cells": 0},
        {"block_patches": 0},
        {"block_aspect": 0.5},
        {"box_aspect": float("nan")},
    ],
)
def test_a_plan_that_makes_no_sense_is_refused(wrong):
    with pytest.raises(UsageError, match=f"CONFIG_VALUE.*{next(iter(wrong))}"):
        MaskPlan(**wrong)
