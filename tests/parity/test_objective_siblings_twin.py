"""Votes of siblings against a twin that asks one voxel at a time."""

import math

import pytest
import torch

from hilum.objective.siblings import LARGEST, inherited

SCANS, CELLS, FINDINGS = 3, 5, 4


def slow(low, high, gate, labels, differs, counts, *, explain, votes_for):
    """The loss, voxel by voxel."""
    losses = [low.new_zeros(()) for _ in range(FINDINGS)]
    for f in range(FINDINGS):
        column = labels[:, f].tolist()
        for s in range(SCANS):
            for n in range(CELLS):
                for v in range(8):
                    if not gate[n, f, v]:
                        continue
                    if column[s] == 0:
                        losses[f] = losses[f] + counts[n] * torch.log1p(high[s, n, f, v].exp())
                        losses[f] = losses[f] + counts[n] * torch.log1p(low[s, n, f].exp())
                    elif column[s] == 1 and 0.0 in column and differs[n, v]:
                        share = vote(high, gate, labels, s, n, f, v) if explain else 1.0
                        weight = counts[n] * votes_for * share
                        losses[f] = losses[f] + weight * torch.log1p((-high[s, n, f, v]).exp())
                        losses[f] = losses[f] + weight * torch.log1p((-low[s, n, f]).exp())
    return torch.stack(losses)


def vote(high, gate, labels, s, n, f, v):
    """Share of one finding among those that the scan's labels allow in the voxel."""
    odds = {}
    for g in range(FINDINGS):
        column = labels[:, g].tolist()
        if column[s] == 1 and 0.0 in column and gate[n, g, v]:
            odds[g] = math.exp(min(LARGEST, float(high[s, n, g, v].detach())))
    return (1 + odds[f]) / (1 + sum(odds.values()))


@pytest.mark.parametrize(("explain", "votes_for"), [(True, 1.0), (True, 12.0), (False, 3.0)])
def test_equal_to_the_twin_forward_and_backward(explain, votes_for):
    generator = torch.Generator().manual_seed(3)
    draw = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)  # noqa: E731
    low, high = draw(SCANS, CELLS, FINDINGS), 3 * draw(SCANS, CELLS, FINDINGS, 8)
    gate, differs = draw(CELLS, FINDINGS, 8) > -0.5, draw(CELLS, 8) > 0
    counts = torch.tensor([1.0, 4, 1, 4, 4], dtype=torch.float64)
    labels = torch.tensor([[1.0, 1, 0, 1], [0, 0, 1, 1], [1, float("nan"), 1, 1]])
    found = []
    for way in (inherited, slow):
        leaves = [x.clone().requires_grad_() for x in (low, high)]
        loss = way(*leaves, gate, labels, differs, counts, explain=explain, votes_for=votes_for)
        (loss * torch.arange(1, FINDINGS + 1)).sum().backward()
        found.append((loss.detach(), *[x.grad for x in leaves]))
    for ours, theirs in zip(*found, strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-12, atol=1e-12)
    assert found[0][0][3] == 0 and (found[0][0][:3] > 0).all()


def test_what_looks_different_and_is_not_told_cancels():
    high = torch.zeros(2, CELLS, 1, 8, requires_grad=True)
    low = torch.zeros(2, CELLS, 1, requires_grad=True)
    differs = torch.ones(CELLS, 8, dtype=torch.bool)
    loss = inherited(low, high, differs[:, None], torch.tensor([[1.0], [0.0]]), differs, torch.ones(CELLS))
    loss.sum().backward()
    assert torch.equal(high.grad[0], -high.grad[1]) and torch.equal(low.grad[0], -low.grad[1])
