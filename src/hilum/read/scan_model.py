"""A trained model that ships: weights, card and preset together, from a volume to organs, maps and
probabilities."""

from __future__ import annotations

import json
from dataclasses import dataclass
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float32
from torch.nn import functional as F

from hilum.cohort.prep import PrepTrace
from hilum.errors import UsageError
from hilum.geometry import Geometry
from hilum.io.weights import load_weights, preset_data
from hilum.model.cam import CamNet, CamOutput
from hilum.model.fold import unfold, unrows
from hilum.model.preset import Preset, build_network, load_state
from hilum.model.ynet import YNet
from hilum.objective.mil import least_open, organ_gate, voxel_counts
from hilum.tensors import FineScan, ScanBatch
from hilum.text.vocabulary import GATES, ORGAN_CHANNELS, ORGAN_OF, SLUGS
from hilum.volume import CTVolume

OrganMaps = Float32[np.ndarray, "O U V W"]
OutlineMaps = Float32[np.ndarray, "O X Y Z"]
FindingMaps = Float32[np.ndarray, "D U V W"]
FindingProbabilities = Float32[np.ndarray, "D"]


@dataclass(frozen=True)
class ModelOutput:
    """What a model says of one scan, on the model's own grid.

    Args:
        grid: of organs and maps. organs: probabilities in `vocabulary.ORGAN_CHANNELS` order: the gates.
        maps: anomaly probabilities, 0 outside the finding's organ. ungated: the same before the organ gate.
        pooled: mean of the highest voxels of each map, as trained. probabilities: `pooled` after calibration.
        trace: the way back to the volume's grid.
        outlines: `organs` as finely as the model knows them. outline_trace: their grid and way back.
    """

    grid: Geometry
    organs: OrganMaps
    maps: FindingMaps
    ungated: FindingMaps
    pooled: FindingProbabilities
    probabilities: FindingProbabilities
    trace: PrepTrace
    outlines: OutlineMaps
    outline_trace: PrepTrace


@dataclass(frozen=True)
class Inference:
    """A network's answer at full resolution: organs (O, ...), ungated maps (D, ...), bool gate (D, ...),
    pooled (D,), and organs at half the voxel (O, ...) if the finer scan was given to a network with outlines.
    """

    organs: torch.Tensor
    maps: torch.Tensor
    gate: torch.Tensor
    pooled: FindingProbabilities
    outlines: torch.Tensor | None = None


