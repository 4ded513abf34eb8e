"""Losses where they break elsewhere: extreme logits, duplicates, padding, nothing to compare, bfloat16."""

import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from hilum.errors import RunError, UsageError
from hilum.model.dino_head import DinoHead, DinoHeadConfig
from hilum.objective.clip import HIGHEST, START, Temperature, clip_loss
from hilum.objective.dino import dino_loss, soft_cross_entropy, view_shares
from hilum.objective.gather import gather_rows, mean_over_ranks, rank, row_counts, world
from hilum.objective.gram import gram_loss, resize_features
from hilum.objective.ibot import ibot_loss, token_weights
from hilum.objective.koleo import koleo_loss
from hilum.objective.osl import osl_loss
from hilum.objective.parts import sum_in_chunks
from hilum.objective.sinkhorn import balance, sinkhorn


def draw(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def unit(*shape, seed=0):
    return torch.nn.functional.normalize(draw(*shape, seed=seed), dim=-1)


# Sinkhorn


def test_shares_of_samples_and_prototypes_are_even():
    shares = sinkhorn(draw(24, 6), 1.0, iterations=200)
    assert torch.allclose(shares.sum(1), torch.ones(24), atol=1e-5)
    assert torch.allclose(shares.sum(0), torch.full((6,), 4.0), atol=1e-4)


def test_three_iterations_make_each_sample_whole_and_prototypes_evener():
    logits = draw(64, 8) * 0.1 + torch.arange(8) * 0.05
    shares, plain = sinkhorn(logits, 0.07), (logits / 0.07).softmax(1)
    assert torch.allclose(shares.sum(1), torch.ones(64), atol=1e-5)
    assert (shares.sum(0) - 8).abs().max() < 0.2 * (plain.sum(0) - 8).abs().max()


@pytest.mark.parametrize("constant", [-1000.0, 0.25, 1000.0])
def test_a_constant_changes_nothing(constant):
    logits = (draw(9, 5) * 64).round() / 64  # exact under the shift, so that only the method is judged
    assert torch.allclose(sinkhorn(logits + constant, 0.5), sinkhorn(logits, 0.5), atol=1e-3)


@pytest.mark.parametrize("size", [1e3, 1e6, 1e30])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_extreme_logits_stay_finite(size, dtype):
    shares = sinkhorn((draw(12, 5) * size).to(dtype), 0.04)
    assert shares.dtype == torch.float32
    assert shares.isfinite().all()
    # logits of 1e30 have no digits after the point: sums of one then hold as far as float32 does
    if size <= 1e3:
        assert torch.allclose(shares.sum(1), torch.ones(12), atol=1e-2)


def test_a_sample_far_below_the_others_keeps_its_share():
    """Exponentials of the raw logits make 0/0 of it."""
    logits = draw(6, 4) * 0.1
    logits[2] -= 50
    naive = (logits / 0.04).exp()
    assert (naive[2] == 0).all()
    assert torch.allclose(sinkhorn(logits, 0.04).sum(1), torch.ones(6), atol=1e-3)


def test_autocast_does_not_reach_the_targets():
    logits = draw(12, 5)
    with torch.autocast("cpu", torch.bfloat16):
        inside = sinkhorn(logits, 0.07)
    assert torch.equal(inside, sinkhorn(logits, 0.07))


def test_targets_have_no_gradient_and_leave_the_logits_alone():
    logits = draw(6, 4).requires_grad_()
    before = logits.detach().clone()
    assert not sinkhorn(logits, 0.07).requires_grad
    assert torch.equal(logits, before)


def test_one_sample_is_spread_over_all_prototypes():
    assert torch.allclose(sinkhorn(draw(1, 5), 0.07), torch.full((1, 5), 0.2), atol=1e-6)


def test_no_sample_is_no_target():
    assert sinkhorn(torch.zeros(0, 5), 0.07).shape == (0, 5)


@pytest.mark.parametrize(("temperature", "iterations"), [(0.0, 3), (-1.0, 3), (float("nan"), 3), (0.07, 0)])
def test_a_teacher_without_temperature_or_centring_is_refused(temperature, iterations):
    with pytest.raises(UsageError, match=f"CONFIG_VALUE.*got {temperature} and {iterations}, None"):
        sinkhorn(draw(4, 3), temperature, iterations)
    if iterations:
        with pytest.raises(UsageError, match="CONFIG_VALUE"):
            soft_cross_entropy(draw(4, 3), draw(4, 3), temperature)


# DINO, iBOT and their head


def test_the_best_student_says_what_the_teacher_says():
    targets = sinkhorn(draw(6, 4), 0.5)
    best = 0.1 * targets.log()
    entropy = -(targets * targets.log()).sum(1)
    assert torch.allclose(soft_cross_entropy(best, targets), entropy, atol=1e-5)
    assert (soft_cross_entropy(best + 0.05 * draw(6, 4, seed=1), targets) > entropy).all()


def test_pairs_of_views_count_alike():
    assert view_shares(2, 8) == (2 / 18, 16 / 18)
    assert view_shares(1, 8) == (0.0, 1.0)
    assert view_shares(1, 0) == (0.0, 0.0)


@pytest.mark.parametrize(("student", "teacher"), [(2, 3), (1, 1)])
def test_a_view_has_another_to_be_compared_with(student, teacher):
    with pytest.raises(UsageError, match=f"CONFIG_VALUE.*{student} and {teacher}"):
        dino_loss(draw(student, 4, 5), draw(teacher, 4, 5), same_views=True)


def test_a_view_counts_as_much_with_few_masked_patches():
    masks = torch.tensor([[1, 1, 1, 1], [0, 0, 0, 0], [0, 1, 0, 0]], dtype=torch.bool)
    weights = token_weights(masks)
    assert weights.tolist() == [0.25] * 4 + [1.0]


def test_no_masked_token_is_no_loss():
    student = torch.zeros((0, 5), requires_grad=True)
    loss = ibot_loss(student, torch.zeros(0, 5), torch.zeros(0), views=4)
    loss.backward()
    assert loss == 0
    assert student.grad.shape == (0, 5)


def test_a_target_for_all_is_refused():
    with pytest.raises(RunError, match=r"MODEL_OUTPUT.*6 of each"):
        ibot_loss(draw(6, 5), torch.full((1, 5), 0.2), torch.ones(6), views=2)
    with pytest.raises(RunError, match="MODEL_OUTPUT"):
        ibot_loss(draw(6, 5), torch.full((6, 5), 0.2), torch.ones(1), views=2)


def test_a_chunk_of_nothing_is_refused():
    with pytest.raises(UsageError, match=r"CONFIG_VALUE.*got 0"):
        sum_in_chunks(torch.sum, (draw(3),), 0)


def test_a_teacher_in_chunks_of_nothing_is_refused():
    with pytest.raises(UsageError, match=r"CONFIG_VALUE.*0\.07 and 3, 0"):
        balance(draw(4, 3), 0.07, chunk=0)


def test_directions_have_length_one_and_tokens_any_shape():
    head = DinoHead(DinoHeadConfig(6, hidden=8, bottleneck=4, prototypes=5))
    directions = head.directions(draw(2, 3, 6))
    assert torch.allclose(directions.norm(dim=-1), torch.ones(2, 3), atol=1e-5)
    assert head(draw(2, 3, 6)).shape == (2, 3, 5)
    assert head(torch.zeros(1, 6)).isfinite().all()


def test_normalised_prototypes_make_cosines():
    head = DinoHead(DinoHeadConfig(6, hidden=8, bottleneck=4, prototypes=5, weight_norm=True))
    with torch.no_grad():
        head.last.weight.mul_(1000)
    assert head(draw(20, 6)).abs().max() <= 1 + 1e-5


def test_a_head_is_drawn_from_the_generator_given():
    heads = [DinoHead(DinoHeadConfig(6, hidden=8, bottleneck=4, prototypes=5)) for _ in range(2)]
    for head in heads:
        head.reset(torch.Generator().manual_seed(4))
    assert all(torch.equal(a, b) for a, b in zip(*(h.state_dict().values() for h in heads), strict=True))


@pytest.mark.parametrize("name", ["width", "hidden", "bottleneck", "prototypes"])
def test_a_head_of_nothing_is_refused(name):
    with pytest.raises(UsageError, match=f"CONFIG_VALUE.*{name}"):
        DinoHeadConfig(**{"width": 4, name: 0})


# KoLeo


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_duplicates_stay_finite(dtype):
    x = draw(6, 8)
    x[3] = x[1]
    x[4] = x[1] * (1 + 1e-7)
    x = x.to(dtype).requires_grad_()
    loss = koleo_loss(x)
    loss.backward()
    assert loss.isfinite()
    assert x.grad.isfinite().all()
    assert x.grad.float().norm(dim=1).max() < 5000
    assert x.grad[0].abs().max() > 0


def test_all_alike_and_all_zero_stay_finite():
    for x in (torch.ones(4, 3), torch.zeros(4, 3)):
        x.requires_grad_()
        loss = koleo_loss(x)
        loss.backward()
        assert loss.isfinite()
        assert x.grad.isfinite().all()


@pytest.mark.parametrize("rows", [0, 1])
def test_nobody_to_keep_away_from(rows):
    x = draw(rows, 3).requires_grad_()
    loss = koleo_loss(x)
    loss.backward()
    assert loss == 0
    assert not x.grad.any()


def test_spreading_lowers_the_loss():
    x = draw(8, 4).requires_grad_()
    first = koleo_loss(x)
    for _ in range(50):
        (grad,) = torch.autograd.grad(koleo_loss(x), x)
        x = (x - 0.05 * grad).detach().requires_grad_()
    assert koleo_loss(x) < first - 0.1


# Gram


def test_a_student_that_turned_as_a_whole_has_lost_nothing():
    turned, _ = torch.linalg.qr(draw(6, 6, seed=1))
    teacher = draw(2, 5, 6)
    assert gram_loss(teacher @ turned * 3, teacher) < 1e-12
    assert gram_loss(draw(2, 5, 6, seed=3), teacher) > 0.01


def test_the_anchor_is_frozen():
    student, teacher = draw(1, 4, 3).requires_grad_(), draw(1, 4, 3, seed=1).requires_grad_()
    gram_loss(student, teacher).backward()
    assert teacher.grad is None
    assert student.grad.abs().max() > 0


def test_features_of_other_patches_are_refused():
    with pytest.raises(RunError, match="MODEL_OUTPUT"):
        gram_loss(draw(1, 4, 3), draw(1, 1, 3))
    with pytest.raises(RunError, match="MODEL_OUTPUT"):
        gram_loss(draw(2, 4, 3), draw(1, 4, 3))
    with pytest.raises(RunError, match=r"MODEL_OUTPUT.*got 5"):
        resize_features(draw(1, 5, 3), (2, 2), (1, 1))
    with pytest.raises(UsageError, match="CONFIG_VALUE"):
        resize_features(draw(1, 4, 3), (2, 2), (1, 1, 1))


# CLIP


def test_a_single_pair_has_nothing_to_tell_apart():
    image, text = unit(1, 4).requires_grad_(), unit(1, 4, seed=1).requires_grad_()
    scale = torch.tensor(14.0, requires_grad=True)
    loss = clip_loss(image, text, scale)
    loss.backward()
    assert loss == 0
    for x in (image, text, scale):
        assert x.grad is not None
        assert not x.grad.any()


def test_equal_reports_only_are_no_negatives():
    image, text = unit(3, 4).requires_grad_(), unit(1, 4).expand(3, 4)
    loss = clip_loss(image, text, torch.tensor(14.0), same=torch.zeros(3, dtype=torch.int64))
    loss.backward()
    assert loss == 0
    assert image.grad.isfinite().all()


def test_no_pair_is_no_loss():
    image = torch.zeros((0, 4), requires_grad=True)
    loss = clip_loss(image, torch.zeros(0, 4), torch.tensor(14.0))
    loss.backward()
    assert loss == 0


def test_scans_without_their_text_are_refused():
    with pytest.raises(RunError, match=r"MODEL_OUTPUT.*3 texts; got 2"):
        clip_loss(unit(3, 4), unit(2, 4), torch.tensor(14.0))


def test_the_temperature_starts_where_it_should_and_comes_back():
    temperature = Temperature()
    assert temperature().item() == pytest.approx(14.28, abs=0.01)
    assert temperature.log_scale.item() == pytest.approx(START)
    for pushed, kept in ((9.0, 100.0), (-3.0, 1.0)):
        with torch.no_grad():
            temperature.log_scale.fill_(pushed)
        scale = temperature()
        assert scale.item() == pytest.approx(kept, rel=1e-5)
        temperature.zero_grad()
        scale.backward()
        assert temperature.log_scale.grad.item() == pytest.approx(kept, rel=1e-5), "a bound is no trap"
    assert temperature.log_scale.item() <= HIGHEST


# OSL


def test_padding_alone_is_no_loss_and_no_gradient():
    image = unit(2, 4).requires_grad_()
    holes = torch.full((2, 3, 4), float("nan"), requires_grad=True)
    scale = torch.tensor(14.0, requires_grad=True)
    loss = osl_loss(image, holes, holes, torch.full((2, 3), -1), scale)
    loss.backward()
    assert loss == 0
    for x in (image, holes, scale):
        assert not x.grad.any(), "zero, and not NaN"


def test_padding_does_not_change_what_is_known():
    image, pairs, labels = unit(2, 4), unit(2, 3, 4, seed=1), torch.tensor([[1, 0, -1], [1, -1, -1]])
    opposites = unit(2, 3, 4, seed=2)
    wanted = osl_loss(image, pairs, opposites, labels, torch.tensor(5.0))
    pairs[labels < 0] = float("inf")
    assert torch.equal(osl_loss(image, pairs, opposites, labels, torch.tensor(5.0)), wanted)


def test_true_sentences_near_the_scan_are_rewarded():
    image = unit(1, 4)
    near, far = image[:, None], -image[:, None]
    true = osl_loss(image, near, far, torch.tensor([[1]]), torch.tensor(14.0))
    wrong = osl_loss(image, near, far, torch.tensor([[0]]), torch.tensor(14.0))
    assert true < 1e-6
    assert wrong == pytest.approx(28.0, rel=1e-5)


# All of them


def calls():
    """Every loss as a function of what a model made."""
    shares = sinkhorn(draw(4, 5), 0.5)
    scale = torch.tensor(14.0)
    pairs, labels = unit(4, 2, 5, seed=1), torch.tensor([[1, 0]] * 4)
    anchor, texts, weights = draw(1, 4, 3), unit(4, 5, seed=2), torch.ones(4)
    return {
        "dino": lambda x: dino_loss(torch.stack([x, x.flip(0)]), torch.stack([shares] * 2), same_views=True),
        "ibot": lambda x: ibot_loss(x, shares, weights, views=4),
        "koleo": koleo_loss,
        "gram": lambda x: gram_loss(x[None], anchor),
        "clip": lambda x: clip_loss(x, texts, scale),
        "osl": lambda x: osl_loss(x, pairs, pairs.flip(0), labels, scale),
    }


@pytest.mark.parametrize("name", calls())
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_not_finite_is_not_hidden(name, bad):
    """The loop stops at a loss that is not finite; a loss must not swallow it."""
    x = unit(4, 5)
    x[1, 2] = bad
    assert not calls()[name](x).isfinite()


@pytest.mark.parametrize("name", calls())
def test_under_autocast_losses_are_those_of_float32(name):
    x = unit(4, 5).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        inside = calls()[name](x)
    assert inside.dtype == torch.float32
    assert torch.allclose(inside, calls()[name](x.float()), atol=1e-6)


COMPILED = """
import sys, torch, warnings
warnings.simplefilter("error")
sys.path.insert(0, sys.argv[1])
from test_objective_ssl import calls, unit
from hilum.objective.clip import Temperature
from hilum.objective.sinkhorn import sinkhorn
x = unit(4, 5).requires_grad_()
for name, loss in calls().items():
    torch.compiler.reset()
    values = [f(x) for f in (torch.compile(loss, fullgraph=True, backend="eager"), loss)]
    torch.testing.assert_close(*values)
    torch.testing.assert_close(*(torch.autograd.grad(v, x)[0] for v in values))
for function, given in ((lambda y: sinkhorn(y, 0.5), (x,)), (Temperature(), ())):
    compiled = torch.compile(function, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(*given), function(*given))
print("one graph each")
"""


@pytest.mark.slow
def test_losses_compile_into_one_graph():
    # a process of its own: the shape checks of the test run are no part of the graph
    here = str(Path(__file__).parent)
    done = subprocess.run(
        [sys.executable, "-c", COMPILED, here], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.stdout == "one graph each\n", done.stderr[-3000:]


def test_the_page_runs(tmp_path):
    page = (Path(__file__).parents[2] / "docs" / "objectives.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL)
    (tmp_path / "page.py").write_text(code, encoding="utf-8")
    names = runpy.run_path(str(tmp_path / "page.py"))
    assert names["loss"].isfinite()
    assert sorted(names["masks"].sum(1).tolist()) == [0, 0, 51, 256]


def test_one_process_is_a_world_of_one():
    rows = draw(3, 2)
    assert (world(), rank(), row_counts(rows)) == (1, 0, [3])
    assert gather_rows(rows).rows is rows
    assert mean_over_ranks(torch.tensor(6.0), 4) == 1.5
    assert mean_over_ranks(torch.tensor(0.0), 0) == 0
