"""The selective scan on CPU cores: blocks of time that fit a core's cache, chunks of a block side by side.

A block is a few chunks of a few steps. All chunks of a block take their first step together, then their
second: one large operation per step. Each starts from a state of zero; then the states between chunks are
carried on, one small operation per chunk, and what the carried state adds is added. Every factor is
``exp(delta * a)`` or a product of such along time, at most 1 where ``a`` is negative: nothing overflows, and
what underflows is nothing.

Only one block is ever held as (time, state, channel). For the backward pass the state before every block is
kept, and everything inside it computed again.

Source: Gu & Dao 2023, §3.3 (recomputation); Blelloch 1990 (scan of a linear recurrence).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

BLOCK_BYTES = 2**20 * 3 // 4
"""Of one (time, state, channel) array. Three of them share a second-level cache."""
STEPS = 8
"""Steps of a chunk."""


@dataclass(frozen=True)
class Inputs:
    """A scan's inputs, all of one floating type. Time T, channels E, states N; a batch of B.

    Args:
        x, delta: (B, T, E). a: (N, E), of negative numbers. b, c: (B, T, N). d: (E), or None.
        z: (B, T, E), or None. bias: (E), added to delta, or None. softplus: of delta.
    """

    x: Tensor
    delta: Tensor
    a: Tensor
    b: Tensor
    c: Tensor
    d: Tensor | None
    z: Tensor | None
    bias: Tensor | None
    softplus: bool

    def part(self, start: int, stop: int) -> Inputs:
        """A stretch of time."""
        cut = slice(start, stop)
        z = None if self.z is None else self.z[:, cut]
        x, delta, b, c = (t[:, cut] for t in (self.x, self.delta, self.b, self.c))
        return Inputs(x, delta, self.a, b, c, self.d, z, self.bias, self.softplus)

    def raw(self) -> Tensor:
        """Step sizes before the softplus."""
        return self.delta if self.bias is None else self.delta + self.bias

    def spans(self) -> list[tuple[int, int]]:
        """First and last step of each block: whole chunks, the rest by itself."""
        batch, time = self.x.shape[:2]
        row = batch * self.a.numel() * self.x.element_size()
        size = max(1, BLOCK_BYTES // (row * STEPS)) * STEPS
        ends = [*range(size, time, size), time]
        whole = time - time % STEPS
        if whole not in ends and whole > 0:
            ends = sorted([*ends, whole])
        return list(zip([0, *ends[:-1]], ends, strict=True))


@dataclass
class States:
    """One block, as (B, chunks, steps, N, E).

    Args:
        part: its inputs. step: their step sizes. decay: exp(step * a). product: of the decays of a chunk up
            to each step. state: after each step.
    """

    part: Inputs
    step: Tensor
    decay: Tensor
    product: Tensor
    state: Tensor

    @property
    def end(self) -> Tensor:
        """State (B, N, E) after the block."""
        return self.state[:, -1, -1]


def _rows(per_step: Tensor, steps: int) -> Tensor:
    """(B, T, ...) -> (B, chunks, steps, ...)."""
    return per_step.unflatten(1, (-1, steps))


def _block(part: Inputs, before: Tensor, keep: bool) -> States:
    """Every state of a block.

    Args:
        before: state (B, N, E) at its start. keep: the decays are needed as they are, too.
    """
    time = part.x.shape[1]
    steps = STEPS if time % STEPS == 0 else time
    step = F.softplus(part.raw()) if part.softplus else part.raw()
    decay = _rows(step, steps)[..., None, :] * part.a
    decay.exp_()
    state = _rows(step * part.x, steps)[..., None, :] * _rows(part.b, steps)[..., None]
    product = torch.empty_like(decay) if keep else decay
    if keep:
        product[:, :, 0] = decay[:, :, 0]
    for t in range(1, steps):
        state[:, :, t].addcmul_(decay[:, :, t], state[:, :, t - 1])
        torch.mul(decay[:, :, t], product[:, :, t - 1], out=product[:, :, t])
    starts = torch.empty_like(state[:, :, 0])
    for k in range(starts.shape[1]):
        starts[:, k] = before
        before = torch.addcmul(state[:, k, -1], product[:, k, -1], before)
    state.addcmul_(product, starts[:, :, None])
    return States(part, step, decay, product, state)


def _read(block: States) -> Tensor:
    """c · state of every step, and the skip: (B, T, E)."""
    part = block.part
    y = torch.matmul(part.c[:, :, None], block.state.flatten(1, 2))[:, :, 0]
    return y if part.d is None else y.addcmul_(part.x, part.d)


def _forward(inputs: Inputs) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Output, last state (B, N, E), and the state before every block."""
    out = torch.empty_like(inputs.x, memory_format=torch.contiguous_format)
    before = inputs.x.new_zeros((len(inputs.x), *inputs.a.shape))
    kept = []
    for start, stop in inputs.spans():
        kept.append(before)
        block = _block(inputs.part(start, stop), before, keep=False)
        y = _read(block)
        if block.part.z is not None:
            y.mul_(F.silu(block.part.z))
        out[:, start:stop] = y
        before = block.end.clone()
    return out, before, kept


