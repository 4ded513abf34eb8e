"""Losses that do not care how a batch is spread: rows of all ranks with their gradient, and means over ranks.

One contract for every loss of this room: **the mean over ranks of what the ranks return is the loss of one
process that holds the whole batch**, and so is the mean of their gradients, which is what DDP and FSDP2 form.
Ranks may hold different numbers of rows, also none. Without a process group everything is the identity.

Source: the sharing of negatives of CLIP (Radford et al., ICML 2021, §2.3) in the form whose backward pass
adds up what every rank owes a row. FlexiCT's public code exchanges text features around a ring and leaves the
projection and the temperature out of every reduction (spec §2, defect a): each rank trains its own.

Collectives are entered by all ranks or by none: call these functions on every rank, with the same number of
axes, and with tensors that either all or none require a gradient.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.distributed as dist

from hilum.tensors import AnyRows, Scalar


def world() -> int:
    """Number of ranks, 1 without a process group."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """This process among them."""
    return dist.get_rank() if world() > 1 else 0


class Gathered(NamedTuple):
    """Rows of all ranks, one rank after the other.

    Args:
        rows: all of them; the gradient of each goes back to the rank that it came from.
        first: index of this rank's first row in `rows`.
    """

    rows: torch.Tensor
    first: int


def gather_rows(own: AnyRows) -> Gathered:
    """Rows of every rank along the first axis. Ranks may have different numbers of rows."""
    if world() == 1:
        return Gathered(own, 0)
    counts = row_counts(own)
    rows = _GatherRows.apply(own, tuple(counts))
    return Gathered(rows, sum(counts[: rank()]))


def row_counts(own: AnyRows) -> list[int]:
    """Rows that each rank has."""
    if world() == 1:
        return [len(own)]
    counts = [torch.zeros(1, dtype=torch.int64, device=own.device) for _ in range(world())]
    dist.all_gather(counts, torch.tensor([len(own)], dtype=torch.int64, device=own.device))
    return [int(count) for count in counts]


class _GatherRows(torch.autograd.Function):
    """Forward: all rows. Backward: the sum over ranks of what each owes this rank's rows."""

    @staticmethod
    def forward(ctx: Any, own: torch.Tensor, counts: tuple[int, ...]) -> torch.Tensor:
        ctx.counts = counts
        most = max(counts)
        # collectives want equal shapes: short ranks send rows that nobody keeps
        padded = own.new_zeros((most, *own.shape[1:]))
        padded[: len(own)] = own
        received = [torch.empty_like(padded) for _ in counts]
        dist.all_gather(received, padded)
        return torch.cat([rows[:count] for rows, count in zip(received, counts, strict=True)])

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, None]:
        owed = grads[0].contiguous().clone()
        dist.all_reduce(owed)
        return owed.split(ctx.counts)[rank()].clone(), None


@torch.no_grad()
def sum_over_ranks(value: torch.Tensor) -> torch.Tensor:
    """Sum over ranks, without a gradient."""
    if world() == 1:
        return value.detach()
    value = value.detach().clone()
    dist.all_reduce(value)
    return value


@torch.no_grad()
def max_over_ranks(value: torch.Tensor) -> torch.Tensor:
    """Largest over ranks, without a gradient."""
    if world() == 1:
        return value.detach()
    value = value.detach().clone()
    dist.all_reduce(value, op=dist.ReduceOp.MAX)
    return value


def mean_over_ranks(total: Scalar, count: int | torch.Tensor) -> Scalar:
    """This rank's share of a mean over everything: its `total` times ranks over all ranks' `count`, so that
    the mean over ranks is the sum of totals over the sum of counts, however counts differ. 0 with a gradient
    of 0 where nobody counted anything.

    Args:
        total: sum of this rank's terms. count: how many they are, or what their weights add up to.
    """
    dtype = torch.promote_types(total.dtype, torch.float32)
    own = torch.as_tensor(count, dtype=dtype, device=total.device)
    everyone = sum_over_ranks(own)
    return total * (world() / torch.where(everyone > 0, everyone, torch.ones_like(everyone)))
