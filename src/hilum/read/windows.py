"""Windows of a scan by a window encoder, as published: they do not overlap and go through it one by one
(RadFinder §1.2). What is ours are depths of 6 or 3 mm by thinner patches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from hilum.errors import UsageError
from hilum.model.patch import patch_sizes
from hilum.read.encoder import LoadedEncoder
from hilum.read.encoder_run import Progress, in_batches
from hilum.read.encoder_windows import cover, padding, uncropped
from hilum.read.reader_windows import ReaderWindows, ReadWindows, WindowSource, heights, thickness
from hilum.volume import CTVolume


@dataclass(frozen=True)
class EncoderWindows:
    """Windows by a window encoder.

    Args:
        model: of volumes, with a window that it sees at once. batch: windows at once.
        progress: called after each batch.
    """

    model: LoadedEncoder
    batch: int = 4
    progress: Progress | None = None

    @property
    def width(self) -> int:
        """That of the encoder's tokens."""
        return self.model.encoder.vision.config.width

    def facts(self) -> dict[str, Any]:
        """See `WindowSource`."""
        told = {"model": self.model.card["sha256"], "prep": self.model.prep.facts()}
        return told | {"window_vox": list(self.model.field), "patch": self.model.config.patch}

    @torch.inference_mode()
    def read(self, volume: CTVolume, depth_mm: float | None = None) -> ReadWindows:
        """See `WindowSource`; None takes the patch of the model's config.

        Raises:
            UsageError: `CONFIG_VALUE` for depths that do not divide a window, a model without a window, or a
                batch of none.
        """
        tensor, trace = uncropped(self.model.prep).apply(volume)
        sizes = self._sizes(trace.grid.spacing_mm[2], depth_mm)
        windows = cover(trace.grid.shape, self.model.field, sizes, overlap=0.0)
        fill, done, parts = padding(trace, tensor[0, 0]), 0, []
        for some in in_batches(list(windows), self.batch):
            shown = torch.stack([windows.show(tensor[0, 0], at, fill, sizes) for at in some])[:, None]
            with self.model.runner.autocast():
                read = self.model.encoder.read_windows(shown.to(self.model.runner.device), sizes)
            parts.append((read.both.float(), read.depths.float()))
            done += len(some)
            if self.progress is not None:
                self.progress(done, len(windows))
        both, depths = (torch.cat(part) for part in zip(*parts, strict=True))
        grid = (1, *(len(axis) for axis in windows.starts))
        centres = windows.geometry(trace.grid)
        where = heights(centres, range(centres.shape[2]), volume.geometry)
        return ReadWindows(both.unflatten(0, grid), depths.unflatten(0, grid), *where)

    def read_all(self, volume: CTVolume, depths_mm: Sequence[float]) -> list[ReadWindows]:
        """See `WindowSource`; another thickness is another pass."""
        return [self.read(volume, depth_mm) for depth_mm in depths_mm]

    def _sizes(self, spacing_mm: float, depth_mm: float | None) -> tuple[int, ...]:
        """Voxels of a patch; along Z as thick as was asked for."""
        own, window = patch_sizes(self.model.config.patch, 3), self.model.field
        if min(window) < 1:
            raise UsageError("CONFIG_VALUE", "a window has a size", expected="field_vox", got="none")
        return own if depth_mm is None else (*own[:2], thickness(depth_mm, spacing_mm, window[2]))


def windows_of(model: LoadedEncoder, batch: int = 4, progress: Progress | None = None) -> WindowSource:
    """What reads the windows of a joint model: its backbone, or the model that it names."""
    if model.reader is None:
        return EncoderWindows(model, batch, progress)
    own = model.config.depth_mm
    return ReaderWindows(model.reader) if own is None else ReaderWindows(model.reader, own)
