"""Quantum noise: its size, its grain by kernel, and the horizontal streaks of too few photons at the
shoulders."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from hilum.geometry import Geometry
from hilum.phantom.plan import Scanner

KERNEL_NOISE = {"smooth": 0.6, "standard": 1.0, "sharp": 2.2}
"""Noise SD relative to the standard kernel."""
_GRAIN_MM = {"smooth": 1.3, "standard": 0.8, "sharp": 0.0}
_TILE = 64


def _gauss(sigma_vox: float, device: torch.device) -> Tensor:
    reach = max(1, int(np.ceil(2.5 * sigma_vox)))
    t = torch.arange(-reach, reach + 1, device=device, dtype=torch.float32)
    w = torch.exp(-0.5 * (t / max(sigma_vox, 1e-3)) ** 2)
    return w / w.sum()


def blur_axis(values: Tensor, axis: int, sigma_vox: float) -> Tensor:
    """Gaussian blur along one axis by a few shifted sums; edges repeat."""
    if sigma_vox < 0.15:
        return values
    w = _gauss(sigma_vox, values.device)
    reach, n = len(w) // 2, values.shape[axis]
    index = torch.arange(-reach, n + reach, device=values.device).clamp_(0, n - 1)
    padded = values.index_select(axis, index)
    out = torch.zeros_like(values)
    for i, share in enumerate(w.tolist()):
        out.add_(padded.narrow(axis, i, n), alpha=share)
    return out


def blur_in_plane(values: Tensor, spacing_mm: tuple[float, float, float], sigma_mm: float) -> Tensor:
    """Gaussian blur in the slice."""
    return blur_axis(blur_axis(values, 0, sigma_mm / spacing_mm[0]), 1, sigma_mm / spacing_mm[1])


def _streaks(hu: Tensor, generator: torch.Generator, length_vox: float) -> Tensor:
    """Unit noise that is long along x: drawn on few knots, interpolated between them."""
    nx, ny, nz = hu.shape
    knots = int(nx / length_vox) + 2
    coarse = torch.randn((knots, ny * nz), generator=generator).to(hu.device)
    at = torch.arange(nx, device=hu.device, dtype=torch.float32)[:, None] / length_vox
    weights = (1.0 - (at - torch.arange(knots, device=hu.device)).abs()).clamp(min=0.0)
    weights = weights / weights.square().sum(1, keepdim=True).sqrt()
    return torch.matmul(weights, coarse).reshape(nx, ny, nz)


def add_noise(hu: Tensor, geometry: Geometry, scanner: Scanner) -> Tensor:
    """HU with noise; unchanged where `noise_hu` is 0. Deterministic by `scanner.seed`."""
    if scanner.noise_hu <= 0:
        return hu
    generator = torch.Generator().manual_seed(scanner.seed * 7919 + 17)
    white = torch.randn(hu.shape, generator=generator).to(hu.device)
    sx, sy, _ = geometry.spacing_mm
    grain = _GRAIN_MM[scanner.kernel]
    if grain > 0:
        noise = blur_in_plane(white, geometry.spacing_mm, grain)
    else:
        noise = white - 0.7 * blur_in_plane(white, geometry.spacing_mm, 1.2)
    noise = noise / noise.std()
    # Path of water along x, in mm, for each (y, z): the longer, the fewer photons arrive.
    path = ((hu + 1000.0).clamp(0, 2200).sum(0) * (sx / 1000.0))[None]
    path = blur_axis(path, 1, 6.0 / sy)
    level = torch.exp((path - 260.0) / 420.0).clamp(0.45, 2.6)
    streak = _streaks(hu, generator, 14.0 / sx)
    amount = scanner.noise_hu * KERNEL_NOISE[scanner.kernel]
    starved = ((path - 330.0) / 160.0).clamp(0.0, 1.2)
    inside = torch.where(hu > -950, 1.0, 0.55)
    return hu + (noise.mul_(level) + streak.mul_(starved)).mul_(inside).mul_(amount)
