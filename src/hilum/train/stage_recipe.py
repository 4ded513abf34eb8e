"""A stage of FlexiCT's pretraining as data: what it starts from, sees and minimises (FlexiCT §2).

Defaults are the second stage's. A stage on slices has `slices`, one on volumes has `volumes`.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from hilum.objective.masks import MaskPlan
from hilum.train.distil import DistilRecipe
from hilum.train.groups import GroupRecipe
from hilum.train.recipe import RunRecipe, Strict
from hilum.train.schedule import Schedules
from hilum.train.views_slice import SliceViewRecipe
from hilum.train.views_volume import VolumeViewRecipe


class CohortPart(Strict):
    """A cohort that a stage learns from: what `hilum prepare --prep PRESET` left in a folder."""

    cohort: Path = Field(description="the folder, with manifest.parquet and the store")
    prep: str = Field("flexict-3d", description="which store of it")
    split: str = Field("train", description="its scans of this split")
    apart: tuple[str, ...] = Field(("val", "test"), description="splits that must share no patient with it")
    weight: float = Field(1.0, gt=0, description="share of the scans, relative to the other parts")


class HeadRecipe(Strict):
    """Sizes of the DINO and the iBOT head."""

    hidden: int = Field(2048, ge=1)
    bottleneck: int = Field(256, ge=1)
    prototypes: int = Field(65_536, ge=1)
    weight_norm: bool = Field(False, description="prototypes of length 1, as DINO has them: learns sooner")
    chunk: int | None = Field(4096, ge=1, description="masked patches whose logits exist at a time")


class LossRecipe(Strict):
    """Weights of the losses. Of `dino`, global and local pairs share by their number, each with a factor."""

    dino: float = Field(0.5, ge=0)
    dino_global: float = Field(1.0, ge=0, description="factor of pairs of whole views")
    dino_local: float = Field(1.0, ge=0, description="factor of pairs of a small and a whole view")
    ibot: float = Field(1.0, ge=0)
    koleo: float = Field(0.1, ge=0)
    koleo_across_ranks: bool = True
    gram: float = Field(0.0, ge=0)
    clip: float = Field(0.0, ge=0)
    osl: float = Field(0.0, ge=0)


class TextRecipe(Strict):
    """The language side of the third stage."""

    encoder: str = Field("minilm", description="a Hugging Face encoder by name or folder")
    pooling: Literal["mean", "last", "cls", "attention"] | None = Field(None, description="None: by layout")
    max_tokens: int = Field(256, ge=2, description="of a caption")
    pair_tokens: int = Field(64, ge=2, description="of a sentence and its opposite")
    pairs: int = Field(8, ge=2, multiple_of=2, description="opposite sentences per scan")
    others: int = Field(16, ge=1, description="other patients whose findings may be told of a scan")
    shuffle_chance: float = Field(0.5, ge=0, le=1, description="of paragraphs in another order")
    frozen: bool = Field(False, description="the text tower stays as it came")


class StageRecipe(RunRecipe):
    """One stage."""

    method: Literal["flexict-2d", "flexict-3d", "flexict-text"]
    backbone: str = Field(description="one of model/presets/*.json, or as `start` has it")
    start: Path | None = Field(
        None, description="folder of the stage before; None starts from random weights"
    )
    gram_teacher: Path | None = Field(None, description="frozen teacher of the Gram loss; None is `start`")
    synthetic: bool = Field(False, description="whether all scans are phantoms; the card says so")
    steps: int = Field(ge=1)
    exports: tuple[int, ...] = Field(
        (), description="steps after which the teacher is exported, besides the last"
    )
    batch: int = Field(ge=1, description="scans per step on all ranks together")
    micro: int | None = Field(None, ge=1, description="scans that a rank passes at a time; the loss sees all")
    workers: int = Field(0, ge=0, description="processes that prepare views; 0 is the run itself")
    patches: tuple[int, ...] = Field((16, 8), min_length=1, description="a step takes one, each as often")
    clip: float = Field(3.0, gt=0, description="largest gradient norm of each part")
    beta2: float = Field(0.999, ge=0, lt=1)
    data: tuple[CohortPart, ...] = Field(min_length=1)
    slices: SliceViewRecipe | None = None
    volumes: VolumeViewRecipe | None = None
    masks: MaskPlan = Field(default_factory=MaskPlan)
    heads: HeadRecipe = Field(default_factory=lambda: HeadRecipe.model_validate({}))
    losses: LossRecipe = Field(default_factory=lambda: LossRecipe.model_validate({}))
    rates: Schedules
    groups: GroupRecipe = Field(default_factory=lambda: GroupRecipe.model_validate({}))
    text: TextRecipe | None = None
    distil: DistilRecipe | None = Field(
        None, description="frozen teachers of other making; of the middle alone"
    )

    @model_validator(mode="after")
    def _whole(self) -> StageRecipe:
        of_slices = self.method == "flexict-2d"
        if (self.slices is not None) != of_slices or (self.volumes is not None) == of_slices:
            raise ValueError("flexict-2d has [slices], the other stages [volumes], and none has both")
        if (self.text is not None) != (self.method == "flexict-text"):
            raise ValueError("flexict-text has [text], the other stages have none")
        if self.text is None and (self.losses.clip or self.losses.osl):
            raise ValueError("losses.clip and losses.osl need flexict-text")
        if self.losses.gram and not (self.start or self.gram_teacher):
            raise ValueError("losses.gram needs a teacher: gram_teacher or start")
        if self.distil is not None and (self.volumes is None or self.volumes.whole_vox != "middle"):
            # a region that is stretched to a view has other voxel sizes in every scan
            raise ValueError('distil needs volumes.whole_vox = "middle"')
        for side in self.view_sides():
            if wrong := [patch for patch in self.patches if patch < 1 or side % patch]:
                raise ValueError(f"views of {side} voxels are no whole number of patches of {wrong[0]}")
        if self.method == "flexict-text" and self.volumes is not None and self.volumes.wholes != 1:
            raise ValueError("flexict-text sees one whole view: volumes.wholes = 1")
        return self

    def view_sides(self) -> list[int]:
        """Every side that a view of the run can have, in voxels."""
        if self.volumes is not None:
            return [self.volumes.side_vox, *([self.volumes.part_side_vox] if self.volumes.parts else [])]
        assert self.slices is not None, "checked when the recipe was read"
        sides = [n for s in self.slices.sides for n in (s.whole, s.parts, s.anchor) if n is not None]
        return sorted(set(sides))


def beside_recipe(data: dict[str, Any], folder: Path) -> None:
    """Paths of a recipe are relative to its file; whatever is no text is left for the recipe to refuse."""
    distil = data.get("distil")
    teachers = _tables(distil.get("teachers")) if isinstance(distil, dict) else []
    owners: list[tuple[dict[str, Any], tuple[str, ...]]] = [(data, ("start", "gram_teacher", "questions"))]
    owners += [(part, ("cohort",)) for part in _tables(data.get("data"))]
    if data.get("method") == "radfinder":
        owners += [(data, ("features",))]
    if data.get("method") == "exact-chat":
        owners += [(data, ("language_model",))]
        owners += [(part, ("features", "reports", "predictions")) for part in _tables([data.get("data")])]
    # a teacher without a slash is one that Hilum knows by name
    owners += [(teacher, ("teacher",)) for teacher in teachers if "/" in str(teacher.get("teacher"))]
    for owner, names in owners:
        for name in names:
            if isinstance(owner.get(name), str):
                owner[name] = os.path.normpath(folder / owner[name])


def _tables(value: Any) -> list[dict[str, Any]]:
    return [table for table in value if isinstance(table, dict)] if isinstance(value, list) else []
