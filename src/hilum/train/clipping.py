"""Gradients cut to a largest norm, part by part, the same on one device, under DDP and sharded by FSDP2.

Source: Pascanu et al., ICML 2013; per part as FlexiCT §2 (3.0), so that one loss cannot silence the part of
another.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn
from torch.distributed.tensor import DTensor, Partial, Replicate
from torch.nn.utils import clip_grads_with_norm_

from hilum.errors import RunError, UsageError
from hilum.train.ema import unwrapped


def clip_by_part(model: nn.Module, largest: float) -> dict[str, torch.Tensor]:
    """Scale the gradient of each direct part of a model down to a norm of `largest`, if it is larger.

    A parameter of the model's own is a part by itself: none escapes (spec §2, defect a: projection and
    temperature were clipped by nothing). After the backward pass, before the optimiser, on every rank.

    Args:
        model: may be wrapped. largest: norm of a part.

    Returns:
        Norms before cutting, per part, the same on every rank; parts without a gradient are left out.

    Raises:
        RunError: `GRADIENT_NONFINITE` with the parts concerned; no gradient was touched.
        UsageError: `CONFIG_VALUE` for a norm that is not above 0.
    """
    if not largest > 0:
        raise UsageError("CONFIG_VALUE", "a largest norm is positive", expected="above 0", got=largest)
    parts: dict[str, list[nn.Parameter]] = {}
    for name, parameter in unwrapped(model).named_parameters():
        if parameter.grad is not None:
            parts.setdefault(name.partition(".")[0], []).append(parameter)
    norms = {part: gradient_norm(p.grad for p in own if p.grad is not None) for part, own in parts.items()}
    if wrong := {part: norm.item() for part, norm in norms.items() if not torch.isfinite(norm)}:
        raise RunError("GRADIENT_NONFINITE", "a gradient is finite", expected="a norm per part", got=wrong)
    for part, own in parts.items():
        clip_grads_with_norm_(own, largest, norms[part])
    return norms


@torch.no_grad()
def gradient_norm(gradients: Iterable[torch.Tensor]) -> torch.Tensor:
    """Euclidean norm of gradients together, in float32 (float64 if one is), the same on every rank.

    A shard (DTensor) counts with all its ranks; a plain tensor, which every rank has whole, counts once. They
    may be mixed. One exchange for all tensors that are sharded alike.
    """
    plain: list[torch.Tensor] = []
    sharded: dict[tuple, list[torch.Tensor]] = {}
    for gradient in gradients:
        if isinstance(gradient, DTensor):
            how = gradient.device_mesh, tuple(gradient.placements)
            sharded.setdefault(how, []).append(_square(gradient.to_local()))
        else:
            plain.append(_square(gradient))
    for (mesh, placements), squares in sharded.items():
        own = torch.stack(squares).sum()
        spread = [Partial() if placement.is_shard() else Replicate() for placement in placements]
        plain.append(DTensor.from_local(own, mesh, spread).full_tensor())
    return torch.stack(plain).sum().sqrt()


def _square(gradient: torch.Tensor) -> torch.Tensor:
    # a sum of bfloat16 squares in bfloat16 has two digits
    dtype = torch.promote_types(gradient.dtype, torch.float32)
    return torch.linalg.vector_norm(gradient, dtype=dtype).square()
