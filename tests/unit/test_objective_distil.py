"""PHI standardisation, distillation losses and adaptors against plain twins; two ranks in one spawn."""

import math
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional as F

from hilum.errors import RunError, UsageError
from hilum.model.distil_head import DistilHead, DistilHeadConfig
from hilum.objective.distil import average_to, common_grid, patch_loss, summary_loss
from hilum.objective.phi_s import Moments, even_rotation, hadamard

MADE = (1, 2, 4, 8, 12, 16, 20, 28, 36, 44, 60, 108, 144, 384, 432, 540, 768, 864, 1024, 1080, 1152, 2048)
NOT_MADE = (3, 6, 10, 18, 52, 92)


def draw(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def spread(rows, width, seed=0):
    """Features as teachers have them: far from 0, a few directions that hold nearly everything."""
    scales = torch.logspace(2, -3, width, dtype=torch.float64)
    return draw(rows, width, seed=seed) * scales @ draw(width, width, seed=9) + 40 * draw(width, seed=5)


def standard_of(features):
    moments = Moments(features.shape[1])
    moments.add(features)
    return moments.standard()


@pytest.mark.parametrize("order", MADE)
def test_hadamard_rows_are_signs_at_right_angles(order):
    matrix = hadamard(order)
    assert torch.equal(matrix.abs(), torch.ones_like(matrix))
    rows = torch.arange(0, order, max(1, order // 64))  # of a large one some rows, against all
    assert torch.equal(matrix[rows] @ matrix.T, order * torch.eye(order, dtype=torch.float64)[rows])


@pytest.mark.parametrize("order", NOT_MADE)
def test_orders_without_a_matrix_say_so(order):
    assert hadamard(order) is None


@pytest.mark.parametrize("width", [1, 2, 3, 6, 10, 12, 36, 52, 92, 144])
@pytest.mark.parametrize("rank", ["full", "half"])
def test_every_axis_has_the_mean_variance(width, rank):
    """The property of PHI-S, for widths with a Hadamard matrix and for the others."""
    variances = torch.logspace(3, -6, width, dtype=torch.float64)
    variances[(width + 1) // 2 if rank == "half" else width :] = 0
    rotation = even_rotation(variances)
    after = (rotation * variances @ rotation.T).diagonal()
    mean = variances.mean()
    assert torch.allclose(after, mean.expand(width), rtol=1e-9)
    assert torch.allclose(rotation @ rotation.T, torch.eye(width, dtype=torch.float64), atol=1e-12)


@pytest.mark.parametrize("width", [12, 10])
@pytest.mark.parametrize("rows", [500, 7])
def test_standardised_features_have_mean_0_and_one_variance(width, rows):
    features = spread(rows, width)
    standard = standard_of(features)
    after = (features - standard.mean) @ standard.matrix.T
    assert after.mean(0).abs().max() < 1e-9
    assert torch.allclose(after.var(0, correction=0), torch.ones(width, dtype=torch.float64), atol=1e-6)
    # one scale for all: distances keep their proportions, and the way back exists
    gaps = [(x[1:7] - x[0]).norm(dim=1) for x in (after, features)]
    assert torch.allclose(gaps[0] * standard.scale, gaps[1])
    back = after @ standard.matrix * standard.scale**2 + standard.mean
    assert torch.allclose(back, features)
    # each axis alone, as usual, would not do: the test can fail
    assert features.var(0).max() / features.var(0).min() > 1.5


def test_moments_add_up_in_double_precision():
    features = spread(64, 6).float()
    whole, parts = Moments(6), Moments(6)
    whole.add(features)
    for part in features.split((5, 40, 19)):
        parts.add(part)
    assert whole.total.dtype == torch.float64
    for one, other in zip(whole.standard(), parts.standard(), strict=True):
        assert torch.allclose(torch.as_tensor(one), torch.as_tensor(other), rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize(
    "features",
    [torch.zeros(0, 4), torch.ones(1, 4), torch.full((9, 4), 3.3), torch.full((2, 4), math.nan)],
    ids=["none", "one", "constant", "not finite"],
)
def test_features_that_do_not_vary_are_refused(features):
    with pytest.raises(RunError) as caught:
        standard_of(features)
    assert caught.value.code == "MODEL_OUTPUT"


def slow_average(features, grid, to):
    maps = features.reshape(len(features), *grid, -1)
    out = torch.zeros(len(features), *to, features.shape[-1], dtype=features.dtype)
    for b in range(len(features)):
        for cell in torch.cartesian_prod(*(torch.arange(n) for n in to)).reshape(-1, len(to)).tolist():
            spans = [range(i * n // m, -(-(i + 1) * n // m)) for i, n, m in zip(cell, grid, to, strict=True)]
            patches = [
                maps[(b, *at)]
                for at in torch.cartesian_prod(*(torch.tensor(list(s)) for s in spans))
                .reshape(-1, len(to))
                .tolist()
            ]
            out[(b, *cell)] = sum(patches) / len(patches)
    return out.flatten(1, -2)


@pytest.mark.parametrize(
    ("grid", "to"), [((4, 6), (2, 3)), ((5, 3), (2, 3)), ((4, 3, 5), (2, 3, 4)), ((2, 2, 2), (2, 2, 2))]
)
def test_averaging_equals_its_twin(grid, to):
    features = draw(2, math.prod(grid), 3)
    assert torch.allclose(average_to(features, grid, to), slow_average(features, grid, to), atol=1e-12)


def test_the_common_grid_is_nowhere_finer():
    assert common_grid((20, 20, 20), (10, 7, 30)) == (10, 7, 20)
    with pytest.raises(RunError):
        common_grid((4, 4), (4, 4, 4))
    with pytest.raises(RunError):
        average_to(draw(1, 4, 2), (2, 2), (3, 2))
    with pytest.raises(RunError):
        average_to(draw(1, 5, 2), (2, 2), (1, 2))


def head(seed=3):
    torch.manual_seed(seed)
    made = DistilHead(DistilHeadConfig(5, patch_width=4, summary_width=3, hidden=6)).double()
    for adaptor in (made.patches, made.summary):
        nn.init.normal_(adaptor.first.weight)
        nn.init.normal_(adaptor.last.weight)
    return made


def slow_adaptor(adaptor, row):
    x = adaptor.first.weight @ row + adaptor.first.bias
    x = (x - x.mean()) / (x.var(correction=0) + adaptor.norm.eps).sqrt()
    x = x * adaptor.norm.weight + adaptor.norm.bias
    x = x * 0.5 * (1 + torch.erf(x / math.sqrt(2)))
    return adaptor.last.weight @ x + adaptor.last.bias


def slow_losses(made, tokens, cls, patches, summaries):
    total, angles = 0.0, 0.0
    for b in range(len(tokens)):
        for n in range(tokens.shape[1]):
            guess = slow_adaptor(made.patches, tokens[b, n])
            total = total + sum((g - t) ** 2 for g, t in zip(guess, patches[b, n], strict=True)) / len(guess)
        guess = slow_adaptor(made.summary, cls[b])
        angles = angles + 1 - (guess @ summaries[b]) / (guess.norm() * summaries[b].norm())
    return total / tokens.shape[0] / tokens.shape[1], angles / len(cls)


@pytest.mark.parametrize("chunk", [None, 1, 2, 9])
def test_losses_equal_their_twins(chunk):
    """Value and gradient: of the student and of every parameter of the adaptors, in chunks or not."""
    outcomes = []
    for slow in (False, True):
        made, tokens, cls = head(), draw(3, 4, 5).requires_grad_(), draw(3, 5, seed=1).requires_grad_()
        patches, summaries = draw(3, 4, 4, seed=2), draw(3, 3, seed=4)
        if slow:
            losses = slow_losses(made, tokens, cls, patches, summaries)
        else:
            losses = (
                patch_loss(tokens, patches, made.patches, chunk=chunk),
                summary_loss(cls, summaries, made.summary, chunk=chunk),
            )
        sum(losses).backward()
        grads = [tokens.grad, cls.grad, *(p.grad for p in made.parameters())]
        assert all(g.abs().max() > 1e-6 for g in grads)
        outcomes.append([*(x.detach() for x in losses), *grads])
    for fast, plain in zip(*outcomes, strict=True):
        assert torch.allclose(fast, plain, atol=1e-10)


def test_no_gradient_reaches_a_teacher():
    made, targets = head(), draw(2, 4, 4).requires_grad_()
    patch_loss(draw(2, 4, 5), targets, made.patches).backward()
    assert targets.grad is None


def test_a_fresh_adaptor_guesses_the_mean():
    """Its loss is the variance of what is standardised: 1."""
    features = spread(60, 12)
    standard = standard_of(features)
    targets = ((features - standard.mean) @ standard.matrix.T).reshape(3, 20, 12)
    fresh = DistilHead(DistilHeadConfig(5, 12)).double()
    assert patch_loss(draw(3, 20, 5), targets, fresh.patches).item() == pytest.approx(1.0, abs=1e-6)
    assert fresh.summary is None


@pytest.mark.parametrize("cut", [lambda t: t[:2], lambda t: t[:, :3]])
def test_other_scans_or_patches_are_refused(cut):
    with pytest.raises(RunError) as caught:
        patch_loss(draw(3, 4, 5), cut(draw(3, 4, 4)), head().patches)
    assert caught.value.code == "MODEL_OUTPUT"


def test_losses_are_float32_under_autocast():
    made, tokens = head().float(), draw(2, 4, 5).float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert patch_loss(tokens, draw(2, 4, 4).float(), made.patches).dtype == torch.float32
        assert summary_loss(tokens[:, 0], draw(2, 3).float(), made.summary).dtype == torch.float32


def test_sizes_of_an_adaptor_are_positive():
    with pytest.raises(UsageError) as caught:
        DistilHeadConfig(4, 0)
    assert "patch_width" in str(caught.value)


RANKS, SPLITS = 2, {"even": (3, 3), "uneven": (1, 5), "one has nothing": (0, 6)}


def whole_batch():
    return draw(6, 8, 5), draw(6, 5, seed=1), draw(6, 12, 4, seed=2), draw(6, 3, seed=4)


def step(tokens, cls, patches, summaries, chunk=None):
    """The student's grid is 4 x 2, the teacher's 3 x 4."""
    made = head()
    to = common_grid((4, 2), (3, 4))
    loss = patch_loss(
        average_to(tokens, (4, 2), to), average_to(patches, (3, 4), to), made.patches, chunk=chunk
    )
    angle = summary_loss(cls, summaries, made.summary, chunk=chunk)
    (loss + 0.5 * angle).backward()
    zeros = {n: torch.zeros_like(p) for n, p in made.named_parameters()}
    grads = {n: p.grad for n, p in made.named_parameters() if p.grad is not None}
    return {"patches": loss.detach(), "summary": angle.detach(), **zeros, **grads}


def work(rank, folder):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=RANKS)
    found = {}
    for split, sizes in SPLITS.items():
        own = [x.split(sizes)[rank] for x in whole_batch()]
        for chunk in (None, 2):
            for name, value in step(*own, chunk=chunk).items():
                dist.all_reduce(value)
                found[f"{split} {chunk} {name}"] = value / RANKS
    moments = Moments(12)
    moments.add(spread(50, 12).split((20, 30))[rank])
    mean, matrix, scale = moments.standard()
    found |= {"mean": mean, "matrix": matrix, "scale": torch.tensor(scale, dtype=torch.float64)}
    save_file({k: v.contiguous() for k, v in found.items()}, Path(folder) / f"rank{rank}.safetensors")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    torch.multiprocessing.spawn(work, args=(str(folder),), nprocs=RANKS, join=True)
    return [load_file(folder / f"rank{r}.safetensors") for r in range(RANKS)]


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("chunk", [None, 2])
def test_two_ranks_equal_one_process(ranks, split, chunk):
    alone = step(*whole_batch())
    assert all(value.abs().max() > 1e-4 for value in alone.values())
    for found in ranks:
        for name, value in alone.items():
            assert torch.allclose(found[f"{split} {chunk} {name}"], value, atol=1e-5), name


def test_a_mean_per_rank_would_have_been_seen():
    parts = [step(*(x.split((1, 5))[r] for x in whole_batch()))["patches"] for r in range(RANKS)]
    assert abs(sum(parts) / RANKS - step(*whole_batch())["patches"]) > 1e-2


def test_statistics_are_of_all_ranks_and_alike(ranks):
    features = spread(50, 12)
    alone = standard_of(features)
    for name in ("mean", "matrix", "scale"):
        wanted = torch.as_tensor(getattr(alone, name), dtype=torch.float64)
        assert torch.equal(ranks[0][name], ranks[1][name])
        assert torch.allclose(ranks[0][name], wanted, rtol=1e-6, atol=1e-9)
    own = standard_of(features[:20])
    assert abs(own.scale / alone.scale - 1) > 1e-3
    after = F.linear(features - ranks[0]["mean"], ranks[0]["matrix"])
    assert torch.allclose(after.var(0, correction=0), torch.ones(12, dtype=torch.float64), atol=1e-6)
