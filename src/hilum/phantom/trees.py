"""Trees that fill the lobes: bronchi, arteries beside them, veins between them.

A lobe is a cloud of points. Each branch heads for the centre of the points it has to serve, stops part-way,
splits the cloud in two across its widest direction, and so on (volume-dividing growth: Kitaoka et al. 1999;
Tawhai et al. 2004).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from hilum.phantom.anatomy_build import Build
from hilum.phantom.anatomy_vessels import AIRWAY_TRUNKS, Course
from hilum.phantom.scene import Branch
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
LAST_GENERATION = 9
THINNEST_MM = 0.75
"""Radius below which no vessel is drawn thinner: the finest that a CT shows."""
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


def cloud(
    build: Build, masks: dict[str, MaskTensor], spacing_mm: float = 9.0
) -> tuple[np.ndarray, np.ndarray]:
    """Points inside the masks, and the index of the mask they lie in.

    They stand on a lattice fixed in mm (jittered by seed), so that trees do not depend on the voxel size.
    """
    frame = build.frame
    steps = [np.arange(-24, 25) * spacing_mm for _ in range(3)]
    grid = np.stack(np.meshgrid(*steps, indexing="ij"), -1).reshape(-1, 3)
    grid = grid + np.random.default_rng([build.seed, 51]).uniform(-0.45, 0.45, grid.shape) * spacing_mm
    index = np.round((grid - frame.origin) / frame.h).astype(int)
    good = ((index >= 0) & (index < np.array(frame.shape))).all(1)
    grid, index = grid[good], index[good]
    owner = np.full(len(grid), -1)
    i, j, k = (torch.as_tensor(index[:, a], device=frame.device) for a in range(3))
    for number, mask in enumerate(masks.values()):
        owner[mask[i, j, k].cpu().numpy()] = number
    return grid[owner >= 0], owner[owner >= 0]


@dataclass
class Level:
    """One generation: starts and ends (M, 3), radii at both ends (M,), and the index of the tree of each."""

    start: np.ndarray
    end: np.ndarray
    first_mm: np.ndarray
    last_mm: np.ndarray
    origin: np.ndarray
    generation: int


def grow(
    roots: np.ndarray,
    clouds: list[np.ndarray],
    radii_mm: np.ndarray,
    rng: np.random.Generator,
    last: int = LAST_GENERATION,
) -> list[Level]:
    """Serves each cloud from its root, generation by generation from 3 on, all trees at once."""
    points = np.concatenate(clouds)
    owner = np.repeat(np.arange(len(clouds)), [len(c) for c in clouds])
    root, radius, origin = roots.copy(), radii_mm.copy(), np.arange(len(roots))
    out = []
    for generation in range(3, last + 1):
        count = np.bincount(owner, minlength=len(root)).astype(float)
        centre = _sums(points, owner, len(root)) / np.maximum(count, 1)[:, None]
        gap = centre - root
        reach = np.linalg.norm(gap, axis=1)
        share = np.where((count <= 1) | (generation == last), 0.85, rng.uniform(0.38, 0.5, len(root)))
        side = np.cross(gap, rng.normal(size=gap.shape))
        side *= (0.06 * reach / np.maximum(np.linalg.norm(side, axis=1), 1e-6))[:, None]
        end = root + share[:, None] * gap + side
        narrow = radius * rng.uniform(0.92, 0.98, len(root))
        alive = (count > 0) & (reach >= 2.0)
        out.append(Level(root[alive], end[alive], radius[alive], narrow[alive], origin[alive], generation))
        keep = (alive & (count > 1))[owner]
        points, owner = points[keep], owner[keep]
        if len(points) == 0:
            break
        half = _split(points, owner, centre, count, rng)
        names, child = np.unique(2 * owner + half, return_inverse=True)
        parent = names // 2
        part = np.bincount(child) / count[parent]
        radius = narrow[parent] * part ** (1.0 / 3.0) * rng.uniform(0.94, 1.03, len(parent))
        root, origin, owner = end[parent], origin[parent], child
    return out


def _sums(values: np.ndarray, owner: np.ndarray, count: int) -> np.ndarray:
    columns = values.reshape(len(values), -1).T
    return np.stack([np.bincount(owner, weights=c, minlength=count) for c in columns], 1)


def _split(
    points: np.ndarray, owner: np.ndarray, centre: np.ndarray, count: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """0 or 1 for each point: its half of the node's cloud, cut across the widest direction."""
    spread = points - centre[owner]
    scatter = _sums(spread[:, :, None] * spread[:, None, :], owner, len(centre)).reshape(-1, 3, 3)
    axis = np.linalg.eigh(scatter)[1][:, :, -1]
    along = (spread * axis[owner]).sum(1)
    order = np.lexsort((along, owner))
    rank = np.empty(len(points))
    here = np.bincount(owner, minlength=len(centre))
    rank[order] = np.arange(len(points)) - np.repeat(np.cumsum(here) - here, here)
    cut = np.ceil(rng.uniform(0.38, 0.62, len(centre)) * count).clip(1, None)
    return (rank >= np.minimum(cut, count - 1)[owner]).astype(int)


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
    names: list[str] = []
    parts: list[np.ndarray] = []
    shares: list[float] = []
    points, lobe_of = cloud(build, lobes)
    for index, lobe in enumerate(lobes):
        mine = points[lobe_of == index]
        if len(mine) < 30:
            continue
        for part in _segments(mine, lobe):
            if len(part):
                names.append(lobe)
                parts.append(part)
                shares.append(len(part) / len(mine))
    if not parts:
        return out
    share = np.array(shares) ** 0.4
    tips = np.stack([by_name[_HILUM[n]].line_mm[-1] for n in names])
    _pairs(out, grow(tips, parts, 6.3 * share, rng), names, rng, 0.92 if build.female else 1.0)
    ostia = np.stack([by_name[_VEIN[n]].line_mm[-1] for n in names])
    moved = [p + rng.normal(0.0, 3.0, p.shape) for p in parts]
    for level in grow(ostia, moved, 5.9 * share, rng):
        radii = np.maximum(0.5 * (level.first_mm + level.last_mm), THINNEST_MM)
        for a, b, r, o in zip(level.start, level.end, radii, level.origin, strict=True):
            out.append(straight(a, b, r, level.generation, names[o], "vein"))
    return out


