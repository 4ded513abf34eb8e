"""Air replaced by something: ground glass, consolidation, atelectasis."""

from __future__ import annotations

import torch
from torch import Tensor

from hilum.phantom.lesions._fields import (
    Dice,
    Window,
    balls,
    beads,
    blend,
    lookup,
    noise,
    pick,
    smoothstep,
    window_at,
    window_of,
)
from hilum.phantom.lesions._truth import free_lung, lobes_of, record
from hilum.phantom.plan import Degree
from hilum.phantom.scene import LesionTruth, Scene
from hilum.text.vocabulary import LOBES

LOWER = ("right lower lobe", "left lower lobe")


def parenchyma_weight(hu: Tensor) -> Tensor:
    """1 in aerated lung, 0 in vessels and walls: a veil changes the one and leaves the other visible."""
    return ((-450.0 - hu) / 200.0).clamp(0.0, 1.0)


def _veil(scene: Scene, window: Window, alpha: Tensor, delta_hu: float) -> None:
    hu = window.of(scene.hu)
    lumen = window.of(scene.regions["airway_lumen"])
    hu += alpha * delta_hu * parenchyma_weight(hu) * ~lumen


def insert_lung_opacity(scene: Scene, generator: torch.Generator, degree: Degree) -> LesionTruth | None:
    """Ground glass: 1-2 small patches (mild), 3-5 (moderate), or a diffuse cloud over both lungs (severe)."""
    dice = Dice(generator)
    mask = torch.zeros(scene.grid.shape, dtype=torch.bool, device=scene.device)
    delta = dice.uniform(230.0, 350.0)
    if degree == "severe" and dice.chance(0.6):
        pattern = dice.choice(("diffuse", "central", "peripheral"))
        _cloud(scene, dice, mask, delta, pattern)
    else:
        pattern = dice.choice(("rounded", "geographic"))
        count, low, high = {
            "mild": (dice.integer(1, 2), 12.0, 19.0),
            "moderate": (dice.integer(3, 4), 19.0, 29.0),
        }.get(degree, (dice.integer(5, 6), 30.0, 42.0))
        free = free_lung(scene)
        if dice.chance(0.65):
            free = free & (scene.depth_mm < 25.0)
        for centre in pick(scene, free, dice, count):
            _patch(
                scene, dice, mask, centre, dice.uniform(low, high), delta * dice.uniform(0.85, 1.1), pattern
            )
    return record(scene, "lung_opacity", mask, degree, pattern=pattern, kind="ground glass")


def _patch(
    scene: Scene,
    dice: Dice,
    mask: Tensor,
    centre: tuple[float, float, float],
    radius: float,
    delta: float,
    pattern: str,
) -> None:
    window = window_at(scene, centre, radius * 1.5)
    stretch = [dice.uniform(0.8, 1.2) for _ in range(3)]
    rough = 0.10 if pattern == "rounded" else 0.22
    field = 1.0 - window.distance(centre, stretch) / radius + rough * noise(window, radius * 0.55, dice)
    soft = 0.28 if pattern == "rounded" else 0.10
    alpha = smoothstep(field, -soft / 2, soft) * window.of(scene.regions["lung"])
    _veil(scene, window, alpha, delta)
    part = window.of(mask)
    part |= alpha > 0.4


def _cloud(scene: Scene, dice: Dice, mask: Tensor, delta: float, pattern: str) -> None:
    window = window_of(scene, scene.regions["lung"])
    if window is None:
        return
    lung = window.of(scene.regions["lung"])
    field = noise(window, 38.0, dice) + 0.4 * noise(window, 14.0, dice)
    depth = window.of(scene.depth_mm)
    if pattern == "peripheral":
        field = field + 1.5 - depth / 9.0
    elif pattern == "central":
        field = field - 1.5 + depth / 9.0
    share = dice.uniform(0.38, 0.6)
    level = torch.quantile(field[lung][::7], 1.0 - share)
    alpha = smoothstep(field - level, -0.2, 0.35) * lung
    _veil(scene, window, alpha, delta)
    window.of(mask).copy_(alpha > 0.4)


def _airways_within(scene: Scene, lobes: tuple[str, ...], least_mm: float) -> Tensor:
    """Soft lumens of the lobes' bronchi, at least `least_mm` in radius, so that an air bronchogram survives
    3 mm voxels.
    """
    points, radii = [], []
    for branch in scene.branches:
        if branch.kind == "airway" and branch.lobe in lobes and branch.generation >= 2:
            path = beads((branch.start_mm, branch.end_mm), scene.work_mm * 0.5)
            points.append(path)
            radii.append(torch.full((len(path),), max(branch.radius_mm, least_mm)))
    if not points:
        return balls(scene, torch.zeros(0, 3), torch.zeros(0))
    return balls(scene, torch.cat(points), torch.cat(radii))


