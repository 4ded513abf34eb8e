"""A scanner looks at a scene: grid, gantry, slice thickness, kernel, breathing, table, noise, field of view.

Resampling is separable: one weight matrix along x, one along y, and along z one for each row, because a
tilted gantry meets another z at every y. Blur, slice thickness and breathing are part of these weights.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from hilum.errors import UsageError
from hilum.geometry import Geometry
from hilum.phantom.plan import Scanner
from hilum.phantom.scanner_noise import add_noise, blur_in_plane
from hilum.phantom.scene import Scene
from hilum.phantom.shapes import Box, bounds, span
from hilum.tensors import MaskTensor, VoxelTensor

KERNEL_SIGMA_MM = {"smooth": 0.95, "standard": 0.6, "sharp": 0.3}
AIR_HU = -1000.0
LOWEST_HU, HIGHEST_HU = -1024.0, 3071.0


@dataclass
class Scan:
    """What the scanner wrote.

    Args:
        hu: float32, whole numbers, (X, Y, Z) on `geometry`. geometry: RAS-aligned unless the gantry was
        tilted.
        valid: False where the field of view's padding is. scanner: as used. scene: the truth behind it.
        masks: regions and lesions already asked for.
    """

    hu: VoxelTensor
    geometry: Geometry
    valid: MaskTensor
    scanner: Scanner
    scene: Scene
    masks: dict[str, MaskTensor] = field(default_factory=dict)

    def mask(self, name: str) -> MaskTensor:
        """A region of the scene, or ``lesion/<slug>``, on the scan's grid: linear interpolation, at least
        one half.

        A lesion too small for that keeps the voxel nearest to its centroid; all lesions of one slug are
        united.

        Raises:
            UsageError: no such region or lesion (`PHANTOM_REGION_UNKNOWN`).
        """
        if name not in self.masks:
            if name.startswith("lesion/"):
                self.masks[name] = self._lesion(name.removeprefix("lesion/"))
            elif name in self.scene.regions:
                self.masks[name] = self._resample(self.scene.regions[name])
            else:
                known = [
                    *sorted(self.scene.regions),
                    *sorted({f"lesion/{t.slug}" for t in self.scene.lesions}),
                ]
                raise UsageError(
                    "PHANTOM_REGION_UNKNOWN",
                    "a mask must exist in the scene",
                    expected=", ".join(known),
                    got=name,
                )
        return self.masks[name]

    def _resample(self, mask: Tensor) -> Tensor:
        if not bool(mask.any()):
            return torch.zeros(self.geometry.shape, dtype=torch.bool, device=mask.device)
        return resample(mask.float(), self.scene.grid, self.geometry, only=bounds(mask)) >= 0.5

    def _lesion(self, slug: str) -> MaskTensor:
        found = [t for t in self.scene.lesions if t.slug == slug]
        if not found:
            raise UsageError(
                "PHANTOM_REGION_UNKNOWN",
                "a lesion must have been inserted",
                expected=", ".join(sorted({t.slug for t in self.scene.lesions})) or "a scene with lesions",
                got=slug,
            )
        out = torch.zeros(self.geometry.shape, dtype=torch.bool, device=self.hu.device)
        for truth in found:
            here = self._resample(truth.mask)
            if not bool(here.any()) and bool(truth.mask.any()):
                centre = truth.mask.nonzero().double().mean(0, keepdim=True).cpu().numpy()
                index = np.round(self.geometry.to_vox(self.scene.grid.to_mm(centre)))[0].astype(int)
                if (index >= 0).all() and (index < np.array(self.geometry.shape)).all():
                    here[tuple(index)] = True
            out |= here
        return out


def scan(
    scene: Scene, scanner: Scanner | None = None, spacing_mm: tuple[float, float, float] | None = None
) -> Scan:
    """Looks at a scene.

    Args:
        scene: the body. scanner: how; default the plan's. Its `phase` has no effect here (contrast is in
        the scene).
        spacing_mm: x, y, z of the written volume; default the scanner's.

    Raises:
        UsageError: spacing or field of view not positive (`PHANTOM_SCANNER_BAD`).
    """
    scanner = scanner or scene.plan.scanner
    spacing = tuple(float(s) for s in (spacing_mm or scanner.spacing_mm))
    if min(spacing) <= 0 or scanner.fov_mm < 2 * max(spacing[:2]) or not 0 < scanner.z_cover <= 1:
        got = f"spacing {spacing} mm, field of view {scanner.fov_mm} mm, cover {scanner.z_cover}"
        raise UsageError("PHANTOM_SCANNER_BAD", "a scanner needs a positive grid", expected="> 0", got=got)
    with torch.no_grad():
        geometry = scan_geometry(scene, scanner, (spacing[0], spacing[1], spacing[2]))
        hu = resample(scene.hu, scene.grid, geometry, scanner, _diaphragm_z(scene))
        if scanner.kernel == "sharp":
            hu = hu + 0.55 * (hu - blur_in_plane(hu, geometry.spacing_mm, 1.1))
        if scanner.table:
            _add_table(scene, hu, geometry)
        hu = add_noise(hu, geometry, scanner)
        valid = _circle(geometry, scanner, hu.device)
        hu = hu.round_().clamp_(LOWEST_HU, HIGHEST_HU)
        hu = torch.where(valid, hu, torch.full_like(hu, float(scanner.padding_hu)))
    return Scan(hu, geometry, valid.expand_as(hu).contiguous(), scanner, scene)


def scan_geometry(scene: Scene, scanner: Scanner, spacing_mm: tuple[float, float, float]) -> Geometry:
    """The written grid: square field of view about the body's centre; slices along z, leaning by the
    gantry's tilt."""
    sx, sy, sz = spacing_mm
    body = scene.regions["body"]
    origin = scene.grid.affine_ras[:3, 3]
    x_hit, y_hit = (body.any(2).any(1 - a).nonzero().flatten().cpu().numpy() for a in (0, 1))
    centre_x = float(origin[0] + scene.work_mm * 0.5 * (x_hit[0] + x_hit[-1]))
    centre_y = float(origin[1] + scene.work_mm * 0.5 * (y_hit[0] + y_hit[-1]))
    nx, ny = max(2, round(scanner.fov_mm / sx)), max(2, round(scanner.fov_mm / sy))
    height = (scene.grid.shape[2] - 1) * scene.work_mm
    start = float(origin[2])
    kept = height * scanner.z_cover
    if scanner.z_cover < 1.0:
        # by the patient, so that siblings have one field
        top_lost = np.random.default_rng([scene.plan.patient.shape_seed, 3]).uniform() < 0.5
        start += 0.0 if top_lost else height - kept
    nz = max(1, int(kept / sz + 1e-6) + 1)
    tilt = np.deg2rad(scanner.tilt_deg)
    affine = np.eye(4)
    affine[:3, 0] = (sx, 0.0, 0.0)
    affine[:3, 1] = (0.0, sy * np.cos(tilt), sy * np.sin(tilt))
    affine[:3, 2] = (0.0, 0.0, sz)
    middle = affine[:3, 0] * (nx - 1) / 2 + affine[:3, 1] * (ny - 1) / 2
    affine[:3, 3] = np.array([centre_x, centre_y, start]) - middle
    return Geometry((nx, ny, nz), affine)


