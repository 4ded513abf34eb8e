"""One picture's values as another scanner would give them: noise, smoothing, contrast, coarse voxels,
gamma.

FlexiCT's first stage (§2): one chain per slice, shared by all of its views. How strong noise and smoothing
are is inferred (nnU-Net's defaults), and so is their order; the chances and the other ranges are its code's.
"""

from __future__ import annotations

import math

import torch
from pydantic import Field, model_validator
from torch.nn import functional as F

from hilum.phantom.scanner_noise import blur_axis
from hilum.tensors import ScanCrop
from hilum.train.augment import uniform
from hilum.train.recipe import Strict
from hilum.train.views import Range, happens


class IntensityRecipe(Strict):
    """Chances and ranges; values are z-scores, so noise is in standard deviations of the slice."""

    noise_chance: float = Field(0.1, ge=0, le=1)
    noise_variance: Range = (0.0, 0.1)
    smooth_chance: float = Field(0.2, ge=0, le=1)
    smooth_vox: Range = (0.5, 1.0)
    scale_chance: float = Field(0.15, ge=0, le=1)
    scale: Range = (0.75, 1.25)
    coarse_chance: float = Field(0.25, ge=0, le=1)
    coarse_zoom: Range = (0.5, 1.0)
    gamma_chance: float = Field(0.1, ge=0, le=1)
    gamma: Range = (0.7, 1.5)

    @model_validator(mode="after")
    def _ranges(self) -> IntensityRecipe:
        least = {"noise_variance": 0.0, "smooth_vox": 1e-3, "scale": 0.0, "coarse_zoom": 1e-3, "gamma": 1e-3}
        for name, lowest in least.items():
            low, high = getattr(self, name)
            most = 1.0 if name == "coarse_zoom" else math.inf
            if not lowest <= low <= high <= most:
                raise ValueError(f"{name} is a range, low first, from {lowest:g} to {most:g}")
        return self


def vary(image: ScanCrop, recipe: IntensityRecipe, generator: torch.Generator) -> ScanCrop:
    """[1, ...] -> the same shape. The image itself is not changed."""
    if happens(recipe.noise_chance, generator):
        sigma = math.sqrt(uniform(generator, *recipe.noise_variance))
        image = image + sigma * torch.randn(image.shape, generator=generator).to(image)
    if happens(recipe.smooth_chance, generator):
        image = smooth(image, uniform(generator, *recipe.smooth_vox))
    if happens(recipe.scale_chance, generator):
        image = image * uniform(generator, *recipe.scale)
    if happens(recipe.coarse_chance, generator):
        image = coarsen(image, uniform(generator, *recipe.coarse_zoom))
    if happens(recipe.gamma_chance, generator):
        image = bend(image, uniform(generator, *recipe.gamma))
    return image


def smooth(image: ScanCrop, sigma_vox: float) -> ScanCrop:
    """Gaussian along each axis in turn, borders repeated."""
    for axis in range(1, image.dim()):
        image = blur_axis(image, axis, sigma_vox)
    return image


def coarsen(image: ScanCrop, zoom: float) -> ScanCrop:
    """Down to `zoom` times as many voxels along each axis and up again (linear)."""
    shape = image.shape[1:]
    mode = "bilinear" if len(shape) == 2 else "trilinear"
    small = [max(1, round(n * zoom)) for n in shape]
    return F.interpolate(F.interpolate(image[None], small, mode=mode), shape, mode=mode)[0]


def bend(image: ScanCrop, gamma: float) -> ScanCrop:
    """Values to 0..1, to the power `gamma`, and back to the mean and deviation they had."""
    low, high = image.min(), image.max()
    if not high > low:
        return image
    bent = ((image - low) / (high - low)) ** gamma
    mean, deviation = image.mean(), image.std(correction=0)
    return (bent - bent.mean()) / bent.std(correction=0).clamp_min(1e-7) * deviation + mean
