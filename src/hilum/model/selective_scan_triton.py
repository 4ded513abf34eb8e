"""The selective scan on GPUs: Triton kernels, chunks of time side by side.

Forward: what every chunk makes of a state of zero and how much it lets through (`_ends`), the states between
chunks (`_carry`), then every chunk from its true state (`_outputs`). Backward: the same the other way round,
states computed again. Ends and beginnings are sums of ``exp`` of differences of summed steps, never above 0;
inside a chunk an associative scan multiplies factors of at most 1. No array of (time, state, channel) leaves
a processor.

Only ``sum over n of c * h`` is computed here; softplus, skip and gate are torch's. Gradients of b and c are
summed over blocks of channels by torch, in a fixed order.

Source: Gu & Dao 2023, §3.3; Blelloch 1990. Imported only where Triton is installed.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.nn import functional as F

from hilum.model.selective_scan_chunked import Inputs

TIME, CHANNELS = 64, 32
"""Steps of a chunk and channels of a program."""


@triton.jit
def _then(p1: tl.tensor, s1: tl.tensor, p2: tl.tensor, s2: tl.tensor) -> tuple[tl.tensor, tl.tensor]:
    """First (p1, s1), then (p2, s2): h -> p * h + s."""
    return p1 * p2, p2 * s1 + s2


@triton.jit
def _ends(
    step: tl.tensor,
    rows: tl.tensor,
    cols: tl.tensor,
    a: tl.tensor,
    through: tl.tensor,
    end: tl.tensor,
    T: tl.tensor,
    E: tl.tensor,
    REVERSE: tl.constexpr,
    TB: tl.constexpr,
    EB: tl.constexpr,
    N: tl.constexpr,
) -> None:
    """Per chunk and state: what is let through, and the sum that arrives at its end (start, if reversed).

    What enters is rows[t, e] * cols[t, n]: step * x and b, or the output's gradient and c.
    """
    chunk, chunks = tl.program_id(0), tl.num_programs(0)
    batch, e = tl.program_id(2), tl.program_id(1) * EB + tl.arange(0, EB)
    t = chunk * TB + tl.arange(0, TB)
    at = (batch * T + t[:, None]) * E + e[None, :]
    inside = (t < T)[:, None] & (e < E)[None, :]
    steps = tl.load(step + at, inside, 0.0)
    row = tl.load(rows + at, inside, 0.0)
    total = tl.sum(steps, 0)
    so_far = tl.cumsum(steps, 0)
    span = so_far if REVERSE else total[None, :] - so_far
    for n in range(N):
        decay = tl.load(a + n * E + e, e < E, 0.0)
        col = tl.load(cols + (batch * T + t) * N + n, t < T, 0.0)
        # a difference of sums may be a hair below zero
        arriving = tl.sum(tl.exp(tl.minimum(span * decay[None, :], 0.0)) * row * col[:, None], 0)
        to = ((batch * chunks + chunk) * N + n) * E + e
        tl.store(through + to, tl.exp(total * decay), e < E)
        tl.store(end + to, arriving, e < E)


@triton.jit
def _carry(
    through: tl.tensor,
    end: tl.tensor,
    before: tl.tensor,
    chunks: tl.tensor,
    W: tl.tensor,
    REVERSE: tl.constexpr,
    WB: tl.constexpr,
) -> None:
    """The state that each chunk starts from (ends with, if reversed); W states of all channels."""
    w = tl.program_id(0) * WB + tl.arange(0, WB)
    state = tl.zeros((WB,), tl.float32)
    for k in range(chunks):
        chunk = chunks - 1 - k if REVERSE else k
        at = (tl.program_id(1) * chunks + chunk) * W + w
        tl.store(before + at, state, w < W)
        state = tl.load(through + at, w < W, 0.0) * state + tl.load(end + at, w < W, 0.0)


@triton.jit
def _outputs(
    step: tl.tensor,
    x: tl.tensor,
    a: tl.tensor,
    b: tl.tensor,
    c: tl.tensor,
    before: tl.tensor,
    out: tl.tensor,
    T: tl.tensor,
    E: tl.tensor,
    TB: tl.constexpr,
    EB: tl.constexpr,
    N: tl.constexpr,
) -> None:
    """Every chunk from its true state: out[t, e]."""
    chunk, chunks = tl.program_id(0), tl.num_programs(0)
    batch, e = tl.program_id(2), tl.program_id(1) * EB + tl.arange(0, EB)
    t = chunk * TB + tl.arange(0, TB)
    at = (batch * T + t[:, None]) * E + e[None, :]
    inside = (t < T)[:, None] & (e < E)[None, :]
    steps = tl.load(step + at, inside, 0.0)
    row = steps * tl.load(x + at, inside, 0.0)
    y = tl.zeros((TB, EB), tl.float32)
    for n in range(N):
        decay = tl.load(a + n * E + e, e < E, 0.0)
        col = tl.load(b + (batch * T + t) * N + n, t < T, 0.0)
        read = tl.load(c + (batch * T + t) * N + n, t < T, 0.0)
        start = tl.load(before + ((batch * chunks + chunk) * N + n) * E + e, e < E, 0.0)
        product, state = tl.associative_scan((tl.exp(steps * decay[None, :]), row * col[:, None]), 0, _then)
        y += read[:, None] * (state + product * start[None, :])
    tl.store(out + at, y, inside)


@triton.jit
def _gradients(
    step: tl.tensor,
    x: tl.tensor,
    a: tl.tensor,
    b: tl.tensor,
    c: tl.tensor,
    dy: tl.tensor,
    before: tl.tensor,
    after: tl.tensor,
    dstep: tl.tensor,
    dx: tl.tensor,
    da: tl.tensor,
    db: tl.tensor,
    dc: tl.tensor,
    T: tl.tensor,
    E: tl.tensor,
    TB: tl.constexpr,
    EB: tl.constexpr,
    N: tl.constexpr,
) -> None:
    """Gradients of a chunk's inputs; da per chunk, db and dc per block of channels."""
    chunk, chunks = tl.program_id(0), tl.num_programs(0)
    block, batch = tl.program_id(1), tl.program_id(2)
    batches = tl.num_programs(2)
    e, t = block * EB + tl.arange(0, EB), chunk * TB + tl.arange(0, TB)
    at = (batch * T + t[:, None]) * E + e[None, :]
    inside = (t < T)[:, None] & (e < E)[None, :]
    steps, values = tl.load(step + at, inside, 0.0), tl.load(x + at, inside, 0.0)
    # of the next step inside the chunk; a step of nothing lets everything through
    more = (t + 1 < T) & (t + 1 < (chunk + 1) * TB)
    following = tl.load(step + at + E, more[:, None] & (e < E)[None, :], 0.0)
    sent = tl.load(dy + at, inside, 0.0)
    of_step, of_x = tl.zeros((TB, EB), tl.float32), tl.zeros((TB, EB), tl.float32)
    for n in range(N):
        decay = tl.load(a + n * E + e, e < E, 0.0)
        col = tl.load(b + (batch * T + t) * N + n, t < T, 0.0)
        read = tl.load(c + (batch * T + t) * N + n, t < T, 0.0)
        between = ((batch * chunks + chunk) * N + n) * E + e
        entering = steps * values * col[:, None]
        product, state = tl.associative_scan((tl.exp(steps * decay[None, :]), entering), 0, _then)
        state += product * tl.load(before + between, e < E, 0.0)[None, :]
        back, g = tl.associative_scan(
            (tl.exp(following * decay[None, :]), sent * read[:, None]), 0, _then, reverse=True
        )
        g += back * tl.load(after + between, e < E, 0.0)[None, :]
        kept = g * (state - entering)
        of_step += kept * decay[None, :] + g * values * col[:, None]
        of_x += g * steps * col[:, None]
        tl.store(da + between, tl.sum(kept * steps, 0), e < E)
        part = ((block * batches + batch) * T + t) * N + n
        tl.store(db + part, tl.sum(g * steps * values, 1), t < T)
        tl.store(dc + part, tl.sum(sent * state, 1), t < T)
    tl.store(dstep + at, of_step, inside)
    tl.store(dx + at, of_x, inside)


