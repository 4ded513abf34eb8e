"""EXACT's objective against the published pseudo-code, voxel by voxel (EXACT §1.7): value and gradient."""

import math

import pytest
import torch
from torch.nn import functional as F

from hilum.objective.dense import (
    PAPER_PREVALENCE,
    Given,
    Smoothing,
    finding_gates,
    least_open,
    organ_gates,
    pool_counts,
    pool_maps,
    scan_label_losses,
)
from hilum.objective.dense_read import pool_gated, read_maps
from hilum.objective.dense_rule import PAPER, DenseRule
from hilum.text.vocabulary import GATES, ORGAN_OF

ORGANS, FINDINGS = 7, 18


def drawn(scans=2, edge=8, seed=0):
    """Logits of organs and of both maps, labels, in float32 as the losses compute."""
    generator = torch.Generator().manual_seed(seed)
    organs = 2 * torch.randn((scans, ORGANS, edge, edge, edge), generator=generator)
    low = torch.randn((scans, FINDINGS, *(edge // 2,) * 3), generator=generator)
    high = torch.randn((scans, FINDINGS, *(edge,) * 3), generator=generator)
    labels = torch.randint(0, 2, (scans, FINDINGS), generator=generator).float()
    return organs, low, high, labels


def published(seg_pred, maps, labels, frequency):
    """`Abnormal_loss_multiscale` as §1.7 has it, one disease of one scan at a time."""
    seg_mask = (seg_pred > 0.5).float()
    total, count = 0.0, 0
    for s, d_map in enumerate(maps):
        k = 6 * 8**s
        m = F.interpolate(seg_mask, size=d_map.shape[2:], mode="trilinear", align_corners=False)
        for b in range(d_map.shape[0]):
            for d in range(FINDINGS):
                voxels = (m[b, ORGAN_OF[d]] * d_map[b, d]).flatten().sort(descending=True).values
                q = voxels[:k].mean()
                w = (1 - frequency[d] + 1e-6) / (frequency[d] + 1e-6)
                y = labels[b, d]
                total = total - (w * y * torch.log(q + 1e-6) + (1 - y) * torch.log(1 - q + 1e-6))
                count += 1
    return total / count


def test_the_published_rule_is_the_published_loss():
    organs, low, high, labels = drawn()
    a = [low.clone().requires_grad_(), high.clone().requires_grad_(), organs.clone().requires_grad_()]
    b = [low.clone().requires_grad_(), high.clone().requires_grad_()]
    gates = organ_gates(a[2], PAPER)
    each = scan_label_losses(a[0], a[1], gates, labels, PAPER, torch.ones(2), PAPER_PREVALENCE)
    fast = each.sum() / labels.numel()
    slow = published(torch.sigmoid(organs), [torch.sigmoid(x) for x in b], labels, PAPER_PREVALENCE)
    fast.backward()
    slow.backward()
    assert torch.allclose(fast, slow, rtol=1e-5)
    for fast_one, slow_one in zip(a[:2], b, strict=True):
        assert torch.allclose(fast_one.grad, slow_one.grad, rtol=1e-4, atol=1e-8)
    # hard => no gradient into the organs
    assert a[2].grad is None


def test_an_unknown_label_costs_nothing_and_the_others_stay():
    organs, low, high, labels = drawn()
    gates = organ_gates(organs, PAPER)
    whole = scan_label_losses(low, high, gates, labels, PAPER, torch.ones(2), PAPER_PREVALENCE)
    labels[0, 3] = labels[1, 11] = float("nan")
    some = scan_label_losses(low, high, gates, labels, PAPER, torch.ones(2), PAPER_PREVALENCE)
    assert some[0, 3] == some[1, 11] == 0 and torch.equal(some[1, 12:], whole[1, 12:])


def slow_pool(gated, gates, rule, voxel_ml, low):
    """One probability per scan and finding, one voxel at a time."""
    out = torch.zeros(gated.shape[:2], dtype=torch.float64)
    for b in range(gated.shape[0]):
        for d in range(gated.shape[1]):
            values = gated[b, d].flatten().double().tolist()
            if rule.pool == "lse":
                shares = gates[b, d].flatten().double().tolist()
                mean = sum(g * math.exp(rule.sharpness * v) for g, v in zip(shares, values, strict=True))
                out[b, d] = math.log(mean / sum(shares)) / rule.sharpness
                continue
            size = float(voxel_ml[b]) * (8 if low else 1)
            k = max(1 if low else 3, round(rule.volumes_ml[d] / size))
            k = k if rule.pool == "volume" else (rule.k_low if low else rule.k_high)
            out[b, d] = sum(sorted(values, reverse=True)[:k]) / k
    return out


@pytest.mark.parametrize("gate", ["hard", "soft", "given", "either"])
@pytest.mark.parametrize("pool", ["topk", "volume", "lse"])
def test_every_option_equals_its_twin(gate, pool):
    organs, low, high, _ = drawn(seed=1)
    rule = DenseRule(gate=gate, pool=pool, k_low=3, k_high=20, guard=False, sharpness=12.0)
    given = Given(torch.randint(0, 128, (2, 8, 8, 8), dtype=torch.int16), torch.rand(2, ORGANS) > 0.4)
    voxel_ml = torch.tensor([0.05, 0.2])
    gates = organ_gates(organs, rule, given)
    probability = torch.sigmoid(organs)
    for b in range(2):
        for o in range(ORGANS):
            found, drawn_mask = probability[b, o] > 0.5, ((given.bits[b] >> o) & 1) == 1
            wanted = {"hard": found.float(), "soft": probability[b, o], "given": drawn_mask.float(),
                      "either": (found | drawn_mask).float()}  # fmt: skip
            known = bool(given.known[b, o]) or gate == "soft"
            assert torch.equal(gates[b, o], wanted[gate] if known else found.float())
    for level, logits in enumerate((low, high)):
        opened = finding_gates(gates, rule, logits.shape[2:])
        for d, channels in enumerate(GATES):
            union = torch.stack([gates[:, o] for o in channels]).amax(0)[:, None]
            coarse = union if level else F.avg_pool3d(union, 2)
            assert torch.allclose(opened[:, d], coarse[:, 0], atol=1e-6)
        gated = torch.sigmoid(logits) * opened
        found = pool_maps(gated, pool_counts(rule, voxel_ml, low=level == 0), rule, opened)
        slow = slow_pool(gated, opened, rule, voxel_ml, low=level == 0)
        assert torch.allclose(found.double(), slow, atol=1e-5)


@pytest.mark.parametrize("gate", ["soft", "hard"])
@pytest.mark.parametrize("pool", ["topk", "volume", "lse"])
def test_gradients_are_those_of_finite_differences(gate, pool):
    organs, low, high, labels = drawn(scans=1, edge=4, seed=2)
    rule = DenseRule(gate=gate, pool=pool, k_low=2, k_high=6, guard=False)
    leaves = [x.clone().requires_grad_() for x in (organs, low, high)]

    def loss(organs, low, high):
        gates = organ_gates(organs, rule)
        frequency = (0.3,) * FINDINGS
        return scan_label_losses(low, high, gates, labels, rule, torch.tensor([0.5]), frequency).sum()

    loss(*leaves).backward()
    generator = torch.Generator().manual_seed(3)
    moved = leaves if gate == "soft" else leaves[1:]
    for leaf in moved:
        step = torch.randn(leaf.shape, generator=generator)
        step = 2e-3 * step / step.norm()
        ahead = [x.detach() + step if x is leaf else x.detach() for x in leaves]
        behind = [x.detach() - step if x is leaf else x.detach() for x in leaves]
        slope = float((loss(*ahead) - loss(*behind)) / 2)
        assert slope == pytest.approx(float((leaf.grad * step).sum()), rel=0.05, abs=2e-4)


def test_an_organ_that_was_not_found_still_learns_where_the_guard_is():
    organs, low, high, labels = drawn(seed=4)
    organs[:] = -3 - torch.rand(organs.shape)
    organs[:, :, 2, 2, 2] = -1.0
    for guard in (False, True):
        rule = DenseRule(guard=guard, k_low=2, k_high=5)
        least = least_open(rule, torch.ones(2), ORGANS) if guard else None
        gates = organ_gates(organs, rule, least=least)
        maps = high.clone().requires_grad_()
        scan_label_losses(low, maps, gates, labels, rule, torch.ones(2), (0.5,) * FINDINGS).sum().backward()
        assert bool(maps.grad.any()) is guard
        if guard:
            # exactly as many as are pooled, the likeliest among them; an organ that gates nothing keeps one
            assert gates.flatten(2).sum(2).tolist() == least.tolist() and gates[:, :, 2, 2, 2].all()


def test_smoothing_blends_with_where_the_organ_usually_is():
    organs, *_ = drawn(seed=5)
    prior = torch.rand((ORGANS, 4, 4, 4))
    blended = Smoothing(prior, 0.25)(torch.sigmoid(organs))
    usual = F.interpolate(prior[None], (8, 8, 8), mode="trilinear", align_corners=False)
    assert torch.allclose(blended, 0.75 * torch.sigmoid(organs) + 0.25 * usual)
    gates = organ_gates(organs, DenseRule(guard=False), smoothing=Smoothing(prior, 0.25))
    assert torch.equal(gates, (blended > 0.5).float())


@pytest.mark.parametrize(
    "rule", [PAPER, DenseRule(pool="volume"), DenseRule(pool="lse"), DenseRule(gate="soft")]
)
def test_a_scan_that_is_read_says_what_its_maps_say(rule):
    organs, low, high, _ = drawn(seed=6)
    found = read_maps(organs, low, high, rule, torch.tensor([0.05, 0.1]))
    gated = found.high * found.gates
    assert torch.allclose(pool_gated(gated, rule, torch.tensor([0.05, 0.1])), found.pooled, atol=1e-6)
    if rule.k_read == 3:
        for d in range(FINDINGS):
            mask = torch.sigmoid(organs[0, ORGAN_OF[d]]) > 0.5
            three = (torch.sigmoid(high[0, d]) * mask).flatten().sort(descending=True).values[:3]
            assert float(found.pooled[0, d]) == pytest.approx(float(three.mean()), abs=1e-6)
