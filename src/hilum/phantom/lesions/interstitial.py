"""The framework of the lung: thick septa, scars, mosaic attenuation, emphysema."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from hilum.phantom.lesions._fields import (
    Dice,
    Window,
    balls,
    beads,
    blend,
    cells,
    count,
    dilate,
    noise,
    pick,
    smoothstep,
    window_at,
    window_of,
)
from hilum.phantom.lesions._truth import free_lung, record
from hilum.phantom.lesions.airspace import parenchyma_weight
from hilum.phantom.plan import Degree
from hilum.phantom.scene import LesionTruth, Scene


def relative_height(scene: Scene, window: Window) -> Tensor:
    """0 at the lowest, 1 at the highest voxel of the lungs' window, (1, 1, Z)."""
    z = window.z
    return (z - z.flatten()[0]) / (z.flatten()[-1] - z.flatten()[0] + scene.work_mm)


def _points(window: Window, where: Tensor) -> Tensor:
    """mm of the window's marked voxels, (N, 3)."""
    i, j, k = where.nonzero(as_tuple=True)
    return torch.stack((window.x.flatten()[i], window.y.flatten()[j], window.z.flatten()[k]), 1)


def _network(window: Window, band: Tensor, cell_mm: float, line_mm: float, dice: Dice) -> Tensor:
    """Soft lines (alpha) along the borders of cells, inside `band`, on the window."""
    edge, value = cells(_points(window, band), cell_mm, dice)
    line = ((line_mm / 2 - edge) / window.work_mm + 0.5).clamp(0, 1) * min(1.0, line_mm / window.work_mm)
    line = line * smoothstep(value, 0.0, 0.5)  # not every septum is thick
    out = torch.zeros(window.shape, device=window.x.device)
    out[band] = line
    return out


def insert_septal_thickening(scene: Scene, generator: torch.Generator, degree: Degree) -> LesionTruth | None:
    """Polygons of thick interlobular septa, peripheral and basal; the mask is the zone, not the lines."""
    dice = Dice(generator)
    window = window_of(scene, scene.regions["lung"])
    if window is None:
        return None
    reach, top, line, haze = {
        "mild": (17.0, 0.40, 2.0, 0.0),
        "moderate": (26.0, 0.62, 2.4, 20.0),
        "severe": (42.0, 0.95, 2.9, 45.0),
    }[degree]
    lung = window.of(scene.regions["lung"])
    wave = noise(window, 45.0, dice)
    height = relative_height(scene, window)
    zone = lung & (height + 0.05 * wave < top) & (window.of(scene.depth_mm) < reach * (1 + 0.15 * wave))
    if not bool(zone.any()):
        return None
    alpha = _network(window, zone, dice.uniform(15.0, 21.0), line * dice.uniform(0.9, 1.1), dice)
    alpha = alpha * ~window.of(scene.regions["airway_lumen"])
    hu = window.of(scene.hu)
    hu += haze * parenchyma_weight(hu) * zone
    blend(hu, alpha, hu.clamp(min=0.0))
    mask = torch.zeros(scene.grid.shape, dtype=torch.bool, device=scene.device)
    window.of(mask).copy_(zone)
    return record(scene, "septal_thickening", mask, degree, line_mm=round(line, 1))


def insert_mosaic_attenuation(scene: Scene, generator: torch.Generator, degree: Degree) -> LesionTruth | None:
    """Sharp-edged lobular patches denser than the lung between them, on both sides; the mask is the denser
    patches.
    """
    dice = Dice(generator)
    window = window_of(scene, scene.regions["lung"])
    if window is None:
        return None
    share, delta = {"mild": (0.28, 140.0), "moderate": (0.4, 170.0), "severe": (0.52, 200.0)}[degree]
    lung = window.of(scene.regions["lung"])
    stride = max(1, round(3.0 / scene.work_mm))
    coarse = Window(
        window.index,
        window.x[::stride],
        window.y[:, ::stride],
        window.z[:, :, ::stride],
        scene.work_mm * stride,
    )
    near = dilate(lung[::stride, ::stride, ::stride], 1)
    _, value = cells(_points(coarse, near), dice.uniform(22.0, 32.0), dice)
    grid = torch.zeros(coarse.shape, device=scene.device)
    grid[near] = value
    level = torch.quantile(value[::5], 1.0 - share)
    bright = (grid > level).float()[None, None]
    alpha = F.interpolate(bright, size=window.shape, mode="trilinear", align_corners=False)[0, 0]
    alpha = smoothstep(alpha, 0.3, 0.7) * lung
    hu = window.of(scene.hu)
    veil = parenchyma_weight(hu) * ~window.of(scene.regions["airway_lumen"])
    # the rest is trapped air: a little darker than healthy lung
    hu += veil * (alpha * delta * dice.uniform(0.95, 1.1) - (1 - alpha) * lung * 25.0)
    mask = torch.zeros(scene.grid.shape, dtype=torch.bool, device=scene.device)
    window.of(mask).copy_(alpha > 0.5)
    return record(scene, "mosaic_attenuation", mask, degree, delta_hu=delta)


