"""What losses of scans and their texts have in common."""

from __future__ import annotations

import torch

from hilum.errors import RunError
from hilum.tensors import AllEmbeddings, Embeddings


def require_pairs(images: Embeddings, texts: AllEmbeddings) -> None:
    """Every scan has one text.

    Raises:
        RunError: ``MODEL_OUTPUT``.
    """
    if len(images) != len(texts):
        raise RunError(
            "MODEL_OUTPUT", "every scan has one text", expected=f"{len(images)} texts", got=len(texts)
        )


def other_twins(names: torch.Tensor, own: torch.Tensor) -> torch.Tensor:
    """Which texts say the same as a row's own, but for that one: (rows, texts), True is no negative.

    Args:
        names: of every text, equal for texts that say the same. own: index of each row's text.
    """
    twins = names[own, None] == names[None]
    twins[torch.arange(len(own), device=own.device), own] = False
    return twins
