"""How good a reading is on public scans, against masks that others made. None of them is used in training.

Dice of lungs and heart on the scan's own grid; for scans with a nodule, whether the nodule map's peak lies in
it, and how far away it is if not. The figures are printed whatever they are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hilum.geometry import Geometry
from hilum.io.fetch import Progress
from hilum.read.contract import Reader
from hilum.read.place import peak_voxel
from hilum.read.samples import SAMPLES, load_sample
from hilum.text.vocabulary import INDEX, ORGAN_CHANNELS
from hilum.types import MaskVolume, ProbabilityMap

ORGAN_TARGETS = ("lung", "heart")
NODULE = "lung_nodule"
ORGAN_THRESHOLD = 0.5
"""Probability from which a voxel belongs to an organ: the one that gates the maps."""

MapOf = Callable[[str], ProbabilityMap]
"""Name -> map on the scan's RAS+ grid."""


@dataclass(frozen=True)
class SampleScore:
    """One row: one target of one scan.

    Args:
        sample: slug.
        target: ``lung``, ``heart`` or ``lung_nodule``.
        truth: who made the mask.
        dice: 0..1, organs only.
        peak_inside: whether the nodule map's peak lies in the mask.
        peak_distance_mm: from the peak to the mask's nearest voxel centre, 0 inside. None for an organ, and
            when the map is empty; so is `peak_inside`.
        probability: scan probability of the finding.
    """

    sample: str
    target: str
    truth: str
    dice: float | None = None
    peak_inside: bool | None = None
    peak_distance_mm: float | None = None
    probability: float | None = None

    def as_dict(self) -> dict[str, object]:
        """For `--json` and the card."""
        return asdict(self)

    def sentence(self) -> str:
        """The row in words."""
        if self.dice is not None:
            return f"Dice {self.target} {self.dice:.3f}"
        if self.peak_distance_mm is None:
            return "the nodule map is empty: nothing was located"
        place = (
            "lies in the nodule" if self.peak_inside else f"is {self.peak_distance_mm:.0f} mm from the nodule"
        )
        sure = "" if self.probability is None else f" (probability {self.probability:.2f})"
        return f"the nodule map's peak {place}{sure}"


def examine_samples(
    model: Reader,
    slugs: Iterable[str] = tuple(SAMPLES),
    cache: Path | None = None,
    progress: Progress | None = None,
) -> list[SampleScore]:
    """Read each public scan with `model` and score it.

    Args:
        model: reads a scan. slugs: which samples, default all.
        cache: where they are kept. progress: of fetching.

    Raises:
        RunError, WeightsError: a sample cannot be fetched, see `hilum.io.fetch`.
    """
    rows: list[SampleScore] = []
    for slug in slugs:
        loaded = load_sample(slug, cache, progress)
        output = model.run(loaded.volume)
        rows += score_sample(
            slug,
            loaded.truth,
            loaded.volume.geometry,
            organ_of=_inverted(output.outlines, ORGAN_CHANNELS.index, output.outline_trace),
            map_of=_inverted(output.maps, INDEX.__getitem__, output.trace),
            probability=float(output.probabilities[INDEX[NODULE]]),
        )
    return rows


def as_text(scores: Iterable[SampleScore]) -> str:
    """The rows in words, one sample after the other."""
    lines: list[str] = []
    shown = ""
    for score in scores:
        if score.sample != shown:
            lines.append(SAMPLES[score.sample].title if score.sample in SAMPLES else score.sample)
            shown = score.sample
        lines.append(f"  {score.sentence()}   [against: {score.truth}]")
    return "\n".join(lines)


def score_sample(
    slug: str,
    truth: Mapping[str, MaskVolume],
    grid: Geometry,
    *,
    organ_of: MapOf,
    map_of: MapOf,
    probability: float | None = None,
    made_by: str | None = None,
) -> list[SampleScore]:
    """Rows of one scan.

    Args:
        slug: of the sample. truth: masks on `grid`, by name. grid: the scan's RAS+ grid.
        organ_of: organ channel -> probability on `grid`. map_of: finding -> map on `grid`.
        probability: scan probability of a nodule. made_by: of every mask; default: as the registry says.
    """
    by = _makers(slug)
    rows = []
    for name in [n for n in ORGAN_TARGETS if n in truth]:
        overlap = dice(organ_of(name) > ORGAN_THRESHOLD, truth[name])
        rows.append(SampleScore(slug, name, made_by or by.get(name, ""), dice=overlap))
    if NODULE in truth and truth[NODULE].any():
        distance_mm = peak_distance_mm(map_of(NODULE), truth[NODULE], grid)
        inside = None if distance_mm is None else distance_mm == 0.0
        maker = made_by or by.get(NODULE, "")
        rows.append(SampleScore(slug, NODULE, maker, None, inside, distance_mm, probability))
    return rows


def dice(mask: MaskVolume, truth: MaskVolume) -> float:
    """2 |A ∩ B| / (|A| + |B|) of two masks on one grid; 1 when both are empty."""
    total = int(mask.sum()) + int(truth.sum())
    return 1.0 if total == 0 else 2.0 * int((mask & truth).sum()) / total


def peak_distance_mm(heat: ProbabilityMap, truth: MaskVolume, grid: Geometry) -> float | None:
    """From the map's peak to the nearest voxel centre of `truth`, mm; 0 inside, None for an empty map."""
    if not float(heat.max()) > 0.0:
        return None
    peak = peak_voxel(heat)
    if truth[peak]:
        return 0.0
    nearest = grid.to_mm(np.argwhere(truth)) - grid.to_mm(np.array(peak))
    return float(np.linalg.norm(nearest, axis=1).min())


def _inverted(values: np.ndarray, index: Callable[[str], int], trace: Any) -> MapOf:
    return lambda name: trace.invert(np.ascontiguousarray(values[index(name)], dtype=np.float32))


def _makers(slug: str) -> dict[str, str]:
    if slug not in SAMPLES:
        return {}
    return {name: truth.made_by for truth in SAMPLES[slug].truths for name in truth.labels}
