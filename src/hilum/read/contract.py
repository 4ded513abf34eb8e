"""What a scan model must offer to be read with; `hilum.read.scan_model.ScanModel` is one."""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

import numpy as np

from hilum.geometry import Geometry
from hilum.volume import CTVolume


@runtime_checkable
class Output(Protocol):
    """What a scan model returns, on its own grid; `outlines` are the organs as finely as it knows them."""

    grid: Geometry
    organs: np.ndarray
    maps: np.ndarray
    probabilities: np.ndarray
    trace: Any
    outlines: np.ndarray
    outline_trace: Any


@runtime_checkable
class Reader(Protocol):
    """A model that reads one scan; `hilum.read.scan_model.ScanModel` is one."""

    @property
    def name(self) -> str:
        """Of the model."""
        ...

    @property
    def sha256(self) -> str:
        """Of its weights."""
        ...

    @property
    def trained_on(self) -> str:
        """One sentence."""
        ...

    @property
    def calibrated(self) -> bool:
        """Whether probabilities are frequencies on validation data."""
        ...

    @property
    def thresholds(self) -> dict[str, float]:
        """Slug -> scan probability from which it is present."""
        ...

    @property
    def map_thresholds(self) -> dict[str, float]:
        """Slug -> voxel probability."""
        ...

    def run(self, volume: CTVolume) -> Any:
        """Organs, maps and probabilities of a volume."""
        ...


@runtime_checkable
class Pooling(Protocol):
    """A reader whose scan probabilities can be computed again from maps."""

    def pool(self, maps: Any, grid: Geometry | None = None) -> np.ndarray:
        """Gated maps [18, U, V, W] on `grid` -> uncalibrated probabilities [18]."""
        ...

    def calibrate(self, pooled: Any) -> np.ndarray:
        """Uncalibrated -> calibrated probabilities."""
        ...
