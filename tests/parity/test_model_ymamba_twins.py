"""Y-Mamba's parts against slow, plain twins, and its size by arithmetic."""

from itertools import pairwise

import pytest
import torch
from torch.nn import functional as F

from hilum.io.weights import preset_data
from hilum.model.mamba import Mamba, causal_conv
from hilum.model.preset import build, preset_from
from hilum.model.unetr import ResBlock, UpBlock
from hilum.model.ymamba import Mixture


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def gradients(module, out, *inputs):
    weights = [*module.parameters(), *inputs]
    return torch.autograd.grad(out.sin().sum(), weights)


def same(ours, plain):
    assert len(ours) == len(plain)
    assert all(torch.allclose(a, b, atol=1e-10) for a, b in zip(ours, plain, strict=True))


def slow_norm(x):
    mean = x.mean((2, 3, 4), keepdim=True)
    return (x - mean) / ((x - mean).square().mean((2, 3, 4), keepdim=True) + 1e-5).sqrt()


def leaky(x):
    return torch.where(x > 0, x, 0.01 * x)


def slow_res(block, x):
    y = leaky(slow_norm(F.conv3d(x, block.first.weight, padding=1)))
    y = slow_norm(F.conv3d(y, block.second.weight, padding=1))
    skip = x if block.skip is None else slow_norm(F.conv3d(x, block.skip.weight))
    return leaky(y + skip)


@pytest.mark.parametrize("before", [3, 4])
def test_a_residual_block(before):
    torch.manual_seed(0)
    block, x = ResBlock(before, 4).double(), drawn(2, before, 3, 4, 2).requires_grad_()
    ours, plain = block(x), slow_res(block, x)
    same([ours, *gradients(block, ours, x)], [plain, *gradients(block, plain, x)])


def test_an_up_block():
    torch.manual_seed(0)
    block = UpBlock(3, 4).double()
    below, skip = drawn(1, 3, 2, 1, 2).requires_grad_(), drawn(1, 4, 4, 2, 4, seed=1).requires_grad_()
    up = torch.zeros(1, 4, 4, 2, 4, dtype=torch.float64)
    for i, j, k in torch.cartesian_prod(*(torch.arange(2),) * 3).tolist():
        up[:, :, i::2, j::2, k::2] = torch.einsum("bcxyz,cd->bdxyz", below, block.up.weight[:, :, i, j, k])
    ours, plain = block(below, skip), slow_res(block.block, torch.cat([up, skip], 1))
    same([ours, *gradients(block, ours, below, skip)], [plain, *gradients(block, plain, below, skip)])


