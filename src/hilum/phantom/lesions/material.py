"""What was put in by hand: port, pacemaker, sternal wires, stent, drain, clips.

Parts that lie in the chest wall (port chamber, pacemaker can) belong to none of the nine regions; they change
HU, but the truth mask keeps only what lies inside them, and `outside_ml` says how much does not.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from hilum.phantom.lesions._fields import (
    Dice,
    Point,
    balls,
    blend,
    count,
    dilate,
    lookup,
    pick,
    smooth_path,
    tube,
    window_at,
    window_of,
)
from hilum.phantom.lesions._truth import organ_mask, record
from hilum.phantom.plan import Degree
from hilum.phantom.scene import LesionTruth, Scene

ITEMS: dict[str, tuple[tuple[str, ...], ...]] = {
    "mild": (("port catheter",), ("surgical clips",), ("stent",)),
    "moderate": (
        ("sternal wires",),
        ("pleural drain",),
        ("port catheter", "surgical clips"),
        ("stent", "surgical clips"),
    ),
    "severe": (
        ("pacemaker", "surgical clips"),
        ("sternal wires", "pacemaker"),
        ("sternal wires", "surgical clips", "pleural drain"),
    ),
}
"""Which sets of things make which degree."""


def insert_medical_material(scene: Scene, generator: torch.Generator, degree: Degree) -> LesionTruth | None:
    """One small thing (mild) to several large ones (severe) on plausible courses, 150-3000 HU."""
    dice = Dice(generator)
    mask = torch.zeros(scene.grid.shape, dtype=torch.bool, device=scene.device)
    chosen = dice.choice(ITEMS[degree])
    for name in chosen:
        mask |= _MAKERS[name](scene, dice)
    inside = mask & organ_mask(scene, "medical_material")
    outside_ml = count(mask & ~inside) * scene.work_mm**3 / 1000
    return record(
        scene,
        "medical_material",
        mask,
        degree,
        count=len(chosen),
        items=", ".join(chosen),
        outside_ml=round(outside_ml, 2),
    )


def _paint(scene: Scene, alpha: Tensor, hu_value: float) -> Tensor:
    """Draw inside the body; return the mask, one voxel's partial volume included."""
    window = window_of(scene, alpha)
    mask = torch.zeros(alpha.shape, dtype=torch.bool, device=alpha.device)
    if window is None:
        return mask
    cover = window.of(alpha) * window.of(scene.regions["body"])
    hu = window.of(scene.hu)
    blend(hu, cover, hu.clamp(min=hu_value))
    window.of(mask).copy_(cover > 0.25)
    return mask


def _centre_at(scene: Scene, name: str, z_mm: float) -> Point | None:
    """Centre of a region at the level nearest to `z_mm` where it exists."""
    region = scene.regions[name]
    x, y, z = (a.flatten() for a in scene.axes_mm())
    levels = region.any(dim=0).any(dim=0).nonzero().flatten()
    if len(levels) == 0:
        return None
    k = int(levels[(z[levels] - z_mm).abs().argmin()])
    i, j = region[:, :, k].nonzero(as_tuple=True)
    return float(x[i].mean()), float(y[j].mean()), float(z[k])


def _skin_y(scene: Scene, x_mm: float, z_mm: float) -> float:
    """y of the front of the body at this place."""
    y = scene.axes_mm()[1].flatten()
    line = lookup(
        scene,
        scene.regions["body"],
        torch.stack((torch.full_like(y, x_mm), y, torch.full_like(y, z_mm)), 1).cpu(),
    )
    hits = line.nonzero()
    return float(y[int(hits[-1])]) if len(hits) else float(y[-1])


def _cava(scene: Scene, from_z: float, to_z: float) -> list[Point]:
    """Points down the superior vena cava, on its centre."""
    x, y, z = (a.flatten() for a in scene.axes_mm())
    region = scene.regions["vena_cava"] & (scene.axes_mm()[0] > 0)
    path = []
    for z_mm in torch.linspace(from_z, to_z, 5).tolist():
        k = int((z - z_mm).abs().argmin())
        i, j = region[:, :, k].nonzero(as_tuple=True)
        if len(i):
            path.append((float(x[i].mean()), float(y[j].mean()), z_mm))
    return path or [(24.0, 15.0, from_z), (26.0, 14.0, to_z)]


