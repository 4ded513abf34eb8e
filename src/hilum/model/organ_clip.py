"""A baseline that learns from sentences about organs, in fVLM's manner (EXACT §4): one embedding per place.

A place (`text.prompts.PLACES`) is what opens the gate of a finding, so that this network and the Y-net are
confined alike. The organ branch, the anomaly decoder and the cell reader are the Y-net's own. Each place has
a learned query that pools its cells (softmax attention, at first their mean) and a linear map into the space;
a finding is scored and mapped in its place.

What differs from fVLM: a convolutional trunk instead of a ViT; one attention head over cells of one
resolution; organs from the network's own decoder instead of a segmenter's masks at test; a frozen sentence
encoder.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import nn

from hilum.model.align import AlignConfig, AlignedOutput, PooledLinear, TextSide, contributions
from hilum.model.bands import CellReader
from hilum.model.fold import rows, unrows
from hilum.model.ynet import AnomalyCells, YNet, channels_last
from hilum.tensors import CellShares, PlaceEmbeddings, PlaceShares, ScanBatch
from hilum.text.prompts import PLACE_OF, PLACES

LEAST_SHARE = 1e-6
"""Weight of a cell outside a place: one that was not found is pooled over everything."""


def place_shares(organs: CellShares, places: Sequence[tuple[int, ...]] = PLACES) -> PlaceShares:
    """How much of each cell is in each organ (N, O) -> in each place (N, P): the most of its channels."""
    return torch.stack([organs[:, list(channels)].amax(1) for channels in places], dim=1)


class PlaceHeads(nn.Module):
    """The cell reader, and what pools and embeds each place."""

    def __init__(self, config: AlignConfig) -> None:
        super().__init__()
        self.reader = CellReader(
            config.abn_width, config.organs, config.bands_hu, config.contrast_hu, config.reader
        )
        width, places = self.reader.out_width, len(PLACES)
        self.key = nn.Linear(width, config.keys, bias=False)
        # zeros: every cell counts alike at first, and the query has a gradient at once
        self.query = nn.Parameter(torch.zeros(places, config.keys))
        self.project = PooledLinear(places, width, config.size)

    def read(self, cells: AnomalyCells) -> torch.Tensor:
        """Chosen cells -> features (N, C)."""
        return cast(torch.Tensor, self.reader(cells.decoded, cells.context)[0])

    def attention(self, read: torch.Tensor, shares: PlaceShares) -> PlaceShares:
        """How much each cell counts in each place: columns sum to 1."""
        logits = (self.key(read).float() @ self.query.float().T) / self.query.shape[1] ** 0.5
        return torch.softmax(logits + shares.float().clamp_min(LEAST_SHARE).log(), dim=0)

    def pooled(self, read: torch.Tensor, shares: PlaceShares) -> PlaceEmbeddings:
        """Embedding of each place (P, E), not of length 1."""
        weights = self.attention(read, shares)
        with torch.autocast(read.device.type, enabled=False):
            return cast(torch.Tensor, self.project(weights.T @ read.float()))


class OrganClipNet(YNet):
    """The Y-net with places and texts in the stead of its anomaly heads."""

    def __init__(self, config: AlignConfig) -> None:
        super().__init__(config)
        # the anomaly decoder asks its heads what they know of a cell
        self.anomaly_heads = PlaceHeads(config)  # type: ignore[assignment]
        self.text = TextSide(config)
        channels_last(self)

    @property
    def heads(self) -> PlaceHeads:
        """What stands where the Y-net has its anomaly heads."""
        return cast(PlaceHeads, self.anomaly_heads)

    def similarity(self, scan: ScanBatch, cosine: bool = False) -> AlignedOutput:
        """One scan, HU / 1000 -> scores and similarity maps within the organs that it finds; maps are not
        gated."""
        organs = self.organ_features(scan)
        shares = place_shares(rows(organs.shares())[0])
        read = self.heads.read(self.anomaly_cells(scan, organs))
        places, cells = self.heads.pooled(read, shares), self.heads.project.cells(read)
        directions = self.text.directions()
        scores, maps = [], []
        for finding, place in enumerate(PLACE_OF):
            whole, direction = places[place], directions[finding : finding + 1]
            scores.append((whole / whole.norm().clamp_min(1e-6)) @ direction[0])
            maps.append(contributions(cells[:, place], whole, direction, cosine=cosine)[:, 0])
        shape = organs.logits.shape[2:]
        return AlignedOutput(torch.stack(scores)[None], unrows(torch.stack(maps, dim=1)[None], shape), organs)
