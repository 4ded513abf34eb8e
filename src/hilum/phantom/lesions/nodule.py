"""Nodules and staged tumours of the lung.

Stages follow the size rules of the eighth TNM edition: T1a <= 10, T1b <= 20, T1c <= 30, T2a <= 40 (or
pleura), T2b <= 50, T3 <= 70 mm (or chest wall, or a satellite in the lobe), T4 beyond (or mediastinum, or a
satellite in another lobe).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from hilum.phantom.lesions._fields import (
    Dice,
    Point,
    balls,
    beads,
    blend,
    count,
    lookup,
    noise,
    pick,
    window_at,
)
from hilum.phantom.lesions._truth import free_lung, record
from hilum.phantom.lesions.airspace import parenchyma_weight
from hilum.phantom.plan import Degree, TumourPlan
from hilum.phantom.scene import LesionTruth, Scene
from hilum.text.vocabulary import LOBES

DIAMETER_MM: dict[str, tuple[float, float]] = {
    "mild": (4.5, 7.0),
    "moderate": (8.0, 15.0),
    "severe": (16.0, 30.0),
}
T_STAGES = ("T1a", "T1b", "T1c", "T2a", "T2b", "T3", "T4")
_LARGEST_MM = (10.0, 20.0, 30.0, 40.0, 50.0, 70.0)


def t_stage(diameter_mm: float, invades: str = "", satellites: int = 0, other_lobe: bool = False) -> str:
    """The T stage that size, invasion and satellites make: the highest of the three decides.

    Args:
        diameter_mm: longest axis. invades: as in `TumourPlan`. other_lobe: the satellites lie in another
        lobe.
    """
    by_size = sum(diameter_mm > limit for limit in _LARGEST_MM)
    by_invasion = {"": 0, "pleura": 3, "chest wall": 5, "mediastinum": 6}[invades]
    by_satellite = (6 if other_lobe else 5) if satellites else 0
    return T_STAGES[max(by_size, by_invasion, by_satellite)]


def insert_lung_nodule(scene: Scene, generator: torch.Generator, degree: Degree) -> LesionTruth | None:
    """The plan's tumour when it has one; otherwise 1-5 nodules of 4-7, 8-15 or 16-30 mm."""
    if scene.plan.tumour is not None:
        return insert_tumour(scene, scene.plan.tumour, degree)
    dice = Dice(generator)
    mask = torch.zeros(scene.grid.shape, dtype=torch.bool, device=scene.device)
    diameter = dice.uniform(*DIAMETER_MM[degree])
    many = dice.chance(0.25)
    number = dice.integer(2, 5) if many else 1
    density = _density(dice, degree)
    shape = dice.choice(
        ("smooth", "lobulated", "spiculated") if degree != "mild" else ("smooth", "smooth", "lobulated")
    )
    zone = free_lung(scene) & ~scene.regions["vessels"] & (scene.depth_mm > diameter * 0.5 + 1.0)
    placed = 0
    for centre in pick(scene, zone, dice, number):
        size = diameter if placed == 0 else diameter * dice.uniform(0.6, 0.95)
        stamp(scene, dice, mask, centre, max(size, 4.0), density, shape)
        placed += 1
    return record(
        scene, "lung_nodule", mask, degree, size_mm=diameter, count=placed, density=density, margin=shape
    )


def _density(dice: Dice, degree: Degree) -> str:
    if degree == "mild":
        return "calcified" if dice.chance(0.2) else "solid"
    return dice.choice(("solid", "solid", "solid", "part-solid", "ground-glass", "calcified"))


def stamp(
    scene: Scene,
    dice: Dice,
    mask: Tensor,
    centre: Point,
    diameter_mm: float,
    density: str,
    shape: str,
    beyond_lung: bool = False,
) -> None:
    """Draw one nodule and add it to `mask`.

    Args:
        centre: mm. diameter_mm: longest axis. density: ``solid``, ``part-solid``, ``ground-glass``,
        ``calcified``.
        shape: ``smooth``, ``lobulated``, ``spiculated``. beyond_lung: may grow into its neighbours
        (invasion).
    """
    radius = diameter_mm / 2
    window = window_at(scene, centre, radius * 2.3 + 4.0)
    stretch = [1.0, dice.uniform(0.8, 1.0), dice.uniform(0.8, 1.0)]
    order = torch.randperm(3, generator=dice.generator).tolist()
    ripple = {"smooth": 0.03, "lobulated": 0.13, "spiculated": 0.09}[shape] * min(1.0, diameter_mm / 12.0)
    field = window.distance(centre, [stretch[i] for i in order])
    field = field + radius * ripple * noise(window, max(radius * 0.7, 2.5), dice)
    allowed = window.of(scene.regions["lung"]) & ~window.of(scene.regions["airway_lumen"])
    if beyond_lung:
        allowed = window.of(scene.regions["body"]) & ~window.of(scene.regions["airway_lumen"])
    alpha = (0.5 + (radius - field) / scene.work_mm).clamp(0, 1)
    if shape == "spiculated" and radius > 4.0:
        alpha = torch.maximum(alpha, window.of(_spicules(scene, dice, centre, radius)))
    alpha = alpha * allowed
    hu = window.of(scene.hu)
    if density in ("ground-glass", "part-solid"):
        hu += alpha * dice.uniform(280.0, 380.0) * parenchyma_weight(hu)
        core = radius * (dice.uniform(0.45, 0.6) if density == "part-solid" else 0.0)
        alpha_core = (0.5 + (core - field) / scene.work_mm).clamp(0, 1) * allowed * (core > 0)
        blend(hu, alpha_core, torch.maximum(hu, torch.full_like(hu, 30.0)))
    else:
        blend(hu, alpha, torch.maximum(hu, torch.full_like(hu, dice.uniform(15.0, 55.0))))
    if density == "calcified":
        calcium = (0.5 + (0.7 * radius - field) / scene.work_mm).clamp(0, 1) * allowed
        blend(hu, calcium, dice.uniform(350.0, 800.0))
    part = window.of(mask)
    part |= alpha > (0.45 if diameter_mm > 10.0 else 0.3)


