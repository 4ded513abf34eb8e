"""Statistics of features that run along with a training and carry no gradient, as of batch norm."""

from __future__ import annotations

import torch

SLOWEST = 0.01
"""Share of what is new, once more than a hundred were seen."""


@torch.no_grad()
def learn(
    seen: torch.Tensor,
    mean: torch.Tensor,
    variance: torch.Tensor,
    new_mean: torch.Tensor,
    new_variance: torch.Tensor | float = 0.0,
) -> None:
    """Counts what is new in, in place: the first hundred alike, later ones by `SLOWEST`. Of what stood before
    the first nothing stays."""
    seen += 1
    share = max(1 / float(seen), SLOWEST)
    apart = new_mean - mean
    mean += share * apart
    variance.lerp_(new_variance + (1 - share) * apart.square(), share)
