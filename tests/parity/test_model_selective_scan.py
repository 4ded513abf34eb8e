"""Every way to compute the selective scan equals the plain loop over tokens, forward and gradient."""

import pytest
import torch

from hilum.model import selective_scan_chunked
from hilum.model.selective_scan import selective_scan

SHAPES = [(1, 1, 3, 2), (2, 7, 5, 3), (1, 8, 4, 16), (2, 67, 6, 5), (1, 203, 33, 16)]
TOLERANCE = {torch.float64: 1e-12, torch.float32: 2e-5}


def scan_inputs(batch, time, channels, states, dtype, seed=0):
    """x, delta, a, b, c, d, z, bias."""
    g = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=g, dtype=torch.float64).to(dtype)

    tokens, read = (batch, time, channels), (batch, time, states)
    a = -torch.exp(normal(channels, states))
    return [normal(*tokens), normal(*tokens), a, normal(*read), normal(*read), normal(channels),
            normal(*tokens), normal(channels)]  # fmt: skip


def answers(values, backend, *, softplus=True):
    """Output and the gradient of every input, for one fixed gradient of the output."""
    leaves = [None if v is None else v.clone().requires_grad_() for v in values]
    out = selective_scan(*leaves, softplus=softplus, backend=backend)
    (out * torch.cos(torch.arange(out.numel(), dtype=out.dtype).view_as(out))).sum().backward()
    return [out.detach(), *(leaf.grad for leaf in leaves if leaf is not None)]


def close(ours, plain, tolerance):
    for n, (a, b) in enumerate(zip(ours, plain, strict=True)):
        assert a.shape == b.shape and a.dtype == b.dtype
        assert (a - b).abs().max() <= tolerance * b.abs().max().clamp(min=1), n


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("block_bytes", [1, 20_000, selective_scan_chunked.BLOCK_BYTES])
def test_chunked_is_sequential(shape, dtype, block_bytes, monkeypatch):
    monkeypatch.setattr(selective_scan_chunked, "BLOCK_BYTES", block_bytes)
    values = scan_inputs(*shape, dtype)
    close(answers(values, "chunked"), answers(values, "sequential"), TOLERANCE[dtype])


def test_parts_that_are_optional():
    values = scan_inputs(2, 19, 4, 3, torch.float64)
    for missing in ((5,), (6,), (7,), (5, 6, 7)):
        some = [None if n in missing else v for n, v in enumerate(values)]
        close(answers(some, "chunked"), answers(some, "sequential"), 1e-12)
    values[1] = values[1].abs()
    close(answers(values, "chunked", softplus=False), answers(values, "sequential", softplus=False), 1e-12)
