"""Shapes on a warped grid: coordinates, smooth noise, ellipsoids, profiles, and tubes splatted along
polylines.

Organs are written in *canonical* mm (an average adult, carina at the origin, RAS+) and evaluated on
coordinates that were warped once per patient; tubes are mapped the other way and drawn on the straight grid.
Both use cubic B-spline noise on a lattice fixed in mm, so that the anatomy of a seed does not depend on the
voxel size.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from scipy.interpolate import CubicSpline, PchipInterpolator
from scipy.ndimage import map_coordinates
from torch import Tensor

from hilum.geometry import Geometry

Box = tuple[slice, slice, slice]
Number = int | float
Mm3 = tuple[Number, Number, Number]
LATTICE_MM = 340.0
"""Noise is defined on the cube of this half-edge around the carina."""
_SPLAT_CHUNK = 2_000_000
_COARSE_MM = 10.0


def span(there: Tensor) -> slice:
    """From the first to the last of what is there; of length 0 when nothing is."""
    at = there.nonzero().flatten()
    return slice(int(at[0]), int(at[-1]) + 1) if len(at) else slice(0, 0)


def bounds(mask: Tensor, pad: int = 0) -> Box:
    """The box of a mask, widened by `pad` voxels; an empty one lies at the first voxel."""
    out = []
    for axis in range(3):
        others = [a for a in range(3) if a != axis]
        at = span(mask.any(others[1]).any(others[0]))
        out.append(slice(max(0, at.start - pad), min(mask.shape[axis], max(at.stop, 1) + pad)))
    return out[0], out[1], out[2]


def spline_weights(at_mm: Tensor, knot_mm: float) -> Tensor:
    """Cubic B-spline weights of positions (N,) on the lattice, shape (N, knots)."""
    knots = int(2 * LATTICE_MM / knot_mm) + 4
    distance = (at_mm[:, None] + LATTICE_MM) / knot_mm + 1.0 - torch.arange(knots, device=at_mm.device)
    t = distance.abs()
    inner = 2.0 / 3.0 - t * t + t * t * t / 2.0
    outer = (2.0 - t).clamp(min=0.0) ** 3 / 6.0
    return torch.where(t < 1.0, inner, outer)


@dataclass(frozen=True)
class Noise:
    """Smooth random field with unit standard deviation; `knot_mm` is the size of its features.

    Args:
        lattice: (K, K, K) coefficients. knot_mm: distance between knots.
    """

    lattice: Tensor
    knot_mm: float

    @classmethod
    def draw(cls, seed: int, knot_mm: float, device: torch.device) -> Noise:
        """From a seed; the same on every device."""
        knots = int(2 * LATTICE_MM / knot_mm) + 4
        generator = torch.Generator().manual_seed(seed & 0x7FFFFFFFFFFF)
        lattice = torch.randn((knots,) * 3, generator=generator)
        # Mean of the squared weights of a cubic B-spline is 0.479 per axis.
        return cls((lattice / 0.479**1.5).to(device), knot_mm)

    def on_axes(self, x: Tensor, y: Tensor, z: Tensor) -> Tensor:
        """Values on the grid spanned by three axes (mm, any shape with one long dimension), shape (X, Y,
        Z)."""
        wx, wy, wz = (spline_weights(axis.reshape(-1), self.knot_mm) for axis in (x, y, z))
        out = torch.tensordot(wz, self.lattice, dims=([1], [2]))
        out = torch.tensordot(wy, out, dims=([1], [2]))
        out = torch.tensordot(wx, out, dims=([1], [2]))
        return out


@dataclass
class Frame:
    """The grid of a scene with its canonical coordinates.

    Args:
        grid: isotropic RAS+ grid. device: where tensors live. scale: scene mm per canonical mm along x, y, z.
        rotation_rad: turn about z. bend_mm: forward bend of the trunk. warp: three noise fields. warp_mm:
        their amplitude.
    """

    grid: Geometry
    device: torch.device
    scale: tuple[float, float, float]
    rotation_rad: float
    bend_mm: float
    warp: tuple[Noise, Noise, Noise]
    warp_mm: float

    def __post_init__(self) -> None:
        self.h = self.grid.spacing_mm[0]
        self.origin = self.grid.affine_ras[:3, 3].copy()
        axes = [
            torch.arange(n, device=self.device, dtype=torch.float32) * self.h + float(o)
            for n, o in zip(self.grid.shape, self.origin, strict=True)
        ]
        self.x, self.y, self.z = axes[0][:, None, None], axes[1][None, :, None], axes[2][None, None, :]
        c, s = float(np.cos(self.rotation_rad)), float(np.sin(self.rotation_rad))
        coarse = torch.arange(-LATTICE_MM, LATTICE_MM + 1, _COARSE_MM)
        self._shift = np.stack(
            [Noise(n.lattice.cpu(), n.knot_mm).on_axes(coarse, coarse, coarse).numpy() for n in self.warp]
        )
        bend = self._bend(self.z)
        dx, dy, dz = (n.on_axes(self.x, self.y, self.z) for n in self.warp)
        self.cx = dx.mul_(self.warp_mm).add_((c * self.x + s * self.y) / self.scale[0])
        self.cy = dy.mul_(self.warp_mm).add_((-s * self.x + c * self.y) / self.scale[1] - bend)
        self.cz = dz.mul_(self.warp_mm).add_(self.z / self.scale[2])

    def _bend(self, z: Tensor) -> Tensor:
        t = ((z + 20.0) / 130.0).clamp(-1.5, 1.5)
        return self.bend_mm * (t * t - 0.3)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Voxels along each axis."""
        return self.grid.shape

    @property
    def full(self) -> Box:
        """The whole grid."""
        return slice(0, self.shape[0]), slice(0, self.shape[1]), slice(0, self.shape[2])

    def to_scene(self, points_mm: np.ndarray) -> np.ndarray:
        """Canonical mm (N, 3) -> scene mm (N, 3), by fixed-point iteration on the warp."""
        target = np.asarray(points_mm, dtype=np.float64).reshape(-1, 3)
        c, s = np.cos(self.rotation_rad), np.sin(self.rotation_rad)
        p = target * np.array(self.scale)
        for _ in range(4):
            at = (p.T + LATTICE_MM) / _COARSE_MM
            delta = (
                np.stack([map_coordinates(f, at, order=1, mode="nearest") for f in self._shift], 1)
                * self.warp_mm
            )
            bend = self._bend(torch.as_tensor(p[:, 2])).numpy()
            u = (target - delta + np.stack([0 * bend, bend, 0 * bend], 1)) * np.array(self.scale)
            p = np.stack([c * u[:, 0] - s * u[:, 1], s * u[:, 0] + c * u[:, 1], u[:, 2]], 1)
        return p

    def box(self, lo: Mm3, hi: Mm3) -> Box:
        """Index box that surely holds a canonical box (mm)."""
        corners = np.array(
            [[a, b, c] for a in (lo[0], hi[0]) for b in (lo[1], hi[1]) for c in (lo[2], hi[2])]
        )
        scene = self.to_scene(corners)
        slack = 2.5 * self.warp_mm
        a = np.floor((scene.min(0) - slack - self.origin) / self.h).astype(int)
        b = np.ceil((scene.max(0) + slack - self.origin) / self.h).astype(int) + 1
        n = self.shape
        sl = [slice(int(np.clip(a[i], 0, n[i] - 1)), int(np.clip(b[i], 1, n[i]))) for i in range(3)]
        return sl[0], sl[1], sl[2]

    def coords(self, box: Box) -> tuple[Tensor, Tensor, Tensor]:
        """Canonical coordinates in an index box."""
        return self.cx[box], self.cy[box], self.cz[box]

    def empty(self) -> Tensor:
        """A mask of nothing."""
        return torch.zeros(self.shape, dtype=torch.bool, device=self.device)

    def zeros(self) -> Tensor:
        """A float field of nothing."""
        return torch.zeros(self.shape, dtype=torch.float32, device=self.device)

    def profile(self, table_z: np.ndarray, table: np.ndarray) -> Tensor:
        """A table over canonical z (ascending) as a (1, 1, Z) tensor, monotone cubic between its rows."""
        z = np.clip(self.z.flatten().cpu().numpy() / self.scale[2], table_z[0], table_z[-1])
        values = PchipInterpolator(table_z, table)(z)
        return torch.as_tensor(values, dtype=torch.float32, device=self.device)[None, None, :]


