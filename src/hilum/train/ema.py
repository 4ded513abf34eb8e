"""The running average of a model's weights, the same on one device, under DDP and sharded by FSDP2.

Source: Tarvainen and Valpola, NeurIPS 2017; as the teacher: Caron et al., DINO, ICCV 2021.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping

import torch
from torch import nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import get_ema_multi_avg_fn

from hilum.errors import UsageError


def unwrapped(model: nn.Module) -> nn.Module:
    """The model inside DDP and `torch.compile`. FSDP2 wraps nothing: its model is the model."""
    while True:
        if isinstance(model, DistributedDataParallel):
            model = model.module
        elif isinstance(inside := getattr(model, "_orig_mod", None), nn.Module):
            model = inside
        else:
            return model


class Average:
    """average ← momentum · average + (1 - momentum) · model, for **every** parameter and buffer of a model.

    What is exported is what the average holds, so that no part of a student reaches an export because it was
    forgotten (spec §2, defect c: the average's vision tower was published with the student's own projection
    and text tower). It is kept in float32 also where the model is bfloat16: at a momentum of 0.999 a step is
    smaller than half the last digit of a bfloat16 number, and nothing would move.

    Buffers of whole numbers are copied. Ranks do not communicate: they average equal weights, or each its own
    shard.

    Args:
        model: what is trained; may be wrapped. module: for a model under FSDP2, another of its kind, sharded
            the same way, which becomes the average whatever it holds; None takes a copy of the model.

    Raises:
        UsageError: `CONFIG_VALUE` for a module that is no twin of the model: other names, shapes, shards or
            devices, or no float32; for a sharded model without one.
    """

    def __init__(self, model: nn.Module, module: nn.Module | None = None) -> None:
        self.model = unwrapped(model)
        self.module = _copied(self.model) if module is None else unwrapped(module)
        self.module.requires_grad_(False).eval()
        values, averages = _tensors(self.model), _tensors(self.module)
        _same_kind(values, averages)
        with torch.no_grad():
            for name, average in averages.items():
                average.copy_(values[name])

    @torch.no_grad()
    def update(self, momentum: float) -> None:
        """After every step of the optimiser, with that step's momentum.

        Raises:
            UsageError: `CONFIG_VALUE` for a momentum outside 0 to 1.
        """
        if not 0 <= momentum <= 1:
            raise UsageError("CONFIG_VALUE", "a momentum is a share", expected="0 to 1", got=momentum)
        values, averages = _tensors(self.model), _tensors(self.module)
        moving = [name for name, average in averages.items() if average.is_floating_point()]
        # one dtype in the list: one kernel for all
        current = [_own(values[name]).to(averages[name].dtype) for name in moving]
        get_ema_multi_avg_fn(momentum)([_own(averages[name]) for name in moving], current, 0)
        for name in averages.keys() - set(moving):
            averages[name].copy_(values[name])

    def tensors(self) -> dict[str, torch.Tensor]:
        """The average's state, whole, on the CPU: what is exported. Under FSDP2 shards are put together: call
        it on every rank."""
        _reshard(self.module)
        return {
            name: (value.full_tensor() if isinstance(value, DTensor) else value).detach().cpu().clone()
            for name, value in self.module.state_dict().items()
        }


def _copied(model: nn.Module) -> nn.Module:
    if any(isinstance(p, DTensor) for p in model.parameters()):
        raise UsageError(
            "CONFIG_VALUE",
            "the average of a sharded model is sharded too",
            expected="module=: another of its kind, sharded the same way",
            got="None",
        )
    module = copy.deepcopy(model).float()
    for parameter in module.parameters():
        parameter.grad = None
    return module


def _tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    """Every parameter and buffer, also buffers that the state leaves out; shards where there are."""
    _reshard(model)
    return {name: value.detach() for name, value in (*model.named_parameters(), *model.named_buffers())}


def _own(value: torch.Tensor) -> torch.Tensor:
    # shards of twins lie alike; a list may not mix them with buffers, which every rank has whole
    return value.to_local() if isinstance(value, DTensor) else value


def _reshard(model: nn.Module) -> None:
    # after a forward pass FSDP2 leaves the root whole: a copy, which the next pass would use as it was
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def _same_kind(values: Mapping[str, torch.Tensor], averages: Mapping[str, torch.Tensor]) -> None:
    wrong = [f"{name} in one alone" for name in values.keys() ^ averages.keys()]
    for name in values.keys() & averages.keys():
        one, other = _layout(values[name]), _layout(averages[name])
        if one != other:
            wrong.append(f"{name}: {one} and {other}")
        elif averages[name].is_floating_point() and averages[name].dtype.itemsize < 4:
            wrong.append(f"{name} in {averages[name].dtype}")
    if wrong:
        raise UsageError(
            "CONFIG_VALUE",
            "an average is the model's twin in float32",
            expected="the same names, shapes, shards and devices",
            got=sorted(wrong)[:3],
        )


def _layout(value: torch.Tensor) -> tuple[object, ...]:
    shards = tuple(value.placements) if isinstance(value, DTensor) else None
    return tuple(value.shape), value.device, shards
