"""One process or many: torchrun's environment, wrapping by DDP or FSDP2, and what ranks agree on."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import timedelta
from typing import Literal

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.nn.parallel import DistributedDataParallel

from hilum.errors import UsageError
from hilum.model.vit import ViT
from hilum.objective.gather import max_over_ranks, sum_over_ranks, world

Parallel = Literal["ddp", "fsdp"]


@contextmanager
def process_group(device: torch.device) -> Iterator[None]:
    """Joins the ranks that torchrun started; without torchrun nothing happens."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or dist.is_initialized():
        yield
        return
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=timedelta(minutes=30))
    try:
        yield
    finally:
        dist.destroy_process_group()


def device_of(name: str) -> torch.device:
    """`auto` is this rank's GPU where there is one.

    Raises:
        UsageError: `CONFIG_VALUE` for what torch does not know.
    """
    if name != "auto":
        try:
            return torch.device(name)
        except RuntimeError as error:
            raise UsageError("CONFIG_VALUE", "a device that torch knows", got=f"{name}: {error}") from None
    if not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))


def wrapped(model: nn.Module, how: Parallel) -> nn.Module:
    """The model as several ranks train it; in one process it stays as it is."""
    if world() == 1:
        return model
    device = next(model.parameters()).device
    if how == "ddp":
        return DistributedDataParallel(model, device_ids=[device] if device.type == "cuda" else None)
    return sharded(model, device)


def sharded(model: nn.Module, device: torch.device) -> nn.Module:
    """FSDP2: blocks of a backbone and layers of a text tower alone, the rest together."""
    mesh = init_device_mesh(device.type, (world(),))
    for module in list(model.modules()):
        if isinstance(module, ViT):
            for block in module.blocks:
                fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)
    return model


def without_exchange(model: nn.Module) -> AbstractContextManager[None]:
    """Backward passes inside leave gradients on their ranks; `exchange_gradients` follows. FSDP2 exchanges
    at every pass, and needs neither."""
    return model.no_sync() if isinstance(model, DistributedDataParallel) else nullcontext()


@torch.no_grad()
def exchange_gradients(model: nn.Module) -> None:
    """Mean of the gradients over ranks, after `without_exchange`."""
    if isinstance(model, FSDPModule) or world() == 1:
        return
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    if gradients:
        flat = torch.cat([g.flatten() for g in gradients])
        dist.all_reduce(flat)
        for gradient, mean in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
            gradient.copy_(mean.view_as(gradient) / world())


def mean_losses(losses: Mapping[str, torch.Tensor]) -> dict[str, float]:
    """Losses of the whole batch: the mean over ranks."""
    if not losses:
        return {}
    values = torch.stack([value.detach().double() for value in losses.values()])
    return dict(zip(losses, (sum_over_ranks(values) / world()).tolist(), strict=True))


def any_rank(here: bool, device: torch.device) -> bool:
    """Whether it holds on any rank; every rank calls it."""
    return bool(max_over_ranks(torch.tensor(float(here), device=device)) > 0)