def _fill(
    scene: Scene, window: Window, alpha: Tensor, hu_value: float, bronchogram: Tensor | None, dice: Dice
) -> None:
    """Airless lung: soft tissue everywhere but in the open bronchi; vessels keep the higher value."""
    hu = window.of(scene.hu)
    value = hu_value + 8.0 * noise(window, 9.0, dice)
    solid = alpha * ~window.of(scene.regions["airway_lumen"])
    if bronchogram is not None:
        solid = solid * (1.0 - window.of(bronchogram))
        air = alpha * window.of(bronchogram)
        blend(hu, air, torch.minimum(hu, torch.full_like(hu, -930.0)))
    blend(hu, solid, torch.maximum(hu, value))


def insert_consolidation(scene: Scene, generator: torch.Generator, degree: Degree) -> LesionTruth | None:
    """Dense airspace disease that reaches the pleura: subsegmental, segmental, or most of a lobe or two."""
    dice = Dice(generator)
    mask = torch.zeros(scene.grid.shape, dtype=torch.bool, device=scene.device)
    hu_value = dice.uniform(-20.0, 45.0)
    names = [n for n in LOBES if bool(scene.regions[n].any())]
    number = 2 if degree == "severe" and dice.chance(0.4) else 1
    for lobe in dice.some(names, number):
        bronchogram = _airways_within(scene, (lobe,), 1.6) if degree != "mild" else None
        _consolidate(scene, dice, mask, lobe, degree, hu_value, bronchogram)
    return record(scene, "consolidation", mask, degree, hu=round(hu_value, 1))


def _consolidate(
    scene: Scene,
    dice: Dice,
    mask: Tensor,
    lobe: str,
    degree: Degree,
    hu_value: float,
    bronchogram: Tensor | None,
) -> None:
    region = scene.regions[lobe]
    window = window_of(scene, region)
    seeds = pick(scene, region & free_lung(scene) & (scene.depth_mm < 9.0), dice, 1) or pick(
        scene, region, dice, 1
    )
    if window is None or not seeds:
        return
    inside = window.of(region)
    field = window.distance(seeds[0], [dice.uniform(0.85, 1.2) for _ in range(3)]) + 5.0 * noise(
        window, 16.0, dice
    )
    if degree == "severe":
        limit = float(torch.quantile(field[inside][::5], dice.uniform(0.6, 0.9)))
    else:
        limit = dice.uniform(15.0, 21.0) if degree == "mild" else dice.uniform(28.0, 38.0)
        small = float(torch.quantile(field[inside][::5], 0.03 if degree == "mild" else 0.2))
        limit = max(limit, small) if degree == "mild" else limit
    # pleura bounds it on one side; towards the lung the edge is hazy
    alpha = smoothstep(limit - field, -3.0, 3.0) * inside
    _fill(scene, window, alpha, hu_value, bronchogram, dice)
    part = window.of(mask)
    part |= alpha > 0.5


def insert_atelectasis(scene: Scene, generator: torch.Generator, degree: Degree) -> LesionTruth | None:
    """Plates at the bases (mild), a segmental wedge (moderate), or a collapsed lobe whose volume the
    neighbour takes.
    """
    dice = Dice(generator)
    mask = torch.zeros(scene.grid.shape, dtype=torch.bool, device=scene.device)
    if degree == "mild":
        for _ in range(dice.integer(2, 3)):
            _plate(scene, dice, mask)
        kind = "plate"
    elif degree == "moderate":
        _wedge(scene, dice, mask)
        kind = "segmental"
    else:
        _collapse(scene, dice, mask)
        kind = "lobar"
    lobes = lobes_of(scene, mask)
    return record(scene, "atelectasis", mask, degree, kind=kind, lobe=lobes[0] if lobes else "")


def _basal(scene: Scene, names: tuple[str, ...]) -> Tensor:
    """The lower part of the named lobes."""
    region = torch.zeros(scene.grid.shape, dtype=torch.bool, device=scene.device)
    for name in names:
        region = region | scene.regions[name]
    window = window_of(scene, region)
    if window is None:
        return region
    z = window.z.flatten()
    level = float(z[0] + (z[-1] - z[0]) * 0.45)
    return region & (scene.axes_mm()[2] < level)


