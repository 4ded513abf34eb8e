"""One space for scans and texts: what the baselines that learn from reports share.

The text encoder is frozen and outside; here are a linear map of its embeddings, a linear map of cells, a
learned scale (`model.temperature`), and the prompts of the findings, which are kept with the weights so that
a model needs no text encoder to read a scan.

A finding's score is the logit of the softmax over its two prompts: scale * cos(scan, there) - scale *
cos(scan, not there). A scan's embedding is a weighted mean of its cells' embeddings, so the score is the same
mean of what each cell adds to it: the similarity map, and pooled it is the score by construction.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
from torch import nn
from torch.nn import functional as F

from hilum.model.running import learn
from hilum.model.temperature import Temperature
from hilum.model.ynet import OrganFeatures, YNetConfig
from hilum.tensors import (
    AnomalyLogits,
    CellEmbeddings,
    FrozenTexts,
    JointTexts,
    PlaceEmbeddings,
    PromptDirections,
    ScanScores,
    TextPrompts,
)

LEAST_DEVIATION = 1e-3
"""A feature that all scans share says nothing; it is not blown up."""


@dataclass(frozen=True)
class AlignConfig(YNetConfig):
    """The Y-net's numbers, so that the trunk is the same, and those of the space.

    Args:
        texts: numbers of a frozen embedding. size: of the space. wide: channels of the decoder at 1/8, which
            bring the parameters to the Y-net's; 0 where the decoder is the Y-net's own. keys: of the
            attention that pools a place.
    """

    texts: int = 384
    size: int = 32
    wide: int = 0
    keys: int = 8


@dataclass(frozen=True)
class AlignedOutput:
    """One scan's answer.

    Args:
        scan: score of each finding (1, D). maps: what each half-resolution cell adds to it.
        organs: of a network that knows organs.
    """

    scan: ScanScores
    maps: AnomalyLogits
    organs: OrganFeatures | None = None


class TextSide(nn.Module):
    """Frozen embeddings into the space, the scale, and the findings' prompts."""

    prompts: TextPrompts

    def __init__(self, config: AlignConfig) -> None:
        super().__init__()
        self.project = nn.Linear(config.texts, config.size)
        self.scale = Temperature()
        self.register_buffer("prompts", torch.zeros(2, config.findings, config.texts))

    def forward(self, texts: FrozenTexts) -> JointTexts:
        """(..., `texts`) -> (..., `size`), length 1."""
        return F.normalize(self.project(texts).float(), dim=-1)

    def directions(self) -> PromptDirections:
        """From each finding's absence to its presence, times the scale."""
        there, not_there = self(self.prompts)
        return cast(torch.Tensor, self.scale() * (there - not_there))


class PooledLinear(nn.Module):
    """Pooled features of each place into the space, each feature standardised over the scans of the training.

    What a lesion adds to the mean of a whole scan is small beside what all scans share; a linear map of the
    raw means would need hundreds of steps to grow weights that see it. The running mean and deviation are
    those of batch norm, which projection heads of contrastive learning have too (SimCLR, Chen et al., ICML
    2020); with three scans a step the batch itself says too little. All of it is one linear map, so cells
    pass it one by one and their weighted mean is the place's embedding.
    """

    mean: torch.Tensor
    deviation: torch.Tensor
    seen: torch.Tensor

    def __init__(self, places: int, width: int, size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(places, size, width))
        self.bias = nn.Parameter(torch.empty(places, size))
        nn.init.normal_(self.weight, std=width**-0.5)
        # not zeros: the first scan is its own mean, and a vector of no length has no direction
        nn.init.normal_(self.bias, std=0.1)
        self.register_buffer("mean", torch.zeros(places, width))
        self.register_buffer("deviation", torch.ones(places, width))
        self.register_buffer("seen", torch.zeros(1))

    @torch.no_grad()
    def learn(self, pooled: torch.Tensor) -> None:
        """Running statistics, from one scan's pooled features (P, C)."""
        variance = self.deviation.square()
        learn(self.seen, self.mean, variance, pooled)
        self.deviation.copy_(variance.sqrt())

    def linear(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Weights (P, E, C) and biases (P, E) that take raw features."""
        # copies: the next scan of a step changes the statistics before the gradient is taken
        mean, deviation = self.mean.clone(), self.deviation.clamp_min(LEAST_DEVIATION)
        weight = self.weight / deviation[:, None]
        return weight, self.bias - torch.einsum("pec,pc->pe", weight, mean)

    def forward(self, pooled: torch.Tensor) -> PlaceEmbeddings:
        """(P, C) -> (P, E), not of length 1; in training the statistics learn from it first."""
        with torch.autocast(pooled.device.type, enabled=False):
            pooled = pooled.float()
            if self.training:
                self.learn(pooled)
            weight, bias = self.linear()
            return torch.einsum("pec,pc->pe", weight, pooled) + bias

    def cells(self, read: torch.Tensor) -> CellEmbeddings:
        """Features of cells (N, C) -> (N, P, E)."""
        with torch.autocast(read.device.type, enabled=False):
            weight, bias = self.linear()
            return torch.einsum("nc,pec->npe", read.float(), weight) + bias


def contributions(
    cells: CellEmbeddings, scan: torch.Tensor, directions: PromptDirections, *, cosine: bool
) -> torch.Tensor:
    """What each cell (N, E) says of each finding (N, D).

    Args:
        scan: its embedding (E,) before it is brought to length 1. cosine: each cell by its own length
            instead, as maps of similarity are often drawn; they no longer add up to the score.
    """
    length = cells.norm(dim=-1, keepdim=True) if cosine else scan.norm()
    return (cells / length.clamp_min(1e-6)) @ directions.T


def spread(logits: torch.Tensor) -> torch.Tensor:
    """Logits of any shape and size to a range in which probabilities differ and thresholds lie dense; order
    and sign stay."""
    return logits.sign() * logits.abs().log1p()