def resample(
    values: Tensor,
    grid: Geometry,
    target: Geometry,
    scanner: Scanner | None = None,
    motion_z: float | None = None,
    only: Box = (slice(None), slice(None), slice(None)),
) -> Tensor:
    """Values of a scene's grid on a scan's grid.

    Args:
        values: float (X, Y, Z) on `grid` (isotropic, axis-aligned). target: axis-aligned in x; y may lean
        towards z.
        scanner: adds kernel blur, slice thickness and breathing (HU; air outside the grid). None: plain
        linear
            interpolation (masks; zero outside).
        motion_z: height of the diaphragm, mm; breathing blur is strongest below it.
        only: a box of `values` beyond which all is 0 (masks): nothing else is looked at, and a small lesion
            costs little.
    """
    h, origin, device = grid.spacing_mm[0], grid.affine_ras[:3, 3], values.device
    a = target.affine_ras
    nx, ny, nz = target.shape
    x = a[0, 3] + a[0, 0] * np.arange(nx)
    y = a[1, 3] + a[1, 1] * np.arange(ny)
    lean = a[2, 1] * np.arange(ny)
    z = a[2, 3] + a[2, 2] * np.arange(nz)
    shift = -AIR_HU if scanner is not None else 0.0
    sigma = KERNEL_SIGMA_MM[scanner.kernel] if scanner is not None else 0.0
    wide = scanner is not None
    wx = _weights((x - origin[0]) / h, values.shape[0], a[0, 0] / h if wide else 1.0, sigma / h, device)
    wy = _weights((y - origin[1]) / h, values.shape[1], a[1, 1] / h if wide else 1.0, sigma / h, device)
    zz = z[None, :] + lean[:, None] if abs(a[2, 1]) > 1e-9 else z[None, :]
    thick = a[2, 2] / h if wide else 0.0
    swing = 0.0
    if scanner is not None and motion_z is not None:
        swing = scanner.motion_mm * np.clip(1.0 - (zz - motion_z) / 80.0, 0.0, 1.0) / h
    last = values.shape[2] - 1
    wz = _z_weights(np.clip((zz - origin[2]) / h, 0, last), values.shape[2], thick, swing, device)
    wx, wy, wz = wx[:, only[0]], wy[:, only[1]], wz[..., only[2]]
    out = torch.zeros(target.shape, device=device)
    reached = [span((w != 0).any(-1)) for w in (wx, wy, (wz != 0).any(0))]
    if any(at.stop == at.start for at in reached):
        return out - shift
    wx, wy = wx[reached[0]], wy[reached[1]]
    wz = wz[:, reached[2]] if len(wz) == 1 else wz[reached[1], reached[2]]
    v = torch.matmul(wy, values[only] + shift)
    if len(wz) == 1:
        v = torch.matmul(v, wz[0].T)
    else:
        v = torch.bmm(v.transpose(0, 1), wz.transpose(1, 2)).transpose(0, 1)
    found = torch.matmul(wx, v.reshape(v.shape[0], -1)).reshape(len(wx), *v.shape[1:])
    out[tuple(reached)] = found
    return out - shift


