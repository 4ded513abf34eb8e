"""A run whose every number is its step, for tests that kill what saves it."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from hilum.train import checkpoint_state
from hilum.train.checkpoints import Checkpoints
from hilum.train.ema import Average
from hilum.volume import Finding


def save(folder: Path, step: int) -> None:
    """A checkpoint of a step."""
    run = _run(step)
    Checkpoints(folder, keep=2).save(step, *run, "{}")


def load(folder: Path) -> tuple[int, dict[str, torch.Tensor], list[Finding]]:
    """Step and tensors of what a fresh run goes on from, and what was passed over."""
    run, kept = _run(0), Checkpoints(folder, keep=2)
    step = kept.load(*run, "{}")
    return step, checkpoint_state.run_tensors(*run), kept.findings


def _run(value: int) -> tuple[nn.Module, Average, torch.optim.Optimizer]:
    model = nn.Sequential(nn.Linear(30, 40), nn.BatchNorm1d(40))
    average, optim = Average(model), torch.optim.AdamW(model.parameters())
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optim.step()
    with torch.no_grad():
        for tensor in checkpoint_state.run_tensors(model, average, optim).values():
            tensor.fill_(value)
    return model, average, optim
