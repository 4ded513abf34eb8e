"""The heart: four chambers, walls, epicardial fat and the pericardium around them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from hilum.phantom.anatomy_build import Build
from hilum.phantom.shapes import Box, Mm3, ellipsoid_level, smooth_line, smooth_min


@dataclass
class Heart:
    """Masks in an index box of the grid; `pericardium` holds all others.

    Args:
        box: where. chambers: blood masks by name. myocardium, fat, pericardium: masks. shell: the
        pericardial line.
        muscle_mm: signed distance to the outer surface of muscle and atria (negative inside).
    """

    box: Box
    chambers: dict[str, Tensor]
    myocardium: Tensor
    fat: Tensor
    pericardium: Tensor
    shell: Tensor
    muscle_mm: Tensor


def basis(first: Mm3, second: Mm3) -> np.ndarray:
    """Right-handed axes: rows are `first`, `second` made orthogonal to it, and their cross product."""
    a = np.array(first) / np.linalg.norm(first)
    b = np.array(second) - a * np.dot(a, second)
    b /= np.linalg.norm(b)
    return np.stack([a, b, np.cross(a, b)])


def build_heart(build: Build) -> Heart:
    """Chambers as ellipsoids in the heart's own coordinates, blended into one surface."""
    frame, rng = build.frame, build.rng(31)
    box = frame.box((-150, -80, -170 - build.drop_mm), (90, 120, 40))
    q = heart_coords(build, frame.coords(box))
    lean = rng.normal(0.0, 0.08, 3)
    axis = basis((-0.72 + lean[0], 0.50 + lean[1], -0.48 + lean[2]), (0.0, 0.6, 0.6))
    lv_outer = ellipsoid_level(q, (-50, 16, -64), (50, 34.5, 34.5), axis)
    lv = ellipsoid_level(q, (-47, 14, -62), (40, 23, 23), axis)
    rv_axes = basis((-0.52, 0.26, -0.81), (0.42, 0.88, 0.0))
    rv_outer = ellipsoid_level(q, (-23, 40, -62), (47, 25, 37), rv_axes)
    rv = ellipsoid_level(q, (-23, 40, -62), (43.5, 21.5, 33.5), rv_axes)
    ra_outer = ellipsoid_level(q, (16, 14, -52), (22, 27, 36))
    la_outer = ellipsoid_level(q, (-10, -15, -33), (35, 20, 25))
    muscle = smooth_min(smooth_min(lv_outer, rv_outer, 8.0), smooth_min(ra_outer, la_outer, 8.0), 8.0)
    whole = smooth_min(smooth_min(lv_outer, rv_outer, 14.0), smooth_min(ra_outer, la_outer, 14.0), 14.0)
    fat_mm = 1.8 + 0.06 * build.fat_mm + float(rng.uniform(0.0, 4.0))
    pericardium = whole < fat_mm
    lv_in = lv < 0
    rv_in = (rv < 0) & (lv_outer > 0)
    ra_in = (ra_outer < -2.5) & ~rv_in & (lv_outer > 0)
    la_in = (la_outer < -2.5) & ~lv_in & ~ra_in & (lv_outer > -4)
    chambers = {
        "left_ventricle": lv_in,
        "right_ventricle": rv_in,
        "left_atrium": la_in,
        "right_atrium": ra_in,
    }
    blood = lv_in | rv_in | ra_in | la_in
    myocardium = (muscle < 0) & ~blood & pericardium
    fat = pericardium & ~blood & ~myocardium
    shell = (whole - fat_mm).abs() < 0.9
    return Heart(box, chambers, myocardium, fat, pericardium, shell, muscle)


def heart_coords(build: Build, coords: tuple[Tensor, Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """Canonical coordinates -> the heart's own (scaled about the great vessels' root, moved with the
    breath)."""
    s = build.heart_scale
    wide, tall = 1.0 - 0.06 * (build.breathing - 0.8), 1.0 + 0.10 * (build.breathing - 0.8)
    x0, y0, z0 = (0.0, 12.0, -30.0)
    shift = 0.4 * build.drop_mm
    x, y, z = coords
    return (x - x0) / (s * wide) + x0, (y - y0) / s + y0, (z - z0 + shift) / (s * tall) + z0


def heart_points(build: Build, points: np.ndarray) -> np.ndarray:
    """The inverse of `heart_coords`, for points (N, 3)."""
    s = build.heart_scale
    factor = np.array(
        [s * (1.0 - 0.06 * (build.breathing - 0.8)), s, s * (1.0 + 0.10 * (build.breathing - 0.8))]
    )
    origin = np.array([0.0, 12.0, -30.0])
    return (np.asarray(points, float) - origin) * factor + origin - np.array([0.0, 0.0, 0.4 * build.drop_mm])


def coronary_lines(build: Build) -> list[tuple[str, np.ndarray]]:
    """Left main + anterior descending, circumflex, right coronary: scene polylines near the heart's
    surface."""
    lines = {
        "left anterior descending": [
            (-6, 30, -30),
            (-20, 38, -34),
            (-40, 50, -46),
            (-62, 54, -64),
            (-82, 48, -86),
        ],
        "circumflex": [(-18, 26, -30), (-40, 14, -32), (-58, -6, -42), (-60, -18, -56)],
        "right": [(4, 34, -34), (16, 42, -46), (24, 38, -66), (14, 22, -86), (-6, 4, -92)],
    }
    return [
        (n, build.frame.to_scene(heart_points(build, smooth_line(np.array(p, float), 24))))
        for n, p in lines.items()
    ]


def paint_union(target: Tensor, box: Box, mask: Tensor) -> None:
    """target[box] |= mask, in place."""
    torch.logical_or(target[box], mask, out=target[box])
