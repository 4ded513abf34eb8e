"""A preset is data: which network, on which grid, pooled how."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import torch

from hilum.cohort.prep import Prep
from hilum.errors import WeightsError
from hilum.model.cam import CamNet
from hilum.model.ynet import YNet, YNetConfig
from hilum.text.vocabulary import SLUGS


@dataclass(frozen=True)
class Preset:
    """One model, described.

    Args:
        network: ``ynet`` or ``cam``. net: its numbers. prep: its grid.
        pool_ml: volume averaged into the scan probability, per finding, ml.
    """

    name: str
    network: str
    net: YNetConfig
    prep: Prep
    pool_ml: tuple[float, ...]

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Preset:
        """Checked against the fields that exist.

        Raises:
            WeightsError: `CONFIG_KEY` for an unknown or missing key.
        """
        _same_keys(data, {f.name for f in fields(cls)}, "preset")
        _same_keys(data["pool_ml"], set(SLUGS), "preset.pool_ml")
        net = {k: _tuples(v) for k, v in data["net"].items()}
        pool = tuple(float(data["pool_ml"][slug]) for slug in SLUGS)
        return cls(data["name"], data["network"], YNetConfig(**net), Prep(**data["prep"]), pool)

    @property
    def voxel_ml(self) -> float:
        """Volume of a grid voxel in ml."""
        return self.prep.spacing_mm**3 / 1000.0


def _tuples(value: Any) -> Any:
    return tuple(_tuples(v) for v in value) if isinstance(value, list) else value


def _same_keys(data: Mapping[str, Any], known: set[str], where: str) -> None:
    if wrong := sorted(set(data) ^ known):
        raise WeightsError("CONFIG_KEY", f"{where} has exactly its keys", expected=sorted(known), got=wrong)


def build_network(preset: Preset) -> YNet | CamNet:
    """The preset's network with fresh weights."""
    return CamNet(preset.net) if preset.network == "cam" else YNet(preset.net)


def load_state(network: torch.nn.Module, tensors: Mapping[str, torch.Tensor]) -> None:
    """Strict: every tensor accounted for.

    Raises:
        WeightsError: `WEIGHTS_KEYS` with the first missing, unexpected and misshapen names.
    """
    own = network.state_dict()
    missing, extra = sorted(set(own) - set(tensors))[:5], sorted(set(tensors) - set(own))[:5]
    shapes = [n for n in own if n in tensors and own[n].shape != tensors[n].shape][:5]
    if missing or extra or shapes:
        raise WeightsError(
            "WEIGHTS_KEYS",
            "weights fit the network exactly",
            expected=f"{len(own)} tensors",
            got=f"missing {missing}, unexpected {extra}, other shape {shapes}",
        )
    network.load_state_dict({k: v.float() for k, v in tensors.items()})
