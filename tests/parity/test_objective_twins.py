"""Every loss against a slow, obviously right twin: value and gradient."""

import math

import pytest
import torch

from hilum.model.ynet import AnomalyHeads, rows, unfold, unrows
from hilum.objective.mil import organ_gate, prevalence_bce, scan_probabilities, voxel_counts
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


def slow_scan_probabilities(heads, features, gate, organ_of, counts):
    """Voxel by voxel, every voxel's logits computed, nothing selected before the end."""
    low, high = [], []
    for b in range(features.shape[0]):
        coarse, fine = heads(features[b], list(range(len(organ_of))))
        rows = [[], []]
        for d, organ in enumerate(organ_of):
            open_coarse, open_fine = [], []
            for n in range(features.shape[1]):
                if gate[b, n, organ].any():
                    open_coarse.append(torch.sigmoid(coarse[n, d]))
                for k in range(8):
                    if gate[b, n, organ, k]:
                        open_fine.append(torch.sigmoid(fine[n, d, k]))
            for level, values in enumerate((open_coarse, open_fine)):
                best = torch.stack(values).sort(descending=True).values[: counts[level][d]]
                # fewer open voxels than asked for: the missing ones count as zero
                rows[level].append(best.sum() / counts[level][d])
        low.append(torch.stack(rows[0]))
        high.append(torch.stack(rows[1]))
    return torch.stack(low), torch.stack(high)


def test_scan_probabilities_equal_their_twin_value_and_gradient():
    generator = torch.Generator().manual_seed(1)
    heads = AnomalyHeads(4, 3).double()
    gate = torch.rand((2, 12, 2, 8), generator=generator) > 0.7
    gate[0, :, 1] = False
    gate[0, 3, 1, :2] = True
    counts = ([2, 1, 3], [5, 3, 20])
    a = torch.randn((2, 12, 4), generator=generator, dtype=torch.float64, requires_grad=True)
    b = a.detach().clone().requires_grad_()
    results = []
    for function, features in ((scan_probabilities, a), (slow_scan_probabilities, b)):
        heads.zero_grad()
        low, high = function(heads.rows, features, gate, (0, 1, 1), counts)
        weights = torch.rand((2, *low.shape), generator=torch.Generator().manual_seed(2))
        (low * weights[0] + high * weights[1]).sum().backward()
        results.append((low, high, features.grad, *(p.grad.clone() for p in heads.parameters())))
    for fast, slow in zip(*results, strict=True):
        assert torch.allclose(fast, slow, atol=1e-6)


def test_rows_of_the_heads_are_the_voxels_of_their_maps():
    heads = AnomalyHeads(4, 3)
    features = torch.randn(1, 4, 2, 3, 4)
    low, high = heads(features)
    coarse, fine = heads.rows(rows(features)[0], [2, 0])
    assert torch.allclose(rows(low)[0][:, [2, 0]], coarse, atol=1e-5)
    assert torch.allclose(unfold(unrows(fine.flatten(1)[None], (2, 3, 4))), high[:, [2, 0]], atol=1e-5)


def test_the_gate_survives_an_empty_organ():
    prob = torch.full((1, 8, 2, 8), 0.01)
    prob[0, 4, 0, 3] = 0.2
    gate = organ_gate(prob, least=[3, 5])
    assert gate[0, :, 0].sum() == 3
    assert gate[0, :, 1].sum() == 5
    assert gate[0, 4, 0, 3]
    features = torch.randn((1, 8, 4), requires_grad=True)
    low, high = scan_probabilities(AnomalyHeads(4, 1).rows, features, gate, [1], ([1], [5]))
    (low + high).sum().backward()
    assert features.grad.abs().sum() > 0


def test_a_found_organ_is_the_gate_and_nothing_else():
    prob = torch.zeros((1, 8, 1, 8))
    prob[0, :4] = 0.9
    assert torch.equal(organ_gate(prob, least=[3]), prob > 0.5)


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
