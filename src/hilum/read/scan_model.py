"""A trained model that reads scans: weights, card and preset together, from a volume to organs, maps and
probabilities."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from hilum.errors import WeightsError
from hilum.geometry import Geometry
from hilum.io.weights import load_model, model_folder, preset_data
from hilum.model.map_heads import LEVEL, MapHeads
from hilum.model.preset import READS_REPORTS, ExactPreset, Preset, build, load_state, preset_from
from hilum.read.calibration import calibrated
from hilum.read.scan_aligned import AlignedWay
from hilum.read.scan_chest import ChestWay
from hilum.read.scan_dense import DenseWay
from hilum.read.scan_output import FindingMaps, FindingProbabilities, Inference, ModelOutput, Way
from hilum.tensors import FineScan, ScanBatch
from hilum.text.vocabulary import SLUGS
from hilum.volume import CTVolume

HEADS = "map_heads."
"""How names of a classifier's weights begin."""

__all__ = ["Inference", "ModelOutput", "ScanModel"]


class ScanModel:
    """A preset with weights and a card, of whichever kind (`scan_chest`, `scan_aligned`,
    `scan_dense`).

    `card` says what it was trained on and holds thresholds and calibration, chosen on validation data only.

    Raises:
        WeightsError: `CONFIG_VALUE` for a preset that reads no scans.
    """

    def __init__(
        self, preset: Preset | ExactPreset, network: torch.nn.Module, card: dict[str, Any], sha256: str
    ) -> None:
        self.preset, self.network, self.card, self.sha256 = preset, network.eval(), card, sha256
        self.way: Way
        if isinstance(preset, ExactPreset):
            self.way = DenseWay.of_card(preset, self.network, card)
        elif isinstance(preset, Preset):
            aligned = preset.network in READS_REPORTS
            self.way = AlignedWay(preset, self.network, card) if aligned else ChestWay(preset, self.network)
        else:
            raise WeightsError(
                "CONFIG_VALUE", "the preset of a model that reads scans", got=getattr(preset, "name", preset)
            )

    @classmethod
    def load(cls, name: str) -> ScanModel:
        """A model that ships with the package, or a folder with `model.safetensors` and `card.json`.

        Raises:
            UsageError: `MODEL_UNKNOWN`. WeightsError: the weights cannot be trusted.
        """
        with model_folder(name) as folder:
            return cls.from_folder(folder)

    @classmethod
    def from_folder(cls, folder: Path) -> ScanModel:
        """Read and verify one model folder."""
        card, tensors = load_model(folder)
        preset = preset_from(preset_data(card["preset"]))
        network = build(preset)
        found = {k: torch.tensor(v) for k, v in tensors.items()}
        own = {k: found.pop(k) for k in list(found) if k.startswith(HEADS)}
        load_state(network, found)
        model = cls(preset, network, card, card["sha256"])  # type: ignore[arg-type]
        if "map_heads" in card and isinstance(preset, ExactPreset):
            heads = MapHeads(preset.net.widths[LEVEL], len(SLUGS), float(card["map_heads"]["dropout"]))
            load_state(heads, {k.removeprefix(HEADS): v for k, v in own.items()})
            model.way = DenseWay.of_card(preset, model.network, card, heads.eval())
        return model

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

    @property
    def gates(self) -> tuple[tuple[int, ...], ...]:
        """Organ channels that open each finding's gate."""
        return self.way.gates

    @torch.inference_mode()
    def run(self, volume: CTVolume, outlines: bool = True) -> ModelOutput:
        """Prepare, infer, gate, pool. Deterministic on CPU.

        Args:
            outlines: organs as finely as the model knows them; without, those of the gates stand for them.
        """
        found = self.way.run(volume, outlines)
        return ModelOutput(**vars(found), probabilities=self.calibrate(found.pooled))

    @torch.inference_mode()
    def infer(self, scan: ScanBatch, fine: FineScan | None = None) -> Inference:
        """One prepared scan (batch of one) through the network; `fine` is the same at half the voxel."""
        return self.way.infer(scan, fine)

    def pool(self, maps: torch.Tensor | FindingMaps, grid: Geometry | None = None) -> FindingProbabilities:
        """Gated maps (D, U, V, W) -> uncalibrated scan probabilities: what anybody can recompute from the
        written maps. `grid` is that of the maps, for models that pool volumes on any grid."""
        return self.way.pool(maps, grid)

    def calibrate(self, pooled: FindingProbabilities) -> FindingProbabilities:
        """What the card says of each finding's probability (`hilum.read.calibration`)."""
        table = self.card.get("calibration")
        if not table:
            return pooled
        told = [calibrated(pooled[[d]].astype(np.float64), table.get(slug)) for d, slug in enumerate(SLUGS)]
        return np.concatenate(told).astype(np.float32)
