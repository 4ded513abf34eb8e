"""Right and left, upper and lower: the two lungs as a frame of reference for everything in the chest."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from jaxtyping import Int64

from hilum.geometry import Geometry
from hilum.read.organ_masks import OrganMasks, mm_of
from hilum.types import MaskVolume, PointsMm, SliceHeights
from hilum.volume import CTVolume

THIRDS = ("lower", "middle", "upper")


@dataclass(frozen=True)
class Frame:
    """Where the patient's middle is and how high each lung reaches.

    Args:
        midline_mm: x of the mid-sagittal plane, mm RAS+ (right is greater).
        basis: ``lungs`` (halfway between both lungs) or ``body`` (only one lung seen).
        height_mm: side -> (lowest, highest) z of that lung, 1st to 99th percentile.
        lobes: lobe name -> mask on `grid`, where a file gave them.
    """

    grid: Geometry
    midline_mm: float
    basis: Literal["lungs", "body"]
    height_mm: dict[str, tuple[float, float]]
    lobes: dict[str, MaskVolume] = field(default_factory=dict)

    def side_of(
        self, points_mm: PointsMm, band_mm: float = 0.0
    ) -> Literal["right", "left", "both", "midline"]:
        """Side of a set of points: one side when it holds 80 % of them; `midline` when their mean is within
        `band_mm`."""
        x = points_mm[:, 0] - self.midline_mm
        if abs(float(x.mean())) < band_mm:
            return "midline"
        share = float((x > 0).mean())
        return "right" if share >= 0.8 else "left" if share <= 0.2 else "both"

    def lobe_of(self, points_mm: PointsMm) -> tuple[str | None, Literal["lobe masks", "lung height"] | None]:
        """Lobe holding most of the points, else the third of the lung's height at their mean, else nothing.

        A third of the lung is not a lobe and is never called one.
        """
        if self.lobes:
            index = np.rint(self.grid.to_vox(points_mm)).astype(int)
            index = index[((index >= 0) & (index < self.grid.shape)).all(axis=1)]
            hits = {name: int(mask[tuple(index.T)].sum()) for name, mask in self.lobes.items()}
            best = max(hits, key=lambda name: hits[name])
            if hits[best] > 0:
                return best, "lobe masks"
        side = self.side_of(points_mm)
        if side not in self.height_mm:
            return None, None
        third = THIRDS[self.third_of(side, points_mm[:, 2].mean(keepdims=True))[0]]
        return f"{third} third of the {side} lung", "lung height"

    def third_of(self, side: str, z_mm: SliceHeights) -> Int64[np.ndarray, "S"]:
        """Number in `THIRDS` of heights in a lung; beyond its ends the last ones.

        Args:
            side: of `height_mm`.
        """
        low, high = self.height_mm[side]
        return np.clip(np.floor(3 * (z_mm - low) / max(high - low, 1.0)), 0, 2).astype(np.int64)


def frame_of(organs: OrganMasks, body_x_mm: float) -> Frame:
    """The frame from the lungs; `body_x_mm` (x of the body's middle) is the midline when only one lung is
    seen."""
    points = mm_of(organs.grid, organs.masks["lung"])
    if len(points) == 0:
        return Frame(organs.grid, body_x_mm, "body", {}, organs.lobes)
    midline = _between_lungs(points[:, 0])
    basis: Literal["lungs", "body"] = "body" if midline is None else "lungs"
    middle = body_x_mm if midline is None else midline
    heights = {}
    for side, chosen in (("right", points[:, 0] > middle), ("left", points[:, 0] <= middle)):
        # fewer than 2 % of the voxels is a rim beyond the midline, not a lung
        if chosen.sum() > 0.02 * len(points):
            low, high = np.percentile(points[chosen, 2], (1, 99))
            heights[side] = (float(low), float(high))
    return Frame(organs.grid, middle, basis, heights, organs.lobes)


def body_x_mm(volume: CTVolume) -> float:
    """x of the body's middle, mm RAS+: the midline where only one lung is seen."""
    step = [max(1, round(6.0 / s)) for s in volume.spacing_mm]
    body = np.argwhere(volume.hu[:: step[0], :: step[1], :: step[2]] > -300.0) * step
    return (
        float(volume.geometry.to_mm(body)[:, 0].mean())
        if len(body)
        else float(volume.geometry.centre_mm[0, 0])
    )


def _between_lungs(x_mm: np.ndarray) -> float | None:
    """Two-means split of x; None when there is no valley between the two means (one lung only)."""
    right, left = float(np.percentile(x_mm, 90)), float(np.percentile(x_mm, 10))
    middle = (right + left) / 2
    for _ in range(20):
        above = x_mm > middle
        if above.all() or not above.any():
            return None
        right, left = float(x_mm[above].mean()), float(x_mm[~above].mean())
        moved = (right + left) / 2
        if abs(moved - middle) < 0.1:
            break
        middle = moved
    near = np.mean(np.abs(x_mm - middle) < 10)
    peaks = max(float(np.mean(np.abs(x_mm - right) < 10)), float(np.mean(np.abs(x_mm - left) < 10)))
    return None if right - left < 60 or near > 0.6 * peaks else middle
