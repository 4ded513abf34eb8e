"""Organ masks on the grid of a prepared scan, packed into one whole number per voxel.

Bit o of a voxel is `vocabulary.ORGAN_CHANNELS[o]`. A mask goes there by the nearest voxel, straight from its
own grid, however many steps the scan took. EXACT resizes masks linearly and keeps whatever is not 0 (EXACT
§1.3), which dilates them by up to a voxel; that is `how = "any"`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from hilum.cohort.pipeline import apply, grid_of
from hilum.cohort.prep_presets import Pipeline
from hilum.geometry import Geometry
from hilum.types import MaskVolume, PackedMasks
from hilum.volume import CTVolume

How = Literal["nearest", "any"]
TOUCHED = 1e-6
"""Share of a voxel from which linear interpolation counts as having left something there."""


@dataclass(frozen=True)
class MaskTrace:
    """What a store says of the masks of a scan.

    Args:
        grid: of the masks. facts: of the preparation. known: channels that the source knows of this scan; a
            bit of another channel says nothing.
    """

    grid: Geometry
    facts: Mapping[str, Any]
    known: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        """For the store."""
        return {
            "prep": dict(self.facts),
            "known": list(self.known),
            "grid_shape": list(self.grid.shape),
            "grid_affine_ras": np.round(self.grid.affine_ras, 4).tolist(),
        }


def nearest(mask: MaskVolume, source: Geometry, target: Geometry) -> np.ndarray:
    """`mask` on `source` -> at the nearest voxel of every voxel of `target`; nothing outside.

    Both grids share their axes up to order and direction, so that each axis is looked up by itself.
    """
    step = np.linalg.inv(source.affine_ras) @ target.affine_ras
    order = np.abs(step[:3, :3]).argmax(axis=1)
    where = []
    for axis, n_in in enumerate(source.shape):
        at = step[axis, 3] + step[axis, order[axis]] * np.arange(target.shape[order[axis]])
        # halfway counts to the upper one, whichever way the axes run
        index = np.floor(at + 0.5 + 1e-6).astype(np.int64)
        where.append(np.where((index >= 0) & (index < n_in), index, -1))
    inside = [index >= 0 for index in where]
    picked = mask[np.ix_(*where)] & inside[0][:, None, None] & inside[1][:, None] & inside[2]
    return picked.transpose(np.argsort(order))


def touched(mask: MaskVolume, volume: CTVolume, pipeline: Pipeline) -> np.ndarray:
    """The published way: through the scan's own linear steps, and whatever is above 0 is in."""
    plain = replace(pipeline, values="hu", clip_hu=None, clip_first=False, pad="low")
    share, _ = apply(plain, replace(volume, hu=mask.astype(np.float32)))
    return share[0, 0].numpy() > TOUCHED


def packed(
    masks: Mapping[str, MaskVolume],
    channels: Sequence[str],
    volume: CTVolume,
    pipeline: Pipeline,
    how: How = "nearest",
) -> tuple[PackedMasks, Geometry]:
    """Masks on `volume.geometry` -> bits on the pipeline's grid, and that grid.

    Args:
        masks: by channel. channels: bit o is channels[o]. how: see the module.
    """
    grid = grid_of(pipeline, volume.geometry)
    bits = np.zeros(grid.shape, dtype=np.int16)
    for bit, channel in enumerate(channels):
        if channel in masks:
            mask = masks[channel]
            inside = touched(mask, volume, pipeline) if how == "any" else nearest(mask, volume.geometry, grid)
            bits |= inside.astype(np.int16) << bit
    return bits, grid


def unpacked(bits: np.ndarray, count: int) -> np.ndarray:
    """[U, V, W] whole numbers -> bool [count, U, V, W]."""
    return np.stack([(bits >> bit) & 1 for bit in range(count)]).astype(bool)
