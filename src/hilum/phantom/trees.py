"""Trees that fill the lobes: bronchi, arteries beside them, veins between them.

A lobe is a cloud of points. Each branch heads for the centre of the points it has to serve, stops part-way, splits the
cloud in two across its widest direction, and so on (volume-dividing growth: Kitaoka et al. 1999; Tawhai et al. 2004).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from hilum.phantom.anatomy_build import Build
from hilum.phantom.anatomy_vessels import AIRWAY_TRUNKS, Course
from hilum.phantom.scene import Branch
from hilum.phantom.shapes import Noise
from hilum.tensors import MaskTensor

# Directions (x away from the midline) of the segments, from the lobe's centre.
SEGMENTS: dict[str, list[tuple[float, float, float]]] = {
    "right upper lobe": [(0.0, -0.2, 1.0), (0.3, -1.0, 0.0), (0.2, 1.0, -0.2)],
    "right middle lobe": [(1.0, 0.0, 0.2), (-0.5, 0.8, -0.2)],
    "right lower lobe": [
        (0.0, -0.5, 1.0),
        (-0.8, 0.0, -0.5),
        (0.3, 1.0, -0.4),
        (1.0, 0.0, -0.4),
        (0.0, -0.8, -0.8),
    ],
    "left upper lobe": [(0.0, -0.5, 1.0), (0.3, 0.8, 0.4), (0.6, 0.4, -0.5), (-0.3, 0.6, -1.0)],
    "left lower lobe": [(0.0, -0.5, 1.0), (0.2, 1.0, -0.4), (1.0, 0.0, -0.4), (0.0, -0.8, -0.8)],
}
LAST_GENERATION = 8
_HILUM = {
    "right upper lobe": "right upper lobe bronchus",
    "right middle lobe": "middle lobe bronchus",
    "right lower lobe": "right lower lobe bronchus",
    "left upper lobe": "left upper lobe bronchus",
    "left lower lobe": "left lower lobe bronchus",
}
_VEIN = {
    "right upper lobe": "right superior pulmonary vein",
    "right middle lobe": "right superior pulmonary vein",
    "right lower lobe": "right inferior pulmonary vein",
    "left upper lobe": "left superior pulmonary vein",
    "left lower lobe": "left inferior pulmonary vein",
}


def cloud(build: Build, mask: MaskTensor, spacing_mm: float = 9.0) -> np.ndarray:
    """Points inside a mask on a lattice fixed in mm (jittered by seed), so that trees do not depend on the voxel size."""
    frame = build.frame
    steps = [np.arange(-32, 33) * spacing_mm for _ in range(3)]
    grid = np.stack(np.meshgrid(*steps, indexing="ij"), -1).reshape(-1, 3)
    grid = grid + np.random.default_rng([build.seed, 51]).uniform(-0.45, 0.45, grid.shape) * spacing_mm
    index = np.round((grid - frame.origin) / frame.h).astype(int)
    good = ((index >= 0) & (index < np.array(frame.shape))).all(1)
    grid, index = grid[good], index[good]
    i, j, k = (torch.as_tensor(index[:, a], device=mask.device) for a in range(3))
    return grid[mask[i, j, k].cpu().numpy()]


def grow(
    root: np.ndarray,
    points: np.ndarray,
    generation: int,
    radius: float,
    rng: np.random.Generator,
    add: Callable[[np.ndarray, np.ndarray, float, float, int], None],
    last: int = LAST_GENERATION,
) -> None:
    """Serves a cloud from `root`, calling `add(start, end, first radius, last radius, generation)` for each branch."""
    if len(points) == 0 or generation > last:
        return
    target = points.mean(0)
    gap = target - root
    reach = np.linalg.norm(gap)
    if reach < 2.0:
        return
    share = 0.85 if len(points) == 1 or generation == last else rng.uniform(0.38, 0.5)
    side = np.cross(gap, rng.normal(size=3))
    side *= 0.06 * reach / max(np.linalg.norm(side), 1e-6)
    end = root + share * gap + side
    narrow = radius * rng.uniform(0.86, 0.94)
    add(root, end, radius, narrow, generation)
    if len(points) == 1:
        return
    spread = points - target
    axis = np.linalg.eigh(spread.T @ spread)[1][:, -1]
    along = spread @ axis
    cut = np.quantile(along, rng.uniform(0.38, 0.62))
    for part in (points[along <= cut], points[along > cut]):
        if len(part):
            child = narrow * (len(part) / len(points)) ** (1.0 / 2.8)
            grow(end, part, generation + 1, child * rng.uniform(0.94, 1.03), rng, add, last)


def _segments(points: np.ndarray, lobe: str) -> list[np.ndarray]:
    """The lobe's cloud, one piece per bronchopulmonary segment."""
    sign = 1.0 if lobe.startswith("right") else -1.0
    centre, extent = points.mean(0), points.std(0)
    seeds = np.array([[d[0] * sign, d[1], d[2]] for d in SEGMENTS[lobe]])
    seeds = centre + seeds * extent * 1.1
    owner = np.linalg.norm((points[:, None] - seeds[None]) / extent, axis=2).argmin(1)
    return [points[owner == i] for i in range(len(seeds))]


