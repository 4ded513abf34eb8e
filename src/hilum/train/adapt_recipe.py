"""What is built on a model of EXACT, as data: a classifier of its maps (EXACT §2.1b), and a segmentation from
few outlined scans (EXACT §2.3)."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from hilum.train.exact_recipe import ADAPT, Adapt, DenseRecipe


class ClassifyRecipe(DenseRecipe):
    """18 light heads on the anomaly maps of a frozen model, each on the map of its own finding.

    The encoder that reads the maps is the model's own, loaded and frozen; the published class never loads it.
    """

    method: Literal["exact-classify"]
    dropout: float = Field(0.3, ge=0, lt=1)
    positives: Literal["measured", "paper"] = Field(
        "measured", description="weights of positive labels: absent over present, or the published list"
    )
    keep_features: bool = Field(
        False, description="frozen features stay in memory: faster, where all scans fit"
    )

    @model_validator(mode="after")
    def _needs_start(self) -> ClassifyRecipe:
        if self.start is None:
            raise ValueError("exact-classify reads the maps of a model: start")
        if self.keep_features and any(self.augment.model_dump().values()):
            raise ValueError("features are kept of scans that do not change: augment")
        return self


class SegmentRecipe(DenseRecipe):
    """One mask of whatever a data set outlines, from the network of a model (`--masks findings`)."""

    method: Literal["exact-seg"]
    preset: str = Field(description="one of model/presets/*.json that gives whole maps, as `start` has it")
    head: Literal["findings", "organs"] = Field(
        "findings", description="what one more map of one voxel reads: the 18 findings or the 7 organs"
    )
    transfer: Literal["all", "published", "none"] = Field(
        "all", description="weights of `start`: all, encoder and organ decoder, or none as a baseline"
    )
    few: int | None = Field(None, ge=1, description="so many training patients; None all")
    adapt: Adapt = Field("full", description=ADAPT)
    lora_rank: int = Field(8, ge=1)
    tversky_fp: float = Field(0.3, ge=0)
    tversky_fn: float = Field(0.7, ge=0)

    @model_validator(mode="after")
    def _agrees(self) -> SegmentRecipe:
        if (self.start is None) != (self.transfer == "none"):
            raise ValueError('transfer = "none" has no start, the others have one')
        if self.adapt != "full" and self.start is None:
            raise ValueError(f'adapt = "{self.adapt}" needs a model to start from')
        return self