def _line(scene: Scene, dice: Dice, side: float, end: list[Point]) -> tuple[Point, Tensor]:
    """A course from the chest wall pocket under the clavicle into the cava; returns (pocket, points)."""
    px, pz = side * dice.uniform(58.0, 72.0), dice.uniform(38.0, 55.0)
    pocket = (px, _skin_y(scene, px, pz) - dice.uniform(10.0, 13.0), pz)
    top = _cava(scene, 45.0, 5.0)
    clavicle = (side * 62.0, top[0][1] + 25.0, 85.0)
    inlet = (side * 26.0 if side > 0 else -30.0, top[0][1] + 8.0, 78.0)
    bridge = [] if side > 0 else [(-5.0, top[0][1] + 14.0, 58.0)]
    return pocket, smooth_path([pocket, clavicle, inlet, *bridge, *top, *end], scene.work_mm * 0.5)


def _port(scene: Scene, dice: Dice) -> Tensor:
    pocket, path = _line(scene, dice, 1.0, _cava(scene, 0.0, -20.0))
    mask = _paint(scene, tube(scene, path, 1.5), dice.uniform(800.0, 1400.0))
    window = window_at(scene, pocket, 20.0)
    across = ((window.x - pocket[0]) ** 2 + (window.z - pocket[2]) ** 2).sqrt()
    high = (window.y - pocket[1]).abs()
    body = ((12.0 - across) / scene.work_mm + 0.5).clamp(0, 1) * ((5.0 - high) / scene.work_mm + 0.5).clamp(
        0, 1
    )
    hollow = (across < 8.0) & (high < 3.0)
    alpha = torch.zeros_like(scene.hu)
    window.of(alpha).copy_(torch.where(hollow, body * 0.15, body))
    return mask | _paint(scene, alpha, dice.uniform(1500.0, 2500.0))


def _pacemaker(scene: Scene, dice: Dice) -> Tensor:
    atrium = _centre_at(scene, "right_atrium", -35.0) or (30.0, 10.0, -40.0)
    ventricle = _centre_at(scene, "right_ventricle", -75.0) or (-5.0, 40.0, -75.0)
    pocket, path = _line(scene, dice, -1.0, [atrium, ventricle])
    mask = _paint(scene, tube(scene, path, 1.4), dice.uniform(1600.0, 2600.0))
    mask |= _paint(scene, balls(scene, path[-8:], torch.full((len(path[-8:]),), 2.0)), 3000.0)
    window = window_at(scene, pocket, 32.0)
    shape = ((window.x - pocket[0]).abs() / 22.0) ** 4 + ((window.z - pocket[2]).abs() / 19.0) ** 4
    box = ((1.0 - shape) * 6.0).clamp(0, 1) * (
        (5.0 - (window.y - pocket[1]).abs()) / scene.work_mm + 0.5
    ).clamp(0, 1)
    alpha = torch.zeros_like(scene.hu)
    window.of(alpha).copy_(box)
    return mask | _paint(scene, alpha, 3000.0)


def _sternal_wires(scene: Scene, dice: Dice) -> Tensor:
    """Five to seven wire loops around the sternum; region `bone` takes them in."""
    bone = scene.regions["sternum"]
    x, y, z = (a.flatten() for a in scene.axes_mm())
    levels = bone.any(dim=0).any(dim=0).nonzero().flatten()
    mask = torch.zeros_like(bone)
    if len(levels) < 4:
        return mask
    loops = []
    count = dice.integer(5, 7)
    for n in range(count):
        k = int(levels[min(int((n + 0.6) / (count + 0.3) * len(levels)), len(levels) - 1)])
        i, j = bone[:, :, k].nonzero(as_tuple=True)
        half_x = min(float(x[i].max() - x[i].min()) / 2 + 1.5, 15.0)
        half_y = float(y[j].max() - y[j].min()) / 2 + 1.5
        angle = torch.linspace(0, 2 * math.pi, 90)
        centre = (float(x[i].mean()), float(y[j].mean()), float(z[k]))
        tilt = dice.uniform(-0.15, 0.15)
        ring = torch.stack(
            (
                centre[0] + half_x * torch.cos(angle),
                centre[1] + half_y * torch.sin(angle),
                centre[2] + tilt * half_x * torch.cos(angle),
            ),
            1,
        )
        knot = torch.tensor([[centre[0] + 2.0, centre[1] + half_y + 1.5, centre[2]]]) + dice.normal(6, 3)
        loops.append(torch.cat((ring, knot)))
    points = torch.cat(loops)
    mask = _paint(scene, balls(scene, points, torch.full((len(points),), 1.2)), dice.uniform(2200.0, 3000.0))
    scene.regions["bone"] = scene.regions["bone"] | mask
    for name in ("lung", "lung_right", "lung_left", "mediastinum"):
        scene.regions[name] = scene.regions[name] & ~mask
    return mask


