"""A dense network as a run of EXACT trains it: logits as a tuple, which FSDP2 can look into, and which of its
parameters are trained."""

from __future__ import annotations

from collections.abc import Iterable
from typing import cast

import torch
from torch import nn
from torch.nn.utils import parametrize

from hilum.errors import UsageError
from hilum.tensors import AnomalyLogits, FineAnomalyLogits, OrganLogits, ScanBatch

Logits = tuple[OrganLogits, AnomalyLogits, FineAnomalyLogits]


class ExactStudent(nn.Module):
    """The network of a preset that gives whole maps."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, scan: ScanBatch) -> Logits:
        """Logits of organs, and of anomalies at half and at full resolution."""
        out = self.network(scan)
        return out.organs, out.low, out.high


class LowRank(nn.Module):
    """W + B A as a parametrisation: the weight stays as it came, a change of low rank is trained.

    Source: Hu et al., LoRA, ICLR 2022. B starts at 0, so that a run starts with the model that it adapts.
    """

    def __init__(self, weight: torch.Tensor, rank: int) -> None:
        super().__init__()
        rows, columns = weight.shape[0], weight[0].numel()
        rank = min(rank, rows, columns)
        self.down = nn.Parameter(torch.empty((rank, columns)).normal_(std=columns**-0.5))
        self.up = nn.Parameter(torch.zeros((rows, rank)))

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        """The weight as it is used."""
        return weight + (self.up @ self.down).view_as(weight)


def adapt(network: nn.Module, how: str, rank: int, outputs: Iterable[int]) -> None:
    """Freezes what is not to be trained.

    Args:
        network: filled with the weights that it starts from. how: ``full``, ``head`` or ``lora``.
        rank: of LoRA's changes, in linear maps and convolutions of one voxel. outputs: channels of heads.

    Raises:
        UsageError: `CONFIG_VALUE` for a network without a head of that many channels.
    """
    if how == "full":
        return
    heads = head_modules(network, outputs)
    if not heads:
        raise UsageError("CONFIG_VALUE", "a network has heads to adapt", expected=list(outputs), got="none")
    network.requires_grad_(False)
    for head in heads:
        head.requires_grad_(True)
    if how == "lora":
        for module in list(network.modules()):
            if module not in heads and _projects(module):
                parametrize.register_parametrization(
                    module, "weight", LowRank(cast(torch.Tensor, module.weight), rank)
                )


def merge(network: nn.Module) -> nn.Module:
    """LoRA's changes put into the weights, in place: the network is as its preset builds it."""
    for module in list(network.modules()):
        if parametrize.is_parametrized(module, "weight"):
            parametrize.remove_parametrizations(module, "weight", leave_parametrized=True)
    return network


def head_modules(network: nn.Module, outputs: Iterable[int]) -> list[nn.Module]:
    """Linear readings of features: maps of one voxel to exactly as many channels as there are organs or
    findings."""
    wanted = set(outputs)
    return [m for m in network.modules() if _projects(m) and _width(m) in wanted]


def _projects(module: nn.Module) -> bool:
    if isinstance(module, nn.Conv3d):
        return set(module.kernel_size) == {1} and module.groups == 1
    return isinstance(module, nn.Linear)


def _width(module: nn.Module) -> int:
    return module.out_channels if isinstance(module, nn.Conv3d) else cast(nn.Linear, module).out_features
