"""Laws of places: whatever a map looks like, its place can be said, in both languages."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, Literal

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parents[1] / "unit"))
from _readings import coverage, finding

from hilum.geometry import Geometry
from hilum.read.found import Side
from hilum.read.narrate import narrate
from hilum.read.place import place
from hilum.read.reading import NOTICE, OrganReading
from hilum.read.sides import Frame
from hilum.text.vocabulary import FINDINGS, LOBES, ORGAN_CHANNELS
from hilum.volume import CTVolume, Provenance

GRID = Geometry((30, 8, 24), np.diag([10.0, 10.0, 10.0, 1.0]))
MIDDLE_MM = 145.0
LANGUAGES: Any = st.sampled_from(["en", "de"])


def scattered(rng: np.random.Generator, pieces: int) -> np.ndarray:
    """A map of boxes of random size, height and place."""
    heat = np.zeros(GRID.shape, np.float32)
    for _ in range(pieces):
        low = [int(rng.integers(0, n - 1)) for n in GRID.shape]
        size = rng.integers(1, 8, 3)
        box = tuple(slice(at, at + int(n)) for at, n in zip(low, size, strict=True))
        heat[box] = rng.uniform(0.2, 1.0)
    return heat


def frame_of(rng: np.random.Generator) -> Frame:
    """Two lungs beside the middle; lobes anywhere in half of all cases, as a foreign file may have them."""
    lobes = {name: rng.random(GRID.shape) < 0.05 for name in LOBES} if rng.random() < 0.5 else {}
    heights = {"right": (20.0, 200.0), "left": (30.0, 210.0)}
    return Frame(GRID, MIDDLE_MM, "lungs", heights, lobes)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 12), LANGUAGES)
def test_the_place_of_every_map_can_be_said(seed: int, pieces: int, language: Literal["en", "de"]) -> None:
    rng = np.random.default_rng(seed)
    volume = CTVolume.from_source(np.zeros(GRID.shape, np.float32), GRID, Provenance("phantom", "0" * 64))
    frame = frame_of(rng)
    found = []
    for known in FINDINGS:
        told = place(scattered(rng, pieces), GRID, 0.5, volume, frame, known.organ)
        found.append(
            finding(
                known.slug, present=True, probability=0.6, threshold=0.3, where=told.where,
                volume_ml=told.volume_ml,
            )
        )  # fmt: skip
    organs = [OrganReading(name=n, label=1, volume_ml=500.0, source="model") for n in ORGAN_CHANNELS]
    report = narrate(found, organs, coverage(False, False), NOTICE, language)
    assert {s.finding for s in report.of("findings")} >= {f.slug for f in FINDINGS}


def boxes(*spans: tuple[int, int, float]) -> np.ndarray:
    heat = np.zeros(GRID.shape, np.float32)
    for first, last, value in spans:
        heat[first:last, 2:5, 10:14] = value
    return heat


def side_of(heat: np.ndarray, lobes: dict[str, np.ndarray] | None = None) -> tuple[Side, str | None]:
    volume = CTVolume.from_source(np.zeros(GRID.shape, np.float32), GRID, Provenance("phantom", "0" * 64))
    heights = {"right": (20.0, 200.0), "left": (20.0, 200.0)}
    frame = Frame(GRID, MIDDLE_MM, "lungs", heights, lobes or {})
    where = place(heat, GRID, 0.5, volume, frame, "lung").where
    return where.side, where.lobe_estimate


def test_a_peak_in_one_lung_and_most_voxels_in_the_other_is_both() -> None:
    assert side_of(boxes((20, 21, 0.9), (2, 13, 0.6))) == ("both", "middle third of the right lung")


def test_one_piece_has_the_side_of_its_lobe() -> None:
    everywhere = np.ones(GRID.shape, bool)
    assert side_of(boxes((2, 5, 0.9))) == ("left", "middle third of the left lung")
    told = side_of(boxes((2, 5, 0.9)), {"right upper lobe": everywhere})
    assert told == ("right", "right upper lobe")
