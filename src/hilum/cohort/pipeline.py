"""Runs a `Pipeline`: HU on any grid -> the tensor a method wants, or what a store keeps, and the way back.

All grids share the directions of the scan's own axes (nearest RAS+): axes are permuted and flipped, never
rotated, so that every interpolation is separable. What will be cropped away is not resampled.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch

from hilum.cohort.clahe import clahe_slices, percentile_window
from hilum.cohort.prep import subgrid
from hilum.cohort.prep_presets import Pipeline
from hilum.cohort.resample import apply_axes, axis_weights, resample
from hilum.cohort.trilinear import Axis, trilinear
from hilum.errors import RunError, UsageError
from hilum.geometry import AxisMap, Geometry
from hilum.io.affine import axes_from_letters
from hilum.tensors import GridTensor, ScanBatch, VoxelTensor
from hilum.types import GridMap, ProbabilityMap, VolumeHU
from hilum.volume import CTVolume

MAX_VOXELS = 2**30
CLAHE_STEPS = 32640.0
"""Steps of int16 between 0 and 1: 128 for each of the 255 grey levels."""


@dataclass(frozen=True)
class PipelineTrace:
    """What was done, and the way back.

    Args:
        source: grid of the volume (nearest RAS+ axes). grid: of the prepared tensor, on the pipeline's axes.
        pipeline: the settings. slope, intercept: value = HU * slope + intercept (clahe: of 0..1).
        steps: one dict per step that was taken, in order.
    """

    source: Geometry
    grid: Geometry
    pipeline: Pipeline
    slope: float
    intercept: float
    steps: tuple[dict[str, Any], ...] = ()

    def invert(self, values: GridMap) -> ProbabilityMap:
        """A map on `grid` -> linear interpolation on `source`; 0 outside the prepared field."""
        if values.shape != self.grid.shape:
            raise RunError(
                "GRID_MISMATCH", "a map lies on its grid", expected=self.grid.shape, got=values.shape
            )
        axes = letters_map(self.pipeline.axes, self.source.shape)
        ras = np.ascontiguousarray(axes.undo(values), dtype=np.float32)
        order = [axes.order.index(a) for a in range(3)]
        back = AxisMap(
            (order[0], order[1], order[2]),
            (axes.flips[order[0]], axes.flips[order[1]], axes.flips[order[2]]),
            self.grid.shape,
        )
        tensor = torch.from_numpy(ras)
        return resample(tensor, back.geometry(self.grid), self.source, outside="zero").numpy()

    def as_dict(self) -> dict[str, Any]:
        """For receipts."""
        return {
            "prep": self.pipeline.facts(),
            "source_shape": list(self.source.shape),
            "source_spacing_mm": [round(s, 5) for s in self.source.spacing_mm],
            "grid_shape": list(self.grid.shape),
            "grid_affine_ras": np.round(self.grid.affine_ras, 4).tolist(),
            "slope": self.slope,
            "intercept": self.intercept,
            "steps": [dict(step) for step in self.steps],
        }


@runtime_checkable
class StoredTrace(Protocol):
    """What a store says of where its values lie and how they came there."""

    @property
    def grid(self) -> Geometry:
        """Of the values."""

    def as_dict(self) -> dict[str, Any]:
        """JSON types only; ``prep`` are the settings of the store."""


@dataclass(frozen=True)
class Stored:
    """What a store keeps of a scan: ``value = values * slope + intercept`` (zscore-slice: then per slice)."""

    values: np.ndarray
    slope: float
    intercept: float
    trace: StoredTrace


def letters_map(letters: str, shape: tuple[int, int, int]) -> AxisMap:
    """RAS+ axes of an array of `shape` -> axes that grow towards `letters`."""
    (a, sa), (b, sb), (c, sc) = axes_from_letters(letters)
    return AxisMap((a, b, c), (sa < 0, sb < 0, sc < 0), shape)


def apply(pipeline: Pipeline, volume: CTVolume) -> tuple[ScanBatch, PipelineTrace]:
    """See `Pipeline.apply`."""
    scan, trace = _prepared(pipeline, volume)
    values = scan.mul_(trace.slope).add_(trace.intercept)
    if pipeline.values == "zscore-slice":
        values = zscore_slices(values, letters_axis(pipeline.axes, "S"))
    return values[None, None], trace


def to_store(pipeline: Pipeline, volume: CTVolume) -> Stored:
    """The same, as the integers (or half floats) that a store keeps."""
    scan, trace = _prepared(pipeline, volume)
    if pipeline.dtype == "float16":
        values = (scan * trace.slope + trace.intercept).numpy().astype(np.float16)
        return Stored(values, 1.0, 0.0, trace)
    steps = CLAHE_STEPS if pipeline.values == "clahe" else 1.0
    limits = np.iinfo(np.int16)
    whole = (scan * steps).round().clamp(limits.min, limits.max).to(torch.int16).numpy()
    return Stored(whole, trace.slope / steps, trace.intercept, trace)


def zscore_slices(values: VoxelTensor, axis: int) -> VoxelTensor:
    """Each slice across `axis` by its own mean and deviation; a slice of one value is only centred."""
    across = [a for a in range(3) if a != axis]
    mean = values.mean(across, keepdim=True)
    std = values.std(across, correction=0, keepdim=True)
    return (values - mean) / torch.where(std > 0, std, torch.ones_like(std))


def letters_axis(letters: str, towards: str) -> int:
    """Which array axis runs head to foot (``S``), left to right (``R``) or back to front (``A``)."""
    pairs = {"S": "SI", "R": "RL", "A": "AP"}
    return next(i for i, letter in enumerate(letters) if letter in pairs[towards])


def _prepared(pipeline: Pipeline, volume: CTVolume) -> tuple[GridTensor, PipelineTrace]:
    """The scan on its final grid, HU (clahe: 0..1), before slope and intercept."""
    steps: list[dict[str, Any]] = []
    axes = letters_map(pipeline.axes, volume.shape)
    first = _grid_axes(pipeline, volume.geometry, axes)
    window = _crop_early(pipeline, first, axes)
    taken = first if window is None else window
    _check_size(taken)
    scan = _resampled(pipeline, volume.hu, taken)
    grid = _geometry(volume.geometry, taken)
    steps.append({"step": "orient", "axes": pipeline.axes})
    steps.append({"step": "resample", "spacing_mm": list(grid.spacing_mm), "smooth": pipeline.smooth})
    if pipeline.clip_hu is not None:
        steps.append({"step": "clip", "hu": list(pipeline.clip_hu), "before": pipeline.clip_first})
    if pipeline.values == "clahe":
        scan = _equalised(scan)
        steps.append({"step": "percentiles and CLAHE"})
    scan, grid = _second(pipeline, scan, grid, axes, steps)
    slope, intercept = _scale(pipeline, scan)
    steps.append({"step": "scale", "values": pipeline.values, "slope": slope, "intercept": intercept})
    axes = letters_map(pipeline.axes, grid.shape)
    scan, grid = torch.from_numpy(np.ascontiguousarray(axes.apply(scan.numpy()))), axes.geometry(grid)
    scan, grid = _fitted(pipeline, scan, grid)
    steps.append({"step": "crop or pad", "fit": pipeline.fit, "shape": list(grid.shape)})
    return scan, PipelineTrace(volume.geometry, grid, pipeline, slope, intercept, tuple(steps))


def grid_of(pipeline: Pipeline, source: Geometry) -> Geometry:
    """The grid that a scan on `source` (RAS+ axes) is prepared to; no preset asks the values for it."""
    axes = letters_map(pipeline.axes, source.shape)
    grid = _geometry(source, _grid_axes(pipeline, source, axes))
    second = _second_axes(pipeline, grid, axes)
    if second is not None:
        grid = _geometry(grid, second)
    grid = letters_map(pipeline.axes, grid.shape).geometry(grid)
    spans = _fit_spans(pipeline, grid.shape)
    return subgrid(grid, np.array([low for low, _ in spans]), np.ones(3), np.array([n for _, n in spans]))


def _grid_axes(pipeline: Pipeline, source: Geometry, axes: AxisMap) -> tuple[Axis, Axis, Axis]:
    """The first grid, per RAS axis."""
    found = []
    for ras, (n_in, spacing) in enumerate(zip(source.shape, source.spacing_mm, strict=True)):
        at = axes.order.index(ras)
        target = spacing if pipeline.spacing_mm is None else pipeline.spacing_mm[at]
        found.append(axis_between(n_in, spacing, target, pipeline.anchor, axes.flips[at]))
    return found[0], found[1], found[2]


def axis_between(n_in: int, spacing_mm: float, target_mm: float, anchor: str, flipped: bool) -> Axis:
    """`n_in` voxels of `spacing_mm` -> voxels of `target_mm`, placed by `anchor` (see `Pipeline`).

    Args:
        flipped: the output runs the other way, so that its first voxel is the last one here.
    """
    ratio, step = n_in * spacing_mm / target_mm, target_mm / spacing_mm
    if anchor == "extent":
        # a hair above a whole number is that number
        n = max(1, int(ratio + 1e-6))
        step = n_in / n
        return Axis((step - 1) / 2, step, n)
    if anchor == "centre":
        n = max(1, int(ratio + 1e-6))
        return Axis(((n_in - 1) - (n - 1) * step) / 2, step, n)
    n = round((n_in - 1) / step + 1)
    return Axis((n_in - 1) - (n - 1) * step if flipped else 0.0, step, n)


def _fit_spans(pipeline: Pipeline, shape: tuple[int, int, int]) -> list[tuple[int, int]]:
    """First voxel (negative: padding) and size of the final grid along each output axis."""
    spans = []
    for n, wanted in zip(shape, pipeline.fit_vox, strict=True):
        size = n
        if pipeline.fit == "shape" and wanted:
            size = wanted
        elif pipeline.fit == "at-least":
            size = max(n, wanted)
        elif pipeline.fit == "pad-multiple":
            size = -(-n // wanted) * wanted
        elif pipeline.fit == "crop-multiple":
            size = max(1, n // wanted) * wanted
        # floor of a negative number is further from zero: that is the odd voxel's side
        low = (n - size) // 2 if (size <= n) == (pipeline.odd == "last") else -((size - n) // 2)
        spans.append((low, size))
    return spans


def _crop_early(
    pipeline: Pipeline, first: tuple[Axis, Axis, Axis], axes: AxisMap
) -> tuple[Axis, Axis, Axis] | None:
    """The part of the first grid that survives the crop; None where the whole scan decides about values."""
    whole = pipeline.values in ("zscore-scan", "clahe") or pipeline.pad == "min"
    if whole or pipeline.squash_vox or pipeline.coarser_mm:
        return None
    shape = tuple(first[axes.order[i]].n for i in range(3))
    cut = list(first)
    for i, (low, size) in enumerate(_fit_spans(pipeline, (shape[0], shape[1], shape[2]))):
        if size < shape[i]:
            ras = axes.order[i]
            from_low = shape[i] - low - size if axes.flips[i] else low
            cut[ras] = first[ras].cut(from_low, size)
    return cut[0], cut[1], cut[2]


def _check_size(axes: tuple[Axis, Axis, Axis]) -> None:
    shape = tuple(axis.n for axis in axes)
    if shape[0] * shape[1] * shape[2] > MAX_VOXELS:
        raise UsageError(
            "MEMORY_PLAN", "a prepared scan fits the memory plan", expected=f"<= {MAX_VOXELS}", got=shape
        )


def _resampled(pipeline: Pipeline, hu: VolumeHU, axes: tuple[Axis, Axis, Axis]) -> GridTensor:
    before = pipeline.clip_hu if pipeline.clip_first else None
    after = None if pipeline.clip_first else pipeline.clip_hu
    if not pipeline.smooth:
        return trilinear(hu, axes, clip_before=before, clip_after=after)
    clipped = hu.copy() if before is None else hu.clip(np.float32(before[0]), np.float32(before[1]))
    out = _smoothed(torch.from_numpy(clipped), axes)
    return out if after is None else out.clamp_(*after)


def _smoothed(scan: VoxelTensor, axes: tuple[Axis, Axis, Axis]) -> GridTensor:
    weights = [axis_weights(n, a.start, a.step, a.n) for n, a in zip(scan.shape, axes, strict=True)]
    return apply_axes(scan, (weights[0], weights[1], weights[2]))


def _geometry(source: Geometry, axes: tuple[Axis, Axis, Axis]) -> Geometry:
    start, step, n = (np.array([getattr(axis, k) for axis in axes]) for k in ("start", "step", "n"))
    return subgrid(source, start, step, n)


def _equalised(scan: GridTensor) -> GridTensor:
    """RAS axes, HU -> 0..1; CLAHE on axial slices."""
    grey = percentile_window(scan.numpy())
    equal = clahe_slices(np.ascontiguousarray(np.moveaxis(grey, 2, 0)))
    return torch.from_numpy(np.ascontiguousarray(np.moveaxis(equal, 0, 2))).float() / 255.0


def _second(
    pipeline: Pipeline, scan: VoxelTensor, grid: Geometry, axes: AxisMap, steps: list[dict[str, Any]]
) -> tuple[GridTensor, Geometry]:
    """The squash, or the coarser grid, where the preset has one."""
    taken = _second_axes(pipeline, grid, axes)
    if taken is None:
        return scan, grid
    out = _smoothed(scan, taken) if pipeline.coarser_mm is not None else trilinear(scan.numpy(), taken)
    smaller = _geometry(grid, taken)
    steps.append({"step": "resample", "spacing_mm": list(smaller.spacing_mm)})
    return out, smaller


def _second_axes(pipeline: Pipeline, grid: Geometry, axes: AxisMap) -> tuple[Axis, Axis, Axis] | None:
    """The second grid in voxels of the first, per RAS axis; None where there is none."""
    found = []
    for ras, (n_in, spacing) in enumerate(zip(grid.shape, grid.spacing_mm, strict=True)):
        at = axes.order.index(ras)
        if pipeline.squash_vox is not None:
            n = pipeline.squash_vox[at]
            found.append(Axis((n_in / n - 1) / 2, n_in / n, n))
        elif pipeline.coarser_mm is not None:
            found.append(axis_between(n_in, spacing, pipeline.coarser_mm[at], "centre", False))
    return (found[0], found[1], found[2]) if found else None


def _scale(pipeline: Pipeline, scan: GridTensor) -> tuple[float, float]:
    """Slope and intercept from HU to the tensor's values."""
    if pipeline.values == "thousandth":
        return 1e-3, 0.0
    if pipeline.values == "unit" and pipeline.clip_hu is not None:
        low, high = pipeline.clip_hu
        return 1 / (high - low), -low / (high - low)
    if pipeline.values == "zscore-scan":
        mean = float(scan.mean(dtype=torch.float64))
        std = float(scan.double().std(correction=0)) or 1.0
        return 1 / std, -mean / std
    return 1.0, 0.0


def _fitted(pipeline: Pipeline, scan: VoxelTensor, grid: Geometry) -> tuple[GridTensor, Geometry]:
    """Crops and pads about the centre; a crop that was made early is found done."""
    spans = _fit_spans(pipeline, grid.shape)
    start, size = np.array([low for low, _ in spans]), np.array([n for _, n in spans])
    if not start.any() and tuple(size) == grid.shape:
        return scan, grid
    low_hu = 0.0 if pipeline.values == "clahe" or pipeline.clip_hu is None else pipeline.clip_hu[0]
    fill = float(scan.min()) if pipeline.pad == "min" else low_hu
    out = torch.full(tuple(int(n) for n in size), fill, dtype=scan.dtype)
    into, taken = [], []
    for low, n, n_in in zip(start.tolist(), size.tolist(), grid.shape, strict=True):
        into.append(slice(max(0, -low), min(n, n_in - low)))
        taken.append(slice(max(0, low), min(n_in, low + n)))
    out[tuple(into)] = scan[tuple(taken)]
    return out, subgrid(grid, start, np.ones(3), size)