def _pairs(
    out: list[Branch], levels: list[Level], names: list[str], rng: np.random.Generator, calibre: float
) -> None:
    """Bronchi with their arteries at their side."""
    beside = rng.normal(size=(len(names), 3))
    for level in levels:
        way = level.end - level.start
        way /= np.maximum(np.linalg.norm(way, axis=1), 1e-6)[:, None]
        away = beside[level.origin]
        away = away - way * (away * way).sum(1)[:, None]
        away /= np.maximum(np.linalg.norm(away, axis=1), 1e-6)[:, None]
        radii = 0.5 * (level.first_mm + level.last_mm)
        lumen = radii * 0.72 * calibre
        shift = away * (lumen + radii + 0.9)[:, None]
        for i, o in enumerate(level.origin):
            a, b = level.start[i], level.end[i]
            if lumen[i] > 0.45:
                out.append(straight(a, b, lumen[i], level.generation, names[o], "airway"))
            r = max(radii[i], THINNEST_MM)
            out.append(straight(a + shift[i], b + shift[i], r, level.generation, names[o], "artery"))


def straight(a: np.ndarray, b: np.ndarray, r: float, generation: int, lobe: str, kind: str) -> Branch:
    """A `Branch` from arrays."""
    start, end = (float(a[0]), float(a[1]), float(a[2])), (float(b[0]), float(b[1]), float(b[2]))
    return Branch(start, end, float(r), generation, lobe, kind)


def _polyline(
    out: list[Branch], line: np.ndarray, radii: np.ndarray, generation: int, lobe: str, kind: str
) -> None:
    for i in range(len(line) - 1):
        out.append(straight(line[i], line[i + 1], 0.5 * (radii[i] + radii[i + 1]), generation, lobe, kind))


def branch_points(branches: list[Branch], step_mm: float) -> tuple[np.ndarray, np.ndarray]:
    """Dense points and radii along branches, for `shapes.splat`."""
    if not branches:
        return np.zeros((0, 3)), np.zeros(0)
    a = np.array([b.start_mm for b in branches])
    d = np.array([b.end_mm for b in branches]) - a
    r = np.array([b.radius_mm for b in branches])
    step = np.maximum(step_mm, 0.35 * r)
    count = np.ceil(np.linalg.norm(d, axis=1) / step).astype(int) + 1
    owner = np.repeat(np.arange(len(branches)), count)
    first = np.concatenate([[0], np.cumsum(count)[:-1]])
    t = (np.arange(len(owner)) - first[owner]) / np.maximum(count[owner] - 1, 1)
    return a[owner] + t[:, None] * d[owner], r[owner]