def _hat(at: np.ndarray, count: int, width: float, device: torch.device) -> Tensor:
    """Linear interpolation weights (..., count), a triangle at least one voxel wide, wider to keep out
    aliases."""
    width = max(width, 1.0)
    p = torch.as_tensor(at, dtype=torch.float32, device=device)
    d = (p[..., None] - torch.arange(count, device=device, dtype=torch.float32)).abs()
    return (1.0 - d / width).clamp(min=0.0) / width


def _weights(at: np.ndarray, count: int, width: float, sigma: float, device: torch.device) -> Tensor:
    if sigma <= 0:
        return _hat(at, count, width, device)
    total = torch.zeros((len(at), count), device=device)
    offsets = np.array([-1.5, -0.75, 0.0, 0.75, 1.5])
    share = np.exp(-0.5 * offsets**2)
    for o, s in zip(offsets, share / share.sum(), strict=True):
        total += float(s) * _hat(at + o * sigma, count, width, device)
    return total


def _z_weights(
    at: np.ndarray, count: int, thick: float, swing: np.ndarray | float, device: torch.device
) -> Tensor:
    """Weights (rows, slices, count): averages over the slice's thickness and the breath's swing; edges
    repeat."""
    samples = 1 if thick <= 0 else max(3, int(np.ceil(thick)) * 2 + 1)
    spread = np.zeros(1) if samples == 1 else (np.arange(samples) + 0.5) / samples - 0.5
    breaths = np.zeros(1) if np.max(swing) <= 0 else np.array([-0.5, -0.35, 0.0, 0.35, 0.5])
    total = torch.zeros((*at.shape, count), device=device)
    for s in spread:
        for b in breaths:
            total += _hat(np.clip(at + s * thick + b * swing, 0, count - 1), count, 1.0, device)
    return total / (len(spread) * len(breaths))


def _diaphragm_z(scene: Scene) -> float:
    liver = scene.regions["liver"].any(0).any(0).nonzero().flatten()
    top = int(liver[-1]) if len(liver) else 0
    return float(scene.grid.affine_ras[2, 3] + top * scene.work_mm)


def _circle(geometry: Geometry, scanner: Scanner, device: torch.device) -> Tensor:
    nx, ny, _ = geometry.shape
    sx, sy, _ = geometry.spacing_mm
    x = (torch.arange(nx, device=device) - (nx - 1) / 2) * sx
    y = (torch.arange(ny, device=device) - (ny - 1) / 2) * sy
    return ((x[:, None] ** 2 + y[None, :] ** 2) <= (scanner.fov_mm / 2) ** 2)[:, :, None]


def _add_table(scene: Scene, hu: Tensor, geometry: Geometry) -> None:
    """A curved couch: two thin carbon shells with foam between, only where there is air. In place."""
    body = scene.regions["body"].any(2)
    low = int(body.any(0).nonzero()[0])
    back = float(scene.grid.affine_ras[1, 3] + low * scene.work_mm)
    a = geometry.affine_ras
    x = torch.arange(geometry.shape[0], device=hu.device) * a[0, 0] + float(a[0, 3])
    y = torch.arange(geometry.shape[1], device=hu.device) * a[1, 1] + float(a[1, 3])
    rng = np.random.default_rng([scene.plan.scanner.seed, 5])
    sag, gap, depth = float(rng.uniform(500, 900)), float(rng.uniform(8, 22)), float(rng.uniform(22, 45))
    half = float(rng.uniform(190, 225))
    d = y[None, :] - (back - gap + x[:, None] ** 2 / sag)
    d2 = y[None, :] - (back - gap - depth + x[:, None] ** 2 / (1.6 * sag))
    soft = max(0.5 * a[1, 1], 0.6)
    shell = torch.maximum(
        ((1.3 + soft - d.abs()) / (2 * soft)).clamp(0, 1), ((1.3 + soft - d2.abs()) / (2 * soft)).clamp(0, 1)
    )
    inside = (x.abs() < half)[:, None]
    foam = ((d < 0) & (d2 > 0)).float()
    couch = torch.where(
        inside, AIR_HU + 55.0 * foam + shell * float(rng.uniform(500, 900)), torch.full_like(d, AIR_HU)
    )
    torch.maximum(hu, torch.where(hu < -900.0, couch[:, :, None], hu), out=hu)