def ellipsoid_level(
    coords: tuple[Tensor, Tensor, Tensor],
    centre: Mm3,
    radii: Mm3,
    axes: np.ndarray | None = None,
) -> Tensor:
    """Signed distance in mm (approximate, radial, negative inside) to an ellipsoid.

    Args:
        coords: canonical coordinates. centre, radii: mm. axes: (3, 3) rows are the ellipsoid's own axes.
    """
    if axes is None:
        terms = [(c - m).mul_(1.0 / r) for c, m, r in zip(coords, centre, radii, strict=True)]
    else:
        terms = []
        for row in axes / np.array(radii)[:, None]:
            t = coords[0] * float(row[0])
            t.add_(coords[1], alpha=float(row[1])).add_(coords[2], alpha=float(row[2]))
            terms.append(t.sub_(float(np.dot(row, centre))))
    q = terms[0].square_().addcmul_(terms[1], terms[1]).addcmul_(terms[2], terms[2])
    return q.sqrt_().sub_(1.0).mul_(float(min(radii)))


def squircle_level(u: Tensor, v: Tensor, half_u: Tensor, half_v: Tensor, square: Tensor) -> Tensor:
    """Radial distance in mm to a rounded rectangle with half-axes (mm); `square` 0 ellipse, 1 nearly a
    box."""
    a, b = (u / half_u).square_(), (v / half_v).square_()
    q = (a + b).clamp_(min=1e-6)
    rho = (q - a.mul_(b).mul_(square).div_(q)).sqrt_().clamp_(min=1e-3)
    return (u * u).addcmul_(v, v).sqrt_().mul_(rho.reciprocal_().neg_().add_(1.0))


