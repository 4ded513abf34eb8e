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

from collections.abc import Sequence
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


class Room:
    """Memory for one block of (B, chunks, steps, N, E), used again for every block of its size.

    Args:
        shape: of it. like: a tensor of the type wanted. backward: with what the backward pass needs.

    Attributes:
        decay: exp(step * a). product: of the decays of a chunk up to each step. state: after each step.
            starts: state before each chunk. sent: gradient of each state.
    """

    def __init__(self, shape: Sequence[int], like: Tensor, backward: bool) -> None:
        self.backward = backward
        self.decay, self.state = like.new_empty(shape), like.new_empty(shape)
        self.product = like.new_empty(shape) if backward else self.decay
        self.sent = like.new_empty(shape) if backward else self.state
        self.starts = like.new_empty((shape[0], shape[1] + 1, *shape[3:]))
        # views are taken once: at a few microseconds each they would cost as much as the arithmetic
        self.decays, self.products, self.states, self.sents = (
            part.unbind(2) for part in (self.decay, self.product, self.state, self.sent)
        )
        self.starting = self.starts.unbind(1)
        self.ends = list(zip(self.states[-1].unbind(1), self.products[-1].unbind(1), strict=True))
        self.begins = list(
            zip(self.sents[0].unbind(1), self.products[0].unbind(1), self.decays[0].unbind(1), strict=True)
        )

    @property
    def flat_state(self) -> Tensor:
        """States (B, T, N, E)."""
        return self.state.flatten(1, 2)


