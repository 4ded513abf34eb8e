"""Views of a volume at 2 mm (FlexiCT §2, stages P2 and P3)."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field, model_validator
from torch.nn import functional as F

from hilum.tensors import ScanCrop, ScanView
from hilum.train.intensity import IntensityRecipe, vary
from hilum.train.recipe import Strict
from hilum.train.views import Box, Views, happens, show_all, whole_number


class VolumeViewRecipe(Strict):
    """Defaults are stage P2's. P3: `wholes = 1`, `whole_vox = "middle"`, `part_vox = [20, 40]`, no flips.

    Attributes:
        side_vox, part_side_vox: of a view along each axis.
        field_vox: side that a scan is padded to, and of the region in its middle that a whole view shows
            with `whole_vox = "middle"`; None is `side_vox`.
        whole_vox: side of the region that a whole view shows, drawn for each axis, or "middle".
        anchor: whether a Gram teacher sees the whole views undistorted.
    """

    side_vox: int = Field(160, ge=1)
    part_side_vox: int = Field(80, ge=1)
    field_vox: int | None = Field(None, ge=1)
    wholes: int = Field(2, ge=1)
    parts: int = Field(8, ge=0)
    whole_vox: tuple[int, int] | Literal["middle"] = (80, 160)
    part_vox: tuple[int, int] = (15, 40)
    flip_chance: float = Field(0.5, ge=0, le=1, description="of each axis of the first whole view alone")
    intensity: IntensityRecipe | None = None
    anchor: bool = False

    @model_validator(mode="after")
    def _ranges(self) -> VolumeViewRecipe:
        for name in ("whole_vox", "part_vox"):
            between = getattr(self, name)
            if between != "middle" and not 1 <= between[0] <= between[1] <= self.field:
                raise ValueError(f"{name} is a range of voxels within 1..{self.field}, the field")
        return self

    @property
    def field(self) -> int:
        """Side of the field in voxels."""
        return self.side_vox if self.field_vox is None else self.field_vox


def volume_views(volume: ScanCrop, recipe: VolumeViewRecipe, generator: torch.Generator) -> Views:
    """[1, X, Y, Z] z-scores -> views of one scan; a scan shorter than a view is padded with its smallest
    value, about its middle."""
    volume = pad_to(volume, recipe.field)
    shape = tuple(volume.shape[1:])
    wholes = [_whole(shape, recipe, generator, first=i == 0) for i in range(recipe.wholes)]
    parts = [draw_box(shape, recipe.part_vox, generator) for _ in range(recipe.parts)]
    varied = volume if recipe.intensity is None else vary(volume, recipe.intensity, generator)
    side = recipe.part_side_vox
    return Views(
        show_all(varied, wholes, recipe.side_vox),
        show_all(varied, parts, side) if parts else varied.new_zeros(0, 1, side, side, side),
        show_all(volume, wholes, recipe.side_vox) if recipe.anchor else None,
        (*wholes, *parts),
    )


def pad_to(volume: ScanCrop, side_vox: int) -> ScanView:
    """At least `side_vox` along each axis."""
    missing = [max(0, side_vox - n) for n in volume.shape[1:]]
    if not any(missing):
        return volume
    both = [(m // 2, m - m // 2) for m in reversed(missing)]
    return F.pad(volume, [n for pair in both for n in pair], value=float(volume.min()))


def draw_box(shape: tuple[int, ...], between: tuple[int, int], generator: torch.Generator) -> Box:
    """Each axis has a length of its own; anywhere inside."""
    size = tuple(min(n, whole_number(*between, generator)) for n in shape)
    return Box(tuple(whole_number(0, n - s, generator) for n, s in zip(shape, size, strict=True)), size)


def _whole(
    shape: tuple[int, ...], recipe: VolumeViewRecipe, generator: torch.Generator, *, first: bool
) -> Box:
    if recipe.whole_vox == "middle":
        size = (recipe.field,) * 3
        box = Box(tuple((n - s) // 2 for n, s in zip(shape, size, strict=True)), size)
    else:
        box = draw_box(shape, recipe.whole_vox, generator)
    flips = [happens(recipe.flip_chance, generator) for _ in shape] if first else []
    return Box(box.start, box.size, tuple(axis for axis, flip in enumerate(flips) if flip))
