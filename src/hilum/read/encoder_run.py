"""A scan through a backbone: windows or slices in batches, and what they say, put together where it lies."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Literal, TypeVar

import numpy as np
import torch

from hilum.cohort.pipeline import PipelineTrace, letters_axis
from hilum.errors import UsageError
from hilum.geometry import AxisMap, Geometry
from hilum.model.encoder import Encoder, unit
from hilum.model.vit import ViTOutput
from hilum.read.encoder_windows import Windows, box, middle, padding
from hilum.read.features import SliceFeatures, VolumeFeatures
from hilum.read.maps import finite
from hilum.tensors import ScanBatch
from hilum.types import EmbeddingVector

Precision = Literal["fp32", "bf16"]
Progress = Callable[[int, int], None]
"""Called with windows or slices done, and all."""

ItemT = TypeVar("ItemT")


@dataclass(frozen=True)
class Runner:
    """Where and how exactly an encoder runs.

    Args:
        encoder: in evaluation mode, on `device`. precision: of matrix products.
    """

    encoder: Encoder
    device: torch.device
    precision: Precision = "fp32"

    def autocast(self) -> AbstractContextManager:
        """Around every call of a module."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16")

    @torch.inference_mode()
    def volume(
        self,
        prepared: ScanBatch,
        trace: PipelineTrace,
        windows: Windows,
        sizes: tuple[int, ...],
        batch: int = 1,
        progress: Progress | None = None,
    ) -> VolumeFeatures:
        """Features of a prepared scan, put together from `windows`, `batch` of them at once.

        Args:
            sizes: voxels of a patch, as the model sees it.

        Raises:
            UsageError: `CONFIG_VALUE` for a batch of none. RunError: `OUTPUT_NONFINITE`.
        """
        scan = prepared[0, 0]
        fill, width = padding(trace, scan), self.encoder.vision.config.width
        cls, total = torch.zeros(width), torch.zeros(*windows.grid, width)
        times, embeddings, done = torch.zeros(*windows.grid, 1), [], 0
        shown = zip(trace.grid.spacing_mm, windows.patch, sizes, strict=True)
        spacing_mm = [mm * covers / size for mm, covers, size in shown]
        for some in in_batches(list(windows), batch):
            out = self._vision([windows.show(scan, at, fill, sizes) for at in some], sizes, spacing_mm)
            if self.encoder.projection is not None:
                embeddings.append(self.encoder.project(out).cpu())
            cls += out.cls.cpu().sum(0)
            for at, found in zip(some, out.patches.cpu(), strict=True):
                total[windows.patches(at)] += found.unflatten(0, out.grid)
                times[windows.patches(at)] += 1
            done += len(some)
            if progress is not None:
                progress(done, len(windows))
        patches = (total / times).flatten(0, 2)
        return VolumeFeatures(
            finite((cls / len(windows)).numpy(), "CLS"),
            finite(patches.numpy(), "the patches"),
            _embedding(embeddings) if self.encoder.pooled is None else self._pooled(patches),
            windows.geometry(trace.grid),
            windows,
            trace,
        )

    @torch.inference_mode()
    def slices(
        self,
        prepared: ScanBatch,
        trace: PipelineTrace,
        sizes: tuple[int, ...],
        choose: Callable[[np.ndarray, int], list[int]],
        batch: int = 8,
        progress: Progress | None = None,
    ) -> SliceFeatures:
        """Features of axial slices of a prepared scan, each alone.

        Args:
            sizes: voxels of a patch. choose: numbers of slices, out of those that the scan has (padding has
                more) and of how many there are.

        Raises:
            As of `volume`.
        """
        axis = letters_axis(trace.pipeline.axes, "S")
        a, b = (other for other in range(3) if other != axis)
        stack = prepared[0, 0].permute(axis, a, b)
        grid = AxisMap((a, b, axis), (False, False, False), trace.grid.shape).geometry(trace.grid)
        there = np.flatnonzero(trace.source.covers(grid).any((0, 1)))
        chosen = choose(there, len(stack))
        flat = middle((stack.shape[1], stack.shape[2]), (0, 0), sizes)
        cls, patches, done = [], [], 0
        for some in in_batches(chosen, batch):
            shown = [box(stack[k], flat.start, flat.size, padding(trace, stack[k])) for k in some]
            out = self._vision(shown, sizes, grid.spacing_mm[:2])
            cls.append(out.cls.cpu())
            patches.append(out.patches.cpu())
            done += len(some)
            if progress is not None:
                progress(done, len(chosen))
        places = flat.stacked(len(stack)).geometry(grid)
        return SliceFeatures(
            finite(torch.cat(cls).numpy(), "CLS"),
            finite(torch.cat(patches).numpy(), "the patches"),
            (flat.grid[0], flat.grid[1]),
            np.array(chosen, dtype=np.int64),
            _heights(places, chosen),
            places,
        )

    def _pooled(self, patches: torch.Tensor) -> EmbeddingVector:
        """Of all patches (N, W) together, as the public code pools windows of a large scan: not a mean."""
        pool = self.encoder.pooled
        assert pool is not None, "asked before"
        with self.autocast():
            found = unit(pool(patches[None].to(self.device)).float())
        return finite(found[0].cpu().numpy(), "the embedding")

    def _vision(
        self, pictures: Sequence[torch.Tensor], sizes: tuple[int, ...], spacing_mm: Sequence[float]
    ) -> ViTOutput:
        """Tokens in float32, on the encoder's device."""
        batch = torch.stack(list(pictures))[:, None].to(self.device)
        with self.autocast():
            out = self.encoder.vision(batch, patch=sizes, spacing_mm=spacing_mm)
        return ViTOutput(out.cls.float(), out.registers, out.patches.float(), out.grid)


def _embedding(projected: list[torch.Tensor]) -> EmbeddingVector | None:
    """The mean over windows, then length 1: the projection is linear, so this is that of mean tokens."""
    if not projected:
        return None
    return finite(unit(torch.cat(projected).mean(0, keepdim=True))[0].numpy(), "the embedding")


def _heights(places: Geometry, chosen: Sequence[int]) -> np.ndarray:
    """Of the centres of slices, mm RAS+."""
    a, b = ((n - 1) / 2 for n in places.shape[:2])
    return places.to_mm(np.array([(a, b, k) for k in chosen]))[:, 2]


def in_batches(items: Sequence[ItemT], size: int) -> list[Sequence[ItemT]]:
    """Some items at a time.

    Raises:
        UsageError: `CONFIG_VALUE` for a batch of none.
    """
    if size < 1:
        raise UsageError("CONFIG_VALUE", "a batch holds something", expected=">= 1", got=size)
    return [items[start : start + size] for start in range(0, len(items), size)]