def _clips(scene: Scene, dice: Dice) -> Tensor:
    """Short metal bars near the hilum, along the bypassed heart, or in a row where lung was resected."""
    zone = scene.regions["mediastinum"] & (scene.axes_mm()[1] > 0) & ~scene.regions["airways"]
    seeds = pick(scene, zone, dice, 1)
    if not seeds:
        return torch.zeros_like(zone)
    bars = []
    for _ in range(dice.integer(6, 10)):
        start = torch.tensor(seeds[0]) + dice.normal(3) * torch.tensor([9.0, 7.0, 14.0])
        bars.append(start + dice.direction() * torch.linspace(0, dice.uniform(4.0, 7.0), 8)[:, None])
    points = torch.cat(bars)
    return _paint(scene, balls(scene, points, torch.full((len(points),), 1.3)), dice.uniform(2000.0, 3000.0))


def _stent(scene: Scene, dice: Dice) -> Tensor:
    """A mesh tube in the descending aorta: zigzag rings a centimetre apart."""
    pieces = [b for b in scene.branches if b.kind == "aorta" and b.start_mm[1] < -10.0]
    if not pieces:
        return _clips(scene, dice)
    z_top = dice.uniform(-20.0, 20.0)
    z_low = z_top - dice.uniform(50.0, 80.0)
    rings = []
    for level in torch.arange(z_low, z_top, 9.0).tolist():
        near = min(pieces, key=lambda b: abs((b.start_mm[2] + b.end_mm[2]) / 2 - level))
        a, b = torch.tensor(near.start_mm), torch.tensor(near.end_mm)
        share = ((level - a[2]) / (b[2] - a[2] + 1e-3)).clamp(0, 1)
        middle = a + share * (b - a)
        angle = torch.linspace(0, 2 * math.pi, 120)
        radius = near.radius_mm * 0.85
        zigzag = 3.5 * torch.asin(torch.sin(6 * angle)) * 0.64
        rings.append(middle + torch.stack((radius * torch.cos(angle), radius * torch.sin(angle), zigzag), 1))
    points = torch.cat(rings)
    points = points[lookup(scene, dilate(scene.regions["aorta"], 1), points).cpu()]
    return _paint(scene, balls(scene, points, torch.full((len(points),), 1.1)), dice.uniform(1500.0, 2500.0))


def _drain(scene: Scene, dice: Dice) -> Tensor:
    """A tube of 8 mm from the side of the chest along the back of the lung towards the apex, with an opaque
    stripe.
    """
    side = dice.choice((1.0, -1.0))
    lung = scene.regions["lung_right" if side > 0 else "lung_left"]
    x, y, z = (a.flatten() for a in scene.axes_mm())
    i, j, k = lung[::2, ::2, ::2].nonzero(as_tuple=True)
    if len(i) == 0:
        return torch.zeros_like(lung)
    x, y, z = x[::2], y[::2], z[::2]
    z_low, z_high = float(z[k].min()), float(z[k].max())
    knots: list[Point] = []
    for share, back in ((0.3, 0.45), (0.4, 0.25), (0.6, 0.15), (0.8, 0.25)):
        level = z_low + share * (z_high - z_low)
        here = (z[k] - level).abs() <= 2 * scene.work_mm
        front, rear = float(y[j][here].max()), float(y[j][here].min())
        at_y = rear + back * (front - rear)
        row = here & ((y[j] - at_y).abs() <= 3 * scene.work_mm)
        edge = float((x[i][row] * side).max()) * side if bool(row.any()) else 100.0 * side
        knots.append((edge - side * 6.0, at_y, level))
    knots.insert(0, (knots[0][0] + side * 60.0, knots[0][1] + 10.0, knots[0][2] - 25.0))
    path = smooth_path(knots, scene.work_mm * 0.5)
    mask = _paint(scene, tube(scene, path, 4.0), dice.uniform(180.0, 300.0))
    lumen = tube(scene, path, 2.2) * scene.regions["body"]
    blend(scene.hu, lumen, -600.0)
    mask |= _paint(scene, tube(scene, path + torch.tensor([0.0, 3.4, 0.0]), 1.1), 1400.0)
    return mask | (lumen > 0.5)


_MAKERS: dict[str, Callable[[Scene, Dice], Tensor]] = {
    "port catheter": _port,
    "pacemaker": _pacemaker,
    "sternal wires": _sternal_wires,
    "surgical clips": _clips,
    "stent": _stent,
    "pleural drain": _drain,
}
