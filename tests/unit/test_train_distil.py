"""Teachers and the distillation part of a student: axes, HU, statistics, state, weights."""

import copy
import itertools

import pytest
import torch
from pydantic import ValidationError
from torch import nn

from hilum.errors import HilumError, RunError, UsageError
from hilum.model.preset import load_state
from hilum.train.distil import Distil, DistilRecipe
from hilum.train.ema import Average
from hilum.train.groups import GroupRecipe, parameter_groups
from hilum.train.teachers import Features, HuScale, Shown, check_hu, resized, turn_between

WIDTH = 6


def draw(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


class Blocks:
    """A teacher whose features are fixed maps of the HU in each of its patches."""

    def __init__(self, name="blocks", patch=4, width=5, summary_width=5, sha256="ab" * 32):
        self.name, self.patch, self.width, self.sha256 = name, patch, width, sha256
        self.summary_width = summary_width
        self.seen = 0

    def features(self, shown):
        self.seen += len(shown.images)
        hu, p = shown.hu(), self.patch
        cells = hu.unfold(2, p, p).unfold(3, p, p).unfold(4, p, p)
        grid = tuple(cells.shape[2:5])
        rows = cells.flatten(5)[:, 0].flatten(1, 3) @ draw(p**3, self.width, seed=7) + 1000
        return Features(rows.mean(1) if self.summary_width else None, rows, grid)


def recipe(**more):
    return DistilRecipe.model_validate({"teachers": [{"teacher": "some/blocks", **more}]})


def batch(scans=3, side=8, seed=0):
    slope = torch.linspace(0.002, 0.004, scans)
    scale = HuScale(slope, torch.linspace(0.5, 0.9, scans))
    hu = 300 * draw(scans, 1, side, side, side, seed=seed)
    shape = (-1, 1, 1, 1, 1)
    return Shown(hu * slope.reshape(shape) + scale.intercept.reshape(shape), (2.0, 2.0, 2.0), scale), hu


def fitted(teacher=None, **more):
    distil = Distil(WIDTH, recipe(**more), [teacher or Blocks()])
    distil.fit(batch(seed=seed)[0] for seed in range(4))
    return distil


def test_hu_comes_back_from_every_scans_own_scale():
    shown, hu = batch()
    assert torch.allclose(shown.hu(), hu, atol=0.01)
    with pytest.raises(HilumError) as caught:
        Shown(shown.images, shown.spacing_mm).hu()
    assert caught.value.code == "MODEL_INPUT"


LETTERS = [
    "".join(x) for order in itertools.permutations(("RL", "AP", "SI")) for x in itertools.product(*order)
]


@pytest.mark.parametrize("teacher", LETTERS[::5])
@pytest.mark.parametrize("student", ["LPS", "SRA"])
def test_axes_turn_there_and_back(student, teacher):
    """Each voxel holds its place towards R, A and S; after the turn the teacher's axes count them."""
    turn = turn_between(student, teacher)
    shape = (2, 3, 4)
    places = torch.stack(torch.meshgrid(*(torch.arange(n) for n in shape), indexing="ij"))  # student's counts
    turned = turn.there(places[None])[0]
    for axis, letter in enumerate(teacher):
        own = next(i for i, other in enumerate(student) if {letter, other} in SAME)
        counts = turned[own].movedim(axis, 0).flatten(1)[:, 0]
        wanted = torch.arange(shape[own])
        assert counts.tolist() == (wanted if student[own] == letter else wanted.flip(0)).tolist()
    grid = turned.shape[1:]
    patches = turned.flatten(1).T[None].float()
    back, shape_back = turn.back(patches, grid)
    assert shape_back == shape
    assert torch.equal(back[0].T.reshape(3, *shape), places.float())


SAME = [{"R", "L"}, {"A", "P"}, {"S", "I"}, {"R"}, {"L"}, {"A"}, {"P"}, {"S"}, {"I"}]


def test_shrinking_takes_means_and_keeps_the_field():
    image = draw(1, 1, 4, 4, 4)
    small = resized(image, (2, 2, 2))
    assert small[0, 0, 0, 1, 0] == pytest.approx(image[0, 0, :2, 2:, :2].mean().item(), abs=1e-6)
    assert resized(image, (4, 4, 4)) is image
    assert resized(image, (8, 2, 4)).shape == (1, 1, 8, 2, 4)


def test_a_window_that_was_cut_is_refused():
    student = {"values": "zscore-scan", "clip_hu": [-1000, 1000]}
    check_hu(student, (-1000, 200), "astra")
    check_hu({"values": "hu", "clip_hu": None}, None, "any")
    for wanted in ((-1024, 200), (-1000, 1001), None):
        with pytest.raises(UsageError) as caught:
            check_hu(student, wanted, "wide")
        assert caught.value.code == "CONFIG_VALUE"
    with pytest.raises(UsageError):
        check_hu({"values": "clahe", "clip_hu": [-1000, 1000]}, (-1000, 200), "astra")


def test_targets_are_standardised_and_losses_are_weighted():
    distil = fitted(weight=0.5, summary_weight=0.25)
    shown, _ = batch(seed=1)
    targets = distil.targets(shown.images, shown.spacing_mm, shown.scale)
    patches, summary, grid = targets["blocks"]
    assert grid == (2, 2, 2)
    assert not patches.requires_grad
    every = torch.cat([distil.targets(s.images, s.spacing_mm, s.scale)["blocks"].patches for s in SEEN])
    assert every.flatten(0, 1).mean(0).abs().max() < 1e-3
    assert torch.allclose(every.flatten(0, 1).var(0, correction=0), torch.ones(5), atol=1e-3)
    said = Blocks().features(shown).summary
    centre = torch.cat([Blocks().features(s).summary for s in SEEN]).mean(0)
    assert torch.allclose(summary, said - centre, atol=1e-2)
    assert centre.abs().min() > 500, "without its centre every summary has one direction"
    raw = fitted(summary="as-is").targets(shown.images, shown.spacing_mm, shown.scale)
    assert torch.equal(raw["blocks"].summary, said)
    losses = distil.losses(draw(3, WIDTH), draw(3, 8, WIDTH), (2, 2, 2), targets)
    assert set(losses) == set(distil.weights) == {"blocks/patches", "blocks/summary"}
    wanted = 0.5 * losses["blocks/patches"] + 0.25 * losses["blocks/summary"]
    assert distil.weighted(losses).item() == pytest.approx(wanted.item())


SEEN = [batch(seed=seed)[0] for seed in range(4)]


@pytest.mark.parametrize("grid", [(4, 4, 4), (2, 2, 2), (1, 2, 3)])
def test_a_students_grid_may_be_finer_or_coarser(grid):
    distil = fitted()
    targets = distil.targets(SEEN[0].images, (2.0, 2.0, 2.0), SEEN[0].scale)
    patches = draw(3, grid[0] * grid[1] * grid[2], WIDTH).requires_grad_()
    nn.init.normal_(distil.heads["blocks"].patches.last.weight)
    distil.weighted(distil.losses(draw(3, WIDTH), patches, grid, targets)).backward()
    assert (patches.grad.abs().amax((0, 2)) > 0).all(), "every patch of the student counts"


def test_what_is_learned_is_what_the_teacher_says():
    """A student that holds the teacher's features as its tokens learns to give them."""
    torch.manual_seed(0)
    distil = Distil(5, recipe(), [Blocks()])
    distil.fit(SEEN)
    targets = distil.targets(SEEN[0].images, (2.0, 2.0, 2.0), SEEN[0].scale)["blocks"]
    cls = targets.summary
    optim = torch.optim.Adam(distil.parameters(), lr=0.03)
    values = []
    for _ in range(60):
        losses = distil.losses(cls, targets.patches, targets.grid, {"blocks": targets})
        optim.zero_grad()
        distil.weighted(losses).backward()
        optim.step()
        values.append({name: loss.item() for name, loss in losses.items()})
    assert values[0]["blocks/patches"] > 0.5
    assert values[-1]["blocks/patches"] < 0.3 * values[0]["blocks/patches"]
    assert values[-1]["blocks/summary"] < 0.01


def test_several_teachers_each_have_their_own():
    two = DistilRecipe.model_validate(
        {"teachers": [{"teacher": "a", "summary_weight": 0}, {"teacher": "b", "weight": 2.0}], "hidden": 7}
    )
    large = Blocks("b", patch=2, width=3, summary_width=3, sha256="cd" * 32)
    distil = Distil(WIDTH, two, [Blocks("a", summary_width=None), large])
    distil.fit(SEEN)
    targets = distil.targets(SEEN[0].images, (2.0, 2.0, 2.0), SEEN[0].scale)
    assert targets["a"].patches.shape == (3, 8, 5)
    assert targets["b"].patches.shape == (3, 64, 3)
    assert distil.weights == {"a/patches": 1.0, "b/patches": 2.0, "b/summary": 1.0}
    losses = distil.losses(draw(3, WIDTH), draw(3, 27, WIDTH), (3, 3, 3), targets)
    assert set(losses) == set(distil.weights)


def test_the_state_holds_statistics_and_no_teacher():
    distil = fitted()
    state = {name: tensor.clone() for name, tensor in distil.state_dict().items()}
    assert not any("frozen" in name for name in state)
    teacher = Blocks()
    again = Distil(WIDTH, recipe(), [teacher])
    assert not again.is_fitted
    load_state(again, state)
    assert again.is_fitted
    targets = [d.targets(SEEN[0].images, (2.0, 2.0, 2.0), SEEN[0].scale)["blocks"] for d in (distil, again)]
    assert torch.equal(targets[0].patches, targets[1].patches)
    with pytest.raises(HilumError) as caught:
        load_state(again, {name: tensor for name, tensor in state.items() if "mean" not in name})
    assert caught.value.code == "WEIGHTS_KEYS"


def test_a_run_goes_on_with_its_teacher():
    other = Distil(WIDTH, recipe(), [Blocks(sha256="cd" * 32)])
    with pytest.raises(RunError) as caught:
        other.targets(SEEN[0].images, (2.0, 2.0, 2.0), SEEN[0].scale)
    assert caught.value.code == "MODEL_OUTPUT"
    load_state(other, fitted().state_dict())
    with pytest.raises(RunError) as caught:
        other.targets(SEEN[0].images, (2.0, 2.0, 2.0), SEEN[0].scale)
    assert caught.value.code == "RESUME_CHANGED"


def test_copies_share_the_teacher_and_the_average_keeps_the_statistics():
    student = nn.ModuleDict({"distil": fitted()})
    assert copy.deepcopy(student)["distil"]._frozen is student["distil"]._frozen
    before = student["distil"].standards["blocks"].matrix.clone()
    average = Average(student)
    nn.init.normal_(student["distil"].heads["blocks"].patches.last.weight)
    average.update(0.9)
    kept = average.module["distil"].standards["blocks"]
    assert torch.equal(kept.matrix, before)
    assert kept.sha256 == "ab" * 32
    names = {name for group in parameter_groups(student, GroupRecipe()) for name in group.parameters}
    assert names == {name for name, _ in student.named_parameters()}


def test_statistics_need_scans():
    distil = Distil(WIDTH, recipe(), [Blocks()])
    with pytest.raises(RunError) as caught:
        distil.fit([])
    assert caught.value.code == "MODEL_OUTPUT"


def test_a_recipe_is_checked():
    assert recipe().teachers[0].label == "blocks"
    assert recipe(teacher="C:\\models\\spectre v1.2\\").teachers[0].label == "spectre-v1-2"
    for wrong in ({"wieght": 1}, {"weight": -1}, {"name": "a.b"}):
        with pytest.raises(ValidationError):
            recipe(**wrong)
    with pytest.raises(ValidationError):
        DistilRecipe.model_validate({"teachers": []})
    with pytest.raises(ValidationError, match="names of their own"):
        DistilRecipe.model_validate({"teachers": [{"teacher": "a/x"}, {"teacher": "b/x"}]})
    with pytest.raises(ValidationError, match="names of their own"):
        recipe(name="forward")
    with pytest.raises(UsageError):
        Distil(WIDTH, recipe(), [])
    with pytest.raises(UsageError) as caught:
        Distil(WIDTH, recipe(), [Blocks(summary_width=None)])
    assert "summary_weight" in str(caught.value)
