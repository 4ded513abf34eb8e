"""Sinkhorn-Knopp: a teacher's prototype logits become shares that use every prototype alike.

Source: Cuturi, NeurIPS 2013; as targets of self-supervision Caron et al., SwAV, NeurIPS 2020, §3.1; in DINO
and iBOT heads as of DINOv2 (Oquab et al., TMLR 2024, §4). FlexiCT uses 3 iterations (spec §2).

In logarithms, where the public code exponentiates first: a sample whose logits lie 100 temperatures below
another's does not become 0/0, and a constant added to all logits changes nothing. Scaling is kept as one
number per sample and one per prototype, so that the logits are never overwritten.
"""

from __future__ import annotations

import math

import torch

from hilum.errors import UsageError
from hilum.objective.gather import max_over_ranks, sum_over_ranks
from hilum.objective.precision import full, without_autocast
from hilum.tensors import PrototypeLogits, PrototypeShares, PrototypeValues


@torch.no_grad()
def sinkhorn(logits: PrototypeLogits, temperature: float, iterations: int = 3) -> PrototypeShares:
    """Shares of prototypes per sample, float32; each sample's sum to 1, each prototype's over the samples of
    all ranks to samples / prototypes, the better the more iterations. Ranks may have different numbers of
    samples, also none.

    Args:
        logits: of this rank's samples. temperature: of the teacher, 0.04 to 0.07. iterations: at least 1.

    Raises:
        UsageError: ``CONFIG_VALUE``, no iteration, or a temperature that is not positive.
    """
    if iterations < 1 or not temperature > 0:
        raise UsageError(
            "CONFIG_VALUE",
            "a teacher has a positive temperature and is centred",
            expected="a temperature above 0, at least 1 iteration",
            got=f"{temperature} and {iterations}",
        )
    with without_autocast(logits):
        scaled = full(logits) / temperature
        samples = sum_over_ranks(scaled.new_tensor(len(scaled)))
        of_sample = torch.zeros_like(scaled[:, 0])
        of_prototype = scaled.new_zeros(scaled.shape[1])
        for _ in range(iterations):
            of_prototype = -_over_samples(scaled + of_sample[:, None]) - math.log(scaled.shape[1])
            of_sample = -torch.logsumexp(scaled + of_prototype, dim=1) - samples.log()
        return (scaled + of_prototype + of_sample[:, None] + samples.log()).exp()


def _over_samples(scaled: PrototypeLogits) -> PrototypeValues:
    """Log of the sum of exponentials over the samples of all ranks."""
    if len(scaled):
        highest = scaled.amax(0)
    else:
        highest = scaled.new_full((scaled.shape[1],), -math.inf)
    highest = max_over_ranks(highest)
    return highest + sum_over_ranks((scaled - highest).exp().sum(0)).log()
