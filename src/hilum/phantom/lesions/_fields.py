"""The pencils of the lesions: seeded dice, windows, smooth noise, cell networks, balls and tubes on a
scene's grid.

Random numbers are always drawn on the CPU and then moved, so that a seed means the same lesion on every
device.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from hilum.phantom.scene import Scene

T = TypeVar("T")
Point = tuple[float, float, float]


@dataclass(frozen=True)
class Dice:
    """A seeded generator with the throws the lesions need."""

    generator: torch.Generator

    def uniform(self, low: float, high: float) -> float:
        """One number in [low, high)."""
        return low + (high - low) * float(torch.rand((), generator=self.generator))

    def integer(self, low: int, high: int) -> int:
        """One integer, both ends included."""
        return int(torch.randint(low, high + 1, (), generator=self.generator))

    def chance(self, probability: float) -> bool:
        """True with this probability."""
        return self.uniform(0.0, 1.0) < probability

    def choice(self, options: Sequence[T]) -> T:
        """One of them."""
        return options[self.integer(0, len(options) - 1)]

    def some(self, options: Sequence[T], count: int) -> list[T]:
        """`count` different ones (all, when there are fewer), in their order."""
        order = torch.randperm(len(options), generator=self.generator)[:count]
        return [options[i] for i in sorted(order.tolist())]

    def normal(self, *shape: int) -> Tensor:
        """Standard normal numbers on the CPU."""
        return torch.randn(shape, generator=self.generator)

    def rand(self, *shape: int) -> Tensor:
        """Uniform [0, 1) numbers on the CPU."""
        return torch.rand(shape, generator=self.generator)

    def direction(self) -> Tensor:
        """A unit vector, CPU, (3,)."""
        return F.normalize(self.normal(3), dim=0)


@dataclass(frozen=True)
class Window:
    """A box of the grid: lesions are small, so nothing is computed outside their box.

    Args:
        index: slices into a volume. x, y, z: mm, broadcastable as in `Scene.axes_mm`. work_mm: edge of a
        voxel.
    """

    index: tuple[slice, slice, slice]
    x: Tensor
    y: Tensor
    z: Tensor
    work_mm: float

    def of(self, volume: Tensor) -> Tensor:
        """The view of `volume` inside the box."""
        return volume[self.index]

    @property
    def shape(self) -> tuple[int, int, int]:
        """Voxels of the box."""
        return self.x.shape[0], self.y.shape[1], self.z.shape[2]

    def distance(self, centre: Sequence[float], stretch: Sequence[float] = (1.0, 1.0, 1.0)) -> Tensor:
        """mm to `centre`, each axis divided by its `stretch`."""
        dx, dy, dz = ((a - c) / s for a, c, s in zip((self.x, self.y, self.z), centre, stretch, strict=True))
        return (dx * dx + dy * dy + dz * dz).sqrt()

    def along(self, centre: Sequence[float], direction: Sequence[float]) -> Tensor:
        """Signed mm from `centre` along the unit vector `direction`."""
        u, v, w = direction
        return (self.x - centre[0]) * u + (self.y - centre[1]) * v + (self.z - centre[2]) * w


def _window(scene: Scene, index: tuple[slice, slice, slice]) -> Window:
    x, y, z = scene.axes_mm()
    return Window(index, x[index[0]], y[:, index[1]], z[:, :, index[2]], scene.work_mm)


def window_at(scene: Scene, centre: Sequence[float], half_mm: float | Sequence[float]) -> Window:
    """The box of +-`half_mm` around a point, cut to the grid (never empty)."""
    half = (half_mm,) * 3 if isinstance(half_mm, int | float) else tuple(half_mm)
    origin = scene.grid.affine_ras[:3, 3]
    index = []
    for n, o, c, h in zip(scene.grid.shape, origin, centre, half, strict=True):
        low = min(max(int((c - h - o) / scene.work_mm), 0), n - 1)
        high = min(max(int((c + h - o) / scene.work_mm) + 2, low + 1), n)
        index.append(slice(low, high))
    return _window(scene, (index[0], index[1], index[2]))


def window_of(scene: Scene, mask: Tensor, margin_mm: float = 0.0) -> Window | None:
    """The bounding box of a mask (or of a field that is nowhere negative), widened; None when it is empty."""
    if mask.dtype == torch.bool:
        mask = mask.view(torch.uint8)
    flat = mask.amax(0)
    lines = (mask.amax(2).amax(1), flat.amax(1), flat.amax(0))
    margin = round(margin_mm / scene.work_mm)
    index = []
    for line in lines:
        where = line.nonzero()
        if len(where) == 0:
            return None
        index.append(slice(max(int(where[0]) - margin, 0), min(int(where[-1]) + 1 + margin, len(line))))
    return _window(scene, (index[0], index[1], index[2]))


def _spline_weights(n: int, cells: int, step: float, shift: float) -> Tensor:
    """Cubic B-spline weights (n, cells) of samples `step` apart in units of cells."""
    at = torch.arange(n, dtype=torch.float32)[:, None] * step + 1.0 + shift
    d = (at - torch.arange(cells, dtype=torch.float32)[None]).abs()
    inner = 2.0 / 3.0 - d**2 + d**3 / 2.0
    return torch.where(d < 1, inner, (2.0 - d).clamp(min=0) ** 3 / 6.0)


def noise(window: Window, scale_mm: float, dice: Dice) -> Tensor:
    """Smooth noise with features of about `scale_mm`, about standard normal, on the window."""
    steps = [window.work_mm / scale_mm] * 3
    cells = [int(n * s) + 5 for n, s in zip(window.shape, steps, strict=True)]
    field = dice.normal(*cells) / 0.479**1.5  # mean squared weight of a cubic B-spline is 0.479 per axis
    for axis, (n, count, step) in enumerate(zip(window.shape, cells, steps, strict=True)):
        weights = _spline_weights(n, count, step, dice.uniform(0.0, 1.0))
        if axis == 2:  # the only large product: on the device
            return field.to(window.x.device) @ weights.to(window.x.device).T
        field = torch.tensordot(weights, field, dims=([1], [axis])).movedim(0, axis)
    return field


def balls(scene: Scene, centres_mm: Tensor, radii_mm: Tensor) -> Tensor:
    """Soft union of many small balls over the whole grid: 0 outside, 1 inside, partial volume at the rim.

    Args:
        centres_mm: (K, 3). radii_mm: (K,). Meant for radii of a few voxels: the cost is K cubes of the
        largest one.
    """
    shape, work, device = scene.grid.shape, scene.work_mm, scene.device
    alpha = torch.zeros(shape, device=device)
    if len(centres_mm) == 0:
        return alpha
    origin = torch.tensor(scene.grid.affine_ras[:3, 3], dtype=torch.float32)
    at = (centres_mm.cpu().float() - origin) / work
    reach = int(float(radii_mm.max()) / work + 1.0)
    line = torch.arange(-reach, reach + 1)
    cube = torch.cartesian_prod(line, line, line)
    near = at.round().long()
    voxels = (near[:, None] + cube[None]).to(device)
    gap = (voxels - at[:, None].to(device)).square().sum(-1).sqrt() * work
    value = (0.5 - (gap - radii_mm.to(device)[:, None]) / work).clamp(0.0, 1.0)
    limit = torch.tensor(shape, device=device)
    keep = ((voxels >= 0) & (voxels < limit)).all(-1) & (value > 0)
    voxels, value = voxels[keep], value[keep]
    flat = (voxels[:, 0] * shape[1] + voxels[:, 1]) * shape[2] + voxels[:, 2]
    alpha.view(-1).scatter_reduce_(0, flat, value, "amax")
    return alpha


def beads(points_mm: Sequence[Sequence[float]], step_mm: float) -> Tensor:
    """Points every `step_mm` along a polyline, (K, 3)."""
    out = []
    knots = torch.tensor([list(p) for p in points_mm], dtype=torch.float32)
    for a, b in itertools.pairwise(knots):
        count = max(int(torch.linalg.vector_norm(b - a) / step_mm), 1)
        out.append(a + (b - a) * torch.linspace(0, 1, count + 1)[:, None])
    return torch.cat(out) if out else knots


def smooth_path(points_mm: Sequence[Sequence[float]], step_mm: float) -> Tensor:
    """Points along a rounded course through the neighbourhood of the given knots (Chaikin), (K, 3)."""
    path = torch.tensor([list(p) for p in points_mm], dtype=torch.float32)
    for _ in range(3):
        a, b = path[:-1], path[1:]
        cut = torch.stack((0.75 * a + 0.25 * b, 0.25 * a + 0.75 * b), 1).flatten(0, 1)
        path = torch.cat((path[:1], cut, path[-1:]))
    return beads(path.tolist(), step_mm)


def tube(scene: Scene, path_mm: Tensor, radius_mm: float | Tensor) -> Tensor:
    """Soft tube along densely sampled points."""
    radii = torch.full((len(path_mm),), radius_mm) if isinstance(radius_mm, int | float) else radius_mm
    return balls(scene, path_mm, radii)


def cells(points_mm: Tensor, cell_mm: float, dice: Dice) -> tuple[Tensor, Tensor]:
    """A Voronoi foam of cells about `cell_mm` wide, like the secondary lobules of the lung.

    Args:
        points_mm: (N, 3).

    Returns:
        mm from each point to its border with the second nearest (N,), and its cell's random number (N,).
    """
    low = points_mm.amin(0) - 2 * cell_mm
    at = ((points_mm - low) / cell_mm).T.contiguous()
    size = [int(n) + 3 for n in at.amax(1)]
    table = dice.rand(4, *size).to(at.device)
    for axis in range(3):
        line = torch.arange(size[axis], device=at.device).reshape([-1 if i == axis else 1 for i in range(3)])
        table[axis] = table[axis] * 0.9 + 0.05 + line
    strides = (size[1] * size[2], size[2], 1)
    # on a CPU in blocks that stay in its cache
    parts = [
        _two_nearest(part, table.flatten(1), strides)
        for part in at.split(1 << 40 if at.is_cuda else 32768, 1)
    ]
    return torch.cat([p[0] for p in parts]) * cell_mm, torch.cat([p[1] for p in parts])


def _two_nearest(at: Tensor, sites: Tensor, strides: tuple[int, int, int]) -> tuple[Tensor, Tensor]:
    """Distance to the border between the two nearest sites, and the nearest one's number, in cells, (N,)."""
    home = at.long()
    row = home[0] * strides[0] + home[1] * strides[1] + home[2]
    first = torch.full_like(at[0], 1e9)
    second, row_1, row_2 = first.clone(), row, row
    for shift in itertools.product((-1, 0, 1), repeat=3):
        near = row + sum(a * b for a, b in zip(shift, strides, strict=True))
        d = (sites[0][near] - at[0]) ** 2 + (sites[1][near] - at[1]) ** 2 + (sites[2][near] - at[2]) ** 2
        closer = d < first
        runner = torch.where(closer, first, d)
        runner_row = torch.where(closer, row_1, near)
        row_2 = torch.where(runner < second, runner_row, row_2)
        second = torch.minimum(second, runner)
        row_1 = torch.where(closer, near, row_1)
        first = torch.minimum(first, d)
    apart = (sites[:3, row_1] - sites[:3, row_2]).square().sum(0).sqrt().clamp(min=1e-3)
    return (second - first) / (2 * apart), sites[3, row_1]


