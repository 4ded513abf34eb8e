"""From a tower into the space that scans and texts share.

Source: RadFinder §1.2, 1.3: width -> 2048 -> 2048 -> 256, GELU between, then 512 directions of length 1
(weight normalisation with a fixed gain of 1, no bias).
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from hilum.model.dino_head import three_layers
from hilum.model.fresh import fresh_linears
from hilum.tensors import JointRows, TowerRows


class JointHead(nn.Module):
    """Three layers and a map whose rows have length 1.

    Args:
        width: of the tower. hidden, bottleneck: of the layers. size: of the shared space.
    """

    def __init__(self, width: int, hidden: int = 2048, bottleneck: int = 256, size: int = 512) -> None:
        super().__init__()
        self.layers = three_layers(width, hidden, bottleneck)
        self.last = nn.Linear(bottleneck, size, bias=False)
        self.reset()

    @torch.no_grad()
    def reset(self, generator: torch.Generator | None = None) -> None:
        """Fresh parameters: weights from a normal of 0.02 cut at two deviations, biases zero."""
        fresh_linears(self, generator)

    def forward(self, rows: TowerRows) -> JointRows:
        """Embeddings of length 1."""
        weight = F.normalize(self.last.weight, dim=-1)
        return F.normalize(F.linear(self.layers(rows), weight), dim=-1)
