"""COLIPRI's block and its pooling against slow, obviously right twins: value and gradient."""

import math

import pytest
import torch

from hilum.errors import InputRefused, UsageError, WeightsError
from hilum.model.mean_query import MeanQueryPool, PatchHead
from hilum.model.primus import Primus, PrimusBlock, PrimusConfig

TINY = PrimusConfig(width=24, depth=2, heads=2, hidden=10, patch=2)


def drawn(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def random_double(module, seed):
    generator = torch.Generator().manual_seed(seed)
    module = module.double()
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.4, generator=generator)
    return module


def same(module, fast, slow, a, b):
    """Equal values, and equal gradients of everything."""
    assert torch.allclose(fast, slow, atol=1e-10)
    weights = drawn(*fast.shape, seed=3)
    (fast * weights).sum().backward()
    ours = {name: p.grad.clone() for name, p in module.named_parameters()}
    module.zero_grad()
    (slow * weights).sum().backward()
    assert torch.allclose(a.grad, b.grad, atol=1e-10)
    for name, parameter in module.named_parameters():
        assert torch.allclose(ours[name], parameter.grad, atol=1e-9), name


def linear(layer, rows):
    found = rows @ layer.weight.T
    return found if layer.bias is None else found + layer.bias


def norm(layer, rows):
    centred = rows - rows.mean(-1, keepdim=True)
    return centred / ((centred**2).mean(-1, keepdim=True) + layer.eps).sqrt() * layer.weight + layer.bias


def turned(row, place, head):
    """Channels of one head of one token: channel j and j + head / 2 by the angle of their axis and rate."""
    half, out = head // 2, [None] * head
    for pair in range(half):
        axis, step = divmod(pair, half // 3)
        angle = place[axis] / 10000.0 ** (step / (half // 3))
        c, s = math.cos(angle), math.sin(angle)
        out[pair] = row[pair] * c - row[pair + half] * s
        out[pair + half] = row[pair + half] * c + row[pair] * s
    return torch.stack(out)


def slow_block(block, x, places):
    """Scan by scan, head by head, token by token."""
    attention, out = block.attention, []
    for rows in x:
        y = norm(block.norm_attention, rows)
        q, k, v = (linear(layer, y) for layer in (attention.query, attention.key, attention.value))
        size, heads = q.shape[1] // attention.heads, []
        for h in range(attention.heads):
            at = slice(h * size, (h + 1) * size)
            qs = [turned(row[at], place, size) for row, place in zip(q, places, strict=True)]
            ks = [turned(row[at], place, size) for row, place in zip(k, places, strict=True)]
            mixed = []
            for one in qs:
                share = torch.stack([(one * other).sum() / math.sqrt(size) for other in ks]).exp()
                mixed.append((share / share.sum()) @ v[:, at])
            heads.append(torch.stack(mixed))
        heard = linear(attention.proj, norm(attention.norm, torch.cat(heads, 1)))
        rows = rows + heard * block.scale_attention
        y, mlp = norm(block.norm_mlp, rows), block.mlp
        gate = linear(mlp.gate, y)
        hidden = norm(mlp.norm, gate / (1 + (-gate).exp()) * linear(mlp.up, y))
        out.append(rows + linear(mlp.down, hidden) * block.scale_mlp)
    return torch.stack(out)


def places_of(grid, step=1.0):
    return [
        (i * step, j * step, k * step) for i in range(grid[0]) for j in range(grid[1]) for k in range(grid[2])
    ]


@pytest.mark.parametrize(("grid", "patch"), [((2, 2, 3), 2), ((1, 2, 2), 4)])
def test_a_block_equals_its_twin(grid, patch):
    model = Primus(TINY)
    block = random_double(PrimusBlock(TINY), 2)
    a = drawn(2, math.prod(grid), TINY.width).requires_grad_()
    b = a.detach().clone().requires_grad_()
    fast = block(a, model._table(grid, (patch,) * 3, a))
    # places count patches of the base size
    same(block, fast, slow_block(block, b, places_of(grid, patch / TINY.patch)), a, b)


def test_the_backbone_is_its_blocks():
    model = random_double(Primus(TINY), 5)
    image = drawn(2, 1, 4, 2, 4)
    x = torch.nn.functional.conv3d(image, model.patch_3d.weight, model.patch_3d.bias, stride=2)
    x = x.flatten(2).transpose(1, 2)
    for block in model.blocks:
        x = slow_block(block, x, places_of((2, 1, 2)))
    out = model(image)
    assert torch.allclose(out.patches, norm(model.norm, x), atol=1e-10)
    assert out.registers.shape == (2, 0, 24) and torch.allclose(out.cls, out.patches.mean(1))


def slow_pool(pool, tokens, seen):
    """Text by text over what is seen, head by head."""
    out = []
    for rows, some in zip(tokens, seen, strict=True):
        if not some.any():
            out.append(rows.new_zeros(rows.shape[1]))
            continue
        kept = rows[some]
        width = kept.shape[1]
        size, heads = width // pool.heads, []
        whole = linear(pool.qkv, torch.cat([kept.mean(0, keepdim=True), kept]))
        q, k, v = whole[0, :width], whole[1:, width : 2 * width], whole[1:, 2 * width :]
        for h in range(pool.heads):
            at = slice(h * size, (h + 1) * size)
            share = (k[:, at] @ q[at] / math.sqrt(size)).exp()
            heads.append((share / share.sum()) @ v[:, at])
        out.append(linear(pool.proj, torch.cat(heads)))
    return torch.stack(out)


def test_the_pooling_equals_its_twin():
    pool = random_double(MeanQueryPool(12, 3), 1)
    seen = torch.arange(5) < torch.tensor([[5], [2], [1], [0]])
    a = drawn(4, 5, 12).requires_grad_()
    b = a.detach().clone().requires_grad_()
    same(pool, pool(a, seen), slow_pool(pool, b, seen), a, b)
    assert torch.allclose(pool(a), slow_pool(pool, b, torch.ones_like(seen)), atol=1e-10)
    # what nobody sees changes nothing, and has no gradient
    pool.zero_grad()
    assert (a.grad[3] == 0).all() and (a.grad[1, 2:] == 0).all()


def test_a_token_alone_is_what_each_says():
    head = random_double(PatchHead(10, 12, 3), 4)
    patches = drawn(2, 4, 10)
    alone = torch.stack([head(patches[:, n : n + 1]) for n in range(4)], 1)
    assert torch.allclose(head.each(patches), alone, atol=1e-12)


@pytest.mark.parametrize(
    "wrong",
    [
        {"heads": 5}, {"depth": 0}, {"width": True}, {"layer_scale": float("nan")}, {"norm_eps": 1.0},
        {"hidden": 0},
    ],
)  # fmt: skip
def test_numbers_that_make_no_network_are_refused(wrong):
    with pytest.raises(WeightsError, match=f"CONFIG_VALUE.*{next(iter(wrong))}"):
        PrimusConfig(**wrong)


def test_what_does_not_fit_is_refused():
    model = Primus(TINY)
    with pytest.raises(InputRefused, match="MODEL_INPUT"):
        model(torch.zeros(1, 1, 4, 4))
    with pytest.raises(InputRefused, match="PATCH_GRID"):
        model(torch.zeros(1, 1, 4, 4, 3))
    with pytest.raises(UsageError, match="CONFIG_VALUE"):
        model(torch.zeros(1, 1, 4, 4, 4), patch=0)
    with pytest.raises(WeightsError, match=r"CONFIG_VALUE.*heads"):
        MeanQueryPool(12, 5)
