"""Every loss against a slow, obviously right twin: value and gradient."""

import math

import pytest
import torch

from hilum.objective.mil import finding_gate, organ_gate, prevalence_bce, top_mean, voxel_counts
from hilum.objective.segmentation import segmentation_weight, tversky_focal


def slow_tversky_focal(logits, masks, fp, fn, alpha, gamma):
    total, channels = 0.0, 0
    for b in range(logits.shape[0]):
        for c in range(logits.shape[1]):
            p = torch.sigmoid(logits[b, c]).flatten()
            y = masks[b, c].flatten().to(p.dtype)
            tp, f_p, f_n = (p * y).sum(), (p * (1 - y)).sum(), ((1 - p) * y).sum()
            tversky = (tp + 1) / (tp + fp * f_p + fn * f_n + 1)
            pt = torch.where(y > 0, p, 1 - p)
            at = torch.where(y > 0, torch.tensor(alpha).to(p), torch.tensor(1 - alpha).to(p))
            focal = (-at * (1 - pt) ** gamma * torch.log(pt)).mean()
            total = total + 0.7 * (1 - tversky) + 0.3 * focal
            channels += 1
    return total / channels


@pytest.mark.parametrize(("fp", "fn", "alpha"), [(0.3, 0.7, 0.9), (0.5, 0.5, 0.6)])
def test_tversky_focal_equals_its_twin(fp, fn, alpha):
    generator = torch.Generator().manual_seed(0)
    masks = torch.rand((2, 3, 5, 4, 6), generator=generator) > 0.6
    a = torch.randn((2, 3, 5, 4, 6), generator=generator, dtype=torch.float64, requires_grad=True)
    b = a.detach().clone().requires_grad_()
    fast = tversky_focal(a, masks, false_positive=fp, false_negative=fn, focal_alpha=alpha)
    slow = slow_tversky_focal(b, masks, fp, fn, alpha, 2.0)
    fast.backward()
    slow.backward()
    assert torch.allclose(fast, slow, atol=1e-10)
    assert torch.allclose(a.grad, b.grad, atol=1e-10)


def slow_top_mean(logits, gate, counts):
    rows = []
    for b in range(logits.shape[0]):
        row = []
        for d, k in enumerate(counts):
            open_values = torch.sigmoid(logits[b, d][gate[b, d]])
            chosen = open_values.sort(descending=True).values[:k]
            # fewer open voxels than k: the missing ones count as zero
            row.append(chosen.sum() / k)
        rows.append(torch.stack(row))
    return torch.stack(rows)


def test_top_mean_equals_its_twin_value_and_gradient():
    generator = torch.Generator().manual_seed(1)
    a = torch.randn((2, 3, 6, 4, 4), generator=generator, dtype=torch.float64, requires_grad=True)
    b = a.detach().clone().requires_grad_()
    gate = torch.rand((2, 3, 6, 4, 4), generator=generator) > 0.5
    gate[0, 1] = False
    gate[0, 1, 0, 0, :2] = True
    counts = [1, 5, 12]
    fast, slow = top_mean(a, gate, counts), slow_top_mean(b, gate, counts)
    weights = torch.rand(fast.shape, generator=generator, dtype=torch.float64)
    (fast * weights).sum().backward()
    (slow * weights).sum().backward()
    assert torch.allclose(fast, slow, atol=1e-9)
    assert torch.allclose(a.grad, b.grad, atol=1e-9)


def test_the_gate_survives_an_empty_organ():
    prob = torch.full((1, 2, 4, 4, 4), 0.01)
    prob[0, 0, 1, 2, 3] = 0.2
    gate = organ_gate(prob, least=[3, 5])
    assert gate[0, 0].sum() == 3
    assert gate[0, 1].sum() == 5
    assert gate[0, 0, 1, 2, 3]
    logits = torch.zeros((1, 1, 4, 4, 4), requires_grad=True)
    top_mean(logits, finding_gate(gate, (4, 4, 4), [1]), [5]).sum().backward()
    assert logits.grad.abs().sum() > 0


def test_a_found_organ_is_the_gate_and_nothing_else():
    prob = torch.zeros((1, 1, 4, 4, 4))
    prob[0, 0, :2] = 0.9
    assert torch.equal(organ_gate(prob, least=[3])[0, 0], prob[0, 0] > 0.5)


def test_half_resolution_gate_opens_where_any_voxel_is_open():
    gate = torch.zeros((1, 1, 4, 4, 4), dtype=torch.bool)
    gate[0, 0, 3, 0, 1] = True
    half = finding_gate(gate, (2, 2, 2), [0])
    assert half[0, 0, 1, 0, 0]
    assert half.sum() == 1


def test_prevalence_bce_by_hand_and_unknown_is_masked():
    prob = torch.tensor([[0.8, 0.3, 0.5]], dtype=torch.float64, requires_grad=True)
    labels = torch.tensor([[1.0, 0.0, float("nan")]], dtype=torch.float64)
    loss = prevalence_bce(prob, labels, (0.25, 0.5, 0.1))
    expected = (-3.0 * math.log(0.8) - math.log(0.7)) / 2
    assert loss.item() == pytest.approx(expected, rel=1e-4)
    loss.backward()
    assert prob.grad[0, 2] == 0
    assert prob.grad[0, 0] < 0 < prob.grad[0, 1]


def test_segmentation_weight_decays_to_a_half():
    assert segmentation_weight(0.0) == 2.0
    assert segmentation_weight(0.139) == pytest.approx(0.5, abs=0.01)
    assert segmentation_weight(1.0) == 0.5


def test_pooled_volume_becomes_voxels():
    assert voxel_counts([1.0, 0.01], 0.064) == [16, 3]
