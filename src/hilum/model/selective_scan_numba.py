"""The selective scan on CPU cores, compiled by Numba: one pass over time, states never leave the cache.

Sixteen channels side by side are one value, a vector register or two of the processor, so that exponentials,
gates and sums over states need no step across a register, however many states there are. Tokens are taken in
blocks; within a block one group of sixteen channels after the other, whose states stay in the first-level
cache. For the backward pass the state before every block is kept, and the rest of the block computed again.
Sequences of a batch and groups of channels are shared out over as many threads as torch has.

The first call with a floating type compiles: seconds, once per machine, or once per process where Numba may
write neither beside its kernels nor into the user's cache folder (or NUMBA_CACHE_DIR).

Source: Gu & Dao 2023, §3.3 (recomputation). Imported only where Numba is installed (the extra `fast`).
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from hilum.model.selective_scan_chunked import Inputs
from hilum.model.selective_scan_kernels import BLOCK, LANES, LN2, Item, Layer, Sums, backward, forward

WORTH = 2_000_000
"""Updates of a state that are worth a thread: about a millisecond."""


@dataclass(frozen=True)
class _Job:
    """A sequence of the batch, some groups of channels, and which of the sequence's jobs it is."""

    row: int
    groups: tuple[int, int]
    part: int


class _Plan:
    """A scan's inputs as kernels take them, and how its work is shared out.

    Args:
        inputs: of the scan, on the CPU, float32 or float64.

    Attributes:
        groups: of `LANES` channels, per sequence. parts: jobs per sequence. jobs: all of them.
    """

    def __init__(self, inputs: Inputs) -> None:
        (self.batch, self.tokens, self.channels), self.states = inputs.x.shape, len(inputs.a)
        self.groups = -(-self.channels // LANES)
        updates = self.batch * self.tokens * self.groups * LANES * self.states
        threads = max(1, min(torch.get_num_threads(), updates // WORTH))
        self.parts = max(1, min(self.groups, -(-threads // max(1, self.batch))))
        self.threads = min(threads, self.batch * self.parts)
        bounds = [self.groups * n // self.parts for n in range(self.parts + 1)]
        spans = list(pairwise(bounds))
        self.jobs = [_Job(row, spans[n], n) for row in range(self.batch) for n in range(self.parts)]
        self.layer = self._layer(inputs)
        z = inputs.x if inputs.z is None else inputs.z
        self.rows = [_dense(t) for t in (inputs.x, inputs.delta, z, inputs.b, inputs.c)]

    def _layer(self, i: Inputs) -> Layer:
        more = self.groups * LANES - self.channels
        none = i.x.new_zeros(self.channels)
        a = F.pad(i.a.detach() / LN2, (0, more)).unflatten(1, (-1, LANES)).transpose(0, 1)
        d, bias = (F.pad(none if t is None else t.detach(), (0, more)) for t in (i.d, i.bias))
        flat = [t.reshape(-1).numpy() for t in (a, d, bias)]
        return Layer(
            flat[0], flat[1], flat[2], self.tokens, self.channels, self.states, i.softplus, i.z is not None
        )

    def item(self, row: int) -> Item:
        """A sequence of the batch."""
        return Item._make([*(_flat(t[row]) for t in self.rows), *(t.stride(1) for t in self.rows)])

    def run(self, work: Callable[[_Job], None]) -> None:
        """Every job, on as many threads as torch has."""
        if self.threads <= 1:
            for job in self.jobs:
                work(job)
        else:
            with ThreadPoolExecutor(self.threads) as pool:
                list(pool.map(work, self.jobs))


def _dense(rows: Tensor) -> Tensor:
    """Channels side by side in memory; rows may have other things between them."""
    return rows.detach() if rows.stride(2) == 1 else rows.detach().contiguous()


def _flat(rows: Tensor) -> np.ndarray:
    """(T, E) as the stretch of memory from its first number to its last."""
    stretch = (len(rows) - 1) * rows.stride(0) + rows.shape[1] if rows.numel() else 0
    return rows.as_strided((stretch,), (1,)).numpy()


def _numbers(dense: Tensor) -> np.ndarray:
    """The same memory, flat."""
    return dense.view(-1).numpy()


def _run_forward(inputs: Inputs, keep: bool) -> tuple[Tensor, Tensor]:
    """Output (B, T, E), and (B, blocks, groups, N, LANES) before every block, or nothing."""
    plan = _Plan(inputs)
    out = torch.empty_like(inputs.x, memory_format=torch.contiguous_format)
    blocks = -(-plan.tokens // BLOCK) if keep else 0
    kept = out.new_empty((plan.batch, blocks, plan.groups, plan.states, LANES))

    def work(job: _Job) -> None:
        ours, before = _numbers(out[job.row]), _numbers(kept[job.row])
        forward(plan.item(job.row), plan.layer, job.groups, keep, ours, before)

    plan.run(work)
    return out, kept


def _run_backward(inputs: Inputs, kept: Tensor, dout: Tensor) -> dict[str, Tensor]:
    """Gradients by the names of `Inputs`, in their order."""
    plan, zeros = _Plan(inputs), inputs.x.new_zeros
    rows = (plan.batch, plan.tokens, plan.channels)
    x, delta = inputs.x.new_empty(rows), inputs.x.new_empty(rows)
    z = inputs.x.new_empty(rows if inputs.z is not None else (plan.batch, 0))
    # every job of a sequence has its own sums over channels, so that none writes where another does
    b, c = (zeros(plan.batch, plan.parts, plan.tokens, plan.states) for _ in range(2))
    a = zeros(plan.batch, plan.groups, plan.states, LANES)
    d, bias = (zeros(plan.batch, plan.groups, LANES) for _ in range(2))
    dout = dout.contiguous()

    def work(job: _Job) -> None:
        n = job.row
        into = (x[n], delta[n], z[n], b[n, job.part], c[n, job.part], a[n], d[n], bias[n])
        sums = Sums._make(_numbers(t) for t in into)
        backward(plan.item(n), plan.layer, job.groups, _numbers(kept[n]), _numbers(dout[n]), sums)

    plan.run(work)
    a = a.sum(0).transpose(0, 1).flatten(1)[:, : plan.channels]
    d, bias = (t.sum(0).flatten()[: plan.channels] for t in (d, bias))
    return {"x": x, "delta": delta, "a": a, "b": b.sum(1), "c": c.sum(1), "d": d, "z": z, "bias": bias}


class NumbaScan(torch.autograd.Function):
    """`Inputs`, one by one -> (B, T, E)."""

    @staticmethod
    def forward(ctx: Any, *values: Any) -> Tensor:
        """See `Inputs` for the values."""
        keep = any(ctx.needs_input_grad)
        out, kept = _run_forward(Inputs(*values), keep)
        if keep:
            *tensors, ctx.softplus = values
            ctx.save_for_backward(*tensors, kept)
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, dout: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of the values that are tensors."""
        x, delta, a, b, c, d, z, bias, kept = ctx.saved_tensors
        found = _run_backward(Inputs(x, delta, a, b, c, d, z, bias, ctx.softplus), kept, dout)
        there = zip(found.values(), (x, delta, a, b, c, d, z, bias), strict=True)
        return (*(None if value is None else gradient for gradient, value in there), None)


def scan_numba(inputs: Inputs) -> Tensor:
    """Output (B, T, E), for inputs on the CPU."""
    i = inputs
    out: Tensor = NumbaScan.apply(i.x, i.delta, i.a, i.b, i.c, i.d, i.z, i.bias, i.softplus)
    return out