def insert_emphysema(scene: Scene, generator: torch.Generator, degree: Degree) -> LesionTruth | None:
    """Holes of 3-12 mm in the upper zones, subpleural rows, and bullae when severe."""
    dice = Dice(generator)
    window = window_of(scene, scene.regions["lung"])
    if window is None:
        return None
    lung = window.of(scene.regions["lung"])
    low, share, big = {"mild": (0.66, 0.16, 4.5), "moderate": (0.46, 0.30, 5.0), "severe": (0.2, 0.5, 6.0)}[
        degree
    ]
    height = relative_height(scene, window)
    zone = torch.zeros(scene.grid.shape, dtype=torch.bool, device=scene.device)
    window.of(zone).copy_(lung & (height + 0.1 * noise(window, 40.0, dice) > low))
    # in clusters, not evenly
    patchy = {"mild": 0.2, "moderate": -0.3, "severe": -1.0}[degree]
    window.of(zone).logical_and_(noise(window, 26.0, dice) > patchy)
    volume_mm3 = count(zone) * scene.work_mm**3
    mean_hole = 4.19 * (0.5 * (2.0 + big)) ** 3
    number = min(max(int(share * volume_mm3 / mean_hole), 60), 6000)
    centres = pick(scene, zone & ~scene.regions["vessels"], dice, number)
    if not centres:
        return None
    jitter = (dice.rand(len(centres), 3) - 0.5) * 4.0
    radii = 2.0 + (big - 2.0) * dice.rand(len(centres)) ** 1.3
    holes = balls(scene, torch.tensor(centres) + jitter, radii)
    # intact vessels run through: only parenchyma is destroyed
    weight = window.of(holes) * lung * ((-300.0 - window.of(scene.hu)) / 300.0).clamp(0, 1)
    blend(window.of(scene.hu), weight, dice.uniform(-988.0, -965.0))
    near = max(1, round(4.0 / scene.work_mm))
    mask = torch.zeros_like(zone)
    closed = ~dilate(~dilate(window.of(holes) > 0.5, near), max(1, near - 1))
    window.of(mask).copy_(closed & lung)
    bullae = {"mild": 0, "moderate": dice.integer(0, 2), "severe": dice.integer(3, 6)}[degree]
    apical = zone & (scene.depth_mm < 12.0) & free_lung(scene)
    for centre in pick(scene, apical, dice, bullae) if bullae else []:
        limit = (8.0, 14.0) if degree == "moderate" else (12.0, 28.0)
        _bulla(scene, dice, mask, centre, dice.uniform(*limit))
    return record(scene, "emphysema", mask, degree, kind="bullous" if bullae else "centrilobular")


def _bulla(scene: Scene, dice: Dice, mask: Tensor, centre: tuple[float, float, float], radius: float) -> None:
    window = window_at(scene, centre, radius * 1.4)
    field = window.distance(centre, [dice.uniform(0.8, 1.2) for _ in range(3)]) + 0.05 * radius * noise(
        window, radius, dice
    )
    lung = window.of(scene.regions["lung"])
    hu = window.of(scene.hu)
    wall = (1.0 - (field - radius).abs() / scene.work_mm).clamp(0, 1) * lung
    blend(hu, wall * 0.6, torch.maximum(hu, torch.full_like(hu, -450.0)))
    inside = ((radius - 1.0 - field) / scene.work_mm + 0.5).clamp(0, 1) * lung
    blend(hu, inside, -985.0)
    part = window.of(mask)
    part |= (field < radius) & lung


