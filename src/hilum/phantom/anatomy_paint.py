"""HU of every tissue, painted from the outside in."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from hilum.phantom.anatomy_bones import Bones
from hilum.phantom.anatomy_build import Build
from hilum.phantom.anatomy_chest import Chest
from hilum.phantom.anatomy_heart import Heart
from hilum.phantom.shapes import ellipsoid_level

AIR_HU = -1000.0


@dataclass
class Parts:
    """Everything that has a place, before it has a value. Masks and coverages on the whole grid."""

    chest: Chest
    heart: Heart
    pericardium: Tensor
    right: Tensor
    left: Tensor
    lung: Tensor
    lobes: dict[str, Tensor]
    fissures: Tensor
    vessel: Tensor
    lumen: Tensor
    wall: Tensor
    sheath: Tensor
    coronaries: Tensor
    covers: dict[str, Tensor]
    bones: Bones
    thyroid: Tensor
    abdomen: dict[str, Tensor]
    depth_mm: Tensor = field(default_factory=lambda: torch.zeros(0))
    pleura: Tensor = field(default_factory=lambda: torch.zeros(0))
    muscle: Tensor = field(default_factory=lambda: torch.zeros(0))
    fat: Tensor = field(default_factory=lambda: torch.zeros(0))


def blood_table(build: Build) -> dict[str, float]:
    """HU of the blood pools and of organs in the plan's contrast phase, with the patient's own deviation."""
    rng = build.rng(71)
    base = float(rng.normal(42.0, 4.0))
    names = (
        "left",
        "right",
        "pulmonary_artery",
        "vena_cava",
        "myocardium",
        "liver",
        "spleen",
        "kidneys",
        "muscle",
        "thyroid",
    )
    plain = (base, base, base, base, base + 4.0, 58.0, 48.0, 32.0, 54.0, 95.0)
    arterial = (340.0, 230.0, 300.0, 190.0, 95.0, 72.0, 115.0, 150.0, 58.0, 150.0)
    venous = (160.0, 158.0, 158.0, 155.0, 105.0, 108.0, 122.0, 180.0, 64.0, 150.0)
    values = {"none": plain, "arterial": arterial, "venous": venous}[build.contrast]
    factor = 1.0 if build.contrast == "none" else float(np.clip(rng.normal(1.0, 0.13), 0.7, 1.35))
    table = {
        n: (v * factor if i < 4 else v) + float(rng.normal(0, 3.0))
        for i, (n, v) in enumerate(zip(names, values, strict=True))
    }
    table["pulmonary_vein"] = table["left"] * 0.97
    table["aorta"] = table["left"]
    return table


def paint(build: Build, p: Parts) -> Tensor:
    """float32 HU of the whole grid."""
    frame, chest = build.frame, p.chest
    table = blood_table(build)
    coarse = build.noise(72, 22.0).on_axes(frame.x, frame.y, frame.z)
    fine = build.noise(73, 7.0).on_axes(frame.x, frame.y, frame.z)
    hu = _trunk(build, p, coarse, fine, table)
    _abdomen(build, p, hu, fine, table)
    _mediastinum(p, hu, table)
    _heart(build, p, hu, fine, table)
    _lungs(build, p, hu, coarse, fine, table)
    _bones(build, p, hu, fine)
    hu.masked_fill_(~chest.body, AIR_HU)
    return hu


def _trunk(build: Build, p: Parts, coarse: Tensor, fine: Tensor, table: dict[str, float]) -> Tensor:
    chest = p.chest
    layer = build.fat_mm * (1.0 + 0.22 * coarse).clamp(0.45, 1.6) + 2.0
    outside = chest.body & (chest.wall_mm >= 0)
    p.muscle = outside & (chest.skin_mm < -layer)
    # Fat planes between the muscles run along the wall; the armpits hold fat.
    plane = (chest.wall_mm - 19.0 - 4.0 * coarse).abs() < 1.3
    plane |= ((chest.wall_mm - 34.0 - 6.0 * coarse).abs() < 1.5) & (coarse > -0.6)
    frame = build.frame
    for side in (-1.0, 1.0):
        box = frame.box((min(side * 85, side * 165), -50, 0), (max(side * 85, side * 165), 60, 120))
        pit = ellipsoid_level(frame.coords(box), (side * 124.0, 8.0, 58.0), (20, 27, 42)) + 4.0 * fine[box]
        plane[box] |= pit < 0
    p.muscle &= ~(plane & (chest.wall_mm > 11.0))
    hu = fine.mul(9.0).sub_(102.0)
    hu = torch.where(p.muscle, table["muscle"] + 9.0 * fine, hu)
    hu = torch.where((chest.skin_mm > -2.2) & chest.body, torch.full_like(hu, 15.0), hu)
    if build.female:
        gland = (
            (chest.skin_mm < -5.0)
            & ~p.muscle
            & (build.frame.cy > 60.0)
            & (build.frame.cz < 0)
            & (build.frame.cz > -95)
        )
        gland &= (fine + coarse) > 0.9
        hu = torch.where(gland & outside, torch.full_like(hu, 28.0), hu)
    p.fat = chest.body & ~p.muscle & (chest.wall_mm >= 0) & (chest.skin_mm < -2.2)
    return hu


def _abdomen(build: Build, p: Parts, hu: Tensor, fine: Tensor, table: dict[str, float]) -> None:
    a = p.abdomen
    for name, value in (
        ("liver", table["liver"]),
        ("spleen", table["spleen"]),
        ("kidneys", table["kidneys"]),
    ):
        hu[a[name]] = value + 7.0 * fine[a[name]]
    hu[a["diaphragm"]] = table["muscle"]
    hu[a["stomach"]] = 25.0 + 25.0 * fine[a["stomach"]]
    hu[a["bowel"]] = 20.0 + 60.0 * fine[a["bowel"]]
    hu[a["stomach_gas"] | a["bowel_gas"]] = -960.0


def _blend(hu: Tensor, cover: Tensor, value: float) -> None:
    """Partial volume: each voxel moves towards `value` by its coverage, in place."""
    hu.add_(cover * (value - hu))


def _mediastinum(p: Parts, hu: Tensor, table: dict[str, float]) -> None:
    for group in ("vena_cava", "pulmonary_vein", "pulmonary_artery", "aorta"):
        _blend(hu, p.covers[group], table[group])
    _blend(hu, p.covers["oesophagus"], 34.0)
    hu[p.thyroid] = table["thyroid"]


def _heart(build: Build, p: Parts, hu: Tensor, fine: Tensor, table: dict[str, float]) -> None:
    box, heart = p.heart.box, p.heart
    inside = p.pericardium[box]
    local, texture = hu[box], fine[box]
    great = torch.maximum(p.covers["aorta"][box], p.covers["pulmonary_artery"][box]) > 0.5
    values = {
        "left_ventricle": "left",
        "left_atrium": "left",
        "right_ventricle": "right",
        "right_atrium": "right",
    }
    local[heart.fat & inside & ~great] = -92.0
    local[heart.myocardium & inside & ~great] = table["myocardium"]
    for name, blood in values.items():
        local[heart.chambers[name] & inside & ~great] = table[blood]
    local[heart.shell & inside & heart.fat] = 15.0
    local.add_(3.0 * texture * inside)
    _blend(hu, p.coronaries * p.pericardium, table["left"])


def _lungs(build: Build, p: Parts, hu: Tensor, coarse: Tensor, fine: Tensor, table: dict[str, float]) -> None:
    frame, rng = build.frame, build.rng(74)
    base = -715.0 - 165.0 * build.breathing + float(rng.normal(0.0, 12.0))
    gravity = 0.30 + 0.45 * (1.0 - build.breathing)
    air = (-frame.cy * gravity).add_(base).add_(coarse, alpha=11.0).add_(fine, alpha=12.0)
    air = torch.where(p.fissures, air * 0.5 - 375.0, air)
    tissue = 0.6 * table["right"] + 0.4 * table["left"]
    _blend(air, p.vessel, tissue)
    _blend(air, (p.wall - p.lumen).clamp(min=0.0), -60.0 if build.frame.h > 1.5 else 0.0)
    hu.copy_(torch.where(p.lung, air, hu))
    central = p.wall * (~p.lung)
    _blend(hu, central, 20.0)
    hu.add_(p.lumen * (AIR_HU + 12.0 - hu))


def _bones(build: Build, p: Parts, hu: Tensor, fine: Tensor) -> None:
    b, outside = p.bones, (~p.lung) & p.chest.body
    age = float(np.clip((build.age_years - 30) / 50.0, 0.0, 1.0))
    _blend(hu, b.cartilage * outside, 95.0 + 90.0 * age)
    _blend(hu, b.outer * outside, 640.0)
    hu.add_(b.inner * outside * (190.0 - 60.0 * age + 40.0 * fine - hu))
    local, texture = hu[b.spine_box], fine[b.spine_box]
    local[b.disc] = 85.0
    local[b.vertebra] = 560.0
    local[b.marrow] = 185.0 - 70.0 * age + 40.0 * texture[b.marrow]
    local[b.canal] = 25.0