def smooth_min(a: Tensor, b: Tensor, blend_mm: float) -> Tensor:
    """Union of two signed distances with a fillet of about `blend_mm`."""
    h = (b - a).mul_(0.5 / blend_mm).add_(0.5).clamp_(0.0, 1.0)
    out = torch.lerp(b, a, h)
    return out.sub_(h.mul_(1.0 - h).mul_(blend_mm))


def resample_line(
    points_mm: np.ndarray, radii_mm: np.ndarray, step_mm: float
) -> tuple[np.ndarray, np.ndarray]:
    """A polyline with radii at its nodes -> dense points and radii at most `step_mm` apart."""
    points, radii = np.asarray(points_mm, float), np.asarray(radii_mm, float)
    length = np.linalg.norm(np.diff(points, axis=0), axis=1)
    out_p, out_r = [], []
    for i, piece in enumerate(length):
        n = max(2, int(np.ceil(piece / step_mm)) + 1)
        t = np.linspace(0, 1, n)[:, None]
        out_p.append(points[i] + t * (points[i + 1] - points[i]))
        out_r.append(radii[i] + t[:, 0] * (radii[i + 1] - radii[i]))
    return np.concatenate(out_p), np.concatenate(out_r)


def smooth_line(points_mm: np.ndarray, count: int = 40) -> np.ndarray:
    """A curve (Catmull-Rom-like cubic spline) through the points, `count` samples."""
    p = np.asarray(points_mm, float)
    t = np.concatenate([[0], np.cumsum(np.linalg.norm(np.diff(p, axis=0), axis=1))])
    return CubicSpline(t, p)(np.linspace(0, t[-1], count))


