"""Organs that were learnt before: a run may begin with the organ half of a model and learn the rest; of a
network that knows no organs, with its encoder."""

from __future__ import annotations

import torch

from hilum.errors import WeightsError
from hilum.io.weights import load_model, model_folder

ORGAN_PARTS = ("encoder.", "seg.", "organ_head.", "coarse_heads.", "outliner.")
"""How names of the weights begin that know organs."""


def take_organs(network: torch.nn.Module, name: str) -> None:
    """Fill what a network has of the organ half; the rest stays as it was built.

    Args:
        name: a model that ships with the package, or a folder with `model.safetensors` and `card.json`.

    Raises:
        UsageError: `MODEL_UNKNOWN`. WeightsError: the weights cannot be trusted, or their organ half is not
            the network's (`WEIGHTS_KEYS`).
    """
    with model_folder(name) as folder:
        _, tensors = load_model(folder)
    own = {k: v for k, v in network.state_dict().items() if k.startswith(ORGAN_PARTS)}
    # a network without organs has an encoder all the same
    parts = tuple({k.partition(".")[0] + "." for k in own})
    found = {k: torch.tensor(v) for k, v in tensors.items() if k.startswith(parts)}
    wrong = sorted(k for k in found.keys() | own.keys() if k not in found or k not in own)
    wrong += sorted(k for k in found.keys() & own.keys() if found[k].shape != own[k].shape)
    if wrong:
        raise WeightsError(
            "WEIGHTS_KEYS", "the organ half of organs_from has what the preset's has", expected=len(own),
            got=wrong[:3], path=name,
        )  # fmt: skip
    with torch.no_grad():
        for key, target in own.items():
            target.copy_(found[key])
