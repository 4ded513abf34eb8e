"""Between the lungs: enlarged lymph nodes, and stomach that came up through the hiatus."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from hilum.phantom.lesions._fields import Dice, Point, Window, blend, dilate, lookup, noise, window_at
from hilum.phantom.lesions._truth import LUNG_PARTS, move, record
from hilum.phantom.plan import Degree
from hilum.phantom.scene import LesionTruth, Scene

KEEP_OUT = (
    "airways",
    "aorta",
    "pulmonary_artery",
    "vena_cava",
    "heart",
    "oesophagus",
    "spine",
    "ribs",
    "sternum",
    "liver",
)
STATIONS: dict[str, tuple[str, Point]] = {
    "right paratracheal": ("right", (17.0, -2.0, 28.0)),
    "left paratracheal": ("left", (-16.0, -6.0, 30.0)),
    "prevascular": ("left", (-12.0, 30.0, 30.0)),
    "aortopulmonary": ("left", (-27.0, 5.0, 8.0)),
    "subcarinal": ("", (2.0, -8.0, -18.0)),
    "right hilar": ("right", (38.0, -4.0, -22.0)),
    "left hilar": ("left", (-38.0, -8.0, -14.0)),
}
"""Side and usual place relative to the carina, mm RAS."""


def _closed(scene: Scene) -> Tensor:
    """Structures that a node pushes against and does not enter."""
    closed = ~scene.regions["body"]
    for name in KEEP_OUT:
        closed = closed | (scene.regions[name] & (~scene.regions["lung"] if name == "airways" else True))
    return closed


def insert_lymphadenopathy(scene: Scene, generator: torch.Generator, degree: Degree) -> LesionTruth | None:
    """Ellipsoids with a short axis of 11-30 mm at the usual stations; the mediastinum bulges into the lung
    around them.
    """
    dice = Dice(generator)
    count, short = {
        "mild": (dice.integer(1, 2), (11.5, 14.5)),
        "moderate": (dice.integer(2, 4), (15.0, 20.0)),
        "severe": (dice.integer(4, 6), (20.0, 28.0)),
    }[degree]
    closed = _closed(scene)
    nodes = torch.zeros(scene.grid.shape, dtype=torch.bool, device=scene.device)
    hu_value, longest, stations = dice.uniform(30.0, 55.0), 0.0, []
    for station in dice.some(sorted(STATIONS), count):
        length = _node(scene, dice, nodes, closed, STATIONS[station][1], dice.uniform(*short), hu_value)
        if length:
            stations.append(station)
            longest = max(longest, length)
    sides = {STATIONS[s][0] for s in stations} - {""}
    side = "both" if len(sides) == 2 else next(iter(sides), "")
    move(scene, nodes, into=("mediastinum",), out_of=(*LUNG_PARTS, "pleura"))
    return record(
        scene,
        "lymphadenopathy",
        nodes,
        degree,
        size_mm=longest,
        count=len(stations),
        stations=", ".join(stations),
        side=side,
    )


def _node(
    scene: Scene, dice: Dice, nodes: Tensor, closed: Tensor, station: Point, short_mm: float, hu_value: float
) -> float:
    """Draws one node where it fits best near its station; returns its long axis in mm, or 0."""
    radii = torch.tensor([1.0, dice.uniform(1.0, 1.25), dice.uniform(1.15, 1.6)])[
        torch.randperm(3, generator=dice.generator)
    ]
    radii = radii * short_mm / 2
    sample = dice.normal(120, 3)
    sample = sample / sample.norm(dim=1, keepdim=True) * dice.rand(120, 1) ** (1 / 3) * radii
    tries = torch.tensor(station) + dice.normal(40, 3) * torch.tensor([5.0, 5.0, 6.0])
    points = (tries[:, None] + sample[None]).reshape(-1, 3)
    blocked = lookup(scene, closed | nodes, points).float().reshape(40, -1).mean(1).cpu()
    in_lung = lookup(scene, scene.regions["lung"], points).float().reshape(40, -1).mean(1).cpu()
    cost = blocked + 0.5 * (in_lung - 0.3).clamp(min=0)
    best = int(cost.argmin())
    if float(blocked[best]) > 0.75:
        return 0.0
    centre = tries[best].tolist()
    window = window_at(scene, centre, float(radii.max()) + 4.0)
    field = window.distance(centre, radii.tolist()) + 0.06 * noise(window, short_mm * 0.6, dice)
    alpha = (0.5 + (1.0 - field) * short_mm / 2 / scene.work_mm).clamp(0, 1) * ~window.of(closed)
    blend(window.of(scene.hu), alpha, hu_value)
    window.of(nodes).logical_or_(alpha > 0.5)
    return float(radii.max()) * 2


def insert_hiatal_hernia(scene: Scene, generator: torch.Generator, degree: Degree) -> LesionTruth | None:
    """A pouch of stomach behind the heart: wall, fluid, and air in front (the patient lies on the back)."""
    dice = Dice(generator)
    foot = _hiatus(scene)
    if foot is None:
        return None
    size = {
        "mild": dice.uniform(24.0, 32.0),
        "moderate": dice.uniform(38.0, 50.0),
        "severe": dice.uniform(58.0, 74.0),
    }[degree]
    radius = size / 2
    stretch = (dice.uniform(0.95, 1.15), dice.uniform(0.8, 0.95), dice.uniform(0.85, 1.0))
    centre = (foot[0] + dice.uniform(-0.15, 0.15) * size, foot[1] - 0.1 * radius, foot[2] + 0.75 * radius)
    window = window_at(scene, centre, radius * 1.5)
    field = window.distance(centre, stretch) + 0.05 * size * noise(window, size * 0.45, dice)
    closed = ~window.of(scene.regions["body"])
    for name in ("heart", "aorta", "spine", "vena_cava", "pulmonary_artery", "ribs", "liver"):
        closed = closed | window.of(scene.regions[name])
    alpha = (0.5 + (radius - field) / scene.work_mm).clamp(0, 1) * ~closed
    _paint_pouch(scene, dice, window, alpha, field, radius, centre[1])
    pouch = torch.zeros(scene.grid.shape, dtype=torch.bool, device=scene.device)
    window.of(pouch).copy_(alpha > 0.5)
    move(
        scene,
        pouch,
        into=("oesophagus", "mediastinum"),
        out_of=(*LUNG_PARTS, "pleura", "abdomen", "stomach", "fat"),
    )
    return record(scene, "hiatal_hernia", pouch, degree, size_mm=size * max(stretch), count=1)


def _paint_pouch(
    scene: Scene, dice: Dice, window: Window, alpha: Tensor, field: Tensor, radius: float, middle_y_mm: float
) -> None:
    hu = window.of(scene.hu)
    content = torch.full_like(hu, dice.uniform(5.0, 35.0)) + 12.0 * noise(window, 9.0, dice)
    level = middle_y_mm + dice.uniform(-0.3, 0.35) * radius
    content = torch.where(window.y > level, torch.full_like(hu, -940.0), content)
    inside = alpha > 0.5
    # the wall follows the true border, also where the pouch is dented by its neighbours
    shell = dilate(~inside, 1)
    wall = (field > radius - 4.5) | shell
    blend(hu, alpha, torch.where(wall, torch.full_like(hu, 42.0), content))


def _hiatus(scene: Scene) -> Point | None:
    """Where the oesophagus leaves the chest: its centre at the lowest level that still has heart or lung
    beside it.
    """
    tube = scene.regions["oesophagus"]
    levels = tube.any(dim=0).any(dim=0)
    x, y, z = (a.flatten() for a in scene.axes_mm())
    chest = scene.regions["heart"].any(dim=0).any(dim=0) & levels
    usable = chest if bool(chest.any()) else levels
    if not bool(usable.any()):
        return None
    k = int(usable.nonzero()[0])
    slab = tube[:, :, k : k + 2].any(dim=2)
    i, j = slab.nonzero(as_tuple=True)
    point = (float(x[i].mean()), float(y[j].mean()), float(z[k]))
    return None if math.isnan(point[0]) else point
