"""Networks that were aligned with reports: `model.clip_global`, `model.organ_clip`."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional as F

from hilum.model.align import spread
from hilum.model.clip_global import ClipNet
from hilum.model.organ_clip import OrganClipNet
from hilum.model.preset import Preset
from hilum.read.scan_chest import ChestWay
from hilum.read.scan_output import Inference
from hilum.tensors import FineScan, ScanBatch
from hilum.text.vocabulary import ORGAN_CHANNELS


class AlignedWay(ChestWay):
    """Prompts answer for the scan, and cell by cell for the map.

    Args:
        card: its `similarity` says which kind of map validation chose: what each cell adds to the score
            (`share`), or each cell's own cosine (`model.align.contributions`).
    """

    def __init__(self, preset: Preset, network: torch.nn.Module, card: dict[str, Any]) -> None:
        super().__init__(preset, network)
        self.cosine = card.get("similarity") == "cosine"

    def infer(self, scan: ScanBatch, fine: FineScan | None = None) -> Inference:
        """See `scan_output.Way`. Scores are spread before they become probabilities: a scale of 100 would
        round half of them to 0 and 1."""
        if isinstance(self.network, OrganClipNet):
            out = self.network.similarity(scan, self.cosine)
        else:
            assert isinstance(self.network, ClipNet)
            out = self.network(scan, self.cosine)
        maps = torch.sigmoid(F.interpolate(spread(out.maps), scale_factor=2.0, mode="trilinear"))[0]
        pooled = torch.sigmoid(spread(out.scan[0])).numpy()
        if out.organs is None:
            organs = torch.zeros((len(ORGAN_CHANNELS), *maps.shape[1:]))
            return Inference(organs, maps, torch.ones_like(maps, dtype=torch.bool), pooled)
        organ_maps, gate = self.organs(out.organs)
        return Inference(organ_maps, maps, gate, pooled, self.outlines(fine, out.organs))
