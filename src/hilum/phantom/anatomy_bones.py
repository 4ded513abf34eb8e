"""Spine, ribs with cartilage, sternum, clavicles, scapulae and humeri."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from hilum.phantom.anatomy_build import Build
from hilum.phantom.anatomy_chest import (
    CAVITY_A,
    CAVITY_BACK,
    CAVITY_FRONT,
    CAVITY_Z,
    SPINE_Y,
    SPINE_Z,
    Chest,
    section_middle,
)
from hilum.phantom.shapes import Box, resample_line, smooth_line, splat

VERTEBRA_Z = np.array(
    [-260.0, -227, -195, -167, -141, -114, -91, -69, -46, -22, 1, 22, 41, 59, 74, 88, 101, 114, 127, 140]
)
"""Centres of L4 ... T1 (index 15) ... C4."""
_HEAD_Z = [93, 79, 64, 46, 27, 6, -17, -41, -64, -86, -109, -136]
_FALL = [26, 42, 56, 68, 78, 86, 90, 90, 84, 72, 44, 26]
_END_DEG = [150, 152, 152, 151, 149, 147, 144, 136, 126, 112, 80, 52]
_STERNAL_Z = [58, 44, 26, 6, -14, -30, -40, -50, -58, -66]


@dataclass
class Bones:
    """Coverages (0..1, whole grid) and masks.

    Args:
        outer: cortex and marrow of all tubes. inner: marrow. cartilage: costal cartilage.
        ribs, sternum: masks. spine_box: index box of `vertebra`, `marrow`, `disc`, `canal`.
    """

    outer: Tensor
    inner: Tensor
    cartilage: Tensor
    ribs: Tensor
    sternum: Tensor
    spine_box: Box
    vertebra: Tensor
    marrow: Tensor
    disc: Tensor
    canal: Tensor


def wall_point(angle: np.ndarray, z: np.ndarray, side: float, offset_mm: float, build: Build) -> np.ndarray:
    """Points on the rib cage's inner surface plus an offset; angle 0 is the back, pi the front."""
    table = build.low(CAVITY_Z)
    a, front, back = (np.interp(z, table, t) for t in (CAVITY_A, CAVITY_FRONT, CAVITY_BACK))
    middle = section_middle(front, back)
    half = np.where(np.cos(angle) < 0, front - middle, middle - back)
    u, v = (np.sin(angle) / a) ** 2, (np.cos(angle) / half) ** 2
    square = np.where(np.cos(angle) < 0, 0.15, 0.55)
    r = 1.0 / np.sqrt(u + v - square * u * v / (u + v)) + offset_mm
    return np.stack([side * r * np.sin(angle), middle - r * np.cos(angle), z], 1)


def rib_line(build: Build, number: int, side: float) -> tuple[np.ndarray, np.ndarray]:
    """Canonical polylines of a rib's bone and its cartilage (the latter possibly empty)."""
    i = number - 1
    t = np.linspace(0.0, 1.0, 36)
    head = float(build.low(_HEAD_Z[i]))
    fall = _FALL[i] * (1.0 - 0.06 * (build.breathing - 0.8))
    angle = np.deg2rad(16.0 + (_END_DEG[i] - 16.0) * t)
    z = head + 3.0 - fall * (0.25 * t + 0.75 * t**1.5)
    bone = wall_point(angle, z, side, 5.0, build)
    y = float(np.interp(_HEAD_Z[i], SPINE_Z, SPINE_Y))
    bone = np.concatenate([[[side * 17.0, y - 9.0, head]], bone])
    if number > 10:
        return smooth_line(bone, 60), np.zeros((0, 3))
    sternal_z = float(build.low(_STERNAL_Z[i]))
    front = float(np.interp(sternal_z, build.low(CAVITY_Z), CAVITY_FRONT))
    x = side * (16.0 if number < 8 else 22.0 + 9.0 * (number - 7))
    end = np.array([x, front + (6.0 if number < 8 else 2.0), sternal_z])
    low = 0.5 * (bone[-1] + end) + np.array([0.0, 4.0, -4.0 if number > 3 else 0.0])
    return smooth_line(bone, 60), smooth_line(np.array([bone[-1], low, end]), 20)


def build_bones(build: Build, chest: Chest) -> Bones:
    """All bones."""
    frame = build.frame
    outer, inner, cartilage = frame.zeros(), frame.zeros(), frame.zeros()
    for number in range(1, 13):
        for side in (-1.0, 1.0):
            bone, soft = rib_line(build, number, side)
            _flat_tube(build, outer, inner, bone, 3.4, 3.2 if number > 1 else 1.5)
            if len(soft):
                _flat_tube(build, cartilage, None, soft, 4.2, 2.0)
    ribs = (outer > 0.5) | (cartilage > 0.5)
    sternum_cover = frame.zeros()
    _sternum(build, sternum_cover, inner)
    sternum = sternum_cover > 0.5
    torch.maximum(outer, sternum_cover, out=outer)
    _shoulders(build, outer, inner)
    box, vertebra, marrow, disc, canal = _spine(build, chest)
    return Bones(outer, inner, cartilage, ribs, sternum, box, vertebra, marrow, disc, canal)