def insert_fibrotic_sequela(scene: Scene, generator: torch.Generator, degree: Degree) -> LesionTruth | None:
    """Scars: apical caps and bands with calcified dots; honeycomb-like reticulation at the periphery when
    severe.
    """
    dice = Dice(generator)
    mask = torch.zeros(scene.grid.shape, dtype=torch.bool, device=scene.device)
    window = window_of(scene, scene.regions["lung"])
    if window is None:
        return None
    sites = {"mild": 1, "moderate": 2, "severe": 3}[degree]
    height = torch.zeros(scene.grid.shape, device=scene.device)
    window.of(height).copy_(relative_height(scene, window).expand(window.shape))
    apical = dice.chance(0.75) or degree == "severe"
    # not at the mediastinum, where a scar would pass for a hilar node
    zone = free_lung(scene) & (scene.depth_mm < 9.0) & (scene.axes_mm()[0].abs() > 45.0)
    zone = zone & (height > 0.7) if apical else zone
    for centre in pick(scene, zone, dice, sites):
        _scar(scene, dice, mask, centre, degree)
    if degree == "severe":
        _reticulation(scene, dice, mask, window, height)
    return record(scene, "fibrotic_sequela", mask, degree, apical=float(apical))


def _scar(scene: Scene, dice: Dice, mask: Tensor, centre: tuple[float, float, float], degree: Degree) -> None:
    """A star of bands that run from the pleura inward, a plump core, some calcified dots."""
    core = {"mild": (3.5, 5.0), "moderate": (5.5, 8.0), "severe": (8.0, 13.0)}[degree]
    bands = {"mild": (3, 4), "moderate": (5, 7), "severe": (7, 9)}[degree]
    middle, radius = torch.tensor(centre), dice.uniform(*core)
    inward = F.normalize(torch.tensor([30.0 if centre[0] > 0 else -30.0, 0.0, 0.0]) - middle, dim=0)
    paths, radii = [], []
    for _ in range(dice.integer(*bands)):
        ray = F.normalize(dice.direction() + 0.7 * inward, dim=0)
        end = middle + ray * dice.uniform(1.8, 3.2) * max(radius, 9.0)
        bend = (middle + end) / 2 + dice.normal(3) * 2.0
        path = beads((centre, bend.tolist(), end.tolist()), scene.work_mm * 0.5)
        paths.append(path)
        radii.append(torch.linspace(2.8, 1.5, len(path)))
    alpha = balls(scene, torch.cat(paths), torch.cat(radii))
    window = window_at(scene, centre, radius * 5.0 + 20.0)
    field = window.distance(centre, [dice.uniform(0.5, 1.6) for _ in range(3)]) / radius + 0.22 * noise(
        window, 8.0, dice
    )
    lung = window.of(scene.regions["lung"]) & ~window.of(scene.regions["airway_lumen"])
    body = torch.maximum(smoothstep(1.0 - field, -0.15, 0.2), window.of(alpha)) * lung
    hu = window.of(scene.hu)
    blend(hu, body, torch.maximum(hu, torch.full_like(hu, dice.uniform(20.0, 60.0))))
    part = window.of(mask)
    part |= (dilate(body > 0.35, round(1.9 / scene.work_mm)) & lung) | (body > 0.35)
    if degree != "mild" or dice.chance(0.4):
        dots = middle + dice.normal(dice.integer(1, 4), 3) * radius * 0.4
        calcium = balls(scene, dots, 1.2 + dice.rand(len(dots)) * 1.0) * (scene.regions["lung"])
        blend(hu, window.of(calcium), dice.uniform(350.0, 700.0))
        part |= window.of(calcium) > 0.3


def _reticulation(scene: Scene, dice: Dice, mask: Tensor, window: Window, height: Tensor) -> None:
    """Small thick-walled cells under the basal pleura, as in honeycombing."""
    wave = noise(window, 30.0, dice)
    depth = window.of(scene.depth_mm)
    band = (
        window.of(scene.regions["lung"])
        & (depth < 15.0 + 4.0 * wave)
        & (window.of(height) < 0.4 + 0.06 * wave)
    )
    band &= (window.y + 10.0 * wave < window.y.mean() + 10.0) & (noise(window, 26.0, dice) > -0.9)
    if not bool(band.any()):
        return
    hu = window.of(scene.hu)
    hu += 110.0 * parenchyma_weight(hu) * band
    blend(hu, _network(window, band, 11.0, 2.8, dice), hu.clamp(min=0.0))
    part = window.of(mask)
    part |= band