class ScanModel:
    """A preset with weights and a card.

    `card` says what it was trained on and holds thresholds and calibration, chosen on validation phantoms
    only.
    """

    def __init__(self, preset: Preset, network: torch.nn.Module, card: dict[str, Any], sha256: str) -> None:
        self.preset, self.network, self.card, self.sha256 = preset, network.eval(), card, sha256

    @classmethod
    def load(cls, name: str) -> ScanModel:
        """A model that ships with the package, or a folder with `model.safetensors` and `card.json`.

        Raises:
            UsageError: `MODEL_UNKNOWN`. WeightsError: the weights cannot be trusted.
        """
        if Path(name).is_dir():
            return cls.from_folder(Path(name))
        shipped = files("hilum") / "weights"
        known = sorted(p.name for p in shipped.iterdir() if (p / "model.safetensors").is_file())
        if name not in known:
            raise UsageError(
                "MODEL_UNKNOWN", "a model ships with Hilum or is a folder", expected=known, got=name
            )
        with as_file(shipped / name) as folder:
            return cls.from_folder(folder)

    @classmethod
    def from_folder(cls, folder: Path) -> ScanModel:
        """Read and verify one model folder."""
        card = json.loads((folder / "card.json").read_text(encoding="utf-8"))
        tensors, _ = load_weights(folder / "model.safetensors", sha256=card["sha256"])
        preset = Preset.from_dict(preset_data(card["preset"]))
        network = build_network(preset)
        load_state(network, {k: torch.tensor(v) for k, v in tensors.items()})
        return cls(preset, network, card, card["sha256"])

    @property
    def name(self) -> str:
        """Name of the preset."""
        return self.preset.name

    @property
    def trained_on(self) -> str:
        """One sentence for pages and receipts."""
        return str(self.card["trained_on"])

    @property
    def calibrated(self) -> bool:
        """Whether probabilities were calibrated on validation phantoms."""
        return bool(self.card.get("calibration"))

    @property
    def thresholds(self) -> dict[str, float]:
        """Scan probability from which a finding is called present."""
        return {slug: float(self.card["thresholds"].get(slug, 0.5)) for slug in SLUGS}

    @property
    def map_thresholds(self) -> dict[str, float]:
        """Voxel probability from which a voxel belongs to the finding."""
        return {slug: float(self.card["map_thresholds"].get(slug, 0.5)) for slug in SLUGS}

    @torch.inference_mode()
    def run(self, volume: CTVolume) -> ModelOutput:
        """Prepare, infer, gate, pool. Deterministic on CPU."""
        tensor, trace = self.preset.prep.apply(volume)
        fine, fine_trace = self.preset.prep.finer(volume, trace) if self.preset.net.outline else (None, trace)
        found = self.infer(tensor, fine)
        outlines = found.organs if found.outlines is None else found.outlines
        return ModelOutput(
            trace.grid,
            found.organs.numpy(),
            (found.maps * found.gate).numpy(),
            found.maps.numpy(),
            found.pooled,
            self.calibrate(found.pooled),
            trace,
            outlines.numpy(),
            fine_trace,
        )

    @torch.inference_mode()
    def infer(self, scan: ScanBatch, fine: FineScan | None = None) -> Inference:
        """One prepared scan (batch of one) through the network; `fine` is the same at half the voxel."""
        if isinstance(self.network, CamNet):
            return self._infer_cam(scan)
        assert isinstance(self.network, YNet)
        found = self.network.organ_features(scan)
        organs = torch.sigmoid(found.rows())
        gate = organ_gate(organs, least_open(self.counts(), ORGAN_OF, len(ORGAN_CHANNELS)))
        half = found.logits.shape[2:]
        organ_maps, gates = (unfold(unrows(x.flatten(2), half))[0] for x in (organs, gate))
        low, high = self.network.anomaly_maps(scan, found)
        # both scales were trained for the same answer; their mean is steadier than either
        low = F.interpolate(torch.sigmoid(low), scale_factor=2.0, mode="trilinear")
        maps = 0.5 * (low + torch.sigmoid(high))[0]
        gate_of = torch.stack([gates[list(organs)].any(dim=0) for organs in GATES])
        logits = None if fine is None else self.network.outlines(fine, found)
        outlines = None if logits is None else torch.sigmoid(logits)[0]
        return Inference(organ_maps, maps, gate_of, self.pool(maps * gate_of), outlines)

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

    def pool(self, maps: torch.Tensor | FindingMaps) -> FindingProbabilities:
        """Gated maps (D, U, V, W) -> uncalibrated scan probabilities: what anybody can recompute from the
        written maps."""
        flat = torch.as_tensor(maps).flatten(1)
        counts = self.counts()
        largest = flat.topk(min(max(counts), flat.shape[1]), dim=1).values
        return np.array([float(largest[d, :k].mean()) for d, k in enumerate(counts)], dtype=np.float32)

    def calibrate(self, pooled: FindingProbabilities) -> FindingProbabilities:
        """Logistic calibration per finding: sigmoid(scale * logit(p) + offset)."""
        table = self.card.get("calibration")
        if not table:
            return pooled
        clipped = np.clip(pooled.astype(np.float64), 1e-6, 1 - 1e-6)
        logit = np.log(clipped / (1 - clipped))
        scale = np.array([table[slug][0] for slug in SLUGS])
        offset = np.array([table[slug][1] for slug in SLUGS])
        return (1 / (1 + np.exp(-(scale * logit + offset)))).astype(np.float32)
