"""Where bfloat16 is used and where not: losses are computed in float32 or better, also where the model runs
in bfloat16, and a processor without bfloat16 runs all of it in float32."""

from __future__ import annotations

from contextlib import AbstractContextManager

import torch


def full(values: torch.Tensor) -> torch.Tensor:
    """In float32, or in float64 if it is."""
    return values if values.dtype == torch.float64 else values.float()


def without_autocast(like: torch.Tensor) -> AbstractContextManager:
    """No autocast on the device of `like`: its matrix products would go back to bfloat16."""
    return torch.autocast(like.device.type, enabled=False)


def native_bf16(device: torch.device) -> bool:
    """Whether a device multiplies in bfloat16 itself. A CPU that does not (no AVX-512) makes a convolution's
    gradient many times as slow in bfloat16 as in float32."""
    return device.type != "cpu" or bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def in_precision(device: torch.device, precision: str) -> AbstractContextManager:
    """Matrix products in bfloat16 for ``bf16``, if the device can; else in float32."""
    enabled = precision == "bf16" and native_bf16(device)
    return torch.autocast(device.type, torch.bfloat16, enabled=enabled)
