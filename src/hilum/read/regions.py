"""A part of the chest by its name, and a scan of which only that part is left.

An organ; a lung; a third of a lung; a lobe where masks of the user's own have lobes. What lies outside
becomes what lies beyond a scan, and the rest is cut to the part's box: two scans that are seen this way are
compared in this part alone.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np

from hilum.cohort.prep import AIR_HU, subgrid
from hilum.errors import HeaderError, UsageError
from hilum.geometry import Geometry, axis_map
from hilum.read.organ_masks import OrganMasks
from hilum.read.organs_file import read_organs
from hilum.read.sampling import sample_nearest
from hilum.read.scan_model import ScanModel
from hilum.read.scan_output import OrganMaps
from hilum.read.sides import THIRDS, body_x_mm, frame_of
from hilum.text.vocabulary import LOBES, ORGAN_CHANNELS
from hilum.types import MaskVolume
from hilum.volume import CTVolume

SIDES = ("right", "left")
ORGANS = tuple(name for name in ORGAN_CHANNELS if name != "global")
"""Those that have a place of their own."""
LUNGS = tuple(f"{side} lung" for side in SIDES)
LUNG_THIRDS = tuple(f"{third} third of the {side} lung" for side in SIDES for third in THIRDS)
REGIONS = (*ORGANS, *LUNGS, *LUNG_THIRDS, *LOBES)
"""What a search can be confined to."""
LEAST_ML = 20.0
"""Less of a region is none: the tip of a lung at the edge of a scan of the abdomen."""
OUTLINES = "phantom-small"
"""Whose organs say where a region lies, for encoders that know no organs."""


class Region(NamedTuple):
    """A part of the chest.

    Args:
        name: of `REGIONS`. organs: masks of the user's own for one scan; None takes a model's.
    """

    name: str
    organs: Path | None = None


def require_region(name: str, organs: bool) -> None:
    """Before a scan is read.

    Args:
        organs: whether masks of the user's own are given.

    Raises:
        UsageError: `OPTION_UNKNOWN` for another name, or for a lobe without masks.
    """
    known = REGIONS if organs else tuple(one for one in REGIONS if one not in LOBES)
    if name not in known:
        raise UsageError(
            "OPTION_UNKNOWN", "a region has a name", expected=", ".join(known), got=name,
            hint="Lobes need organ masks that have lobes (--organs)." if name in LOBES else "",
        )  # fmt: skip


def region_in(region: Region, organs: OrganMaps, grid: Geometry, volume: CTVolume) -> MaskVolume:
    """Where a region lies, on `grid`.

    Args:
        organs: what a model says of them on `grid`; used unless the region brings its own.

    Raises:
        InputRefused: `COVERAGE` for a scan that does not show the region; as of `read_organs`.
    """
    masks = OrganMasks.of_model(grid, organs * volume.geometry.covers(grid))
    masks = masks if region.organs is None else read_organs(region.organs, volume, masks)
    mask = _named(region.name, masks, volume)
    held_ml = float(np.count_nonzero(mask)) * grid.voxel_ml
    if held_ml < LEAST_ML:
        raise HeaderError(
            "COVERAGE", f"the scan shows the region: {region.name}", expected=f"{LEAST_ML:g} ml or more",
            got=f"{held_ml:.0f} ml", path=region.organs, hint="Search the whole scan, or another region.",
        )  # fmt: skip
    return mask


def region_alone(volume: CTVolume, region: Region) -> CTVolume:
    """A scan of which a region is left, for encoders that know no organs: air outside, cut to its box.

    Raises:
        As of `region_in`.
    """
    found = _outlines().run(volume, outlines=False)
    inside = region_in(region, found.organs, found.grid, volume)
    mask = sample_nearest(inside, found.grid, volume.geometry, 0.0) > 0
    box, grid = boxed(mask, volume.geometry)
    hu = np.where(mask[box], volume.hu[box], np.float32(AIR_HU))
    return CTVolume(hu, grid, grid, axis_map(grid), volume.provenance)


def boxed(mask: MaskVolume, grid: Geometry) -> tuple[tuple[slice, ...], Geometry]:
    """The box of what is True, as an index and as a grid."""
    index = np.argwhere(mask)
    low, high = index.min(0), index.max(0) + 1
    box = tuple(slice(a, b) for a, b in zip(low.tolist(), high.tolist(), strict=True))
    return box, subgrid(grid, low, np.ones(3), high - low)


@cache
def _outlines() -> ScanModel:
    return ScanModel.load(OUTLINES)


def _named(name: str, masks: OrganMasks, volume: CTVolume) -> MaskVolume:
    if name in LOBES:
        return masks.lobes.get(name, np.zeros(masks.grid.shape, dtype=bool))
    if name in ORGANS:
        return masks.masks[name]
    frame = frame_of(masks, body_x_mm(volume))
    place_mm = masks.grid.to_mm(np.argwhere(masks.masks["lung"]))
    side = next(one for one in SIDES if f"{one} lung" in name)
    chosen = (place_mm[:, 0] > frame.midline_mm) == (side == "right")
    if name in LUNG_THIRDS and side in frame.height_mm:
        chosen &= frame.third_of(side, place_mm[:, 2]) == THIRDS.index(name.split()[0])
    found = np.zeros(masks.grid.shape, dtype=bool)
    found[masks.masks["lung"]] = chosen
    return found
