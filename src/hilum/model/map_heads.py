"""What is read from a network of whole maps: a scan's findings from its anomaly maps (EXACT §2.1b), and one
mask from its findings or organs (EXACT §2.3)."""

from __future__ import annotations

from typing import Literal, cast

import torch
from torch import nn
from torch.nn import functional as F

from hilum.model.exact_vit import ExactViT
from hilum.model.ymamba import YMamba
from hilum.tensors import FindingMapsTensor, MapFeatures, MaskLogits, ScanBatch, ScanLogits

LEVEL = 2
"""Which of `YMamba.skip_features` a map is read at: a quarter of the resolution."""


def map_features(network: YMamba, maps: FindingMapsTensor) -> MapFeatures:
    """A network's encoder on each map by itself, as if it were a scan. Maps of all findings, one at a time:
    eighteen encodings at once do not fit where one does."""
    each = [network.skip_features(maps[:, d : d + 1])[LEVEL] for d in range(maps.shape[1])]
    return torch.stack(each, dim=1)


class MapHead(nn.Module):
    """Features of one map -> a logit."""

    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        self.first = nn.Conv3d(width, 2 * width, 1)
        self.second = nn.Conv3d(2 * width, 4 * width, 1)
        self.drop = nn.Dropout(dropout)
        self.last = nn.Linear(4 * width, 1)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """(B, C, P, Q, R) -> (B)."""
        x = self.second(F.gelu(F.instance_norm(self.first(features))))
        return cast(torch.Tensor, self.last(self.drop(x.mean((2, 3, 4)))))[:, 0]


class MapHeads(nn.Module):
    """A head per finding, each on its own map.

    Args:
        width: channels of the features. findings: how many. dropout: before the last linear map.
    """

    def __init__(self, width: int, findings: int = 18, dropout: float = 0.3) -> None:
        super().__init__()
        self.heads = nn.ModuleList(MapHead(width, dropout) for _ in range(findings))

    def forward(self, features: MapFeatures) -> ScanLogits:
        """Logits per scan and finding."""
        return torch.stack([head(features[:, d]) for d, head in enumerate(self.heads)], dim=1)


class MaskNet(nn.Module):
    """A network of whole maps with one more map of one voxel on its findings, or on its organs.

    Args:
        network: of a preset. reads: which of its full-resolution logits.
    """

    def __init__(self, network: YMamba | ExactViT, reads: Literal["findings", "organs"]) -> None:
        super().__init__()
        self.network, self.reads = network, reads
        config = network.config
        self.mask_head = nn.Conv3d(config.findings if reads == "findings" else config.organs, 1, 1)

    def forward(self, scan: ScanBatch) -> MaskLogits:
        """Logits of the mask."""
        out = self.network(scan)
        return cast(
            torch.Tensor, self.mask_head(out.high if self.reads == "findings" else out.organs)
        ).float()
