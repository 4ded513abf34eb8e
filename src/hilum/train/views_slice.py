"""Views of an axial slice (FlexiCT §2, stages P1 and P1.1)."""

from __future__ import annotations

import math

import torch
from pydantic import Field, model_validator

from hilum.tensors import ScanCrop
from hilum.train.augment import uniform
from hilum.train.intensity import IntensityRecipe, vary
from hilum.train.recipe import Strict
from hilum.train.views import Box, Range, Views, happens, show_all, whole_number

TRIES = 10


class SliceSides(Strict):
    """Sides of views in pixels, and how often a step takes them.

    A Gram teacher sees the whole views at `anchor` pixels; None without.
    """

    whole: int = Field(256, ge=1)
    parts: int = Field(112, ge=1)
    anchor: int | None = Field(None, ge=1)
    weight: float = Field(1.0, gt=0)


class SliceViewRecipe(Strict):
    """Defaults are stage P1's."""

    sides: tuple[SliceSides, ...] = (SliceSides.model_validate({}),)
    wholes: int = Field(2, ge=1)
    parts: int = Field(8, ge=0)
    whole_area: Range = (0.32, 1.0)
    part_area: Range = (0.05, 0.32)
    aspect: Range = (3 / 4, 4 / 3)
    flip_chance: float = Field(0.5, ge=0, le=1, description="of each view, left and right")
    flip_axis: int = Field(0, ge=0, le=1, description="of the slice: the axis from one side to the other")
    intensity: IntensityRecipe | None = IntensityRecipe.model_validate({})

    @model_validator(mode="after")
    def _ranges(self) -> SliceViewRecipe:
        for name in ("whole_area", "part_area"):
            low, high = getattr(self, name)
            if not 0 < low <= high <= 1:
                raise ValueError(f"{name} is a range of shares within 0..1")
        if not 0 < self.aspect[0] <= self.aspect[1]:
            raise ValueError("aspect is a range of positive ratios")
        if not self.sides:
            raise ValueError("sides has one entry at least")
        return self


def draw_sides(recipe: SliceViewRecipe, generator: torch.Generator) -> SliceSides:
    """What a step takes: one choice for the whole batch, or its views could not be stacked."""
    weights = torch.tensor([sides.weight for sides in recipe.sides], dtype=torch.float64)
    return recipe.sides[int(torch.multinomial(weights, 1, generator=generator))]


def slice_views(
    image: ScanCrop, sides: SliceSides, recipe: SliceViewRecipe, generator: torch.Generator
) -> Views:
    """[1, H, W] z-scores -> views of one slice.

    Args:
        sides: of this step (`draw_sides`).
    """
    shape = (image.shape[1], image.shape[2])
    flip = (recipe.flip_chance, recipe.flip_axis)
    areas = [recipe.whole_area] * recipe.wholes + [recipe.part_area] * recipe.parts
    boxes = tuple(draw_area(shape, area, recipe.aspect, flip, generator) for area in areas)
    wholes, parts = boxes[: recipe.wholes], boxes[recipe.wholes :]
    varied = image if recipe.intensity is None else vary(image, recipe.intensity, generator)
    return Views(
        show_all(varied, wholes, sides.whole),
        show_all(varied, parts, sides.parts) if parts else varied.new_zeros(0, 1, sides.parts, sides.parts),
        None if sides.anchor is None else show_all(image, wholes, sides.anchor),
        boxes,
    )


def draw_area(
    shape: tuple[int, int],
    share: Range,
    aspect: Range,
    flip: tuple[float, int],
    generator: torch.Generator,
) -> Box:
    """A box of a share of the slice's area, its aspect log-uniform: the random resized crop of pictures.

    After ten tries that do not fit, the largest box in the middle whose aspect is within range.
    """
    size = None
    for _ in range(TRIES):
        area = uniform(generator, *share) * shape[0] * shape[1]
        ratio = math.exp(uniform(generator, math.log(aspect[0]), math.log(aspect[1])))
        drawn = (round(math.sqrt(area / ratio)), round(math.sqrt(area * ratio)))
        if all(1 <= n <= most for n, most in zip(drawn, shape, strict=True)):
            size = drawn
            break
    flipped = (flip[1],) if happens(flip[0], generator) else ()
    if size is None:
        ratio = min(max(shape[1] / shape[0], aspect[0]), aspect[1])
        wanted = (min(shape[0], shape[1] / ratio), min(shape[1], shape[0] * ratio))
        size = (max(1, round(wanted[0])), max(1, round(wanted[1])))
        start = tuple((most - n) // 2 for n, most in zip(size, shape, strict=True))
        return Box(start, size, flipped)
    start = tuple(whole_number(0, most - n, generator) for n, most in zip(size, shape, strict=True))
    return Box(start, size, flipped)
