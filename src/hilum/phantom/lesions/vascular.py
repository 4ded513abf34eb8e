"""Plaques in the wall of the aorta."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from hilum.phantom.lesions._fields import Dice, balls, blend, lookup, window_of
from hilum.phantom.lesions._truth import organ_mask, record
from hilum.phantom.plan import Degree
from hilum.phantom.scene import Branch, LesionTruth, Scene


def insert_arterial_wall_calcification(
    scene: Scene, generator: torch.Generator, degree: Degree
) -> LesionTruth | None:
    """Arcs of 400-1100 HU in the wall of arch, ascending and descending aorta."""
    dice = Dice(generator)
    vessels = [b for b in scene.branches if b.kind == "aorta"]
    if not vessels:
        return None
    plaques, arc, length, thick = {
        "mild": (dice.integer(3, 5), (0.25, 0.6), (3.0, 8.0), 1.5),
        "moderate": (dice.integer(8, 12), (0.4, 1.1), (5.0, 12.0), 1.7),
        "severe": (dice.integer(18, 26), (0.6, 1.6), (5.0, 13.0), 1.9),
    }[degree]
    # more plaque in arch and descending aorta than at the root
    weights = torch.tensor([0.4 if b.end_mm[1] > 15.0 and b.end_mm[2] < 20.0 else 1.0 for b in vessels])
    rows = torch.multinomial(weights, plaques, replacement=True, generator=generator).tolist()
    dots = torch.cat(
        [_plaque(scene, dice, vessels[r], dice.uniform(*arc), dice.uniform(*length)) for r in rows]
    )
    radii = thick * (0.7 + 0.5 * dice.rand(len(dots)))
    bounds = organ_mask(scene, "arterial_wall_calcification")
    alpha = balls(scene, dots, radii)
    window = window_of(scene, alpha)
    if window is None:
        return None
    peak = dice.uniform(500.0, 1000.0)
    hu = window.of(scene.hu)
    blend(hu, window.of(alpha) * window.of(bounds), hu.clamp(min=peak))
    mask = (balls(scene, dots, radii + 1.2) > 0.5) & bounds
    return record(scene, "arterial_wall_calcification", mask, degree, plaques=float(plaques))


def _plaque(scene: Scene, dice: Dice, branch: Branch, arc_rad: float, length_mm: float) -> Tensor:
    """Points of one arc on the vessel's wall, found by walking outward until the aorta ends."""
    start, end = torch.tensor(branch.start_mm), torch.tensor(branch.end_mm)
    axis = F.normalize(end - start + 1e-4, dim=0)
    u = F.normalize(torch.linalg.cross(axis, torch.tensor([0.31, 0.77, 0.55])), dim=0)
    v = torch.linalg.cross(axis, u)
    middle = start + (end - start) * dice.uniform(0.0, 1.0)
    turn = dice.uniform(0.0, 2 * math.pi)
    across = max(2, int(arc_rad * branch.radius_mm / 1.2) + 1)
    along = max(1, int(length_mm / 1.5))
    angle = turn + torch.linspace(-arc_rad / 2, arc_rad / 2, across) + 0.05 * dice.normal(across)
    offset = torch.linspace(-length_mm / 2, length_mm / 2, along)
    ray = torch.cos(angle)[:, None] * u + torch.sin(angle)[:, None] * v
    foot = middle + offset[:, None] * axis
    reach = torch.arange(0.4, 1.7, 0.05) * branch.radius_mm
    points = foot[:, None, None] + ray[None, :, None] * reach[None, None, :, None]
    inside = lookup(scene, scene.regions["aorta"], points.reshape(-1, 3)).cpu().reshape(points.shape[:3])
    last = inside.float().cumprod(-1).sum(-1).long().clamp(min=1) - 1
    wall = foot[:, None] + ray[None] * reach[last][..., None]
    # where it never ends or ends at once a branch leaves: no wall there
    keep = inside[..., 0] & (reach[last] > 0.6 * branch.radius_mm) & (reach[last] < 1.35 * branch.radius_mm)
    keep = keep & (dice.rand(*last.shape) < 0.85)
    return wall[keep] if bool(keep.any()) else wall.reshape(-1, 3)[:1]