def dilate(mask: Tensor, radius_vox: int) -> Tensor:
    """Mask grown by a cube of +-`radius_vox`: shifted unions, one axis at a time."""
    for axis in range(3):
        grown, size = mask.clone(), mask.shape[axis]
        for shift in range(1, min(radius_vox, size - 1) + 1):
            grown.narrow(axis, shift, size - shift).logical_or_(mask.narrow(axis, 0, size - shift))
            grown.narrow(axis, 0, size - shift).logical_or_(mask.narrow(axis, shift, size - shift))
        mask = grown
    return mask


def shrink(mask: Tensor, stride: int) -> Tensor:
    """One voxel for every cube of `stride`, True when any of them is."""
    for axis in range(3):
        size = -(-mask.shape[axis] // stride)
        small = mask[(slice(None),) * axis + (slice(0, None, stride),)].clone()
        for shift in range(1, stride):
            part = mask[(slice(None),) * axis + (slice(shift, None, stride),)]
            small.narrow(axis, 0, min(size, part.shape[axis])).logical_or_(part)
        mask = small
    return mask


def count(mask: Tensor) -> int:
    """Voxels of a mask (a sum of booleans is twenty times slower on a CPU)."""
    return int(torch.count_nonzero(mask))


def pick(scene: Scene, mask: Tensor, dice: Dice, number: int = 1) -> list[Point]:
    """`number` random voxel centres of a mask in mm (with repetition only when it is tiny); [] when it is
    empty.
    """
    stride = max(1, round(4.0 / scene.work_mm))
    where = mask[::stride, ::stride, ::stride].nonzero() * stride
    if len(where) == 0:
        where = mask.nonzero()
    if len(where) == 0:
        return []
    rows = torch.randint(len(where), (number,), generator=dice.generator)
    origin = torch.tensor(scene.grid.affine_ras[:3, 3], dtype=torch.float32)
    points = where.cpu()[rows].float() * scene.work_mm + origin
    return [(float(p[0]), float(p[1]), float(p[2])) for p in points]


def lookup(scene: Scene, volume: Tensor, points_mm: Tensor) -> Tensor:
    """Nearest voxel's value at each of (K, 3) points; points outside take the border's."""
    origin = torch.tensor(scene.grid.affine_ras[:3, 3], dtype=torch.float32)
    at = ((points_mm.cpu().float() - origin) / scene.work_mm).round().long()
    at = torch.minimum(at.clamp(min=0), torch.tensor(scene.grid.shape) - 1).to(volume.device)
    return volume[at[:, 0], at[:, 1], at[:, 2]]


def blend(hu: Tensor, alpha: Tensor, value: Tensor | float) -> None:
    """`hu` becomes `value` where alpha is 1, in place (a view of the scene's HU is meant)."""
    hu += alpha * (value - hu)


def smoothstep(x: Tensor, low: float, high: float) -> Tensor:
    """0 below `low`, 1 above `high`, smooth between."""
    t = ((x - low) / (high - low)).clamp(0.0, 1.0)
    return t * t * (3 - 2 * t)