def grow_trees(build: Build, lobes: dict[str, MaskTensor], trunks: list[Course]) -> list[Branch]:
    """Bronchi, arteries and veins of all lobes, and the named central airways."""
    rng = build.rng(52)
    out: list[Branch] = []
    by_name = {c.name: c for c in trunks}
    for name, generation, _, _ in AIRWAY_TRUNKS:
        course = by_name[name]
        lobe = next((k for k, v in _HILUM.items() if v == name), "")
        _polyline(out, course.line_mm[::4], course.radii_mm[::4], generation, lobe, "airway")
    for lobe, mask in lobes.items():
        points = cloud(build, mask)
        if len(points) < 30:
            continue
        tip = by_name[_HILUM[lobe]]
        vein = by_name[_VEIN[lobe]]
        parts = _segments(points, lobe)
        for part in parts:
            _grow_pair(out, tip.line_mm[-1], part, len(part) / len(points), lobe, rng, build.female)
        shifted = points + rng.normal(0.0, 3.0, points.shape)
        for part in _segments(shifted, lobe):
            radius = 4.6 * (len(part) / len(points)) ** 0.4

            def add(a: np.ndarray, b: np.ndarray, r: float, s: float, g: int, lobe: str = lobe) -> None:
                out.append(_branch(a, b, 0.5 * (r + s), g, lobe, "vein"))

            grow(vein.line_mm[-1], part, 3, radius, rng, add)
    return out


def _grow_pair(
    out: list[Branch],
    root: np.ndarray,
    part: np.ndarray,
    share: float,
    lobe: str,
    rng: np.random.Generator,
    female: bool,
) -> None:
    """One segment's bronchus with its artery at its side."""
    beside = rng.normal(size=3)
    beside /= np.linalg.norm(beside)
    artery = 4.8 * share**0.4

    def add(a: np.ndarray, b: np.ndarray, r: float, s: float, g: int) -> None:
        way = b - a
        perpendicular = beside - way * np.dot(beside, way) / max(np.dot(way, way), 1e-6)
        perpendicular /= max(np.linalg.norm(perpendicular), 1e-6)
        lumen = 0.5 * (r + s) * 0.72 * (0.92 if female else 1.0)
        if lumen > 0.35:
            out.append(_branch(a, b, lumen, g, lobe, "airway"))
        shift = perpendicular * (lumen + 0.5 * (r + s) + 0.9)
        out.append(_branch(a + shift, b + shift, 0.5 * (r + s), g, lobe, "artery"))

    grow(root, part, 3, artery, rng, add)


def _branch(a: np.ndarray, b: np.ndarray, r: float, generation: int, lobe: str, kind: str) -> Branch:
    start, end = (float(a[0]), float(a[1]), float(a[2])), (float(b[0]), float(b[1]), float(b[2]))
    return Branch(start, end, float(r), generation, lobe, kind)


def _polyline(
    out: list[Branch], line: np.ndarray, radii: np.ndarray, generation: int, lobe: str, kind: str
) -> None:
    for i in range(len(line) - 1):
        out.append(_branch(line[i], line[i + 1], 0.5 * (radii[i] + radii[i + 1]), generation, lobe, kind))


def branch_points(
    branches: list[Branch],
    step_mm: float,
    grow_mm: float = 0.0,
    wiggle: tuple[Noise, Noise, Noise] | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Dense points and radii along branches, for `shapes.splat`; grown by `grow_mm`."""
    if not branches:
        return np.zeros((0, 3)), np.zeros(0)
    a = np.array([b.start_mm for b in branches])
    d = np.array([b.end_mm for b in branches]) - a
    r = np.array([b.radius_mm for b in branches]) + grow_mm
    step = np.maximum(step_mm, 0.35 * r)
    count = np.ceil(np.linalg.norm(d, axis=1) / step).astype(int) + 1
    owner = np.repeat(np.arange(len(branches)), count)
    first = np.concatenate([[0], np.cumsum(count)[:-1]])
    t = (np.arange(len(owner)) - first[owner]) / np.maximum(count[owner] - 1, 1)
    return a[owner] + t[:, None] * d[owner], r[owner]
