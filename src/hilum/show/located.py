"""Where sentences belong, as a picture: the coronal middle of the scan, and beside it each sentence's curve
over depth at the same height."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from hilum.geometry import Geometry
from hilum.read.locate import Answer, LocatedAll
from hilum.show.cuts import cut_grid, picture_point
from hilum.show.figures import HEAT_STEPS, OUTLINE, figure

PANEL_PX, GAP_PX, MOST = 120, 8, 6
"""Width of a curve, distance between curves, and how many sentences are drawn."""


def located_picture(found: LocatedAll, width_px: int = 512) -> Image.Image:
    """RGB. The line across the scan is the answer; curves are numbered as the sentences are."""
    volume, answers = found.volume, found.answers[:MOST]
    grid = volume.geometry
    middle = grid.to_mm((np.array(grid.shape) - 1)[None] / 2)[0]
    scan = figure(volume, "coronal", middle, width_px=width_px)
    px_mm = cut_grid(grid, "coronal", 0).width_mm / width_px
    whole = Image.new("RGB", (width_px + len(answers) * (PANEL_PX + GAP_PX), scan.height), "black")
    whole.paste(scan, (0, 0))
    draw = ImageDraw.Draw(whole)
    rows = [row_px(grid, middle, z, px_mm) for z in found.depth_mm]
    for number, answer in enumerate(answers):
        left = width_px + GAP_PX + number * (PANEL_PX + GAP_PX)
        _curve(draw, answer, rows, left)
        _answer(draw, answer, number, (row_px(grid, middle, answer.z_mm, px_mm), left, width_px))
    return whole


def row_px(grid: Geometry, middle_mm: np.ndarray, z_mm: float, px_mm: float) -> float:
    """Row of a coronal picture at a height, above the scan's middle."""
    point = middle_mm.copy()
    point[2] = z_mm
    x, y, z = grid.to_vox(point)[0]
    return picture_point(grid, "coronal", (x, y, z))[1] / px_mm


def _curve(draw: ImageDraw.ImageDraw, answer: Answer, rows: Sequence[float], left: int) -> None:
    draw.line((left, min(rows), left, max(rows)), fill=(90, 90, 90), width=1)
    most = max(answer.share)
    points = [
        (left + share / most * (PANEL_PX - 4), row) for share, row in zip(answer.share, rows, strict=True)
    ]
    draw.line(points, fill=HEAT_STEPS[1], width=2)


def _answer(draw: ImageDraw.ImageDraw, answer: Answer, number: int, where: tuple[float, int, int]) -> None:
    row, left, width = where
    draw.line((0, row, width, row), fill=OUTLINE[:3], width=1)
    draw.line((left, row, left + PANEL_PX, row), fill=OUTLINE[:3], width=1)
    font = ImageFont.load_default(size=13)
    draw.text((left + 4, 4), f"{number + 1}", fill="white", font=font)
    draw.text((left + PANEL_PX, row - 3), f"{answer.z_mm:.0f} mm", fill="white", font=font, anchor="rb")
