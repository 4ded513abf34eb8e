"""A scan as windows and depths, read by a model that ships: what a joint model learns from where no window
encoder is trained.

RadFinder's combiner (§1.2) wants, of every window of a scan, [CLS; mean of its patches], and of every depth
of it the mean over the plane. Any reading of voxels gives these: here the organs and the gated maps of a
model that reads scans, and the scan itself in that model's windows of HU. In place of the CLS stands what is
highest in the window: a small lesion fills little of a mean.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch.nn import functional as F

from hilum.errors import UsageError
from hilum.geometry import Geometry
from hilum.model.outline import windows as in_windows
from hilum.model.preset import Preset
from hilum.read.scan_model import ScanModel
from hilum.tensors import VoxelFeatures, WindowDepths, WindowFeatures
from hilum.volume import CTVolume

SIDE_MM = 96.0
"""Of a window, as published."""


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


class WindowSource(Protocol):
    """What reads windows."""

    @property
    def width(self) -> int:
        """Numbers of a depth: E."""

    def read(self, volume: CTVolume, depth_mm: float | None = None) -> ReadWindows:
        """One scan; `depth_mm`: thickness of a depth."""


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
        preset = self._preset
        return 2 * (preset.net.organs + preset.net.findings + len(preset.net.windows_hu))

    @torch.inference_mode()
    def read(self, volume: CTVolume, depth_mm: float | None = None) -> ReadWindows:
        """See `WindowSource`.

        Raises:
            UsageError: `CONFIG_VALUE` for depths that do not divide a window.
        """
        preset = self._preset
        side = round(SIDE_MM / preset.prep.spacing_mm)
        thick = self._thick(self.depth_mm if depth_mm is None else depth_mm, side)
        out = self.model.run(volume)
        scan, _ = preset.prep.apply(volume)
        low, high = torch.tensor(preset.net.windows_hu).T[:, None, :, None, None, None] / 1000
        shown = in_windows(scan, low, high)[0]
        voxels = torch.cat([torch.from_numpy(out.organs), torch.from_numpy(out.maps), shown])
        both, depths, start = pooled(voxels, side, thick)
        return ReadWindows(
            both[None], depths[None], *_heights(out.grid, start, depths, thick, volume.geometry)
        )

    @property
    def _preset(self) -> Preset:
        preset = self.model.preset
        if not isinstance(preset, Preset):
            raise UsageError(
                "CONFIG_VALUE", "windows are read by a model on the chest's grid", got=preset.name
            )
        return preset

    def _thick(self, depth_mm: float, side: int) -> int:
        spacing_mm = self._preset.prep.spacing_mm
        thick = round(depth_mm / spacing_mm)
        if thick < 1 or side % thick or abs(thick * spacing_mm - depth_mm) > 1e-3:
            raise UsageError(
                "CONFIG_VALUE",
                "depths divide a window evenly",
                expected=f"{spacing_mm:g} mm times a divisor of {side}",
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
    # beyond the scan is air: no organ, no finding, the lowest of every window of HU
    pads = [p for pair in reversed(padded) for p in pair]
    low = torch.where(voxels.flatten(1).amin(1) < 0, -1.0, 0.0)[:, None, None, None]
    full = F.pad(voxels - low, pads) + low
    blocks = full.unflatten(3, (-1, side // thick, thick)).unflatten(2, (-1, side)).unflatten(1, (-1, side))
    slabs = blocks.permute(1, 3, 5, 6, 0, 2, 4, 7).flatten(5)
    depths = torch.cat([slabs.amax(5), slabs.mean(5)], dim=4)
    windows = torch.cat([depths.amax(3), depths.mean(3)], dim=3)
    return windows, depths, starts[2]


def _heights(
    grid: Geometry, start: int, depths: torch.Tensor, thick: int, scanned: Geometry
) -> tuple[np.ndarray, np.ndarray]:
    count = depths.shape[2] * depths.shape[3]
    middle = [(n - 1) / 2 for n in grid.shape[:2]]
    centres = [(*middle, start + (k + 0.5) * thick - 0.5) for k in range(count)]
    depth_mm = grid.to_mm(np.array(centres))[:, 2]
    corners = scanned.corners_mm()[:, 2]
    there = (depth_mm >= corners.min()) & (depth_mm <= corners.max())
    if not there.any():
        there[np.abs(depth_mm - corners.mean()).argmin()] = True
    return depth_mm.astype(np.float32), there
