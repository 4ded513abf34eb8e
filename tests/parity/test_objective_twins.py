"""Every loss against a slow, obviously right twin: value and gradient."""

import math

import pytest
import torch

from hilum.objective.align import align_loss
from hilum.objective.mil import (
    SHARPNESS,
    log_odds,
    organ_gate,
    pool_scan,
    prevalence_bce,
    sibling_ranking,
    voxel_counts,
)
from hilum.objective.segmentation import segmentation_weight, tversky_focal


def slow_tversky_focal(logits, truth, fp, fn, alpha, gamma):
    total, channels = 0.0, 0
    for b in range(logits.shape[0]):
        for c in range(logits.shape[1]):
            p = torch.sigmoid(logits[b, c]).flatten()
            y = truth[b, c].flatten().to(p.dtype)
            tp, f_p, f_n, focal = 0.0, 0.0, 0.0, 0.0
            for p_i, y_i in zip(p, y, strict=True):
                # of a share, what is claimed too much is false positive, what is missing false negative
                tp = tp + min(p_i, y_i)
                f_p, f_n = f_p + (p_i - y_i).clamp(min=0), f_n + (y_i - p_i).clamp(min=0)
                entropy = -(y_i * p_i.log() + (1 - y_i) * (1 - p_i).log())
                focal = focal + (alpha * y_i + (1 - alpha) * (1 - y_i)) * (p_i - y_i).abs() ** gamma * entropy
            total = total + 0.7 * (1 - (tp + 1) / (tp + fp * f_p + fn * f_n + 1)) + 0.3 * focal / len(p)
            channels += 1
    return total / channels


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize(("fp", "fn", "alpha"), [(0.3, 0.7, 0.9), (0.5, 0.5, 0.6)])
def test_tversky_focal_equals_its_twin(fp, fn, alpha, shared):
    generator = torch.Generator().manual_seed(0)
    truth = torch.rand((2, 3, 3, 4, 5), generator=generator, dtype=torch.float64)
    truth = truth if shared else (truth > 0.6).double()
    a = torch.randn(truth.shape, generator=generator, dtype=torch.float64, requires_grad=True)
    b = a.detach().clone().requires_grad_()
    fast = tversky_focal(a, truth, false_positive=fp, false_negative=fn, focal_alpha=alpha)
    slow = slow_tversky_focal(b, truth, fp, fn, alpha, 2.0)
    fast.backward()
    slow.backward()
    assert torch.allclose(fast, slow, atol=1e-10)
    assert torch.allclose(a.grad, b.grad, atol=1e-10)


def test_the_best_prediction_of_a_share_is_that_share():
    truth = torch.full((1, 1, 4, 4, 4), 0.3, dtype=torch.float64)
    losses = [
        tversky_focal(torch.logit(p * torch.ones_like(truth)), truth) for p in (0.1, 0.25, 0.3, 0.35, 0.9)
    ]
    assert losses.index(min(losses)) == 2


def slow_pool(low, high, gate, gates, counts):
    """Voxel by voxel."""
    results = []
    for level in range(2):
        prob, scores = [], []
        for d, organs in enumerate(gates):
            logits = []
            for n in range(len(low)):
                if level == 0 and any(gate[n, o, k] for o in organs for k in range(8)):
                    logits.append(low[n, d])
                for k in range(8):
                    if level == 1 and any(gate[n, o, k] for o in organs):
                        logits.append(high[n, d, k])
            every = torch.sigmoid(torch.stack(logits)).sort(descending=True).values
            # fewer open voxels than asked for: the missing ones count as zero
            prob.append(every[: counts[level][d]].sum() / counts[level][d])
            scores.append([sum(torch.exp(s * z) for z in logits).log() / s for s in SHARPNESS])
        results += [torch.stack(prob), *(torch.stack(s) for s in zip(*scores, strict=True))]
    return results


def fast_pool(low, high, gate, gates, counts):
    levels = pool_scan(low, high, gate, gates, counts)
    return [x[0] for level in levels for x in (level.prob, *level.scores)]


def test_pooling_equals_its_twin_value_and_gradient():
    generator = torch.Generator().manual_seed(1)
    gate = torch.rand((12, 2, 8), generator=generator) > 0.7
    gate[:, 1] = False
    gate[3, 1, :2] = True
    counts = ([2, 1, 3, 2], [5, 3, 20, 4])
    shapes = ((12, 4), (12, 4, 8))
    start = [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]
    results = []
    for function in (fast_pool, slow_pool):
        low, high = (x.clone().requires_grad_() for x in start)
        pooled = torch.stack(function(low, high, gate, ((0,), (1,), (1,), (1, 0)), counts))
        weights = torch.rand(pooled.shape, generator=torch.Generator().manual_seed(2))
        (pooled * weights).sum().backward()
        results.append((pooled, low.grad, high.grad))
    for fast, slow in zip(*results, strict=True):
        assert torch.allclose(fast, slow, atol=1e-6)