def _flat_tube(
    build: Build, outer: Tensor, inner: Tensor | None, line: np.ndarray, radius: float, tall: float
) -> None:
    """A rib-like band: two tubes above each other. `line` is canonical."""
    frame = build.frame
    size = float(np.mean(frame.scale))
    middle = frame.to_scene(line)
    dense, radii = resample_line(middle, np.full(len(middle), radius * size), max(0.9 * frame.h, 1.2))
    points = np.concatenate([dense + np.array([0.0, 0.0, dz]) for dz in (-0.7 * tall, 0.7 * tall)])
    radii = np.tile(radii, 2)
    splat(frame, outer, points, radii)
    if inner is not None:
        splat(frame, inner, points, radii - 1.5)


def _sternum(build: Build, outer: Tensor, inner: Tensor) -> None:
    frame = build.frame
    z = np.linspace(64.0, -82.0, 44)
    zz = build.low(z)
    y = np.interp(zz, build.low(CAVITY_Z), CAVITY_FRONT) + 8.0
    half = np.interp(z, [-82, -66, -60, -20, 20, 32, 55, 64], [2, 5, 15, 17, 13, 14, 25, 20])
    for share in np.linspace(-1.0, 1.0, 9):
        line = frame.to_scene(np.stack([share * half, y, zz], 1))
        dense, radii = resample_line(line, np.full(len(line), 5.2), max(0.6 * frame.h, 1.2))
        splat(frame, outer, dense, radii)
        splat(frame, inner, dense, radii - 1.6)


def _shoulders(build: Build, outer: Tensor, inner: Tensor) -> None:
    frame = build.frame
    for side in (-1.0, 1.0):
        clavicle = np.array([(16, 52, 66), (45, 48, 78), (80, 26, 92), (122, -8, 102)], float)
        humerus = np.array([(146, -22, 100), (152, -20, 125), (160, -10, 200)], float)
        for line, radii in ((smooth_line(clavicle, 30), np.full(30, 6.0)), (smooth_line(humerus, 30), None)):
            line = line * np.array([side, 1.0, 1.0])
            radii = np.interp(np.arange(30), [0, 5, 9, 29], [22, 20, 12, 11]) if radii is None else radii
            dense, r = resample_line(frame.to_scene(line), radii, 2.0)
            splat(frame, outer, dense, r)
            splat(frame, inner, dense, r - 2.2)
        rows = []
        for z in np.arange(-60.0, 84.0, 3.0):
            reach = np.interp(z, [-60, -30, 60, 84], [2.0, 14.0, 34.0, 30.0])
            angle = np.deg2rad(np.linspace(66.0 - reach, 66.0 + 0.45 * reach, 36))
            rows.append(wall_point(angle, np.full(36, z), side, 17.0, build) + np.array([0.0, -3.0, 0.0]))
        blade = frame.to_scene(np.concatenate(rows))
        radii = np.tile(np.where(np.abs(np.arange(36) - 17.5) > 15.5, 4.2, 2.2), len(rows))
        splat(frame, outer, blade, radii)
        splat(frame, inner, blade, radii - 1.5)
        neck = np.array([(102, -72, 62), (122, -52, 80), (138, -32, 96)], float) * np.array([side, 1.0, 1.0])
        dense, r = resample_line(frame.to_scene(neck), np.array([7.0, 9.0, 12.0]), 2.0)
        splat(frame, outer, dense, r)
        splat(frame, inner, dense, r - 2.0)


def _spine(build: Build, chest: Chest) -> tuple[Box, Tensor, Tensor, Tensor, Tensor]:
    frame = build.frame
    box = frame.box((-46, -150, -340), (46, 50, 180))
    x, y, _ = frame.coords(box)
    x = x.abs()
    table = build.low(VERTEBRA_Z)
    count = frame.profile(table, np.arange(len(table), dtype=float))[:, :, box[2]]
    size = frame.profile(table, np.linspace(1.28, 0.62, len(table)))[:, :, box[2]]
    part = count - count.round()
    back = chest.spine_y[:, :, box[2]] - y
    rho = ((x / (17.0 * size)) ** 2 + (back / (14.5 * size)) ** 2).sqrt()
    waist = 1.0 - 0.10 * torch.cos(part * 2 * np.pi)
    column = rho < waist
    disc = column & (part.abs() > 0.41)
    body = column & ~disc
    b = back - 15.5 * size
    ring = (x**2 + (b - 8.0) ** 2).sqrt()
    canal = ring < 8.5
    lamina = (ring < 14.0) & (b > 0) & ~canal & (part.abs() < 0.36)
    tilt = part + (b - 20.0) * 0.012
    spinous = (x < 3.6) & (b > 18.0) & (b < 44.0 * size) & (tilt.abs() < 0.26)
    wing = b - 12.0 - 0.30 * x
    transverse = (x > 9.0) & (x < 33.0) & (wing.abs() < 5.0) & ((part - 0.1).abs() < 0.20)
    bone = (body | lamina | spinous | transverse) & ~canal
    marrow = (rho < waist - 0.10) & (part.abs() < 0.36)
    marrow |= transverse & (wing.abs() < 3.2) & (x < 31.0) & ((part - 0.1).abs() < 0.14)
    marrow |= spinous & (x < 1.8) & (tilt.abs() < 0.18) & (b < 41.0 * size)
    return box, bone, marrow & bone, disc, canal
