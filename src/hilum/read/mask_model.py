"""A segmentation that was made from a model of EXACT (EXACT §2.3), on one scan."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hilum.cohort.prep_presets import Pipeline
from hilum.errors import WeightsError
from hilum.io.weights import load_weights, preset_data
from hilum.model.map_heads import MaskNet
from hilum.model.preset import ExactPreset, build_exact, load_state, preset_from
from hilum.read.scan_dense import placed, replaced
from hilum.types import ProbabilityMap
from hilum.volume import CTVolume


@dataclass(frozen=True)
class MaskModel:
    """Weights and card of a run of `exact-seg`.

    Args:
        network: filled. pipeline: of its scans. card: of the folder. threshold: chosen on validation scans.
    """

    network: MaskNet
    pipeline: Pipeline
    card: dict[str, Any]
    threshold: float

    @classmethod
    def load(cls, folder: str | Path) -> MaskModel:
        """Read and verify a folder.

        Raises:
            WeightsError: the weights cannot be trusted, or it is no segmentation (`CONFIG_VALUE`).
        """
        folder = Path(folder)
        card = json.loads((folder / "card.json").read_text(encoding="utf-8"))
        preset = preset_from(preset_data(card["preset"]))
        if "mask" not in card or not isinstance(preset, ExactPreset):
            raise WeightsError("CONFIG_VALUE", "the folder is a segmentation", got=card["name"], path=folder)
        tensors, _ = load_weights(folder / "model.safetensors", sha256=card["sha256"])
        network = MaskNet(build_exact(preset), card["mask"]["reads"])
        load_state(network, {k: torch.tensor(v) for k, v in tensors.items()})
        pipeline = Pipeline.from_facts(card["prep"])
        return cls(network.eval(), pipeline, card, float(card["mask"]["threshold"]))

    @torch.inference_mode()
    def run(self, volume: CTVolume) -> ProbabilityMap:
        """Probability of the mask on `volume.geometry`."""
        scan, trace = self.pipeline.apply(volume)
        shape = self.card.get("shape_vox")
        shown = scan if shape is None else placed(scan, shape, float(scan.min()))
        found = replaced(torch.sigmoid(self.network(shown))[0, 0], scan.shape[2:])
        return trace.invert(np.ascontiguousarray(found.numpy(), dtype=np.float32))
