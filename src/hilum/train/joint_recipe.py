"""The recipe of a space of scans and texts (RadFinder §1.5, 1.6): from kept windows, which no gradient
reaches."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from hilum.objective.depth import SIGMA_MM
from hilum.objective.prompts import CAP
from hilum.train.recipe import RunRecipe, Strict
from hilum.train.schedule import Schedules


class JointLora(Strict):
    """LoRA in the text tower, as published."""

    rank: int = Field(16, ge=1)
    alpha: int = Field(64, ge=1)
    dropout: float = Field(0.05, ge=0, lt=1)
    targets: tuple[str, ...] = ("q_proj", "k_proj", "v_proj", "o_proj")


class JointText(Strict):
    """The text tower: frozen, unless LoRA is asked for."""

    encoder: str = Field("minilm", description="a Hugging Face encoder by name or folder")
    max_tokens: int = Field(384, ge=2, description="a text is cut there")
    lora: JointLora | None = None


class JointLosses(Strict):
    """Weights of the means: what counts in the sum is what stands here.

    The published 1 : 0.5 : 0.004 are of sums over micro-batches; of means they are about 1 : 8 : 1.
    """

    report: float = Field(1.0, ge=0, description="SigLIP of scans and reports")
    prompts: float = Field(8.0, ge=0, description="diseases asked in words")
    snippets: float = Field(1.0, ge=0, description="sentences that have a depth")
    sigma_mm: float = Field(SIGMA_MM, gt=0, description="deviation of a depth's target")
    cap: float = Field(CAP, gt=0, description="largest weight of a rare question's positives")
    groups: dict[str, float] = Field({"abdomen": 1.0, "chest": 1.0, "ctrate": 1.0})


class JointRecipe(RunRecipe):
    """A run of the method `radfinder`."""

    method: Literal["radfinder"]
    preset: str = Field(description="of the joint model, e.g. radfinder-nano")
    features: Path = Field(description="folder that `hilum features` made: windows and samples.jsonl")
    split: str = Field("train", description="its scans of this split")
    apart: tuple[str, ...] = Field(("val", "test"), description="splits that must share no patient with it")
    synthetic: bool = Field(False, description="whether all scans are phantoms; the card says so")
    questions: Path | None = Field(None, description="a bank of prompts (TOML); None takes the 18 findings")
    text: JointText = Field(default_factory=lambda: JointText.model_validate({}))
    losses: JointLosses = Field(default_factory=lambda: JointLosses.model_validate({}))
    snippets: int = Field(2, ge=0, description="placed sentences that a step draws of each scan, at most")
    placed: int | None = Field(
        None, ge=1, description="scans of a step whose sentences are placed; None: all. Depths cost most"
    )
    shortest: int = Field(11, ge=0, description="words of a report that is worth reading")
    rescale: float = Field(2.0, ge=1, description="largest factor of all coordinates of a step")
    hide: float = Field(0.0, ge=0, lt=1, description="chance of a window to be hidden in a step")
    noise: float = Field(
        0.0, ge=0, description="added to what frozen towers say, in its deviations, in training"
    )
    drop: float = Field(
        0.0, ge=0, lt=1, description="chance of a number of all windows of a scan to be left out"
    )
    fresh: Literal["published", "fan"] = Field(
        "published", description="weights from a normal of 0.02, or by each map's width: for narrow models"
    )
    bias: float = Field(-10.0, description="of SigLIP at the start; -10 is for batches of thousands")
    steps: int = Field(ge=1)
    batch: int = Field(ge=2, description="scans per step on all ranks together")
    micro: int | None = Field(None, ge=1, description="scans that a rank passes at a time; the loss sees all")
    workers: int = Field(0, ge=0, description="processes that read windows; 0 is the run itself")
    clip: float = Field(1.0, gt=0, description="largest gradient norm of each part")
    beta2: float = Field(0.95, ge=0, lt=1)
    rates: Schedules

    @model_validator(mode="after")
    def _whole(self) -> JointRecipe:
        if self.parallel != "ddp":
            raise ValueError('parallel = "ddp": combiner and heads are small, and losses reach into them')
        if not any((self.losses.report, self.losses.prompts, self.losses.snippets)):
            raise ValueError("losses has one that counts")
        return self
