"""The heart: too large, in fluid, with calcified coronaries."""

from __future__ import annotations

import edt
import numpy as np
import torch
from torch import Tensor

from hilum.phantom.lesions._fields import Dice, balls, beads, blend, dilate, noise, smoothstep, window_of
from hilum.phantom.lesions._truth import LUNG_PARTS, move, record
from hilum.phantom.plan import Degree
from hilum.phantom.scene import Branch, LesionTruth, Scene

SOLID = (
    "aorta",
    "pulmonary_artery",
    "vena_cava",
    "spine",
    "ribs",
    "sternum",
    "liver",
    "spleen",
    "stomach",
    "muscle",
    "oesophagus",
)


def heart_itself(scene: Scene) -> Tensor:
    """Region `heart` without the pulmonary arteries, which have no share in its size."""
    return scene.regions["heart"] & ~scene.regions["pulmonary_artery"]


def insert_cardiomegaly(scene: Scene, generator: torch.Generator, degree: Degree) -> LesionTruth | None:
    """Writes down the heart that anatomy already built large (`Patient.heart_size`); changes nothing."""
    return record(
        scene,
        "cardiomegaly",
        heart_itself(scene),
        degree,
        count=1,
        heart_size=scene.plan.patient.heart_size,
    )


def _distance(mask: Tensor, work_mm: float) -> Tensor:
    """mm from every voxel outside `mask` to it."""
    outside = np.ascontiguousarray((~mask).cpu().numpy())
    return torch.from_numpy(edt.edt(outside, anisotropy=(work_mm,) * 3, parallel=1)).to(mask.device)


def insert_pericardial_effusion(
    scene: Scene, generator: torch.Generator, degree: Degree
) -> LesionTruth | None:
    """Fluid of 5-25 mm around the heart, thicker where it hangs; the sac grows into the lung, and region
    `heart` is then all within it but the aorta.
    """
    dice = Dice(generator)
    window = window_of(scene, scene.regions["pericardium"], 30.0)
    if window is None:
        return None
    thickness = {
        "mild": dice.uniform(6.5, 9.0),
        "moderate": dice.uniform(11.0, 15.0),
        "severe": dice.uniform(19.0, 25.0),
    }[degree]
    heart = window.of(scene.regions["pericardium"])
    forbidden = heart | window.of(scene.regions["airways"]) & ~window.of(scene.regions["lung"])
    for name in SOLID:
        forbidden = forbidden | window.of(scene.regions[name])
    inner = heart.nonzero().float()
    low, high = inner.amin(0) * scene.work_mm, inner.amax(0) * scene.work_mm
    y = window.y - window.y.flatten()[0]
    z = window.z - window.z.flatten()[0]
    hang = 1.0 - (y - low[1]) / (high[1] - low[1])  # 1 at the back of the heart, where fluid collects
    basal = 1.0 - (z - low[2]) / (high[2] - low[2])
    share = (0.62 + 0.3 * hang.clamp(-0.3, 1.1) + 0.12 * basal.clamp(0, 1)) * smoothstep(basal, -0.02, 0.22)
    distance = _distance(heart, scene.work_mm)
    gap = distance - thickness * share * (1.0 + 0.08 * noise(window, 25.0, dice))
    body = window.of(scene.regions["body"])
    alpha = (0.5 - gap / scene.work_mm).clamp(0, 1) * ~forbidden * body
    hu = window.of(scene.hu)
    rim = heart & dilate(~heart, max(1, round(2.0 / scene.work_mm))) & (distance == 0)
    blend(
        hu, rim * 0.7, torch.minimum(hu, torch.full_like(hu, -60.0))
    )  # epicardial fat separates fluid and muscle
    hu_value = dice.uniform(4.0, 22.0)
    blend(hu, alpha, hu_value)
    fluid = torch.zeros(scene.grid.shape, dtype=torch.bool, device=scene.device)
    window.of(fluid).copy_(alpha > 0.5)
    move(scene, fluid, into=("heart", "pericardium"), out_of=(*LUNG_PARTS, "pleura", "mediastinum", "fat"))
    sac = scene.regions["pericardium"] & ~scene.regions["aorta"]
    move(scene, sac, into=("heart",), out_of=("mediastinum",))
    return record(
        scene,
        "pericardial_effusion",
        fluid,
        degree,
        count=1,
        thickness_mm=round(thickness, 1),
        hu=round(hu_value, 1),
    )


def insert_coronary_calcification(
    scene: Scene, generator: torch.Generator, degree: Degree
) -> LesionTruth | None:
    """Dots (mild) to long tracks (severe) of 300-1200 HU along the coronaries, mostly the front one."""
    dice = Dice(generator)
    vessels = [b for b in scene.branches if b.kind == "coronary"]
    if not vessels:
        return None
    plaques, length, width = {
        "mild": (dice.integer(3, 4), (2.0, 5.0), (1.7, 2.1)),
        "moderate": (dice.integer(7, 10), (4.0, 11.0), (1.7, 2.3)),
        "severe": (dice.integer(15, 22), (8.0, 20.0), (1.9, 2.7)),
    }[degree]
    heart = scene.regions["heart"]
    weights = torch.tensor([_frontness(b) for b in vessels])
    rows = torch.multinomial(weights, plaques, replacement=True, generator=generator).tolist()
    dots, radii = [], []
    for row in rows:
        part = _downstream(vessels[row:], dice.uniform(*length))
        dots.append(part + dice.normal(len(part), 3) * 0.35)
        radii.append(dice.uniform(*width) * (0.75 + 0.5 * dice.rand(len(part))))
    centres, sizes = torch.cat(dots), torch.cat(radii)
    alpha = balls(scene, centres, sizes)
    window = window_of(scene, alpha)
    if window is None:
        return None
    level = {"mild": (500.0, 800.0), "moderate": (500.0, 900.0), "severe": (700.0, 1200.0)}[degree]
    hu = window.of(scene.hu)
    blend(hu, window.of(alpha) * window.of(heart), hu.clamp(min=dice.uniform(*level)))
    mask = (balls(scene, centres, sizes + 1.2) > 0.5) & heart
    return record(scene, "coronary_calcification", mask, degree, plaques=float(plaques))


def _downstream(vessels: list[Branch], length_mm: float) -> Tensor:
    """Points every 0.7 mm along the first vessel and those that continue it, up to a length."""
    knots = [vessels[0].start_mm, vessels[0].end_mm]
    for branch in vessels[1:]:
        if branch.start_mm != knots[-1]:
            break
        knots.append(branch.end_mm)
    return beads(knots, 0.7)[: max(1, int(length_mm / 0.7))]


def _frontness(branch: Branch) -> float:
    """The anterior descending branch runs in front: it calcifies first."""
    return 3.0 if branch.start_mm[1] > 20.0 and branch.start_mm[0] < 15.0 else 1.0
