"""Appearance and shape varied at every step, so that a network trained on phantoms meets real scans without
surprise.

Shape: one random rotation, scaling and shift, the same for the scan and its organ masks. Appearance: gain and
offset of the HU scale, a smooth-edged HU offset per organ (contrast phases, body habitus, breathing), noise,
blur. Labels never change: no augmentation adds or removes a finding, and left stays left. The one exception,
fat in place of the heart's outer millimetres, is for steps that learn organs alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce

import torch
from torch.nn import functional as F

from hilum.cohort.samples import Sample
from hilum.errors import RunError
from hilum.model.bands import around
from hilum.text.vocabulary import ORGAN_CHANNELS
from hilum.train.recipe import AugmentRecipe

AIR = -1.024
FAT_DEPTH = 7
"""Side of the box whose share of heart tells how deep inside the heart a voxel lies: depths up to half."""


def uniform(generator: torch.Generator, low: float, high: float) -> float:
    """One number in [low, high)."""
    return low + (high - low) * float(torch.rand((), generator=generator))


def random_affine(
    shape: tuple[int, int, int], spacing_mm: float, recipe: AugmentRecipe, generator: torch.Generator
) -> torch.Tensor:
    """A sampling matrix (1, 3, 4) for `affine_grid`: rotation, anisotropic scale and shift about the
    centre."""
    angles = [torch.deg2rad(torch.tensor(uniform(generator, -1, 1) * recipe.rotate_deg)) for _ in range(3)]
    turn = torch.eye(3)
    for axis, angle in enumerate(angles):
        a, b = [i for i in range(3) if i != axis]
        step = torch.eye(3)
        step[a, a], step[b, b] = angle.cos(), angle.cos()
        step[a, b], step[b, a] = -angle.sin(), angle.sin()
        turn = turn @ step
    overall = 1 + uniform(generator, -1, 1) * recipe.scale
    scale = torch.diag(
        torch.tensor([overall * (1 + uniform(generator, -0.4, 0.4) * recipe.scale) for _ in range(3)])
    )
    matrix = turn @ scale
    shift = torch.tensor([uniform(generator, -1, 1) * recipe.shift_mm / spacing_mm for _ in range(3)])
    half = torch.tensor(shape, dtype=torch.float32) / 2
    # affine_grid speaks (W, H, D) order in units of half the size
    normal = torch.diag(1 / half) @ matrix @ torch.diag(half)
    theta = torch.cat([normal.flip(0).flip(1), (shift / half).flip(0)[:, None]], dim=1)
    return theta[None]


Box = tuple[slice, slice, slice]
WHOLE: Box = (slice(None), slice(None), slice(None))


def warp(
    volume: torch.Tensor,
    theta: torch.Tensor,
    *,
    fill: float | torch.Tensor,
    box: Box = WHOLE,
    mode: str = "bilinear",
) -> torch.Tensor:
    """Sample (1, C, X, Y, Z) through `theta`; outside the volume lies `fill`, a number or (C, 1, 1, 1).
    `box`: only this part of the result."""
    near, grid = _near(_shape(volume[0, 0]), sampled_at(theta, _shape(volume[0, 0]), box))
    return _sampled(volume[:, :, *near], grid, fill, mode)


def _sampled(part: torch.Tensor, grid: torch.Tensor, fill: float | torch.Tensor, mode: str) -> torch.Tensor:
    part = part.float() - fill
    at = grid.to(part.device)
    return F.grid_sample(part, at, mode=mode, padding_mode="zeros", align_corners=False) + fill


def _near(shape: tuple[int, int, int], grid: torch.Tensor) -> tuple[Box, torch.Tensor]:
    """The part of a volume that is sampled, and where in it: a box needs a tenth of a scan."""
    size = torch.tensor(shape).flip(0)
    at = ((grid + 1) * size - 1) / 2
    low = (at.amin((0, 1, 2, 3)).floor().long() - 1).clamp(min=0).minimum(size - 1)
    high = (at.amax((0, 1, 2, 3)).ceil().long() + 2).minimum(size).maximum(low + 1)
    x, y, z = (slice(a, b) for a, b in zip(low.tolist()[::-1], high.tolist()[::-1], strict=True))
    return (x, y, z), (2 * (at - low) + 1) / (high - low) - 1


def sampled_at(theta: torch.Tensor, shape: tuple[int, int, int], box: Box) -> torch.Tensor:
    """A part of `affine_grid`, (1, x, y, z, 3), without the rest of it."""
    line = [(2 * torch.arange(n)[cut] + 1) / n - 1 for n, cut in zip(shape, box, strict=True)]
    x, y, z = torch.meshgrid(*line, indexing="ij")
    return (torch.stack([z, y, x], -1) @ theta[0, :, :3].T + theta[0, :, 3])[None]


def moved(voxel: Sequence[int], theta: torch.Tensor, shape: tuple[int, int, int]) -> tuple[int, int, int]:
    """Where `warp` puts a voxel, or the nearest place within the scan."""
    size = torch.tensor(shape)
    at = ((2 * torch.tensor(voxel) + 1) / size - 1).flip(0)
    to = torch.linalg.solve(theta[0, :, :3], at - theta[0, :, 3]).flip(0)
    x, y, z = (((to + 1) * size - 1) / 2).round().int().tolist()
    return min(max(x, 0), shape[0] - 1), min(max(y, 0), shape[1] - 1), min(max(z, 0), shape[2] - 1)


def organ_offsets(
    scan: torch.Tensor, organs: torch.Tensor, recipe: AugmentRecipe, generator: torch.Generator
) -> torch.Tensor:
    """What contrast, habitus and breathing add to each organ, in HU / 1000, with soft edges: (X, Y, Z)."""
    soft = recipe.organ_offset_hu / 1000
    limits = {"heart": soft, "mediastinum": soft, "lung": 0.04, "global": 0.03, "pleura": 0.02}
    field = torch.zeros_like(scan)
    for name, limit in limits.items():
        if torch.rand((), generator=generator) < 0.5:
            # contrast only ever brightens the heart and vessels; the rest goes both ways
            low = -0.2 * limit if limit == soft else -limit
            mask = organs[ORGAN_CHANNELS.index(name)]
            if limit == soft:
                mask = mask * (scan > -0.3)
            field = field + uniform(generator, low, limit) * mask
    return around(field[None, None])[0, 0]


def appearance(
    scan: torch.Tensor, organs: torch.Tensor, recipe: AugmentRecipe, generator: torch.Generator
) -> torch.Tensor:
    """(X, Y, Z) HU / 1000 with its organ shares -> the same scan on another scanner, another day."""
    cpu = torch.Generator().manual_seed(int(torch.randint(2**31, (1,), generator=generator)))
    scan = scan + organ_offsets(scan, organs, recipe, generator)
    if torch.rand((), generator=generator) < recipe.blur_chance:
        scan = around(scan[None, None])[0, 0]
    gain = 1 + uniform(generator, -1, 1) * recipe.gain
    offset = uniform(generator, -1, 1) * recipe.offset_hu / 1000
    sigma = uniform(generator, 0, 1) ** 2 * recipe.noise_hu / 1000
    noise = torch.randn(scan.shape, generator=cpu).to(scan) * sigma
    return ((scan + 1) * gain - 1 + offset + noise).clamp(AIR, 3.071)


@dataclass(frozen=True)
class Fat:
    """Fat that grows from the heart's surface and grooves inwards, here more and there less: people have more
    of it than phantoms, and it belongs to the mediastinum.

    Args:
        thick_mm: (1, 1, 6, 6, 6), how deep, over the whole scan. hu: its value / 1000.
    """

    thick_mm: torch.Tensor
    hu: float

    def share(self, heart: torch.Tensor, spacing_mm: float) -> torch.Tensor:
        """How much of each voxel it takes of the heart's share (X, Y, Z)."""
        thick_mm = F.interpolate(self.thick_mm.to(heart), heart.shape, mode="trilinear")[0, 0]
        inside = heart[None, None]
        for axis in range(3):
            side = [FAT_DEPTH if axis == a else 1 for a in range(3)]
            inside = F.avg_pool3d(inside, side, stride=1, padding=[n // 2 for n in side])
        depth_mm = (inside[0, 0] - 0.5) * FAT_DEPTH * spacing_mm
        return heart * (depth_mm < thick_mm)

    def grow(
        self, scan: torch.Tensor, organs: torch.Tensor, share: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """(X, Y, Z) HU / 1000 and organ shares -> the same with fat in `share` of each voxel."""
        heart, mediastinum = (ORGAN_CHANNELS.index(name) for name in ("heart", "mediastinum"))
        soft = F.avg_pool3d(share[None, None], 3, stride=1, padding=1)[0, 0] * organs[heart]
        organs = organs.clone()
        organs[heart] -= share
        organs[mediastinum] += share
        return torch.lerp(scan, torch.full_like(scan, self.hu), soft), organs


def draw_fat(recipe: AugmentRecipe, generator: torch.Generator) -> Fat | None:
    """None in the steps without."""
    deepest_mm = uniform(generator, 0, recipe.fat_mm)
    if torch.rand((), generator=generator) >= recipe.fat_chance:
        return None
    thick_mm = torch.rand((1, 1, 6, 6, 6), generator=generator) * deepest_mm
    return Fat(thick_mm, uniform(generator, -0.12, -0.07))


def augment(
    scan: torch.Tensor,
    organs: torch.Tensor,
    spacing_mm: float,
    recipe: AugmentRecipe,
    generator: torch.Generator,
    *,
    organs_alone: bool = False,
) -> tuple[torch.Tensor, torch.Tensor]:
    """HU int16 (X, Y, Z) and organ shares uint8 (O, X, Y, Z) -> HU / 1000 (1, 1, X, Y, Z) and shares 0..1
    (1, O, X, Y, Z).

    `organs_alone`: also what would hide findings, for steps that learn none.
    """
    theta = random_affine(_shape(scan), spacing_mm, recipe, generator)
    (image,), shares = _warped([scan], [organs], theta)
    if organs_alone and (fat := draw_fat(recipe, generator)):
        heart = shares[ORGAN_CHANNELS.index("heart")]
        image, shares = fat.grow(image, shares, fat.share(heart, spacing_mm))
    return appearance(image, shares, recipe, generator)[None, None], shares[None]


def augment_siblings(
    samples: Sequence[Sample],
    theta: torch.Tensor,
    box: Box,
    recipe: AugmentRecipe,
    generator: torch.Generator,
) -> tuple[torch.Tensor, torch.Tensor]:
    """One look for a box of scans of one anatomy, so that they differ in nothing but findings: HU / 1000
    (S, 1, X, Y, Z) and organ shares that stand for all of them, (1, O, ...): where a finding is, its organ
    may have grown, so the largest in any of them."""
    images, shares = _warped([one.scan for one in samples], [one.organs for one in samples], theta, box)
    state, looks = generator.get_state(), []
    for image in images:
        generator.set_state(state)
        looks.append(appearance(image, shares, recipe, generator))
    return torch.stack(looks)[:, None], shares[None]


def augment_finer(
    sample: Sample, box: Box, spacing_mm: float, recipe: AugmentRecipe, generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """One look for a scan and for a box of it at half the voxel, as for steps that learn organs alone.

    Returns:
        the scan as of `augment`; the box (1, 1, ...) HU / 1000; its organ shares (1, O, ...).
    """
    if sample.fine is None or sample.fine_organs is None:
        raise RunError("MASK_MISSING", "steps that learn outlines need finer scans", path=sample.key)
    theta = random_affine(_shape(sample.scan), spacing_mm, recipe, generator)
    (image,), shares = _warped([sample.scan], [sample.organs], theta)
    near = warp(sample.fine.float()[None, None] / 1000, theta, fill=AIR, box=box)[0, 0]
    bits = warp(sample.fine_organs.float()[None, None], theta, fill=0.0, box=box, mode="nearest")[0, 0]
    packed = bits.round().to(torch.uint8)
    masks = torch.stack([(packed >> bit) & 1 for bit in range(len(ORGAN_CHANNELS))]).float()
    if fat := draw_fat(recipe, generator):
        heart = ORGAN_CHANNELS.index("heart")
        share = fat.share(shares[heart], spacing_mm)
        finer = F.interpolate(share[None, None], scale_factor=2.0, mode="trilinear")[0, 0][box]
        image, shares = fat.grow(image, shares, share)
        near, masks = fat.grow(near, masks, masks[heart] * (finer > 0.5))
    state = generator.get_state()
    scan = appearance(image, shares, recipe, generator)
    generator.set_state(state)
    return scan[None, None], appearance(near, masks, recipe, generator)[None, None], masks[None]


def _shape(scan: torch.Tensor) -> tuple[int, int, int]:
    return scan.shape[0], scan.shape[1], scan.shape[2]


def _warped(
    scans: Sequence[torch.Tensor], organs: Sequence[torch.Tensor], theta: torch.Tensor, box: Box = WHOLE
) -> tuple[torch.Tensor, torch.Tensor]:
    """HU int16 (X, Y, Z) of each scan and organ shares uint8 (O, X, Y, Z), of which the largest count -> HU /
    1000 (S, ...) and shares 0..1, through `theta`."""
    near, grid = _near(_shape(scans[0]), sampled_at(theta, _shape(scans[0]), box))
    held = reduce(torch.maximum, [shares[:, *near] for shares in organs])
    # both at once: most of the work is finding out where to look
    joined = torch.cat([torch.stack([scan[near] for scan in scans]), held.to(scans[0].dtype)])
    fill = torch.zeros(len(joined), 1, 1, 1, device=joined.device)
    fill[: len(scans)] = 1000 * AIR
    found = _sampled(joined[None], grid, fill, "bilinear")[0]
    return found[: len(scans)] / 1000, found[len(scans) :] / 255