class Rooms:
    """The memory of one pass: a room for whole blocks, another for the rest."""

    def __init__(self, backward: bool) -> None:
        self.backward = backward
        self.known: dict[int, Room] = {}

    def of(self, part: Inputs) -> Room:
        """The room for a block of that many steps."""
        batch, time = part.x.shape[:2]
        if time not in self.known:
            steps = STEPS if time % STEPS == 0 else time
            shape = (batch, time // steps, steps, *part.a.shape)
            self.known[time] = Room(shape, part.x, self.backward)
        return self.known[time]


def _rows(per_step: Tensor, room: Room) -> Tensor:
    """(B, T, ...) -> (B, chunks, steps, ...)."""
    return per_step.unflatten(1, room.state.shape[1:3])


def _fill(part: Inputs, step: Tensor, before: Tensor, room: Room) -> Tensor:
    """Every state of a block, from the state (B, N, E) before it; returns the one after it."""
    torch.mul(_rows(step, room)[..., None, :], part.a, out=room.decay).exp_()
    torch.mul(_rows(step * part.x, room)[..., None, :], _rows(part.b, room)[..., None], out=room.state)
    if room.backward:
        room.products[0].copy_(room.decays[0])
    for t in range(1, len(room.states)):
        room.states[t].addcmul_(room.decays[t], room.states[t - 1])
        torch.mul(room.decays[t], room.products[t - 1], out=room.products[t])
    room.starting[0].copy_(before)
    for k, (end, product) in enumerate(room.ends):
        torch.addcmul(end, product, room.starting[k], out=room.starting[k + 1])
    room.state.addcmul_(room.product, room.starts[:, :-1, None])
    return room.starting[-1].clone()


def _step(part: Inputs) -> Tensor:
    return F.softplus(part.raw()) if part.softplus else part.raw()


def _read(part: Inputs, room: Room) -> Tensor:
    """c · state of every step, and the skip: (B, T, E)."""
    y = torch.matmul(part.c[:, :, None], room.flat_state)[:, :, 0]
    return y if part.d is None else y.addcmul_(part.x, part.d)


def _forward(inputs: Inputs) -> tuple[Tensor, list[Tensor]]:
    """Output, and the state before every block."""
    out = torch.empty_like(inputs.x, memory_format=torch.contiguous_format)
    state = inputs.x.new_zeros((len(inputs.x), *inputs.a.shape))
    kept, rooms = [], Rooms(backward=False)
    for start, stop in inputs.spans():
        kept.append(state)
        part = inputs.part(start, stop)
        room = rooms.of(part)
        state = _fill(part, _step(part), state, room)
        y = _read(part, room)
        if part.z is None:
            out[:, start:stop] = y
        else:
            torch.mul(y, F.silu(part.z), out=out[:, start:stop])
    return out, kept


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


def _send(part: Inputs, dy: Tensor, after: Tensor, room: Room) -> Tensor:
    """Gradient of every state of a block, through all that follows it; returns that of the state before it.

    Args:
        dy: of what is read, (B, T, E). after: of the state at the block's end, from later blocks.

    Overwrites the room's products: from each step to the end of its chunk.
    """
    torch.mul(_rows(dy, room)[..., None, :], _rows(part.c, room)[..., None], out=room.sent)
    room.products[-1].fill_(1.0)
    for t in range(len(room.states) - 2, -1, -1):
        room.sents[t].addcmul_(room.decays[t + 1], room.sents[t + 1])
        torch.mul(room.decays[t + 1], room.products[t + 1], out=room.products[t])
    room.starting[-1].copy_(after)
    for k in range(len(room.begins) - 1, -1, -1):
        sent, product, decay = room.begins[k]
        torch.addcmul(sent, product, room.starting[k + 1], out=room.starting[k]).mul_(decay)
    room.sent.addcmul_(room.product, room.starts[:, 1:, None])
    return room.starting[0].clone()


def _of_steps(part: Inputs, step: Tensor, before: Tensor, room: Room, into: Gradients) -> Tensor:
    """Gradient of step sizes through the decays, and of a.

    That of step * a is each state's own, times what the decay let through of the state before it. Overwrites
    the room's decays.
    """
    log = room.decay.flatten(1, 2).mul_(room.sent.flatten(1, 2))
    log[:, 1:].mul_(room.flat_state[:, :-1])
    log[:, 0].mul_(before)
    found = torch.zeros_like(step)
    for n, row in enumerate(part.a):
        found.addcmul_(log[:, :, n], row)
    into.a.add_(log.mul_(step[:, :, None]).sum((0, 1)))
    return found


def _block_backward(
    part: Inputs, before: Tensor, dout: Tensor, after: Tensor, room: Room, into: Gradients
) -> Tensor:
    """Gradients of one block's inputs; returns that of the state before it.

    Args:
        part: the block. before: state at its start. dout: of its output. after: of the state at its end.
            room: memory. into: views of the block's rows.
    """
    step, dy = _step(part), dout
    _fill(part, step, before, room)
    if part.z is not None and into.z is not None:
        gate = torch.sigmoid(part.z)
        dy = dout * (part.z * gate)
        into.z.copy_(dout * _read(part, room) * (gate * (1 + part.z * (1 - gate))))
    first = _send(part, dy, after, room)
    sent = room.sent.flatten(1, 2)
    into.c.copy_(torch.matmul(room.flat_state, dy[..., None])[..., 0])
    into.b.copy_(torch.matmul(sent, (step * part.x)[..., None])[..., 0])
    entered = torch.matmul(part.b[:, :, None], sent)[:, :, 0]
    of_step = _of_steps(part, step, before, room, into).addcmul_(entered, part.x)
    dx = entered.mul_(step)
    if part.d is not None:
        into.d.add_((dy * part.x).sum((0, 1)))
        dx.addcmul_(dy, part.d)
    into.x.copy_(dx)
    into.delta.copy_(of_step.mul_(torch.sigmoid(part.raw())) if part.softplus else of_step)
    into.bias.add_(into.delta.sum((0, 1)))
    return first


def _backward(inputs: Inputs, kept: Tensor, dout: Tensor) -> Gradients:
    """Gradients of every input, block by block from the last."""
    total, rooms = Gradients.of(inputs), Rooms(backward=True)
    after = torch.zeros_like(kept[0])
    for before, (start, stop) in reversed(list(zip(kept, inputs.spans(), strict=True))):
        x, delta, b, c = (t[:, start:stop] for t in (total.x, total.delta, total.b, total.c))
        z = None if total.z is None else total.z[:, start:stop]
        into = Gradients(x, delta, total.a, b, c, total.d, z, total.bias)
        part = inputs.part(start, stop)
        after = _block_backward(part, before, dout[:, start:stop], after, rooms.of(part), into)
    return total


class ChunkedScan(torch.autograd.Function):
    """`Inputs`, one by one -> (B, T, E)."""

    @staticmethod
    def forward(ctx: Any, *values: Any) -> Tensor:
        """See `Inputs` for the values."""
        inputs = Inputs(*values)
        out, kept = _forward(inputs)
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
