"""How sharp similarities are: the learned scale of a model of scans and reports."""

from __future__ import annotations

import math

import torch
from torch import nn

from hilum.tensors import Scalar

START, HIGHEST = 2.659, math.log(100)


class Temperature(nn.Module):
    """Learned scale of similarities, exp of a parameter in [0, ln 100].

    The parameter is put back into its range before it is used, not clipped on the way: a clip has no gradient
    outside its range, and a step too far would be for ever. One element with an axis, as FSDP2 wants it.
    """

    def __init__(self, start: float = START, highest: float = HIGHEST) -> None:
        super().__init__()
        self.highest = highest
        self.log_scale = nn.Parameter(torch.tensor([start]))

    def forward(self) -> Scalar:
        """The scale, 1 to 100, in float32 or better."""
        with torch.no_grad():
            self.log_scale.clamp_(0.0, self.highest)
        exact = self.log_scale if self.log_scale.dtype == torch.float64 else self.log_scale.float()
        return exact.exp().squeeze(0)


class SigmoidScale(nn.Module):
    """Learned scale and bias of pairs that are judged alone (SigLIP, Zhai et al., ICCV 2023): exp(t), t from
    ln 10, and b from -10, where nearly all pairs are no pairs. Both are free."""

    def __init__(self, start: float = math.log(10), bias: float = -10.0) -> None:
        super().__init__()
        # elements with an axis, as FSDP2 wants them
        self.log_scale, self.bias = nn.Parameter(torch.tensor([start])), nn.Parameter(torch.tensor([bias]))

    def forward(self) -> tuple[Scalar, Scalar]:
        """Scale and bias, in float32 or better."""
        t, b = (p if p.dtype == torch.float64 else p.float() for p in (self.log_scale, self.bias))
        return t.exp().squeeze(0), b.squeeze(0)
