"""Losses are computed in float32 or better, also where the model runs in bfloat16."""

from __future__ import annotations

from contextlib import AbstractContextManager

import torch


def full(values: torch.Tensor) -> torch.Tensor:
    """In float32, or in float64 if it is."""
    return values if values.dtype == torch.float64 else values.float()


def without_autocast(like: torch.Tensor) -> AbstractContextManager:
    """No autocast on the device of `like`: its matrix products would go back to bfloat16."""
    return torch.autocast(like.device.type, enabled=False)
