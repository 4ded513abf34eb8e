"""The trunk: skin, wall and cavity, the diaphragm, the mediastinum's core, the lungs and their lobes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hilum.phantom.anatomy_build import Build
from hilum.phantom.shapes import box_blur, ellipsoid_level, smooth_min, squircle_level

# Inner surface of the rib cage: canonical z, half-width, front y, back y (mm).
CAVITY_Z = np.array([-300.0, -200, -150, -100, -50, -10, 30, 50, 70, 82, 90, 97])
CAVITY_A = np.array([128.0, 130, 133, 134, 131, 126, 117, 107, 90, 73, 58, 36])
CAVITY_FRONT = np.array([95.0, 97, 98, 96, 93, 86, 73, 57, 32, 10, -8, -26])
CAVITY_BACK = np.array([-68.0, -78, -92, -101, -105, -104, -96, -87, -72, -60, -50, -40])

# Skin, for 15 mm of fat: canonical z, half-width, front y, back y (mm).
BODY_Z = np.array([-300.0, -200, -150, -100, -50, -10, 30, 60, 85, 105, 125, 160])
BODY_A = np.array([160.0, 160, 160, 161, 163, 168, 175, 181, 180, 150, 105, 70])
BODY_FRONT = np.array([121.0, 122, 121, 118, 114, 108, 98, 86, 72, 55, 45, 42])
BODY_BACK = np.array([-112.0, -116, -122, -129, -134, -135, -132, -125, -115, -104, -92, -82])

SPINE_Z = np.array([-300.0, -195, -167, -141, -114, -91, -69, -46, -22, 1, 22, 41, 59, 74, 88, 100, 115, 145])
SPINE_Y = np.array([2.0, -18, -29, -40, -50, -59, -65, -70, -71, -67, -60, -49, -37, -23, -10, 2, 14, 28])
"""Centre of the vertebral bodies."""


@dataclass
class Chest:
    """What the trunk is made of, on the whole grid.

    Args:
        skin_mm: radial distance to the skin (negative inside). wall_mm: radial distance to the cavity's
        inner surface.
        body, cavity: masks. spine_y: (1, 1, Z) canonical y of the vertebral bodies.
        abdomen_mm: signed distance to the diaphragm (negative below it). floor: mask of cavity below the
        lungs' lower edge.
    """

    skin_mm: Tensor
    wall_mm: Tensor
    body: Tensor
    cavity: Tensor
    spine_y: Tensor
    abdomen_mm: Tensor
    floor: Tensor


def build_chest(build: Build) -> Chest:
    """Skin, cavity and diaphragm."""
    frame = build.frame
    extra = build.fat_mm - 15.0
    body_z, cavity_z = build.low(BODY_Z), build.low(CAVITY_Z)
    a = frame.profile(body_z, BODY_A + 0.95 * extra + 6.0 * (build.muscle - 1.0))
    front = frame.profile(body_z, BODY_FRONT + np.where(BODY_Z < -90, 1.3, 0.7) * extra)
    back = frame.profile(body_z, BODY_BACK - 0.7 * extra - 5.0 * (build.muscle - 1.0))
    skin = _outline(build, a, front, back, 0.45, 0.45)
    skin = _add_arms_and_breasts(build, skin)
    a = frame.profile(cavity_z, CAVITY_A)
    front, back = frame.profile(cavity_z, CAVITY_FRONT), frame.profile(cavity_z, CAVITY_BACK)
    wall = _outline(build, a, front, back, 0.15, 0.55)
    wall.masked_fill_((frame.z / frame.scale[2] > 97.0).expand_as(wall), 60.0)
    body = skin < 0
    cavity = (wall < 0) & body
    spine_y = frame.profile(build.low(SPINE_Z), SPINE_Y)
    floor_z = 0.5 * frame.cy - 136.0 - build.drop_mm
    abdomen = _diaphragm(build, wall, frame.cz - floor_z)
    floor = frame.cz < floor_z
    return Chest(skin, wall, body, cavity, spine_y, abdomen, floor)


def section_middle(front: Any, back: Any) -> Any:
    """Where a section of the trunk is widest: a little behind its centre."""
    return 0.5 * (front + back) - 0.06 * (front - back)


def _outline(
    build: Build, a: Tensor, front: Tensor, back: Tensor, square: float, square_back: float
) -> Tensor:
    frame = build.frame
    middle = section_middle(front, back)
    v = frame.cy - middle
    ahead = v > 0
    half = torch.where(ahead, front - middle, middle - back)
    return squircle_level(frame.cx, v, a, half, torch.where(ahead, square, square_back))


def _add_arms_and_breasts(build: Build, skin: Tensor) -> Tensor:
    frame = build.frame
    for side in (-1.0, 1.0):
        # The arms are raised beside the head: a slanted ellipsoid around the shoulder.
        box = frame.box((min(side * 60, side * 210), -120, 40), (max(side * 60, side * 210), 70, 200))
        size = 44.0 + 0.5 * (build.fat_mm - 15.0)
        arm = ellipsoid_level(frame.coords(box), (side * 150, -28, 128), (size, size * 1.05, 80))
        skin[box] = smooth_min(skin[box], arm, 18.0)
        if build.female:
            size = 40.0 + 0.9 * build.fat_mm
            box = frame.box((min(0, side * 170), 20, -140), (max(0, side * 170), 190, 40))
            centre = (side * 80.0, 78.0 + 0.5 * build.fat_mm, -48.0)
            breast = ellipsoid_level(frame.coords(box), centre, (size * 1.15, size * 0.8, size))
            skin[box] = smooth_min(skin[box], breast, 14.0)
    return skin


def _diaphragm(build: Build, wall: Tensor, above_floor: Tensor) -> Tensor:
    frame, rng = build.frame, build.rng(11)
    top = rng.normal(0.0, 3.0, 2)
    drop = build.drop_mm
    box = frame.box((-190, -190, -340), (190, 190, -20))
    c = frame.coords(box)
    right = ellipsoid_level(c, (62, 8, -182 - drop), (68, 92, 110 + top[0]))
    left = ellipsoid_level(c, (-66, 6, -184 - drop), (65, 90, 96 + top[1]))
    middle = ellipsoid_level(c, (-8, 24, -190 - drop), (78, 76, 90))
    level = frame.zeros() + 99.0
    level[box] = smooth_min(smooth_min(right, left, 12.0), middle, 12.0)
    # The recess ends as a wedge between the diaphragm and the ribs.
    wedge = torch.maximum(1.05 * above_floor[box] + wall[box], above_floor[box] - 30.0) * 0.8
    level[box] = smooth_min(level[box], wedge, 16.0)
    # Below the domes' equators everything inside the wall belongs to the abdomen.
    return torch.where(frame.cz < -190.0 - drop, torch.full_like(level, -30.0), level)


def mediastinal_core(build: Build, chest: Chest, core_cover: Tensor, pericardium: Tensor) -> Tensor:
    """What pushes the lungs apart: vessels and airways (`core_cover`, grown), heart, spine and a thin
    midline fold."""
    frame = build.frame
    core = core_cover
    core[pericardium] = 1.0
    x, y = frame.cx, frame.cy
    gutter = (chest.spine_y - 4.0 - y).clamp(min=0.0, max=45.0)
    core.masked_fill_((y < chest.spine_y + 16.0) & (x.abs() < 17.0 + 0.2 * gutter), 1.0)
    box = frame.box((-40, 10, -60), (40, 90, 80))
    thymus = ellipsoid_level(frame.coords(box), (-3, 50, 14), (17, 20, 48))
    core[box] = torch.where(thymus < 0, torch.ones_like(thymus), core[box])
    rng, drop = build.rng(12), build.drop_mm
    for cx, cy, cz in ((34.0, 52.0, -84.0), (-66.0, 58.0, -88.0)):
        # Fat in the angles between heart and diaphragm.
        size = float(rng.uniform(8.0, 13.0)) + 0.3 * build.fat_mm
        box = frame.box((cx - 40, cy - 40, cz - 40 - drop), (cx + 40, cy + 40, cz + 40 - drop))
        pad = ellipsoid_level(frame.coords(box), (cx, cy, cz - drop), (size * 1.1, size * 1.2, size))
        core[box] = torch.where(pad < 0, torch.ones_like(pad), core[box])
    box = frame.box((-70, -80, -200), (70, 100, 110))
    smooth = box_blur(core[box], 2 * round(5.0 / frame.h / 2) + 1)
    out = core > 0.5
    out[box] |= smooth > 0.42
    front = frame.profile(build.low(CAVITY_Z), CAVITY_FRONT)
    inlet = ((frame.z / frame.scale[2] - 46.0) * 0.42).clamp(0.0, 20.0)
    behind = 0.55 * (y - front + 24.0).clamp(min=0.0, max=30.0)
    out |= (x + 4.0 - 0.2 * inlet).abs() < 1.8 + inlet + behind
    return out


def lung_masks(build: Build, chest: Chest, core: Tensor) -> tuple[Tensor, Tensor]:
    """Right and left lung."""
    frame = build.frame
    lung = (chest.wall_mm < -1.0) & ~core & (chest.abdomen_mm > 1.5) & ~chest.floor & chest.body
    lung &= (frame.z / frame.scale[2]) < 95.0
    right = lung & (frame.cx > -4.0)
    return right, lung & ~right


def lobe_fields(build: Build) -> tuple[Tensor, Tensor, Tensor]:
    """Signed heights above the right oblique, left oblique and horizontal fissures, mm along z."""
    frame = build.frame
    x, y, z = frame.cx, frame.cy, frame.cz
    wave = build.noise(21, 45.0).on_axes(frame.x, frame.y, frame.z) * 4.0
    stretch = 1.0 + build.drop_mm / 150.0
    right = z - wave - stretch * (-48.0 - 0.92 * (y + 5.0) + 0.0009 * (y + 5.0) ** 2 + 0.06 * (x - 60.0))
    left = z + wave - stretch * (-36.0 - 0.90 * (y + 5.0) + 0.0009 * (y + 5.0) ** 2 - 0.06 * (x + 60.0))
    minor = (
        z + wave - stretch * (-34.0 + 0.0010 * (x - 60.0) ** 2 + 0.0016 * (y - 30.0) ** 2 - 0.05 * (y - 30.0))
    )
    return right, left, minor