def test_the_gate_survives_an_empty_organ():
    prob = torch.full((1, 8, 2, 8), 0.01)
    prob[0, 4, 0, 3] = 0.2
    gate = organ_gate(prob, least=[3, 5])
    assert gate[0, :, 0].sum() == 3
    assert gate[0, :, 1].sum() == 5
    assert gate[0, 4, 0, 3]
    cells, voxels = torch.randn((8, 1), requires_grad=True), torch.randn((8, 1, 8), requires_grad=True)
    low, high = pool_scan(cells, voxels, gate[0], [(1,)], ([1], [5]))
    (low.prob + high.prob).sum().backward()
    assert cells.grad.abs().sum() > 0
    assert voxels.grad.abs().sum() > 0


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


def test_sibling_ranking_equals_its_twin_and_ignores_what_is_common():
    generator = torch.Generator().manual_seed(4)
    score = torch.randn((3, 5), generator=generator, dtype=torch.float64, requires_grad=True)
    labels = torch.tensor(
        [[1, 0, 1, float("nan"), 1], [0, 0, 1, 0, 1], [1, 0, 0, 1, float("nan")]], dtype=torch.float64
    )
    loss = sibling_ranking(score, labels)
    terms, value = [], score.tolist()
    for a in range(3):
        for b in range(3):
            for d in range(5):
                if labels[a, d] == 1 and labels[b, d] == 0:
                    terms.append(math.log(1 + math.exp(value[b][d] - value[a][d])))
    assert len(terms) == 5
    assert loss.item() == pytest.approx(sum(terms) / len(terms), rel=1e-6)
    loss.backward()
    assert score.grad[:, 1].abs().sum() == 0, "no pair differs in the second finding"
    assert torch.allclose(score.grad.sum(0), torch.zeros(5, dtype=torch.float64)), "common pushes cancel"
    common = torch.randn((1, 5), generator=generator, dtype=torch.float64)
    assert torch.allclose(sibling_ranking(score + common, labels), loss)
    assert sibling_ranking(score, torch.ones_like(labels)) == 0


def test_a_score_is_a_log():
    p = torch.tensor([[0.2, 0.5]], dtype=torch.float64)
    assert torch.allclose(log_odds(p), torch.tensor([[math.log(0.25), 0.0]], dtype=torch.float64))


def slow_align(scans, texts, scale, own, same, share):
    def entropy(logits, twins, me):
        if share:
            alike = [j for j, twin in enumerate(twins) if twin]
            kept = list(range(len(logits)))
        else:
            alike = [me]
            kept = [j for j, twin in enumerate(twins) if j == me or not twin]
        total = sum(logits[j].exp() for j in kept)
        return -sum((logits[j].exp() / total).log() for j in alike) / len(alike)

    said = [int(same[i]) for i in own]
    forward = [
        entropy([scale * (scan @ text) for text in texts], [int(s) == said[k] for s in same], int(own[k]))
        for k, scan in enumerate(scans)
    ]
    loss = sum(forward) / len(forward)
    if len(set(said)) == 1:
        return 0.5 * loss
    back = [
        entropy([scale * (texts[int(i)] @ scan) for scan in scans], [s == said[k] for s in said], k)
        for k, i in enumerate(own)
    ]
    return 0.5 * (loss + sum(back) / len(back))


@pytest.mark.parametrize("share", [False, True])
@pytest.mark.parametrize("names", [[0, 1, 2, 3, 4], [0, 1, 0, 1, 2], [7, 7, 7, 7, 1]])
def test_align_loss_equals_its_twin(share, names):
    generator = torch.Generator().manual_seed(3)
    same, own = torch.tensor(names), torch.tensor([2, 0, 3])
    results = []
    for loss in (align_loss, slow_align):
        generator.manual_seed(3)
        scans = torch.randn(3, 4, dtype=torch.float64, generator=generator).requires_grad_()
        texts = torch.randn(5, 4, dtype=torch.float64, generator=generator).requires_grad_()
        scale = torch.tensor(2.0, dtype=torch.float64, requires_grad=True)
        value = (
            loss(scans, texts, scale, own, same, share=share)
            if loss is align_loss
            else loss(scans, texts, scale, own, same, share)
        )
        value.backward()
        results.append((value.detach(), scans.grad, texts.grad, scale.grad))
    for fast, slow in zip(*results, strict=True):
        assert torch.allclose(fast, slow, atol=1e-9)