def splat(frame: Frame, canvas: Tensor, points_mm: np.ndarray, radii_mm: np.ndarray) -> None:
    """Draws balls along a tube into `canvas` (coverage 0..1, running maximum), vectorised over all points.

    Args:
        frame: grid. canvas: float (X, Y, Z), changed in place. points_mm: scene mm (N, 3). radii_mm: (N,).
    """
    h, shape = frame.h, np.array(frame.shape)
    position = (np.asarray(points_mm) - frame.origin) / h
    radius = np.asarray(radii_mm) / h
    reach = np.ceil(radius + 0.5).astype(int)
    inside = ((position > -reach[:, None] - 1) & (position < shape + reach[:, None])).all(1)
    flat = canvas.view(-1)
    for k in np.unique(reach[inside]):
        pick = np.flatnonzero(inside & (reach == k))
        r = np.arange(-k, k + 1)
        offsets = np.stack(np.meshgrid(r, r, r, indexing="ij"), -1).reshape(-1, 3)
        offsets = offsets[np.linalg.norm(offsets, axis=1) <= k + 0.9]
        chunk = max(1, _SPLAT_CHUNK // len(offsets))
        for start in range(0, len(pick), chunk):
            some = pick[start : start + chunk]
            _splat_group(flat, frame, position[some], radius[some], offsets)


def _splat_group(
    flat: Tensor, frame: Frame, position: np.ndarray, radius: np.ndarray, offsets: np.ndarray
) -> None:
    device, (nx, ny, nz) = frame.device, frame.shape
    p = torch.as_tensor(position, dtype=torch.float32, device=device)
    r = torch.as_tensor(radius, dtype=torch.float32, device=device)[:, None]
    off = torch.as_tensor(offsets, device=device)
    base = p.round()
    d = base - p
    offset = off.to(torch.float32)
    square = torch.addmm(offset.square().sum(1), d, offset.T, alpha=2.0).add_(d.square().sum(1)[:, None])
    cover = square.clamp_(min=0.0).sqrt_().neg_().add_(r + 0.5).clamp_(0.0, 1.0)
    # A tube thinner than a voxel fills only its cross-section of it.
    cover *= (np.pi * r * r).clamp(max=1.0)
    start = base.long()
    good = cover > 0
    edge = int(offset.max())
    limit = torch.tensor([nx, ny, nz], device=device) - edge
    if bool(((start < edge) | (start >= limit)).any()):
        for axis, n in enumerate((nx, ny, nz)):
            place = start[:, axis, None] + off[None, :, axis]
            good &= (place >= 0) & (place < n)
    strides = torch.tensor([ny * nz, nz, 1], device=device)
    where = (start * strides).sum(1)[:, None] + (off * strides).sum(1)[None]
    flat.scatter_reduce_(0, where[good], cover[good], reduce="amax")


def tube(
    frame: Frame, canvas: Tensor, line_mm: np.ndarray, radii_mm: np.ndarray | float, grow_mm: float = 0.0
) -> None:
    """Draws a tube along a *scene* polyline; radii at its nodes, optionally grown."""
    line = np.asarray(line_mm, float)
    radii = np.broadcast_to(np.asarray(radii_mm, float), (len(line),)) + grow_mm
    step = max(0.5 * frame.h, 0.3 * float(radii.min()))
    points, dense = resample_line(line, radii, step)
    splat(frame, canvas, points, dense)


def box_blur(field: Tensor, width_vox: int, passes: int = 2) -> Tensor:
    """Repeated box filter along the three axes by running sums; edges repeat."""
    if width_vox < 2:
        return field
    half = width_vox // 2
    for _ in range(passes):
        for axis in range(3):
            n = field.shape[axis]
            index = torch.arange(-half - 1, n + half, device=field.device).clamp_(0, n - 1)
            total = field.index_select(axis, index).cumsum(axis)
            field = (total.narrow(axis, 2 * half + 1, n) - total.narrow(axis, 0, n)) / (2 * half + 1)
    return field
