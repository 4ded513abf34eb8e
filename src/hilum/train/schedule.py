"""Rates as data: how a number of the optimiser moves with the step. No torch here.

Sources: warm-up and cosine of SGDR (Loshchilov and Hutter, ICLR 2017) and Goyal et al. 2017; momentum and
temperature of the teacher and the frozen last layer of DINO (Caron et al., ICCV 2021); learning rate by the
root of the batch of DINOv2 (Oquab et al., TMLR 2024). FlexiCT §2 uses no other shapes.
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

from pydantic import Field, model_validator

from hilum.errors import UsageError
from hilum.train.recipe import Strict


class Schedule(Strict):
    """A rise from `start` to `peak`, then `peak` for ever, or a cosine from it to `end`.

    The rise counts from 1, so that no step is spent at a start of 0: step `rise - 1` is the first at the
    peak. The fall counts from 0 at step `rise`; `end` is reached at step `steps` and stays.
    """

    peak: float = Field(allow_inf_nan=False, description="value after the rise")
    start: float = Field(0.0, allow_inf_nan=False, description="what the rise starts from")
    rise: int = Field(0, ge=0, description="steps of the rise; 0 is at the peak at once")
    shape: Literal["linear", "cosine"] = Field("linear", description="of the rise")
    end: float | None = Field(None, allow_inf_nan=False, description="what a cosine falls to; None stays")
    steps: int | None = Field(None, ge=1, description="all steps, the rise included; needed with `end` alone")

    @model_validator(mode="after")
    def _whole(self) -> Schedule:
        if (self.end is None) != (self.steps is None):
            raise ValueError(f"`end` and `steps` come together, got end={self.end}, steps={self.steps}")
        if self.steps is not None and self.steps <= self.rise:
            raise ValueError(f"a fall needs steps after the rise of {self.rise}, got steps={self.steps}")
        return self

    def value(self, step: int) -> float:
        """The value at a step, counted from 0: a function of nothing else, so that a run resumes exactly.

        Raises:
            UsageError: `CONFIG_VALUE` for a step before the first.
        """
        if step < 0:
            raise UsageError("CONFIG_VALUE", "steps count from 0", expected="0 or more", got=step)
        if step < self.rise:
            done = (step + 1) / self.rise
            share = done if self.shape == "linear" else (1 - math.cos(math.pi * done)) / 2
            return self.start + (self.peak - self.start) * share
        if self.end is None or self.steps is None:
            return self.peak
        done = min(1.0, (step - self.rise) / (self.steps - self.rise))
        return self.end + (self.peak - self.end) * (1 + math.cos(math.pi * done)) / 2

    @property
    def bounds(self) -> tuple[float, float]:
        """Lowest and highest of its corners; every value lies between them."""
        corners = [self.peak]
        if self.rise:
            corners.append(self.start)
        if self.end is not None:
            corners.append(self.end)
        return min(corners), max(corners)


def constant(value: float) -> Schedule:
    """The same at every step."""
    return Schedule.model_validate({"peak": value})


Scaling = Literal["none", "sqrt_wrt_1024"]


def lr_factor(scaling: Scaling, global_batch: int) -> float:
    """What a learning rate is multiplied with for scans per step on all ranks, micro-batches included.

    `sqrt_wrt_1024`: 4 · sqrt(global_batch / 1024) (FlexiCT §2), which is 1 for 64 scans.

    Raises:
        UsageError: `CONFIG_VALUE` for a batch without a scan.
    """
    if global_batch < 1:
        raise UsageError("CONFIG_VALUE", "a step sees scans", expected="1 or more", got=global_batch)
    return 1.0 if scaling == "none" else 4 * math.sqrt(global_batch / 1024)


class Rates(NamedTuple):
    """What one step uses.

    Args:
        lr: learning rate. last_lr: of the heads' last maps. weight_decay: of AdamW. ema: the teacher's
            momentum. temperature: the teacher's.
    """

    lr: float
    last_lr: float
    weight_decay: float
    ema: float
    temperature: float


class Schedules(Strict):
    """All that moves in a run. The defaults that have one are FlexiCT's, second stage (§2)."""

    lr: Schedule
    scaling: Scaling = Field("sqrt_wrt_1024", description="how `lr` follows the batch of all ranks")
    weight_decay: Schedule = constant(0.04)
    ema: Schedule = constant(0.994)
    temperature: Schedule = constant(0.07)
    last_frozen: int = Field(0, ge=0, description="first steps in which the heads' last maps rest")

    @model_validator(mode="after")
    def _in_range(self) -> Schedules:
        ranges = {
            "lr": (0.0, math.inf),
            "weight_decay": (0.0, math.inf),
            "ema": (0.0, 1.0),
            # 0 would divide by it
            "temperature": (1e-4, math.inf),
        }
        for name, (least, most) in ranges.items():
            low, high = getattr(self, name).bounds
            if low < least or high > most:
                raise ValueError(f"{name} stays within {least:g} to {most:g}, got {low:g} to {high:g}")
        return self

    def at(self, step: int, global_batch: int) -> Rates:
        """Rates of a step, counted from 0, that sees `global_batch` scans on all ranks together.

        Raises:
            UsageError: `CONFIG_VALUE` for a step before the first or a batch without a scan.
        """
        lr = self.lr.value(step) * lr_factor(self.scaling, global_batch)
        last_lr = 0.0 if step < self.last_frozen else lr
        moving = (self.weight_decay, self.ema, self.temperature)
        return Rates(lr, last_lr, *(schedule.value(step) for schedule in moving))
