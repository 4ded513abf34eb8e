"""What a method gives the loop. Everything else — ranks, rates, clipping, averages, checkpoints — is the
loop's."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol, runtime_checkable

import torch
from torch import nn

from hilum.train.ema import Average
from hilum.train.recipe import RunRecipe
from hilum.train.schedule import Rates

Losses = dict[str, torch.Tensor]


@runtime_checkable
class Task(Protocol):
    """A method with its data.

    Attributes:
        steps: all of them. identity: JSON of what a run that goes on must agree with.
        betas: AdamW's.
    """

    steps: int
    identity: str
    betas: tuple[float, float]

    @property
    def recipe(self) -> RunRecipe:
        """Of the run."""

    def student(self) -> nn.Module:
        """Everything that is trained, in one module; fresh or of the stage before, the same on all ranks."""

    def groups(self, model: nn.Module) -> list[dict[str, Any]]:
        """Parameter groups as of `groups.adamw_groups`."""

    def rates(self, step: int) -> Rates:
        """Of one step."""

    def batches(self, start: int, device: torch.device) -> Iterator[Any]:
        """This rank's share of every step from `start` on."""

    def keys(self, batch: Any) -> list[str]:
        """Scans of a batch, for when it fails."""

    def backward(self, model: nn.Module, average: Average, batch: Any, step: int) -> Losses:
        """Named losses, weighted; the gradients of their sum are added to the parameters', over ranks too."""

    def clip(self, model: nn.Module) -> None:
        """Cuts the gradients."""
