"""The localisation suite: do maps that were learnt from scan labels lie where people outlined lesions?

EXACT §2.2: organ-masked maps of a data set's findings are joined and compared with the union of its masks;
where a finding means what a mask outlines, it is compared alone too. Everything is on the scan's own grid,
through affines; the published grid of 64 x 128 x 128 is a choice. How a map becomes a mask is chosen on
validation scans, never on those that are measured.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np

from hilum.cohort.judge import open_record
from hilum.cohort.masks import read_mask
from hilum.cohort.records import ScanRecord
from hilum.errors import ContainerError, InputRefused
from hilum.exam.levels import levels_of
from hilum.exam.localize_cohorts import masks_of, protocol_of
from hilum.exam.localize_cuts import Curve, curve_of
from hilum.exam.localize_maps import Join, MapSource, nearest, on_grid, published_grid
from hilum.geometry import Geometry
from hilum.types import MaskVolume, ProbabilityMap
from hilum.volume import CTVolume

UNION = "union"
Grid = Literal["scan", "published"]


@dataclass(frozen=True)
class Comparing:
    """How maps and masks are laid over each other.

    Args:
        join: of a target's maps. grid: ``scan``: the scan's own; ``published``: EXACT's squashed one.
    """

    join: Join = "sum"
    grid: Grid = "scan"


@dataclass(frozen=True, eq=False)
class MapScore:
    """One target of one scan.

    Args:
        truth_ml: volume outlined; 0 for none. curve: Dice at every cut. aupr: average precision of the
            continuous map, NaN without truth. peak_mm: from the map's highest voxel to the nearest outlined
            one, 0 inside; inf for a map without a peak, NaN without truth.
    """

    truth_ml: float
    curve: Curve
    aupr: float
    peak_mm: float


@dataclass(frozen=True)
class ScanScore:
    """All targets of one scan.

    Args:
        key, patient: of the scan. targets: name (`UNION` first) -> score.
    """

    key: str
    patient: str
    targets: dict[str, MapScore]


@dataclass(frozen=True)
class Refused:
    """A scan that could not be compared: its key and a code."""

    key: str
    code: str


def score_scans(
    records: Iterable[ScanRecord],
    root: str,
    source: str,
    maps: MapSource,
    how: Comparing | None = None,
    step: Callable[[int], None] = lambda steps: None,
) -> Iterator[ScanScore | Refused]:
    """Every scan with outlined lesions, one after the other.

    Args:
        records: of a data set. root: its folder. source: name of its adapter. maps: where they come from.
        how: they are compared. step: called with 1 after each scan.
    """
    for record in records:
        try:
            if record.broken:
                raise ContainerError("SCAN_KNOWN_BROKEN", "a scan is whole", got=record.broken)
            volume = open_record(record, root)
            truths = read_truths(source, record, root, volume)
            yield score_scan(record, volume, truths, source, maps, how or Comparing())
        except InputRefused as error:
            yield Refused(record.key, error.code)
        step(1)


def examined(source: str, record: ScanRecord) -> bool:
    """Whether a record can be compared: it has a mask of a lesion, or none by truth."""
    return protocol_of(source).empties or any(True for _ in masks_of(source, record))


def read_truths(source: str, record: ScanRecord, root: str, volume: CTVolume) -> dict[str, MaskVolume]:
    """Target -> mask on `volume.geometry`, the union first; targets that nobody outlined are left out."""
    truths = {UNION: np.zeros(volume.shape, dtype=bool)}
    for mask, target, joins in masks_of(source, record):
        found = read_mask(mask, record, root, volume)
        if joins:
            truths[UNION] |= found
        if target:
            truths[target] = truths[target] | found if target in truths else found
    return truths


def score_scan(
    record: ScanRecord,
    volume: CTVolume,
    truths: dict[str, MaskVolume],
    source: str,
    maps: MapSource,
    how: Comparing,
) -> ScanScore:
    """One scan; its targets' masks are those of `read_truths`."""
    protocol = protocol_of(source)
    found = maps(record, volume)
    grid = volume.geometry if how.grid == "scan" else published_grid(volume.geometry)
    empty = np.zeros(grid.shape, dtype=bool)
    targets = {}
    for name, slugs in {UNION: protocol.union, **protocol.alone}.items():
        truth = truths.get(name)
        if truth is None and not protocol.empties:
            continue
        at = empty if truth is None else truth if how.grid == "scan" else nearest(truth, grid.shape)
        heat = on_grid(found.joined(slugs, how.join), found.grid, grid)
        targets[name] = score_map(heat, at, grid)
    return ScanScore(record.key, record.patient, targets)


def score_map(heat: ProbabilityMap, truth: MaskVolume, grid: Geometry) -> MapScore:
    """One map against one mask on one grid.

    Args:
        heat: of 0 and more. truth: outlined. grid: of both.
    """
    levels = levels_of(heat, truth)
    return MapScore(
        levels.truth * grid.voxel_ml,
        curve_of(levels),
        levels.average_precision(),
        peak_distance_mm(heat, truth, grid),
    )


def peak_distance_mm(heat: ProbabilityMap, truth: MaskVolume, grid: Geometry) -> float:
    """From the highest voxel to the mask's nearest, 0 inside; inf for an empty map, NaN without truth."""
    if not truth.any():
        return float("nan")
    if not heat.max() > 0:
        return float("inf")
    peak = np.unravel_index(int(heat.argmax()), heat.shape)
    if truth[peak]:
        return 0.0
    away = grid.to_mm(np.argwhere(truth)) - grid.to_mm(np.array(peak))
    return float(np.linalg.norm(away, axis=1).min())