class TritonScan(torch.autograd.Function):
    """step (B, T, E), x (B, T, E), a (N, E), b and c (B, T, N), contiguous float32 -> (B, T, E)."""

    @staticmethod
    def forward(ctx: Any, step: Tensor, x: Tensor, a: Tensor, b: Tensor, c: Tensor) -> Tensor:
        """Sum over n of c · h."""
        before = _between(step, step * x, b, a, reverse=False)
        out = torch.empty_like(x)
        _outputs[_grid(x)](step, x, a, b, c, before, out, *x.shape[1:], TIME, CHANNELS, len(a))
        ctx.save_for_backward(step, x, a, b, c, before)
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, ...]:
        """Gradients of the five."""
        step, x, a, b, c, before = ctx.saved_tensors
        dy = dy.contiguous()
        after = _between(step, dy, c, a, reverse=True)
        dstep, dx, da = torch.empty_like(x), torch.empty_like(x), torch.empty_like(before)
        blocks = _grid(x)[1]
        db, dc = (b.new_empty((blocks, *b.shape)) for _ in range(2))
        _gradients[_grid(x)](
            step, x, a, b, c, dy, before, after, dstep, dx, da, db, dc, *x.shape[1:], TIME, CHANNELS, len(a)
        )
        return dstep, dx, da.sum((0, 1)), db.sum(0), dc.sum(0)


def _grid(x: Tensor) -> tuple[int, int, int]:
    batch, time, channels = x.shape
    return triton.cdiv(time, TIME), triton.cdiv(channels, CHANNELS), batch


def _between(step: Tensor, rows: Tensor, cols: Tensor, a: Tensor, reverse: bool) -> Tensor:
    """(B, chunks, N, E): the state before every chunk, or what flows back to the state after it."""
    grid = _grid(step)
    through, end, found = (torch.empty((grid[2], grid[0], *a.shape), device=a.device) for _ in range(3))
    _ends[grid](
        step, rows.contiguous(), cols, a, through, end, *step.shape[1:], reverse, TIME, CHANNELS, len(a)
    )
    width = a.numel()
    _carry[triton.cdiv(width, 128), grid[2]](through, end, found, grid[0], width, reverse, 128)
    return found


def scan_triton(inputs: Inputs) -> Tensor:
    """Output (B, T, E), of float32 inputs on a GPU."""
    step = F.softplus(inputs.raw()) if inputs.softplus else inputs.raw()
    parts = (step, inputs.x, inputs.a, inputs.b, inputs.c)
    out: Tensor = TritonScan.apply(*(part.contiguous() for part in parts))
    if inputs.d is not None:
        out = out + inputs.d * inputs.x
    return out if inputs.z is None else out * F.silu(inputs.z)