@dataclass(frozen=True)
class Gradients:
    """Of every input, zeros to start with."""

    x: Tensor
    delta: Tensor
    a: Tensor
    b: Tensor
    c: Tensor
    d: Tensor
    z: Tensor | None
    bias: Tensor

    @classmethod
    def of(cls, inputs: Inputs) -> Gradients:
        """Zeros for one sum per parameter, room for one number per input."""
        x, delta, b, c = (torch.empty_like(t) for t in (inputs.x, inputs.delta, inputs.b, inputs.c))
        z = None if inputs.z is None else torch.empty_like(inputs.z)
        per_channel = inputs.x.new_zeros(inputs.x.shape[2])
        return cls(x, delta, torch.zeros_like(inputs.a), b, c, per_channel, z, per_channel.clone())


def _sensitivity(block: States, dy: Tensor, after: Tensor) -> Tensor:
    """Gradient of every state of a block, through all that follows it.

    Args:
        dy: of what is read, (B, T, E). after: of the state at the block's end, from later blocks.

    Overwrites `block.product`.
    """
    decay, steps = block.decay, block.decay.shape[2]
    found = _rows(dy, steps)[..., None, :] * _rows(block.part.c, steps)[..., None]
    # from each step to the end of its chunk
    product = block.product
    product[:, :, -1] = 1.0
    for t in range(steps - 2, -1, -1):
        found[:, :, t].addcmul_(decay[:, :, t + 1], found[:, :, t + 1])
        torch.mul(decay[:, :, t + 1], product[:, :, t + 1], out=product[:, :, t])
    ends = torch.empty_like(found[:, :, 0])
    for k in range(ends.shape[1] - 1, -1, -1):
        ends[:, k] = after
        after = torch.addcmul(found[:, k, 0], product[:, k, 0], after).mul_(decay[:, k, 0])
    return found.addcmul_(product, ends[:, :, None])


def _block_backward(block: States, before: Tensor, dout: Tensor, after: Tensor, into: Gradients) -> Tensor:
    """Gradients of one block's inputs; returns that of the state before it.

    Args:
        before: state at its start. dout: of its output. after: of the state at its end. into: views of the
            block's rows.
    """
    part = block.part
    dy = dout
    if part.z is not None and into.z is not None:
        gate = torch.sigmoid(part.z)
        dy = dout * (part.z * gate)
        into.z.copy_(dout * _read(block) * (gate * (1 + part.z * (1 - gate))))
    g = _sensitivity(block, dy, after)
    flat, state = g.flatten(1, 2), block.state.flatten(1, 2)
    into.c.copy_(torch.matmul(state, dy[..., None])[..., 0])
    into.b.copy_(torch.matmul(flat, (block.step * part.x)[..., None])[..., 0])
    of_input = torch.matmul(part.b[:, :, None], flat)[:, :, 0]
    first = block.decay[:, 0, 0] * g[:, 0, 0]
    # gradient of step * a: each state's own, times what the decay let through of the state before it
    log = block.decay.flatten(1, 2).mul_(flat)
    log[:, 1:].mul_(state[:, :-1])
    log[:, 0].mul_(before)
    step = of_input * part.x
    for n, row in enumerate(part.a):
        step.addcmul_(log[:, :, n], row)
    into.a.add_(log.mul_(block.step[:, :, None]).sum((0, 1)))
    dx = of_input.mul_(block.step)
    if part.d is not None:
        into.d.add_((dy * part.x).sum((0, 1)))
        dx.addcmul_(dy, part.d)
    into.x.copy_(dx)
    into.delta.copy_(step.mul_(torch.sigmoid(part.raw())) if part.softplus else step)
    into.bias.add_(into.delta.sum((0, 1)))
    return first


def _backward(inputs: Inputs, kept: Tensor, dout: Tensor) -> Gradients:
    """Gradients of every input, block by block from the last."""
    total = Gradients.of(inputs)
    after = torch.zeros_like(kept[0])
    for before, (start, stop) in reversed(list(zip(kept, inputs.spans(), strict=True))):
        x, delta, b, c = (t[:, start:stop] for t in (total.x, total.delta, total.b, total.c))
        z = None if total.z is None else total.z[:, start:stop]
        into = Gradients(x, delta, total.a, b, c, total.d, z, total.bias)
        block = _block(inputs.part(start, stop), before, keep=True)
        after = _block_backward(block, before, dout[:, start:stop], after, into)
    return total


class ChunkedScan(torch.autograd.Function):
    """`Inputs`, one by one -> (B, T, E)."""

    @staticmethod
    def forward(ctx: Any, *values: Any) -> Tensor:
        """See `Inputs` for the values."""
        inputs = Inputs(*values)
        out, _, kept = _forward(inputs)
        if any(ctx.needs_input_grad):
            *tensors, ctx.softplus = values
            ctx.save_for_backward(*tensors, torch.stack(kept))
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, dout: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of the values that are tensors."""
        x, delta, a, b, c, d_, z, bias_, kept = ctx.saved_tensors
        inputs = Inputs(x, delta, a, b, c, d_, z, bias_, ctx.softplus)
        found = _backward(inputs, kept, dout)
        d = None if inputs.d is None else found.d
        bias = None if inputs.bias is None else found.bias
        return found.x, found.delta, found.a, found.b, found.c, d, found.z, bias, None


def scan_chunked(inputs: Inputs) -> Tensor:
    """Output (B, T, E)."""
    i = inputs
    out: Tensor = ChunkedScan.apply(i.x, i.delta, i.a, i.b, i.c, i.d, i.z, i.bias, i.softplus)
    return out
