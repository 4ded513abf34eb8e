"""The bronchi: too wide, or with walls too thick. The `airways` region grows around what is drawn."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from hilum.phantom.lesions._fields import Dice, balls, beads, blend, lookup, window_of
from hilum.phantom.lesions._truth import record
from hilum.phantom.plan import Degree
from hilum.phantom.scene import Branch, LesionTruth, Scene
from hilum.text.vocabulary import LOBES


def _bronchi(scene: Scene, lobes: Sequence[str], generations: tuple[int, int]) -> list[Branch]:
    low, high = generations
    return [
        b for b in scene.branches if b.kind == "airway" and b.lobe in lobes and low <= b.generation <= high
    ]


def _lobes_with_bronchi(scene: Scene) -> list[str]:
    return [lobe for lobe in LOBES if _bronchi(scene, (lobe,), (3, 5))]


def _pipe(
    scene: Scene, paths: Sequence[Tensor], lumen_mm: Sequence[Tensor], wall_mm: float, wall_hu: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Draw hollow tubes inside the lungs; return (outer mask, wall mask, lumen mask)."""
    path, radius = torch.cat(list(paths)), torch.cat(list(lumen_mm))
    full = balls(scene, path, radius + wall_mm)
    window = window_of(scene, full)
    empty = torch.zeros(full.shape, dtype=torch.bool, device=full.device)
    if window is None:
        return empty, empty, empty
    lung, hu = window.of(scene.regions["lung"]), window.of(scene.hu)
    outer, inner = window.of(full) * lung, window.of(balls(scene, path, radius)) * lung
    blend(hu, outer * (1.0 - inner) * ~window.of(scene.regions["airway_lumen"]), hu.clamp(min=wall_hu))
    blend(hu, inner, -975.0)
    whole, lumen = empty.clone(), empty.clone()
    window.of(whole).copy_(outer > 0.4)
    window.of(lumen).copy_(inner > 0.5)
    return whole, whole & ~lumen, lumen


def _adopt(scene: Scene, whole: Tensor, wall: Tensor, lumen: Tensor) -> None:
    """The regions follow the drawing."""
    regions = scene.regions
    regions["airways"] = regions["airways"] | whole
    regions["airway_lumen"] = (regions["airway_lumen"] & ~wall) | lumen
    regions["airway_wall"] = (regions["airway_wall"] & ~lumen) | wall
    regions["vessels"] = regions["vessels"] & ~whole


def insert_peribronchial_thickening(
    scene: Scene, generator: torch.Generator, degree: Degree
) -> LesionTruth | None:
    """Walls of 2-4 mm along lobar and segmental bronchi of one or two, three, or all lobes."""
    dice = Dice(generator)
    names = _lobes_with_bronchi(scene)
    if not names:
        return None
    count, wall, deepest = {
        "mild": (dice.integer(1, 2), dice.uniform(2.0, 2.4), 4),
        "moderate": (3, dice.uniform(2.6, 3.1), 4),
        "severe": (5, dice.uniform(3.4, 4.0), 5),
    }[degree]
    paths, radii = [], []
    for branch in _bronchi(scene, dice.some(names, count), (2, deepest)):
        path = beads((branch.start_mm, branch.end_mm), scene.work_mm * 0.5)
        paths.append(path)
        radii.append(torch.full((len(path),), max(branch.radius_mm, 1.3)))
    whole, wall_mask, lumen = _pipe(scene, paths, radii, wall, dice.uniform(0.0, 35.0))
    _adopt(scene, whole, wall_mask, lumen)
    return record(scene, "peribronchial_thickening", whole, degree, wall_mm=round(wall, 1), count=1)


def insert_bronchiectasis(scene: Scene, generator: torch.Generator, degree: Degree) -> LesionTruth | None:
    """Bronchi wider than their artery that do not taper towards the pleura: cylindrical, and cystic when
    severe.
    """
    dice = Dice(generator)
    names = _lobes_with_bronchi(scene)
    if not names:
        return None
    count = {"mild": 1, "moderate": 2, "severe": 4}[degree]
    lumen = {"mild": (2.6, 3.4), "moderate": (3.2, 4.6), "severe": (4.0, 6.0)}[degree]
    wall = {"mild": 1.5, "moderate": 1.9, "severe": 2.3}[degree]
    lobes = dice.some(names, count)
    paths, radii, companions = [], [], []
    for lobe in lobes:
        bronchi = _bronchi(scene, (lobe,), (3, 5))
        chosen = dice.some(bronchi, {"mild": 4, "moderate": 7, "severe": 12}[degree])
        for branch in chosen:
            path = _lengthened(scene, dice, branch)
            width = max(dice.uniform(*lumen), 1.4 * branch.radius_mm)
            bulge = 1.0 + 0.22 * torch.sin(torch.linspace(0, dice.uniform(6.0, 14.0), len(path)))
            paths.append(path)
            radii.append(width * (bulge if degree != "mild" else torch.ones(len(path))))
            companions.append((path, width + wall + 1.4))
            if degree == "severe" and dice.chance(0.6):
                paths.append(path[-1:] + dice.normal(3, 3) * width * 0.8)
                radii.append(width * (1.1 + 0.6 * dice.rand(3)))
    _signet(scene, dice, companions)
    whole, wall_mask, lumen_mask = _pipe(scene, paths, radii, wall, dice.uniform(-20.0, 30.0))
    _adopt(scene, whole, wall_mask, lumen_mask)
    kind = "cystic" if degree == "severe" else "cylindrical"
    return record(scene, "bronchiectasis", whole, degree, kind=kind, count=len(lobes))


def _lengthened(scene: Scene, dice: Dice, branch: Branch) -> Tensor:
    """The bronchus and 12-28 mm more towards the periphery, as far as the lung goes."""
    start, end = torch.tensor(branch.start_mm), torch.tensor(branch.end_mm)
    along = F.normalize(end - start, dim=0)
    bent = F.normalize(along + 0.35 * dice.normal(3), dim=0)
    tip = end + bent * dice.uniform(12.0, 28.0)
    path = beads((branch.start_mm, branch.end_mm, tip.tolist()), scene.work_mm * 0.5)
    deep = lookup(scene, scene.depth_mm, path).cpu() > 5.0
    first_half = torch.arange(len(path)) < max(3, len(path) // 3)
    keep = (deep | first_half).cumprod(0).bool()
    return path[keep]


def _signet(scene: Scene, dice: Dice, companions: Sequence[tuple[Tensor, float]]) -> None:
    """The artery beside each widened bronchus: the stone of the signet ring."""
    points = []
    for path, offset in companions:
        along = F.normalize(path[-1] - path[0] + 1e-3, dim=0)
        beside = F.normalize(torch.linalg.cross(along, dice.direction()), dim=0)
        points.append(path + beside * offset)
    if not points:
        return
    dots = torch.cat(points)
    alpha = balls(scene, dots, torch.full((len(dots),), 1.6))
    window = window_of(scene, alpha)
    if window is None:
        return
    hu, part = window.of(scene.hu), window.of(alpha) * window.of(scene.regions["lung"])
    blend(hu, part * ~window.of(scene.regions["airway_lumen"]), hu.clamp(min=35.0))
    scene.regions["vessels"] = scene.regions["vessels"] | (alpha > 0.5) & scene.regions["lung"]