def _plate(scene: Scene, dice: Dice, mask: Tensor) -> None:
    names = dice.choice((LOWER, ("right middle lobe", "left upper lobe"), LOWER))
    seeds = pick(scene, _basal(scene, names) & free_lung(scene) & (scene.depth_mm < 14.0), dice, 1)
    if not seeds:
        return
    length, thick = dice.uniform(18.0, 32.0), dice.uniform(3.8, 5.5)
    window = window_at(scene, seeds[0], length + 4)
    tilt = (dice.uniform(-0.35, 0.35), dice.uniform(-0.35, 0.35))
    norm = (1 + tilt[0] ** 2 + tilt[1] ** 2) ** 0.5
    off = window.along(seeds[0], (tilt[0] / norm, tilt[1] / norm, 1 / norm)) + 1.8 * noise(window, 22.0, dice)
    radius = window.distance(seeds[0], (1.25, 0.8, 1.0)) + 3.0 * noise(window, 12.0, dice)
    edge = torch.minimum(thick / 2 - off.abs(), (length - radius) * 0.5)
    alpha = (0.5 + edge / scene.work_mm).clamp(0, 1) * window.of(scene.regions["lung"])
    _fill(scene, window, alpha, dice.uniform(0.0, 40.0), None, dice)
    part = window.of(mask)
    part |= alpha > 0.4


def _wedge(scene: Scene, dice: Dice, mask: Tensor) -> None:
    """A pyramid with its base on the pleura and its tip towards the hilum."""
    lobe = dice.choice(("right lower lobe", "left lower lobe", "right middle lobe", "left upper lobe"))
    region = scene.regions[lobe]
    basal = _basal(scene, (lobe,)) & (scene.depth_mm < 6.0) & free_lung(scene)
    seeds = pick(scene, basal, dice, 16) or pick(scene, region, dice, 16)
    if not seeds:
        return
    hilum = torch.tensor([25.0 if lobe.startswith("right") else -25.0, -5.0, -25.0])
    axes = torch.nn.functional.normalize(hilum - torch.tensor(seeds), dim=1)
    # not in the narrow recess beside the diaphragm, where a wedge would be a sliver
    probes = torch.tensor(seeds)[:, None] + axes[:, None] * torch.linspace(2.0, 40.0, 12)[None, :, None]
    room = lookup(scene, region, probes.reshape(-1, 3)).reshape(len(seeds), -1).float().sum(1)
    best = int(room.argmax())
    base, axis = seeds[best], axes[best]
    height = dice.uniform(38.0, 58.0)
    window = window_at(scene, base, height + 12)
    along = window.along(base, axis.tolist())
    across = (window.distance(base).square() - along.square()).clamp(min=0).sqrt()
    width = (height - along) * dice.uniform(0.42, 0.55)
    field = torch.minimum(width - across, along + 18.0) + 2.0 * noise(window, 14.0, dice)
    alpha = (0.5 + field / (2 * scene.work_mm)).clamp(0, 1) * window.of(region)
    _fill(scene, window, alpha, dice.uniform(25.0, 55.0), None, dice)
    part = window.of(mask)
    part |= alpha > 0.5


def _collapse(scene: Scene, dice: Dice, mask: Tensor) -> None:
    """The lobe shrinks against the mediastinum; its neighbour expands into the rest (lobe regions follow)."""
    lobe = dice.choice(("right lower lobe", "left lower lobe", "right middle lobe", "left upper lobe"))
    region = scene.regions[lobe]
    window = window_of(scene, region)
    if window is None:
        return
    inside = window.of(region)
    side = 1.0 if lobe.startswith("right") else -1.0
    # (away from midline, forward, upward): where the collapsed lobe comes to lie has the smallest value
    u, v, w = {"right middle lobe": (0.9, 0.1, 0.5), "left upper lobe": (0.35, -0.9, 0.0)}.get(
        lobe, (0.8, 0.55, 0.35)
    )
    field = side * u * window.x + v * window.y + w * window.z + 3.0 * noise(window, 25.0, dice)
    share = dice.uniform(0.35, 0.5)
    level = torch.quantile(field[inside][::5], share)
    alpha = (0.5 + (level - field) / (1.5 * scene.work_mm)).clamp(0, 1) * inside
    _fill(scene, window, alpha, dice.uniform(30.0, 60.0), None, dice)
    solid = alpha > 0.5
    window.of(mask).copy_(solid)
    neighbour = {
        "right lower lobe": "right upper lobe",
        "right middle lobe": "right upper lobe",
        "left lower lobe": "left upper lobe",
        "left upper lobe": "left lower lobe",
    }[lobe]
    rest = inside & ~solid
    taken = scene.regions[neighbour].clone()
    window.of(taken).logical_or_(rest)
    kept = region.clone()
    window.of(kept).logical_and_(solid)
    scene.regions[neighbour], scene.regions[lobe] = taken, kept
