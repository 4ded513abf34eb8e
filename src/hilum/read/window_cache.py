"""Windows of scans, kept: what a frozen model reads once, and a combiner learns from at every step."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hilum.errors import UsageError
from hilum.io.feature_cache import FeatureCache, open_cache
from hilum.read.encoder import load
from hilum.read.reader_windows import ReaderWindows, ReadWindows, WindowSource
from hilum.read.scan_model import ScanModel
from hilum.read.windows import EncoderWindows
from hilum.volume import CTVolume

READER = "reader:"
"""Before the name of a model that reads scans, where windows are read by one."""


def window_source(name: str) -> WindowSource:
    """By name: an encoder's folder, or ``reader:NAME`` for a model that reads scans.

    Raises:
        UsageError, WeightsError: as of `read.encoder.load` and `ScanModel.load`.
    """
    if name.startswith(READER):
        return ReaderWindows(ScanModel.load(name.removeprefix(READER)))
    return EncoderWindows(load(name))


@dataclass(frozen=True)
class WindowCache:
    """Caches of one source, one per thickness of a depth.

    Args:
        source: what reads. caches: by thickness, mm.
    """

    source: WindowSource
    caches: Mapping[float, FeatureCache]

    def has(self, key: str) -> bool:
        """Whether a scan is there at every thickness."""
        return all(cache.has(key) for cache in self.caches.values())

    def put(self, key: str, scan_sha256: str, open_scan: Callable[[], CTVolume]) -> bool:
        """Reads a scan that is not there yet; whether it had to."""
        if self.has(key):
            return False
        read = self.source.read_all(open_scan(), list(self.caches))
        for cache, windows in zip(self.caches.values(), read, strict=True):
            cache.put(key, scan_sha256, arrays_of(windows))
        return True


def window_cache(
    root: str | Path, name: str, depths_mm: Sequence[float], more: Mapping[str, Any] | None = None
) -> WindowCache:
    """The caches of a source, made where they are not there.

    Args:
        root: folder of caches. name: see `window_source`. depths_mm: of depths.
        more: facts that the features depend on, besides the model's.

    Raises:
        UsageError: `CONFIG_VALUE` for no thickness at all; as of `window_source`.
        WeightsError: as of `open_cache`.
    """
    if not depths_mm:
        raise UsageError("CONFIG_VALUE", "windows have depths", expected="a thickness in mm", got="none")
    source = window_source(name)
    facts = {"source": name, "width": source.width, **source.facts(), **(more or {})}
    return WindowCache(source, {mm: open_cache(root, facts | {"depth_mm": mm}) for mm in depths_mm})


def windows_in(arrays: Mapping[str, np.ndarray]) -> ReadWindows:
    """The inverse of `arrays_of`."""
    both, depths = (torch.from_numpy(arrays[name]).float()[None] for name in ("both", "depths"))
    return ReadWindows(both, depths, arrays["depth_mm"], arrays["there"].astype(bool))


def arrays_of(windows: ReadWindows) -> dict[str, np.ndarray]:
    """What a cache keeps of one scan: `both` (U, V, W, 2 E), `depths` (U, V, W, P, E), `depth_mm` and `there`
    (W · P,)."""
    return {
        "both": windows.both[0].numpy(), "depths": windows.depths[0].numpy(),
        "depth_mm": windows.depth_mm, "there": windows.there.astype(np.uint8),
    }  # fmt: skip