def test_the_mixture_before_a_stage():
    torch.manual_seed(0)
    block, x = Mixture(3).double(), drawn(1, 3, 2, 3, 4).requires_grad_()

    def step(conv, x):
        return slow_norm(F.conv3d(x, conv.weight, conv.bias, padding=conv.kernel_size[0] // 2)).clamp(min=0)

    near = step(block.second, step(block.first, x)) + step(block.point, x)
    plain, ours = step(block.mix, near) + x, block(x)
    same([ours, *gradients(block, ours, x)], [plain, *gradients(block, plain, x)])


def test_the_convolution_is_torch_s_and_sees_no_future():
    torch.manual_seed(0)
    conv = torch.nn.Conv1d(5, 5, 4, groups=5, padding=3).double()
    x = drawn(2, 9, 5)
    plain = conv(x.mT)[:, :, :9].mT
    assert torch.allclose(causal_conv(x, conv.weight, conv.bias), plain, atol=1e-12)
    later = x.clone()
    later[:, 6:] += 1
    assert torch.equal(
        causal_conv(later, conv.weight, conv.bias)[:, :6], causal_conv(x, conv.weight, conv.bias)[:, :6]
    )


def slow_mamba(m, tail, both):
    """Token by token, as the paper writes it."""
    get = dict(m.named_parameters())
    conv, inner = get[f"conv1d{tail}.weight"][:, 0], m.inner
    out, state = [], torch.zeros(len(both), inner, m.d_state, dtype=both.dtype)
    for t in range(both.shape[1]):
        x = get[f"conv1d{tail}.bias"].expand(len(both), -1)
        for k in range(4):
            if t - 3 + k >= 0:
                x = x + both[:, t - 3 + k, :inner] * conv[:, k]
        x, z = F.silu(x), F.silu(both[:, t, inner:])
        dt, b, c = (x @ get[f"x_proj{tail}.weight"].T).split([m.rank, m.d_state, m.d_state], -1)
        step = F.softplus(dt @ get[f"dt_proj{tail}.weight"].T + get[f"dt_proj{tail}.bias"])
        decay = torch.exp(-step[..., None] * torch.exp(get[f"A{tail}_log"]))
        state = decay * state + (step * x)[..., None] * b[:, None]
        out.append(((state * c[:, None]).sum(-1) + get[f"D{tail}"] * x) * z)
    return torch.stack(out, 1)


@pytest.mark.parametrize("mixer", ["mamba", "tri"])
def test_a_mamba_layer(mixer):
    torch.manual_seed(0)
    m, tokens = Mamba(4, d_state=3, mixer=mixer).double(), drawn(2, 12, 4).requires_grad_()
    both = tokens @ m.in_proj.weight.T
    plain = slow_mamba(m, "", both)
    if mixer == "tri":
        plain = plain + slow_mamba(m, "_b", both.flip(1)).flip(1)
        # three slices of four tokens: 0 4 8 1 5 9 ...
        order = [4 * s + i for i in range(4) for s in range(3)]
        across = slow_mamba(m, "_s", both[:, order])
        plain = plain + across[:, torch.tensor(order).argsort()]
    plain, ours = plain @ m.out_proj.weight.T, m(tokens, slices=3)
    same([ours, *gradients(m, ours, tokens)], [plain, *gradients(m, plain, tokens)])


def counted(mixer):
    """Parameters of the published Y-Mamba, layer by layer (EXACT §1.2)."""
    dims, hidden, orders = (48, 96, 192, 384), 768, {"mamba": 1, "tri": 3}[mixer]

    def conv(before, after, k, bias=True):
        return before * after * k**3 + (after if bias else 0)

    def res(before, after):
        skip = conv(before, after, 1, False) if before != after else 0
        return conv(before, after, 3, False) + conv(after, after, 3, False) + skip

    def up(below, after):
        return conv(below, after, 2, False) + res(2 * after, after)

    def mamba(d):
        inner, rank = 2 * d, -(-d // 16)
        scan = (
            inner * 4 + inner  # convolution
            + inner * (rank + 2 * 16)  # x_proj
            + rank * inner + inner  # dt_proj
            + inner * 16 + inner  # A_log, D
        )  # fmt: skip
        return d * 2 * inner + orders * scan + inner * d

    steps = conv(1, dims[0], 7) + sum(conv(a, b, 2) for a, b in pairwise(dims))
    mixtures = sum(2 * conv(d, d, 3) + 2 * conv(d, d, 1) for d in dims)
    layers = sum(2 * (2 * d + mamba(d)) for d in dims)
    perceptrons = sum(conv(d, 2 * d, 1) + conv(2 * d, d, 1) for d in dims)
    a, b, c, d = dims
    skips = res(1, a) + res(a, b) + res(b, c) + res(c, d) + res(d, hidden)
    seg = up(hidden, d) + up(d, c) + up(c, b) + up(b, a) + res(a, a)
    abn = up(hidden, d) + up(2 * d, c) + up(2 * c, b) + up(2 * b, a) + res(2 * a, a)
    heads = conv(a, 7, 1) + conv(b, 18, 1) + conv(a, 18, 1)
    return steps + mixtures + layers + perceptrons + skips + seg + abn + heads


@pytest.mark.parametrize("mixer, total", [("mamba", 87_206_443), ("tri", 87_719_083)])
def test_the_size_is_the_published_one(mixer, total):
    assert counted(mixer) == total
    with torch.device("meta"):
        model = build(preset_from(preset_data("exact-ymamba" if mixer == "mamba" else "exact-ymamba-tri")))
    assert sum(p.numel() for p in model.parameters()) == total
