"""Checkpoints: one safetensors file with weights, their average, optimiser moments and the step. Written
beside, renamed."""

from __future__ import annotations

from pathlib import Path

import torch

from hilum.errors import WeightsError
from hilum.io.weights import load_weights, save_weights


def save_checkpoint(
    path: Path,
    model: torch.nn.Module,
    average: torch.nn.Module,
    optim: torch.optim.Optimizer,
    step: int,
    recipe: str,
) -> None:
    """Everything needed to go on bit for bit: random numbers depend on seed and step only."""
    tensors = {f"model/{k}": v for k, v in model.state_dict().items()}
    tensors |= {f"average/{k}": v for k, v in average.state_dict().items()}
    for i, state in optim.state_dict()["state"].items():
        tensors |= {f"optim/{i}/{k}": torch.as_tensor(v) for k, v in state.items()}
    arrays = {k: v.detach().cpu().contiguous().numpy() for k, v in tensors.items()}
    save_weights(path, arrays, {"step": str(step), "recipe": recipe})


def load_checkpoint(
    path: Path, model: torch.nn.Module, average: torch.nn.Module, optim: torch.optim.Optimizer, recipe: str
) -> int:
    """Restore all and return the next step.

    Raises:
        WeightsError: `RESUME_CHANGED` when the recipe is not the one that wrote it.
    """
    arrays, meta = load_weights(path)
    if meta["recipe"] != recipe:
        raise WeightsError(
            "RESUME_CHANGED",
            "a run resumes with its own recipe",
            expected=meta["recipe"],
            got=recipe,
            path=path,
        )
    # writable copies: the optimiser changes them in place
    tensors = {k: torch.tensor(v) for k, v in arrays.items()}
    model.load_state_dict({k[6:]: v for k, v in tensors.items() if k.startswith("model/")})
    average.load_state_dict({k[8:]: v for k, v in tensors.items() if k.startswith("average/")})
    state: dict[int, dict[str, torch.Tensor]] = {}
    for key, value in tensors.items():
        if key.startswith("optim/"):
            _, index, name = key.split("/")
            state.setdefault(int(index), {})[name] = value
    optim.load_state_dict(optim.state_dict() | {"state": state})
    return int(meta["step"])
