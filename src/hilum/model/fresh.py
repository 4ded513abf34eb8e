"""First values of a network's parameters."""

from __future__ import annotations

import torch
from torch import nn

STD = 0.02
"""Of linear maps and tokens of a transformer (Dosovitskiy et al., ICLR 2021, and all that follow it)."""


@torch.no_grad()
def cut_normal(parameter: torch.Tensor, generator: torch.Generator | None = None, std: float = STD) -> None:
    """Fills with a normal of `std` that is cut at two deviations; 0 fills with zeros."""
    if std:
        nn.init.trunc_normal_(parameter, std=std, a=-2 * std, b=2 * std, generator=generator)
    else:
        nn.init.zeros_(parameter)


@torch.no_grad()
def fresh_linear(module: nn.Linear, generator: torch.Generator | None = None, std: float = STD) -> None:
    """`cut_normal` for the weights, zeros for the biases. Nothing on the meta device."""
    if module.weight.is_meta:
        return
    cut_normal(module.weight, generator, std)
    if module.bias is not None:
        nn.init.zeros_(module.bias)


def fresh_linears(module: nn.Module, generator: torch.Generator | None = None) -> None:
    """`fresh_linear` for every linear map in it."""
    for part in module.modules():
        if isinstance(part, nn.Linear):
            fresh_linear(part, generator)
