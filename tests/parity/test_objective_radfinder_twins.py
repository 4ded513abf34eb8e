"""RadFinder's three losses against twins that take one pair, one question, one depth at a time."""

import math

import pytest
import torch

from hilum.errors import RunError
from hilum.model.temperature import SigmoidScale
from hilum.objective.depth import REACH, SIGMA_MM, TAU, depth_loss, depth_target
from hilum.objective.prompts import CAP, positive_weights, prompt_logits, prompt_loss
from hilum.objective.siglip import siglip_loss

NAN = float("nan")


def unit(generator, *shape):
    rows = torch.randn(*shape, generator=generator, dtype=torch.float64)
    return torch.nn.functional.normalize(rows, dim=-1)


def agree(ours, theirs, leaves):
    found = []
    for way in (ours, theirs):
        for leaf in leaves:
            leaf.grad = None
        value = way()
        value.backward()
        found.append((value.detach(), *[leaf.grad.clone() for leaf in leaves]))
    for a, b in zip(*found, strict=True):
        assert torch.allclose(a, b, rtol=1e-10, atol=1e-12)
    assert all(grad.abs().max() > 0 for grad in found[0][1:])


@pytest.mark.parametrize("chunk", [None, 2])
@pytest.mark.parametrize("same", [None, [0, 1, 0, 2, 3]])
def test_siglip(same, chunk):
    generator = torch.Generator().manual_seed(0)
    images, texts = (unit(generator, 5, 4).requires_grad_() for _ in range(2))
    t, b = (torch.tensor(x, dtype=torch.float64, requires_grad=True) for x in (1.3, -1.0))

    def slow():
        total = torch.zeros((), dtype=torch.float64)
        for i in range(5):
            for j in range(5):
                if i != j and same is not None and same[i] == same[j]:
                    continue
                logit = t.exp() * (images[i] * texts[j]).sum() + b
                total = total - torch.log(torch.sigmoid(logit if i == j else -logit))
        return total / 5

    names = None if same is None else torch.tensor(same)
    agree(
        lambda: siglip_loss(images, texts, t.exp(), b, same=names, chunk=chunk), slow, (images, texts, t, b)
    )


def test_siglip_wants_a_text_per_scan():
    with pytest.raises(RunError, match="MODEL_OUTPUT"):
        siglip_loss(torch.eye(3), torch.eye(3)[:2], torch.tensor(1.0), torch.tensor(0.0))


def test_the_scale_starts_where_siglip_starts():
    scale, bias = SigmoidScale()()
    assert scale.item() == pytest.approx(10) and bias.item() == -10 and scale.dtype == torch.float32


@pytest.mark.parametrize("shared", [True, False])
def test_prompts(shared):
    generator = torch.Generator().manual_seed(1)
    images = unit(generator, 4, 6).requires_grad_()
    present, absent = (unit(generator, 1 if shared else 4, 3, 6).requires_grad_() for _ in range(2))
    t = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
    answers = torch.tensor([[1, 0, NAN], [NAN, NAN, NAN], [0, 1, 1], [0, 0, 1]], dtype=torch.float64)
    positive, group = positive_weights(answers), [1.0, 2.0, 5.0]

    def slow():
        total, weights = torch.zeros((), dtype=torch.float64), 0.0
        for i in range(4):
            for q in range(3):
                if math.isnan(answers[i, q]):
                    continue
                row = 0 if shared else i
                nearer = t.exp() * ((images[i] * present[row, q]).sum() - (images[i] * absent[row, q]).sum())
                yes = answers[i, q] == 1
                loss = torch.log1p((-nearer if yes else nearer).exp())
                total = total + group[q] * loss * (positive[q] if yes else 1.0)
                weights += group[q]
        return total / weights

    def ours():
        return prompt_loss(prompt_logits(images, present, absent, t.exp()), answers, positive, group)

    agree(ours, slow, (images, present, absent, t))
    nothing = prompt_loss(torch.zeros(2, 3), torch.full((2, 3), NAN), torch.ones(3), group)
    assert nothing == 0


def test_rare_positives_weigh_more_up_to_the_cap():
    answers = torch.full((60, 4), NAN)
    answers[:50, 0], answers[0, 0] = 0, 1
    answers[:8, 1], answers[:2, 1] = 0, 1
    answers[:5, 2] = 1
    assert positive_weights(answers).tolist() == [CAP, 3.0, 1.0, 1.0]


def test_depth():
    generator = torch.Generator().manual_seed(2)
    logits = (torch.randn(3, 7, generator=generator, dtype=torch.float64) / TAU).requires_grad_()
    depth_mm = 12.0 * torch.arange(7, dtype=torch.float64).expand(3, 7)
    valid = torch.arange(7)[None] < torch.tensor([7, 4, 5])[:, None]
    at_mm = torch.tensor([31.0, 0.0, 47.0], dtype=torch.float64)

    def slow():
        losses = []
        for row in range(3):
            inside = [d for d in range(7) if valid[row, d]]
            near = [d for d in inside if abs(12.0 * d - at_mm[row]) <= REACH * SIGMA_MM]
            weights = {d: math.exp(-0.5 * ((12.0 * d - float(at_mm[row])) / SIGMA_MM) ** 2) for d in near}
            log_sum = torch.logsumexp(logits[row][inside], 0)
            mass = sum(weights.values())
            losses.append(-sum(w / mass * (logits[row, d] - log_sum) for d, w in weights.items()))
        return torch.stack(losses).mean()

    agree(lambda: depth_loss(logits, depth_mm, valid, at_mm), slow, (logits,))


@pytest.mark.parametrize("sigma_mm", [6.0, 24.0])
def test_a_target_sums_to_one_at_every_valid_depth_of_a_padded_batch(sigma_mm):
    """The public code's target has 0.6 of its mass at the edge of a padded scan (RadFinder §1.11, 2)."""
    depth_mm, valid = 12.0 * torch.arange(40.0).expand(24, 40), torch.arange(40).expand(24, 40) < 24
    at_mm = 12.0 * torch.arange(24.0)
    target = depth_target(depth_mm, valid, at_mm, sigma_mm)
    assert torch.allclose(target.sum(1), torch.ones(24)) and not target[~valid].any()
    assert torch.equal(target.argmax(1), torch.arange(24))
    between = depth_target(depth_mm[:1], valid[:1], torch.tensor([30.0]), sigma_mm)[0]
    assert between[2] == pytest.approx(float(between[3])) and between[2] == between.max()


def test_a_snippet_beyond_the_scan_belongs_to_its_nearest_depth():
    depth_mm, valid = 12.0 * torch.arange(5.0)[None], torch.ones(1, 5, dtype=torch.bool)
    target = depth_target(depth_mm, valid, torch.tensor([5000.0]))
    assert target.sum() == pytest.approx(1.0) and target.argmax() == 4


def test_no_snippets_cost_nothing():
    empty = torch.zeros(0, 4)
    assert depth_loss(empty, empty, empty.bool(), torch.zeros(0)) == 0
