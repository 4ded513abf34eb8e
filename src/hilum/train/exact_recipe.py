"""EXACT as data: cohorts with organ masks, the rule between maps and labels, and the schedule (EXACT §1.7 to
1.9)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

from pydantic import Field, model_validator

from hilum.objective.dense_rule import DenseRule
from hilum.train.recipe import RunRecipe, Strict

Adapt = Literal["full", "head", "lora"]
ADAPT = "what of `start` is trained: all, the heads alone, or low-rank changes and heads"


class ExactPart(Strict):
    """A cohort: what `hilum prepare --prep PRESET --masks SOURCE` left in a folder."""

    cohort: Path = Field(description="the folder, with manifest.parquet and the stores")
    prep: str = Field("exact", description="which store of it")
    split: str = Field("train", description="its scans of this split")
    apart: tuple[str, ...] = Field(("val", "test"), description="splits that must share no patient with it")
    masks: bool = Field(True, description="whether its organ masks are used; scans without teach findings")


class ExactAugment(Strict):
    """How far a scan is varied at every step; off as published."""

    gain: float = Field(0.0, ge=0, lt=1, description="values are multiplied by 1 ± this")
    offset: float = Field(0.0, ge=0, description="and moved by up to this")
    noise: float = Field(0.0, ge=0, description="standard deviation of noise per voxel")
    shift_vox: int = Field(0, ge=0, description="moved along each axis by up to so many voxels")


class ExactLosses(Strict):
    """Weights of the losses and what belongs to them (EXACT §1.7)."""

    organs: float = Field(1.0, ge=0)
    anomaly: float = Field(1.0, ge=0)
    organs_start: float = Field(2.0, ge=0, description="factor of the organ loss at the start")
    organs_floor: float = Field(0.5, ge=0, description="and what it falls to")
    tversky_fp: float = Field(0.3, ge=0)
    tversky_fn: float = Field(0.7, ge=0)
    focal_alpha: float = Field(0.9, ge=0, le=1)
    focal_gamma: float = Field(2.0, ge=0)
    prevalence: Literal["measured", "paper"] = Field(
        "measured", description="share of positives: of the training scans, or the published list"
    )
    positive_cap: float | None = Field(20.0, gt=0, description="largest weight of a positive label")
    prior: float = Field(
        0.0, ge=0, le=1, description="share of the training scans' mean organ in the predicted one, at first"
    )
    prior_until: float = Field(0.25, gt=0, le=1, description="share of the run after which it counts nothing")


class DenseRecipe(RunRecipe):
    """What all runs on whole prepared scans have: EXACT, and what is built on it (`adapt_recipe`)."""

    method: str
    start: Path | None = Field(None, description="folder of a model to start from")
    data: tuple[ExactPart, ...] = Field(min_length=1)
    validation: str | None = Field("val", description="split that chooses; None takes the last weights")
    validation_share: float | None = Field(
        None, gt=0, lt=1, description="share of the training patients that chooses instead of a split"
    )
    validate_every: int | None = Field(None, ge=1, description="steps; None ten times in a run")
    epochs: float | None = Field(None, gt=0, description="how often every scan is seen; or steps")
    steps: int | None = Field(None, ge=1)
    batch: int = Field(8, ge=1, description="scans per step on all ranks together")
    micro: int | None = Field(
        1, ge=1, description="scans that a rank passes at a time; the loss is the whole batch's"
    )
    workers: int = Field(0, ge=0, description="processes that read scans; 0 is the run itself")
    shape_vox: tuple[int, int, int] | None = Field(
        None, description="crop and pad every scan about its middle; None leaves them as prepared"
    )
    augment: ExactAugment = Field(default_factory=lambda: ExactAugment.model_validate({}))
    lr: float = Field(1e-4, gt=0)
    lr_end: float = Field(1e-5, ge=0, description="what the cosine falls to at the end of the run")
    lr_rise: int = Field(0, ge=0, description="steps of a linear rise before it")
    lr_period_epochs: float | Literal["run"] = Field(
        "run", description="the published 50: the cosine falls for so many epochs, then rises again"
    )
    weight_decay: float = Field(1e-2, ge=0)
    decay_all: bool = Field(False, description="weight decay for biases and norms too")
    beta2: float = Field(0.999, ge=0, lt=1)
    clip: float | None = Field(
        None, gt=0, description="largest gradient norm of each part; None cuts nothing"
    )
    ema: float = Field(0.0, ge=0, lt=1, description="of the average that is kept; 0 keeps the weights")

    @model_validator(mode="after")
    def _ends(self) -> DenseRecipe:
        if (self.epochs is None) == (self.steps is None):
            raise ValueError("a run has epochs or steps, one of the two")
        if self.lr_period_epochs != "run" and not self.lr_period_epochs > 0:
            raise ValueError(f'lr_period_epochs is positive or "run", got {self.lr_period_epochs}')
        return self


class ExactRecipe(DenseRecipe):
    """A run of EXACT on prepared cohorts.

    `convention = "paper"` sets what the publication does otherwise (`PAPER`); keys of the recipe still win.
    """

    method: Literal["exact"]
    convention: Literal["hilum", "paper"] = "hilum"
    preset: str = Field(description="one of model/presets/*.json that gives whole maps, as `start` has it")
    adapt: Adapt = Field("full", description=ADAPT)
    lora_rank: int = Field(8, ge=1)
    rule: DenseRule = DenseRule()
    losses: ExactLosses = Field(default_factory=lambda: ExactLosses.model_validate({}))

    @model_validator(mode="before")
    @classmethod
    def _of_paper(cls, data: Any) -> Any:
        if isinstance(data, dict) and data.get("convention") == "paper":
            return _below(PAPER, data)
        return data

    @model_validator(mode="after")
    def _whole(self) -> ExactRecipe:
        if self.adapt != "full" and self.start is None:
            raise ValueError(f'adapt = "{self.adapt}" needs a model to start from')
        return self


PAPER: Mapping[str, Any] = MappingProxyType(
    {
        "rule": {"gate": "hard", "opened_by": "paper", "guard": False, "pool": "topk", "k_low": 6,
                 "k_high": 48, "k_read": 3},
        "losses": {"prevalence": "paper"},
        "lr_period_epochs": 50.0,
        "decay_all": True,
    }
)  # fmt: skip
"""What the publication does otherwise than Hilum (EXACT §1.7 to 1.9)."""


def _below(defaults: Mapping[str, Any], data: Mapping[str, Any]) -> dict[str, Any]:
    """`data`, and `defaults` where it says nothing."""
    merged = dict(data)
    for key, value in defaults.items():
        if isinstance(value, Mapping):
            own = data.get(key, {})
            merged[key] = _below(value, own) if isinstance(own, Mapping) else own
        else:
            merged.setdefault(key, value)
    return merged
