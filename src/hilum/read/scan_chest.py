"""Networks on the chest's own grid: `phantom-small` and its baseline (`model.ynet`, `model.cam`)."""

from __future__ import annotations

import numpy as np
import torch
from torch.nn import functional as F

from hilum.geometry import Geometry
from hilum.model.cam import CamNet, CamOutput
from hilum.model.fold import unfold, unrows
from hilum.model.preset import Preset
from hilum.model.ynet import OrganFeatures, YNet
from hilum.objective.mil import least_open, organ_gate, voxel_counts
from hilum.read.scan_output import FindingMaps, FindingProbabilities, Found, Inference
from hilum.tensors import FineScan, ScanBatch
from hilum.text.vocabulary import GATES, ORGAN_CHANNELS, ORGAN_OF
from hilum.volume import CTVolume

FAT_HU = (-200.0, -20.0)
"""Attenuation of fat, with some air or muscle in the voxel."""
OVER_3_MM = (1 / 6, 2 / 3, 1 / 6)
"""Shares of three 2 mm voxels in 3 mm: noise makes fat of single voxels of muscle."""


def is_fat(scan: ScanBatch) -> torch.Tensor:
    """Which voxels of a scan at 2 mm (HU / 1000) hold fat, by their mean over 3 mm: bool (X, Y, Z)."""
    near = F.pad(scan, (1, 1, 1, 1, 1, 1), mode="replicate")
    for axis in (2, 3, 4):
        weights = torch.tensor(OVER_3_MM).view([-1 if at == axis else 1 for at in range(5)])
        near = F.conv3d(near, weights)
    low, high = FAT_HU
    return ((near > low / 1000) & (near < high / 1000))[0, 0]


class ChestWay:
    """See `scan_output.Way`: `Prep`, cells of the gate alone, volumes in ml."""

    gates = GATES

    def __init__(self, preset: Preset, network: torch.nn.Module) -> None:
        self.preset, self.network = preset, network

    def run(self, volume: CTVolume, outlines: bool = True) -> Found:
        """See `Way`."""
        tensor, trace = self.preset.prep.apply(volume)
        finely = outlines and self.preset.net.outline
        fine, fine_trace = self.preset.prep.finer(volume, trace) if finely else (None, trace)
        found = self.infer(tensor, fine)
        return Found(
            trace.grid,
            found.organs.numpy(),
            (found.maps * found.gate).numpy(),
            found.maps.numpy(),
            found.pooled,
            trace,
            (found.organs if found.outlines is None else found.outlines).numpy(),
            fine_trace,
        )

    def infer(self, scan: ScanBatch, fine: FineScan | None = None) -> Inference:
        """See `Way`; `fine` is the scan at half the voxel."""
        if isinstance(self.network, CamNet):
            return self._infer_cam(scan)
        assert isinstance(self.network, YNet)
        found = self.network.organ_features(scan)
        organ_maps, gate_of = self.organs(found)
        low, high = self.network.anomaly_maps(scan, found)
        # both scales were trained for the same answer; their mean is steadier than either
        low = F.interpolate(torch.sigmoid(low), scale_factor=2.0, mode="trilinear")
        maps = 0.5 * (low + torch.sigmoid(high))[0]
        return Inference(organ_maps, maps, gate_of, self.pool(maps * gate_of), self.outlines(fine, found))

    def organs(self, found: OrganFeatures) -> tuple[torch.Tensor, torch.Tensor]:
        """Organ probabilities (O, ...) and where each finding may lie (D, ...)."""
        organs = torch.sigmoid(found.rows())
        gate = organ_gate(organs, least_open(self.counts(), ORGAN_OF, len(ORGAN_CHANNELS)))
        half = found.logits.shape[2:]
        organ_maps, gates = (unfold(unrows(x.flatten(2), half))[0] for x in (organs, gate))
        return organ_maps, torch.stack([gates[list(organs)].any(dim=0) for organs in GATES])

    def outlines(self, fine: FineScan | None, found: OrganFeatures) -> torch.Tensor | None:
        """Organ probabilities at half the voxel; None without a finer scan or a network that knows them.

        What is fat is no heart (`docs/first-model.md`, 7): phantoms have too little of it to teach that.
        """
        assert isinstance(self.network, YNet)
        logits = None if fine is None else self.network.outlines(fine, found)
        if fine is None or logits is None:
            return None
        organs = torch.sigmoid(logits)[0]
        organs[ORGAN_CHANNELS.index("heart")].masked_fill_(is_fat(fine), 0.0)
        return organs

    def _infer_cam(self, scan: ScanBatch) -> Inference:
        """The baseline: no organs, no gate; the scan's own head answers for the scan."""
        out: CamOutput = self.network(scan)
        maps = torch.sigmoid(F.interpolate(out.maps, scale_factor=2.0, mode="trilinear"))[0]
        organs = torch.zeros((len(ORGAN_CHANNELS), *maps.shape[1:]))
        return Inference(
            organs, maps, torch.ones_like(maps, dtype=torch.bool), torch.sigmoid(out.scan[0]).numpy()
        )

    def counts(self) -> list[int]:
        """Voxels averaged into each scan probability."""
        return voxel_counts(self.preset.pool_ml, self.preset.voxel_ml)

    def pool(self, maps: torch.Tensor | FindingMaps, grid: Geometry | None = None) -> FindingProbabilities:
        """See `Way`; the grid is always the preset's."""
        flat = torch.as_tensor(maps).flatten(1)
        counts = self.counts()
        largest = flat.topk(min(max(counts), flat.shape[1]), dim=1).values
        return np.array([float(largest[d, :k].mean()) for d, k in enumerate(counts)], dtype=np.float32)
