"""From a token to prototypes: three layers, a direction of 256 numbers, one linear map.

Source: Caron et al., DINO, ICCV 2021, appendix C; sizes of FlexiCT §1: 864 -> 2048 -> 2048 -> 256 -> 65,536,
23.3 M parameters. DINO normalises the weights of the last map (each prototype is a direction too), DINOv3 and
FlexiCT do not. Heads are for training; no exported model has one.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F

from hilum.errors import UsageError
from hilum.model.fresh import fresh_linears
from hilum.tensors import HeadDirections, HeadInputs, HeadLogits


@dataclass(frozen=True)
class DinoHeadConfig:
    """Sizes of a head.

    Args:
        width: of the backbone's tokens. hidden, bottleneck, prototypes: of the layers after it; fewer
            prototypes suit fewer scans. weight_norm: rows of the last map have length 1.
    """

    width: int
    hidden: int = 2048
    bottleneck: int = 256
    prototypes: int = 65_536
    weight_norm: bool = False

    def __post_init__(self) -> None:
        for name in ("width", "hidden", "bottleneck", "prototypes"):
            if getattr(self, name) < 1:
                raise UsageError(
                    "CONFIG_VALUE",
                    f"{name} of a head is positive",
                    expected="at least 1",
                    got=getattr(self, name),
                )


def three_layers(width: int, hidden: int, bottleneck: int) -> nn.Sequential:
    """What a head does before its last map."""
    return nn.Sequential(
        nn.Linear(width, hidden),
        nn.GELU(),
        nn.Linear(hidden, hidden),
        nn.GELU(),
        nn.Linear(hidden, bottleneck),
    )


class DinoHead(nn.Module):
    """The head. DINO and iBOT each have one."""

    def __init__(self, config: DinoHeadConfig) -> None:
        super().__init__()
        self.config = config
        self.layers = three_layers(config.width, config.hidden, config.bottleneck)
        self.last = nn.Linear(config.bottleneck, config.prototypes, bias=False)
        self.reset()

    @torch.no_grad()
    def reset(self, generator: torch.Generator | None = None) -> None:
        """Fresh parameters: weights from a normal of 0.02 cut at two deviations, biases zero."""
        fresh_linears(self, generator)

    def directions(self, tokens: HeadInputs) -> HeadDirections:
        """Tokens before the last map, of length 1."""
        return F.normalize(self.layers(tokens), dim=-1, eps=1e-6)

    def prototypes(self, directions: HeadDirections) -> HeadLogits:
        """Logits of directions; for a chunk of them at a time see `objective.ibot`."""
        weight = self.last.weight
        return F.linear(directions, F.normalize(weight, dim=-1) if self.config.weight_norm else weight)

    def forward(self, tokens: HeadInputs) -> HeadLogits:
        """Logits of every prototype."""
        return self.prototypes(self.directions(tokens))
