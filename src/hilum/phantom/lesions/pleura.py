"""Fluid around the lung."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from hilum.phantom.lesions._fields import Dice, Window, blend, noise, smoothstep, window_of
from hilum.phantom.lesions._truth import move, record
from hilum.phantom.plan import Degree
from hilum.phantom.scene import LesionTruth, Scene


def insert_pleural_effusion(scene: Scene, generator: torch.Generator, degree: Degree) -> LesionTruth | None:
    """A dependent crescent with a meniscus on one or both sides, 8-60 mm thick; its voxels leave the lung."""
    dice = Dice(generator)
    fluid = torch.zeros(scene.grid.shape, dtype=torch.bool, device=scene.device)
    low, high = {"mild": (9.0, 15.0), "moderate": (21.0, 32.0), "severe": (42.0, 60.0)}[degree]
    sides = ("right", "left") if dice.chance(0.45) else (dice.choice(("right", "left")),)
    hu_value = dice.uniform(0.0, 20.0)
    thickest = 0.0
    for side in sides:
        thickness = dice.uniform(low, high) * (1.0 if side == sides[0] else dice.uniform(0.55, 1.0))
        _layer(scene, dice, fluid, f"lung_{side}", thickness, hu_value)
        thickest = max(thickest, thickness)
    move(scene, fluid, into=("pleura",))
    return record(
        scene,
        "pleural_effusion",
        fluid,
        degree,
        count=len(sides),
        thickness_mm=round(thickest, 1),
        hu=round(hu_value, 1),
    )


def _back(window: Window, lung: Tensor) -> Tensor:
    """y of the hindmost lung voxel at every height, smoothed over 30 mm, (1, 1, Z)."""
    shadow = lung.any(dim=0)
    first = shadow.float().argmax(dim=0)
    y = window.y.flatten()[first]
    y = torch.where(shadow.any(dim=0), y, y[shadow.any(dim=0)].max())
    half = max(1, round(15.0 / window.work_mm))
    padded = F.pad(y[None, None], (half, half), mode="replicate")
    return F.avg_pool1d(padded, 2 * half + 1, 1)[0]


def _layer(scene: Scene, dice: Dice, fluid: Tensor, name: str, thickness: float, hu_value: float) -> None:
    window = window_of(scene, scene.regions[name])
    if window is None:
        return
    lung = window.of(scene.regions[name])
    depth = window.of(scene.depth_mm)
    z = window.z
    height = (z - z.flatten()[0]) / (z.flatten()[-1] - z.flatten()[0] + scene.work_mm)
    tail = 0.05 if thickness < 18.0 else 0.2
    profile = 1.0 - (1.0 - tail) * smoothstep(height, 0.15, 0.8)
    climb = 0.7 * thickness * torch.exp(-depth / (0.3 * thickness))
    level = thickness * profile + climb * profile + 1.2 * noise(window, 35.0, dice)
    gap = (window.y - _back(window, lung)[None]) - level
    alpha = (0.5 - gap / scene.work_mm).clamp(0, 1) * lung
    hu = window.of(scene.hu)
    # lung just above the fluid is squeezed a little
    hu += 50.0 * torch.exp(-gap.clamp(min=0) / 6.0) * ((-500.0 - hu) / 200.0).clamp(0, 1) * lung
    blend(hu, alpha, hu_value)
    window.of(fluid).logical_or_(alpha > 0.5)
    depth.copy_(torch.where(lung, torch.minimum(depth, gap.clamp(min=0.0)), depth))
