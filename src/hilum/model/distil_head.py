"""The adaptor of distillation: from a student's token to a teacher's feature.

Source: Ranzinger et al., AM-RADIO, CVPR 2024, §3: two layers, with a layer norm and a GELU between them; one
for patches and one for the summary, per teacher. Adaptors are for training; no exported model has one.

What differs: the last map starts at zero for patches, whose targets have mean 0, so that a run starts from
the loss of the mean (1) instead of noise on top of it. A summary is a direction, which zero has not: its map
starts small.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from hilum.errors import UsageError
from hilum.model.fresh import STD, fresh_linear
from hilum.tensors import AdaptedFeatures, HeadInputs


@dataclass(frozen=True)
class DistilHeadConfig:
    """Sizes of the adaptors of one teacher.

    Args:
        width: of the student's tokens. patch_width: of the teacher's patch features.
        summary_width: of its summary; None where the summary is not learned. hidden: of the layer between;
            None takes the student's width.
    """

    width: int
    patch_width: int
    summary_width: int | None = None
    hidden: int | None = None

    def __post_init__(self) -> None:
        for name in ("width", "patch_width", "summary_width", "hidden"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UsageError(
                    "CONFIG_VALUE", f"{name} of an adaptor is positive", expected="at least 1", got=value
                )


class Adaptor(nn.Module):
    """Two layers: features (..., `width`) -> (..., `out`)."""

    def __init__(self, width: int, hidden: int, out: int) -> None:
        super().__init__()
        self.first = nn.Linear(width, hidden)
        self.norm = nn.LayerNorm(hidden)
        self.last = nn.Linear(hidden, out)

    @torch.no_grad()
    def reset(self, last: float, generator: torch.Generator | None = None) -> None:
        """Fresh parameters: weights from a normal of 0.02 (the last map's: of `last`) cut at two deviations,
        biases zero."""
        if self.first.weight.is_meta:
            return
        fresh_linear(self.first, generator)
        fresh_linear(self.last, generator, last)
        self.norm.reset_parameters()

    def forward(self, tokens: HeadInputs) -> AdaptedFeatures:
        """The teacher's feature, as the student guesses it."""
        return self.last(nn.functional.gelu(self.norm(self.first(tokens))))


class DistilHead(nn.Module):
    """The adaptors of one teacher: `patches`, and `summary` where the teacher has one that is learned."""

    def __init__(self, config: DistilHeadConfig) -> None:
        super().__init__()
        self.config = config
        hidden = config.width if config.hidden is None else config.hidden
        self.patches = Adaptor(config.width, hidden, config.patch_width)
        self.summary = (
            None if config.summary_width is None else Adaptor(config.width, hidden, config.summary_width)
        )
        self.reset()

    def reset(self, generator: torch.Generator | None = None) -> None:
        """Fresh parameters."""
        self.patches.reset(0.0, generator)
        if self.summary is not None:
            self.summary.reset(STD, generator)
