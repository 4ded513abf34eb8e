"""Organs that were learnt before: a run may begin with the organ half of a model and learn the rest."""

from __future__ import annotations

import json
from importlib.resources import as_file, files
from pathlib import Path

import torch

from hilum.errors import UsageError, WeightsError
from hilum.io.weights import load_weights
from hilum.model.ynet import YNet

ORGAN_PARTS = ("encoder.", "seg.", "organ_head.", "coarse_heads.", "outliner.")
"""How names of the weights begin that know organs."""


def take_organs(network: YNet, name: str) -> None:
    """Fill the organ half of a network; its anomaly half stays as it was built.

    Args:
        name: a model that ships with the package, or a folder with `model.safetensors` and `card.json`.

    Raises:
        UsageError: `MODEL_UNKNOWN`. WeightsError: the weights cannot be trusted, or their organ half is not
            the network's (`WEIGHTS_KEYS`).
    """
    shipped = files("hilum") / "weights" / name
    if Path(name).is_dir():
        _fill(network, Path(name))
    elif shipped.is_dir():
        with as_file(shipped) as folder:
            _fill(network, folder)
    else:
        raise UsageError(
            "MODEL_UNKNOWN", "organs_from is a model that ships with Hilum or a folder", got=name
        )


def _fill(network: YNet, folder: Path) -> None:
    card = json.loads((folder / "card.json").read_text(encoding="utf-8"))
    tensors, _ = load_weights(folder / "model.safetensors", sha256=card["sha256"])
    found = {k: torch.tensor(v) for k, v in tensors.items() if k.startswith(ORGAN_PARTS)}
    own = {k: v for k, v in network.state_dict().items() if k.startswith(ORGAN_PARTS)}
    wrong = sorted(k for k in found.keys() | own.keys() if k not in found or k not in own)
    wrong += sorted(k for k in found.keys() & own.keys() if found[k].shape != own[k].shape)
    if wrong:
        raise WeightsError(
            "WEIGHTS_KEYS", "the organ half of organs_from is the preset's", expected=len(own), got=wrong[:3],
            path=folder,
        )  # fmt: skip
    with torch.no_grad():
        for key, target in own.items():
            target.copy_(found[key])
