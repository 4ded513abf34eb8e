"""The distillation term of a stage, as data."""

from __future__ import annotations

import re
from typing import Literal

from pydantic import Field, model_validator
from torch import nn

from hilum.train.recipe import Strict


class TeacherRecipe(Strict):
    """One teacher.

    Attributes:
        teacher: folder of an encoder, or ``astra``. name: for its losses and tensors; None takes the last
            part of `teacher`.
        vox: voxels that it sees of a picture, along its own axes; None: as many as its own preparation would
            give the field.
        patch: of its patches, voxels; None takes its own.
        summary: what of a summary is learned: its direction from the mean of the training scans, or, as in
            AM-RADIO, from zero. Chests are alike: Astra's summaries of different phantoms have a mean cosine
            of 0.97 from zero, so that the mean alone would nearly do.
    """

    teacher: str
    name: str | None = Field(None, pattern="^[A-Za-z0-9_-]+$")
    weight: float = Field(1.0, ge=0, description="of the patches' loss")
    summary_weight: float = Field(1.0, ge=0, description="of the summary's loss; 0 leaves the summary out")
    vox: tuple[int, int, int] | None = None
    patch: int | None = Field(None, ge=1)
    summary: Literal["centred", "as-is"] = "centred"

    @property
    def label(self) -> str:
        """The name that losses and tensors have."""
        last = self.teacher.replace("\\", "/").rstrip("/").rsplit("/", 1)[-1]
        return self.name or re.sub(r"[^A-Za-z0-9_-]+", "-", last) or "teacher"


class DistilRecipe(Strict):
    """The distillation term of a stage.

    Attributes:
        hidden: width of the adaptors' layer; None takes the student's.
        chunk: scans whose adapted features exist at a time; None for all.
    """

    teachers: tuple[TeacherRecipe, ...] = Field(min_length=1)
    hidden: int | None = Field(None, ge=1)
    fit_scans: int = Field(128, ge=1, description="training scans that the standardisation is estimated on")
    chunk: int | None = Field(None, ge=1)

    @model_validator(mode="after")
    def _names(self) -> DistilRecipe:
        names = [teacher.label for teacher in self.teachers]
        taken = [name for name in names if names.count(name) > 1 or hasattr(nn.ModuleDict, name)]
        if taken:
            raise ValueError(f"teachers have names of their own; got {taken}")
        return self
