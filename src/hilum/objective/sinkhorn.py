"""Sinkhorn-Knopp: a teacher's prototype logits become shares that use every prototype alike.

Source: Cuturi, NeurIPS 2013; as targets of self-supervision Caron et al., SwAV, NeurIPS 2020, §3.1; in DINO
and iBOT heads as of DINOv2 (Oquab et al., TMLR 2024, §4). FlexiCT uses 3 iterations (spec §2).

In logarithms, where the public code exponentiates first: a sample whose logits lie 100 temperatures below
another's does not become 0/0, and a constant added to all logits changes nothing. What comes out is a number
per sample and a number per prototype (`Balanced`), so that logits and shares of 60,000 tokens and 65,536
prototypes, 16 GB each, need not exist: `project` makes them of a chunk of tokens whenever they are needed.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch

from hilum.errors import UsageError
from hilum.objective.gather import max_over_ranks, sum_over_ranks
from hilum.objective.precision import full, without_autocast
from hilum.tensors import PrototypeLogits, PrototypeShares, PrototypeValues, RowWeights, TokenRows

Project = Callable[[torch.Tensor], torch.Tensor]


class Balanced(NamedTuple):
    """Shares of prototypes that are not written down.

    Args:
        rows: logits of this rank's samples, or what `project` makes logits of.
        of_sample, of_prototype: what is added to logits / temperature to have the logarithm of a share.
        temperature, project: as given to `balance`.
    """

    rows: TokenRows
    of_sample: RowWeights
    of_prototype: PrototypeValues
    temperature: float
    project: Project | None = None

    def shares(self, rows: TokenRows, of_sample: RowWeights) -> PrototypeShares:
        """Shares of some of the samples, in float32 or better, without a gradient."""
        with torch.no_grad(), without_autocast(rows):
            scaled = _scaled(rows, self.temperature, self.project)
            return (scaled + self.of_prototype + of_sample[:, None]).exp()


def sinkhorn(logits: PrototypeLogits, temperature: float, iterations: int = 3) -> PrototypeShares:
    """Shares of prototypes per sample, float32; each sample's sum to 1, each prototype's over the samples of
    all ranks to samples / prototypes, the better the more iterations. Ranks may have different numbers of
    samples, also none.

    Args:
        logits: of this rank's samples. temperature: of the teacher, 0.04 to 0.07. iterations: at least 1.

    Raises:
        UsageError: ``CONFIG_VALUE``, no iteration, or a temperature that is not positive.
    """
    balanced = balance(logits, temperature, iterations)
    return balanced.shares(balanced.rows, balanced.of_sample)


@torch.no_grad()
def balance(
    rows: TokenRows,
    temperature: float,
    iterations: int = 3,
    *,
    project: Project | None = None,
    chunk: int | None = None,
) -> Balanced:
    """The same, with the logits of `chunk` samples at a time.

    Args:
        rows: logits, or what `project` makes logits of (`DinoHead.prototypes`). chunk: None for all.

    Raises:
        UsageError: as `sinkhorn`; a chunk of no rows.
    """
    if iterations < 1 or not temperature > 0 or (chunk is not None and chunk < 1):
        raise UsageError(
            "CONFIG_VALUE",
            "a teacher has a positive temperature and is centred, in chunks that have rows",
            expected="a temperature above 0, at least 1 iteration, at least 1 row",
            got=f"{temperature} and {iterations}, {chunk}",
        )
    rows = rows.detach()
    pieces = rows.split(chunk or max(len(rows), 1))
    dtype = torch.promote_types(rows.dtype, torch.float32)
    with without_autocast(rows):
        samples = sum_over_ranks(torch.tensor(len(rows), dtype=dtype, device=rows.device))
        of_samples = [torch.zeros_like(full(piece[:, 0])) for piece in pieces]
        for _ in range(iterations):
            highest, total = samples.new_tensor(-math.inf), samples.new_zeros(())
            for piece, of_sample in zip(pieces, of_samples, strict=True):
                scaled = _scaled(piece, temperature, project) + of_sample[:, None]
                highest, total = _add(highest, total, scaled)
            everyone = _over_ranks(highest, total)
            of_prototype = samples.log() - math.log(len(everyone)) - everyone
            of_samples = [
                -torch.logsumexp(_scaled(piece, temperature, project) + of_prototype, dim=1)
                for piece in pieces
            ]
        return Balanced(rows, torch.cat(of_samples), of_prototype, temperature, project)


def _add(
    highest: torch.Tensor, total: torch.Tensor, scaled: PrototypeLogits
) -> tuple[PrototypeValues, PrototypeValues]:
    """A sum of exponentials over samples, as its highest exponent and the rest, with more samples."""
    if not len(scaled):
        return scaled.new_full((scaled.shape[1],), -math.inf), scaled.new_zeros(scaled.shape[1])
    new = torch.maximum(scaled.amax(0), highest)
    return new, total * (highest - new).exp() + (scaled - new).exp().sum(0)


def _over_ranks(highest: PrototypeValues, total: PrototypeValues) -> PrototypeValues:
    """Logarithm of such sums of all ranks. A rank without samples has the exponent -inf and adds 0."""
    most = max_over_ranks(highest)
    return most + sum_over_ranks(total * (highest - most).exp()).log()


def _scaled(rows: TokenRows, temperature: float, project: Project | None) -> PrototypeLogits:
    return full(rows if project is None else project(rows)) / temperature
