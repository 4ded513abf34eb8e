"""One scan in, one `Reading` out: open, judge, run the model, place, narrate. Nothing is written here."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import numpy as np

from hilum.errors import RunError
from hilum.geometry import Geometry
from hilum.io.limits import Answers, Mode
from hilum.read.contract import Output, Pooling, Reader
from hilum.read.coverage import as_finding, judge, refuse_airless
from hilum.read.diagnose import DEFAULT_MAP_THRESHOLD, diagnose
from hilum.read.facts import receipt_of, scan_facts
from hilum.read.maps import finite, on_volume
from hilum.read.narrate import narrate
from hilum.read.organ_masks import OrganMasks
from hilum.read.organs_file import read_organs
from hilum.read.place import place
from hilum.read.reading import (
    NOTICE,
    NOTICE_OTHER,
    Coverage,
    FindingReading,
    GridMaps,
    Material,
    Model,
    OrganReading,
    Reading,
)
from hilum.read.sides import Frame, body_x_mm, frame_of
from hilum.text.vocabulary import GATES, INDEX, ORGAN_CHANNELS
from hilum.types import ProbabilityMap
from hilum.volume import CTVolume

Progress = Callable[[str], None]


def read(
    source: str | Path | CTVolume,
    *,
    model: str | Reader = "phantom-small",
    organs: str | Path | None = None,
    mode: Mode = "repair",
    answers: Answers | None = None,
    language: Literal["en", "de"] = "en",
    progress: Progress | None = None,
) -> Reading:
    """Read one chest CT.

    Args:
        source: DICOM folder or zip, NIfTI, NRRD, NPZ, or a volume already opened.
        model: name of a model that ships, or an object like `Reader`.
        organs: masks of the user's own (`read.organs_file`).
        mode, answers: how strictly the input is judged, and what the user answered (`io.limits`).
        language: of the report.
        progress: called with the name of each step as it starts.

    Raises:
        InputRefused: the input cannot be trusted, or shows no chest (`COVERAGE`).
        RunError: the model's output is not finite.
    """
    clock = _Clock(progress)
    with clock("open"):
        volume = source if isinstance(source, CTVolume) else _open(source, mode, answers or Answers())
        refuse_airless(volume)
    with clock("load model"):
        scan_model = _load(model) if isinstance(model, str) else model
    with clock("run model"):
        output = scan_model.run(volume)
    with clock("place"):
        masks, maps, probabilities = _gated(output, scan_model, volume, organs)
        coverage = judge(volume, masks)
        note = as_finding(coverage)
        volume = volume.with_findings(note) if note else volume
        frame = frame_of(masks, body_x_mm(volume))
        findings = _findings(probabilities, maps, masks.grid, scan_model, volume, frame)
    return _assemble(volume, scan_model, output, masks, maps, coverage, findings, language, mode, clock)


def _open(path: str | Path, mode: Mode, answers: Answers) -> CTVolume:
    from hilum.io.open import open_volume  # the decoders are heavy and not needed for a volume in memory

    return open_volume(path, mode=mode, answers=answers)


def _load(name: str) -> Reader:
    from hilum.read.scan_model import ScanModel  # torch loads only when a model does

    return ScanModel.load(name)


def _gated(
    output: Output, model: Reader, volume: CTVolume, organs: str | Path | None
) -> tuple[OrganMasks, np.ndarray, np.ndarray]:
    """Masks, maps confined to the field of view and to the masks, and scan probabilities.

    With masks of the user's own, a model that hands out its maps before its own gate (`ungated`) is gated and
    pooled again; any other keeps its own gate and its probabilities.
    """
    finite(output.organs, "the organ masks")
    if output.maps.shape != (len(INDEX), *output.grid.shape):
        got = output.maps.shape
        raise RunError("GRID_MISMATCH", "maps lie on the model's grid", expected=output.grid.shape, got=got)
    finite(output.maps, "the anomaly maps")
    # a prepared grid is padded beyond the scan; nothing may be found there
    field = volume.geometry.covers(output.grid)
    masks = OrganMasks.of_model(output.grid, output.organs * field)
    maps = np.clip(output.maps, 0.0, 1.0, dtype=np.float32)
    probabilities = np.asarray(output.probabilities, dtype=np.float64)
    if organs is not None:
        masks = read_organs(organs, volume, masks)
        open_maps = getattr(output, "ungated", None)
        for i, organs_of in enumerate(getattr(model, "gates", GATES)):
            channels = [ORGAN_CHANNELS[organ] for organ in organs_of]
            if any(masks.source[channel] != "model" for channel in channels):
                values = maps[i] if open_maps is None else finite(open_maps[i], "the anomaly maps")
                maps[i] = values * np.logical_or.reduce([masks.masks[channel] for channel in channels])
        if open_maps is not None and isinstance(model, Pooling):
            probabilities = np.asarray(model.calibrate(model.pool(maps, output.grid)), dtype=np.float64)
    maps *= field
    return masks, maps, probabilities


def _findings(
    probabilities: np.ndarray,
    maps: np.ndarray,
    grid: Geometry,
    model: Reader,
    volume: CTVolume,
    frame: Frame,
) -> list[FindingReading]:
    found = []
    for finding, probability, threshold, present in diagnose(probabilities, model.thresholds):
        map_threshold = float(model.map_thresholds.get(finding.slug, DEFAULT_MAP_THRESHOLD))
        heat = maps[INDEX[finding.slug]]
        # an empty map has no peak: present without a place is possible when a user's organ file removed its
        # organ
        spot = (
            place(heat, grid, map_threshold, volume, frame, finding.organ)
            if present and heat.max() > 0
            else None
        )
        found.append(
            FindingReading(
                slug=finding.slug,
                name=finding.name,
                probability=probability,
                threshold=threshold,
                map_threshold=round(map_threshold, 4),
                calibrated=bool(model.calibrated),
                present=present,
                organ=finding.organ,
                volume_ml=None if spot is None else spot.volume_ml,
                where=None if spot is None else spot.where,
            )
        )
    return found


def _assemble(
    volume: CTVolume,
    model: Reader,
    output: Output,
    masks: OrganMasks,
    maps: np.ndarray,
    coverage: Coverage,
    findings: list[FindingReading],
    language: Literal["en", "de"],
    mode: str,
    clock: _Clock,
) -> Reading:
    synthetic = "phantom" in model.trained_on.lower() or "synthetic" in model.trained_on.lower()
    notice = NOTICE if synthetic else NOTICE_OTHER
    organs = _organs(masks, output, volume)
    described = Model(
        name=model.name,
        sha256=model.sha256,
        trained_on=model.trained_on,
        synthetic=synthetic,
        calibrated=bool(model.calibrated),
    )
    reading = Reading(
        notice=notice,
        scan=scan_facts(volume),
        model=described,
        findings=findings,
        organs=organs,
        coverage=coverage,
        report=narrate(findings, organs, coverage, notice, language),
        receipt=receipt_of(volume, model, output, masks, mode, notice),
    )
    return reading.with_material(_material(volume, output, masks, maps, clock.seconds))


def _material(
    volume: CTVolume, output: Output, masks: OrganMasks, maps: np.ndarray, seconds: dict[str, float]
) -> Material:
    def map_of(slug: str) -> ProbabilityMap:
        return on_volume(maps[INDEX[slug]], output.trace, volume, f"the map of {slug}")

    def organ_of(name: str) -> ProbabilityMap:
        index = ORGAN_CHANNELS.index(name)
        what = f"the mask of {name}"
        if masks.source[name] == "model":
            values = np.ascontiguousarray(output.outlines[index], dtype=np.float32)
            return on_volume(values, output.outline_trace, volume, what)
        return on_volume(masks.masks[name].astype(np.float32), output.trace, volume, what)

    return Material(volume, map_of, organ_of, seconds, _on_grid(output))


def _on_grid(output: Output) -> GridMaps | None:
    pooled = getattr(output, "pooled", None)
    if pooled is None:
        return None
    low, shown = getattr(output, "coarse", None), getattr(output, "shown", None)
    return GridMaps(output.grid, output.maps, np.asarray(pooled), low, shown)


def _organs(masks: OrganMasks, output: Output, volume: CTVolume) -> list[OrganReading]:
    grid = output.outline_trace.grid
    field = volume.geometry.covers(grid)

    def volume_ml(index: int, name: str) -> float:
        if masks.source[name] != "model":
            return masks.volume_ml(name)
        return float(np.count_nonzero((output.outlines[index] > 0.5) & field)) * float(grid.voxel_ml)

    return [
        OrganReading(
            name=name,
            label=None if name == "global" else i + 1,
            volume_ml=round(volume_ml(i, name), 1),
            source=masks.source[name],
        )
        for i, name in enumerate(ORGAN_CHANNELS)
    ]


class _Clock:
    """Seconds of each step; tells `progress` as a step starts."""

    def __init__(self, progress: Progress | None) -> None:
        self.seconds: dict[str, float] = {}
        self._progress = progress

    @contextmanager
    def __call__(self, step: str) -> Iterator[None]:
        if self._progress is not None:
            self._progress(step)
        start = time.perf_counter()
        yield
        self.seconds[step] = round(time.perf_counter() - start, 3)
