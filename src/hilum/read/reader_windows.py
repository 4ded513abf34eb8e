"""A scan as windows and depths: what a combiner reads (RadFinder §1.2), of every window [CLS; mean of its
patches] and of every depth of it the mean over the plane. By a model that reads scans.

The organs and gated maps of that model, and the scan itself in its windows of HU, everywhere and in each
organ alone: calcium in the heart is nothing beside the ribs. In place of the CLS stands what is highest in
the window: a small lesion fills little of a mean. Maps are read by their log-odds: what tells a faint lesion
from none is a probability of 0.001 beside one of 0.0001.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch
from torch.nn import functional as F

from hilum.errors import UsageError
from hilum.geometry import Geometry
from hilum.model.outline import windows as in_windows
from hilum.model.preset import Preset
from hilum.read.regions import ORGANS, Region, boxed, region_in
from hilum.read.scan_model import ScanModel
from hilum.tensors import VoxelFeatures, WindowDepths, WindowFeatures
from hilum.text.vocabulary import ORGAN_CHANNELS
from hilum.volume import CTVolume

SIDE_MM = 96.0
"""Of a window, as published."""
FLOOR = 1e-5
"""Probability of a voxel that is told from nothing."""


class ReadWindows(NamedTuple):
    """One scan, read.

    Args:
        both: of every window [CLS; mean] (1, U, V, W, 2 E). depths: of every depth of it (1, U, V, W, P, E).
        depth_mm: where depths lie, mm RAS+ along Z, from below upwards (W · P,).
        there: which of them lie in the scan.
    """

    both: WindowFeatures
    depths: WindowDepths
    depth_mm: np.ndarray
    there: np.ndarray


@runtime_checkable
class WindowSource(Protocol):
    """What reads windows."""

    @property
    def width(self) -> int:
        """Numbers of a depth: E."""

    def facts(self) -> dict[str, Any]:
        """What its readings depend on, JSON: for a cache of them."""

    def read(self, volume: CTVolume, depth_mm: float | None = None) -> ReadWindows:
        """One scan; `depth_mm`: thickness of a depth."""

    def read_all(self, volume: CTVolume, depths_mm: Sequence[float]) -> list[ReadWindows]:
        """One scan at several thicknesses."""


@dataclass(frozen=True)
class ReaderWindows:
    """Windows by a model that reads scans.

    Args:
        model: of the kind that ships. depth_mm: of a depth, unless another is asked for.
    """

    model: ScanModel
    depth_mm: float = 12.0

    @property
    def width(self) -> int:
        """Two statistics of every channel."""
        return reader_width(self.model)

    def facts(self) -> dict[str, Any]:
        """See `WindowSource`."""
        told = {"model": self.model.sha256, "side_mm": SIDE_MM, "statistics": "max, mean"}
        return told | {"maps": f"log-odds above {FLOOR:g}", "hu": "everywhere, in each organ"}

    def read(self, volume: CTVolume, depth_mm: float | None = None) -> ReadWindows:
        """See `WindowSource`.

        Raises:
            UsageError: `CONFIG_VALUE` for depths that do not divide a window.
        """
        return self.read_all(volume, [self.depth_mm if depth_mm is None else depth_mm])[0]

    def read_region(self, volume: CTVolume, region: Region) -> ReadWindows:
        """A part of a scan; what the model says of the rest is left out.

        Raises:
            InputRefused: as of `region_in`.
        """
        return self.read_all(volume, [self.depth_mm], region)[0]

    @torch.inference_mode()
    def read_all(
        self, volume: CTVolume, depths_mm: Sequence[float], region: Region | None = None
    ) -> list[ReadWindows]:
        """See `WindowSource`; the scan is read once.

        Raises:
            UsageError: as of `read`. InputRefused: as of `region_in`.
        """
        preset = _chest(self.model)
        side = round(SIDE_MM / preset.prep.spacing_mm)
        thicks = [thickness(mm, preset.prep.spacing_mm, side) for mm in depths_mm]
        out = self.model.run(volume, outlines=False)
        scan, _ = preset.prep.apply(volume)
        low, high = torch.tensor(preset.net.windows_hu).T[:, None, :, None, None, None] / 1000
        shown = in_windows(scan, low, high)[0]
        voxels = channels(torch.from_numpy(out.organs), torch.from_numpy(out.maps), shown)
        grid, found = out.grid, []
        if region is not None:
            mask = region_in(region, out.organs, grid, volume)
            box, grid = boxed(mask, grid)
            voxels = torch.where(torch.from_numpy(mask), voxels, beyond(voxels))[:, *box]
        for thick in thicks:
            both, depths, start = pooled(voxels, side, thick)
            slices = [start + (k + 0.5) * thick - 0.5 for k in range(depths.shape[2] * depths.shape[3])]
            found.append(ReadWindows(both[None], depths[None], *heights(grid, slices, volume.geometry)))
        return found


def reader_width(model: ScanModel) -> int:
    """Numbers of a depth that is read by a model: two statistics of each of `channels`.

    Raises:
        UsageError: `CONFIG_VALUE` for a model on another grid.
    """
    net = _chest(model).net
    return 2 * (net.organs + net.findings + (1 + len(ORGANS)) * len(net.windows_hu))


def _chest(model: ScanModel) -> Preset:
    if not isinstance(model.preset, Preset):
        raise UsageError(
            "CONFIG_VALUE", "windows are read by a model on the chest's grid", got=model.preset.name
        )
    return model.preset


def channels(organs: torch.Tensor, maps: torch.Tensor, shown: torch.Tensor) -> torch.Tensor:
    """What is known of each voxel (C, X, Y, Z): organs (O, ...), maps (D, ...) by their strength, windows of
    HU (N, ...) from -1 to 1, and the same from 0 to 2 in each of `ORGANS` alone, 0 outside it."""
    inside = [(organs[[ORGAN_CHANNELS.index(name)]] > 0.5) * (shown + 1) for name in ORGANS]
    return torch.cat([organs, strength(maps), shown, *inside])


def strength(maps: torch.Tensor) -> torch.Tensor:
    """Log-odds of probabilities above those of `FLOOR`, as a share of them: 0 at or below it, 1 at 0.5."""
    odds = torch.logit(maps.float().clamp(FLOOR, 1 - FLOOR))
    return 1 - odds / float(torch.logit(torch.tensor(FLOOR)))


def thickness(depth_mm: float, spacing_mm: float, window: int) -> int:
    """Voxels of a depth.

    Raises:
        UsageError: `CONFIG_VALUE` for a depth that does not divide a window.
    """
    thick = round(depth_mm / spacing_mm)
    if thick < 1 or window % thick or abs(thick * spacing_mm - depth_mm) > 1e-3:
        raise UsageError(
            "CONFIG_VALUE",
            "depths divide a window evenly",
            expected=f"{spacing_mm:g} mm times a divisor of {window}",
            got=f"{depth_mm:g} mm",
        )
    return thick


def pooled(voxels: VoxelFeatures, side: int, thick: int) -> tuple[torch.Tensor, torch.Tensor, int]:
    """Channels of voxels (C, X, Y, Z) -> windows (U, V, W, 4 C), their depths (U, V, W, P, 2 C), and the
    first voxel along Z; negative where padding begins below the scan.

    A depth is [highest; mean] of its slab; a window [highest of both; mean of both] over its depths.
    """
    padded, starts = [], []
    for n in voxels.shape[1:]:
        missing = -n % side
        starts.append(-(missing // 2))
        padded.append((missing // 2, missing - missing // 2))
    pads = [p for pair in reversed(padded) for p in pair]
    low = beyond(voxels)
    full = F.pad(voxels - low, pads) + low
    blocks = full.unflatten(3, (-1, side // thick, thick)).unflatten(2, (-1, side)).unflatten(1, (-1, side))
    slabs = blocks.permute(1, 3, 5, 6, 0, 2, 4, 7).flatten(5)
    depths = torch.cat([slabs.amax(5), slabs.mean(5)], dim=4)
    windows = torch.cat([depths.amax(3), depths.mean(3)], dim=3)
    return windows, depths, starts[2]


def beyond(voxels: VoxelFeatures) -> torch.Tensor:
    """What lies beyond a scan, (C, 1, 1, 1): air, so no organ, no finding, the lowest of every window of
    HU."""
    return torch.where(voxels.flatten(1).amin(1) < 0, -1.0, 0.0)[:, None, None, None]


def heights(grid: Geometry, slices: Iterable[float], scanned: Geometry) -> tuple[np.ndarray, np.ndarray]:
    """Of the middles of slices of a grid, and which lie in the scan (the nearest one if none does): what is
    padding alone is no depth of it."""
    depth_mm = grid.heights_mm(slices)
    corners = scanned.corners_mm()[:, 2]
    there = (depth_mm >= corners.min()) & (depth_mm <= corners.max())
    if not there.any():
        there[np.abs(depth_mm - corners.mean()).argmin()] = True
    return depth_mm.astype(np.float32), there
