"""Pictures with Pillow: a grey cut at true millimetre aspect, heat in isobands with an outline, letters and
a scale bar."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from hilum.show.cuts import LETTERS, LUNG, CutGrid, Plane, Point, Window, cut_array, cut_grid, picture_point
from hilum.types import ProbabilityMap
from hilum.volume import CTVolume

SCALE_BAR_MM = 50.0
HEAT_STEPS = ((255, 196, 61), (255, 140, 26), (236, 72, 28), (190, 18, 60))
"""Bands from the threshold up to 1: amber to crimson, distinct from grey for colour-blind readers too."""
HEAT_ALPHA = (56, 72, 88, 104)
OUTLINE = (255, 226, 138, 255)


@dataclass(frozen=True)
class Overlay:
    """A map on the volume's grid (RAS+) and the probability from which it is shown."""

    heat: ProbabilityMap
    threshold: float


def size_px(grid: CutGrid, px_mm: float) -> tuple[int, int]:
    """(width, height) of a picture whose pixels are `px_mm` in both directions."""
    return max(1, round(grid.width_mm / px_mm)), max(1, round(grid.height_mm / px_mm))


def grey_picture(volume: CTVolume, plane: Plane, index: int, window: Window, px_mm: float) -> Image.Image:
    """A cut as 8-bit grey, no letters, true aspect."""
    grid = cut_grid(volume.geometry, plane, index)
    grey = window.grey(cut_array(volume.hu, plane, index))
    return Image.fromarray(grey).resize(size_px(grid, px_mm), Image.Resampling.BILINEAR)


def heat_picture(heat_cut: np.ndarray, grid: CutGrid, threshold: float, px_mm: float) -> Image.Image | None:
    """[rows, columns] of probabilities -> RGBA bands with a one-pixel outline; None when nothing reaches the
    threshold."""
    if float(heat_cut.max()) < threshold:
        return None
    smooth = Image.fromarray(np.ascontiguousarray(heat_cut, dtype=np.float32))
    values = np.asarray(smooth.resize(size_px(grid, px_mm), Image.Resampling.BILINEAR))
    level = np.clip(
        (values - threshold) / max(1.0 - threshold, 1e-6) * len(HEAT_STEPS), 0, len(HEAT_STEPS) - 0.01
    )
    band = np.where(values >= threshold, level.astype(np.uint8) + 1, 0).astype(np.uint8)
    if not band.any():
        # thinner than a pixel of the picture: show it all the same
        band[np.unravel_index(int(values.argmax()), values.shape)] = 1
    band[_rim(band > 0)] = len(HEAT_STEPS) + 1
    picture = Image.fromarray(band)
    picture.putpalette([0, 0, 0, *(v for step in HEAT_STEPS for v in step), *OUTLINE[:3]])
    picture.info["transparency"] = bytes([0, *HEAT_ALPHA, OUTLINE[3]])
    return picture


def _rim(inside: np.ndarray) -> np.ndarray:
    padded = np.pad(inside, 1)
    core = padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    return inside & ~core


def figure(
    volume: CTVolume,
    plane: Plane,
    point_mm: Point,
    *,
    window: Window = LUNG,
    overlay: Overlay | None = None,
    width_px: int = 512,
    cross: bool = False,
) -> Image.Image:
    """A finished picture (RGB) of the cut through a point, radiological layout, with letters and a 50 mm bar.

    Args:
        point_mm: mm RAS+; clipped to the volume. width_px: width of the picture.
        overlay: heat shown above its threshold. cross: mark the point.
    """
    voxel = voxel_of(volume, point_mm)
    index = voxel[{"axial": 2, "coronal": 1, "sagittal": 0}[plane]]
    grid = cut_grid(volume.geometry, plane, index)
    px_mm = grid.width_mm / width_px
    picture = grey_picture(volume, plane, index, window, px_mm).convert("RGBA")
    if overlay is not None:
        heat = heat_picture(cut_array(overlay.heat, plane, index), grid, overlay.threshold, px_mm)
        if heat is not None:
            picture.alpha_composite(heat.convert("RGBA"))
    draw = ImageDraw.Draw(picture)
    _letters(draw, picture.size, LETTERS[plane])
    _scale_bar(draw, picture.size, px_mm)
    if cross:
        _cross(draw, *(v / px_mm for v in picture_point(volume.geometry, plane, voxel)))
    return picture.convert("RGB")


def voxel_of(volume: CTVolume, point_mm: Point) -> tuple[int, int, int]:
    """Nearest voxel on the volume's RAS+ grid."""
    index = np.clip(np.rint(volume.geometry.to_vox(np.asarray(point_mm))[0]), 0, np.array(volume.shape) - 1)
    return int(index[0]), int(index[1]), int(index[2])


def _letters(draw: ImageDraw.ImageDraw, size: tuple[int, int], letters: tuple[str, str, str, str]) -> None:
    font = ImageFont.load_default(size=max(10, size[0] // 32))
    width, height = size
    left, right, top, bottom = letters
    for text, at, anchor in (
        (left, (6, height // 2), "lm"),
        (right, (width - 6, height // 2), "rm"),
        (top, (width // 2, 5), "mt"),
        (bottom, (width // 2, height - 5), "mb"),
    ):
        draw.text(at, text, fill="white", font=font, anchor=anchor, stroke_width=1, stroke_fill="black")


def _scale_bar(draw: ImageDraw.ImageDraw, size: tuple[int, int], px_mm: float) -> None:
    length = SCALE_BAR_MM / px_mm
    right, bottom = size[0] - 10, size[1] - 10
    draw.line((right - length, bottom, right, bottom), fill="white", width=2)
    for x in (right - length, right):
        draw.line((x, bottom - 4, x, bottom), fill="white", width=1)
    font = ImageFont.load_default(size=max(9, size[0] // 44))
    draw.text((right, bottom - 6), f"{SCALE_BAR_MM:.0f} mm", fill="white", font=font, anchor="rb")


def _cross(draw: ImageDraw.ImageDraw, x: float, y: float) -> None:
    for gap, reach in ((6, 14), (-6, -14)):
        draw.line((x + gap, y, x + reach, y), fill=OUTLINE[:3], width=1)
        draw.line((x, y + gap, x, y + reach), fill=OUTLINE[:3], width=1)