def _spicules(scene: Scene, dice: Dice, centre: Point, radius: float) -> Tensor:
    """Fine rays from the surface outward."""
    middle, paths, radii = torch.tensor(centre), [], []
    for _ in range(dice.integer(14, 26)):
        ray = dice.direction()
        tip = middle + ray * radius * dice.uniform(1.3, 1.9)
        path = beads(((middle + ray * radius * 0.8).tolist(), tip.tolist()), scene.work_mm * 0.5)
        paths.append(path)
        radii.append(torch.linspace(1.5, 0.6, len(path)))
    return balls(scene, torch.cat(paths), torch.cat(radii)) * 0.8


def insert_tumour(scene: Scene, plan: TumourPlan, degree: Degree) -> LesionTruth | None:
    """A tumour with the plan's size, invasion and satellites; attributes carry its stage."""
    dice = Dice(torch.Generator().manual_seed(plan.seed))
    mask = torch.zeros(scene.grid.shape, dtype=torch.bool, device=scene.device)
    centre = _tumour_seat(scene, dice, plan)
    if centre is None:
        return None
    shape = dice.choice(("lobulated", "spiculated", "spiculated"))
    density = "part-solid" if plan.diameter_mm <= 20 and not plan.invades and dice.chance(0.2) else "solid"
    before = scene.hu.clone() if plan.invades in ("chest wall", "mediastinum") else None
    stamp(scene, dice, mask, centre, plan.diameter_mm, density, shape, beyond_lung=before is not None)
    whole = count(mask)
    other_lobe = plan.t_stage == "T4" and t_stage(plan.diameter_mm, plan.invades) != "T4"
    placed = _satellites(scene, dice, mask, centre, plan, other_lobe)
    inside = count(mask & scene.regions["lung"])
    return record(
        scene,
        "lung_nodule",
        mask,
        degree,
        size_mm=plan.diameter_mm,
        count=1 + placed,
        density=density,
        margin=shape,
        t_stage=plan.t_stage,
        invades=plan.invades,
        satellites=float(placed),
        outside_lung_ml=round(max(whole - inside, 0) * scene.work_mm**3 / 1000, 2),
    )


def _tumour_seat(scene: Scene, dice: Dice, plan: TumourPlan) -> Point | None:
    """A voxel at the depth that the invasion asks for: on the chest wall, at the mediastinum, or free in
    the lung.
    """
    radius = plan.diameter_mm / 2
    depth, lung = scene.depth_mm, free_lung(scene)
    x, y, _ = scene.axes_mm()
    if plan.invades == "":
        seats = lung & (depth > min(radius + 3.0, 32.0))
        fallback = lung & (depth > min(radius * 0.6, 20.0))
    else:
        reach = radius * {"pleura": 0.9, "chest wall": 0.62, "mediastinum": 0.62}[plan.invades]
        shell = lung & (depth > reach - 2.0) & (depth < reach + 2.0)
        medial = (x.abs() < 55.0) & (y > -60.0)
        seats = shell & medial if plan.invades == "mediastinum" else shell & (x.abs() > 70.0)
        fallback = shell
    found = pick(scene, seats, dice, 1) or pick(scene, fallback, dice, 1) or pick(scene, lung, dice, 1)
    return found[0] if found else None


def _satellites(
    scene: Scene, dice: Dice, mask: Tensor, centre: Point, plan: TumourPlan, other_lobe: bool
) -> int:
    if plan.satellites == 0:
        return 0
    at = torch.tensor([list(centre)])
    home = next((n for n in LOBES if bool(lookup(scene, scene.regions[n], at)[0])), LOBES[0])
    side = [n for n in LOBES if n.split()[0] == home.split()[0] and n != home]
    lobe = dice.choice(side) if other_lobe and side else home
    zone = scene.regions[lobe] & free_lung(scene) & ~scene.regions["vessels"] & (scene.depth_mm > 5.0) & ~mask
    placed = 0
    for point in pick(scene, zone, dice, plan.satellites * 6):
        apart = float(F.pairwise_distance(torch.tensor([list(point)]), at))
        if placed < plan.satellites and (other_lobe or apart > plan.diameter_mm / 2 + 8.0):
            stamp(scene, dice, mask, point, dice.uniform(5.0, 9.0), "solid", "smooth")
            placed += 1
    return placed
