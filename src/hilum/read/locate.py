"""Sentences about a scan -> places that a person can go to: mm, slice, series and image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hilum.errors import InputRefused, UsageError
from hilum.io.limits import Answers, Mode
from hilum.io.open import open_volume
from hilum.io.table import read_table
from hilum.read.encoder import load
from hilum.read.found import ImageRef
from hilum.read.joint import Located, locate, not_joint, put_in_space
from hilum.read.place import image_at, nearest_voxel, slice_axis_of
from hilum.volume import CTVolume

MOST_SENTENCES = 10_000


@dataclass(frozen=True)
class Answer:
    """Where a sentence belongs.

    Args:
        z_mm: height, the same number in RAS and LPS. spread_mm: standard deviation of the curve.
        slice_index: of the input's own slices, 0-based, of `slices`. image: for DICOM.
        share: of each depth, sums to 1.
    """

    sentence: str
    z_mm: float
    spread_mm: float
    slice_index: int
    slices: int
    image: ImageRef | None
    share: tuple[float, ...]

    def as_dict(self) -> dict[str, Any]:
        """For `--json`."""
        image = None if self.image is None else self.image.model_dump()
        return {**vars(self), "image": image, "share": [round(s, 5) for s in self.share]}


@dataclass(frozen=True)
class LocatedAll:
    """Every answer about one scan.

    Args:
        depth_mm: heights of the depths, from below upwards. model: name and sha256 of it.
        volume: the scan, for pictures.
    """

    answers: tuple[Answer, ...]
    depth_mm: tuple[float, ...]
    model: dict[str, str]
    volume: CTVolume

    @property
    def depth_step_mm(self) -> float:
        """From one depth to the next."""
        return round(float(np.diff(self.depth_mm).mean()), 3) if len(self.depth_mm) > 1 else 0.0

    def as_dict(self) -> dict[str, Any]:
        """For `--json`."""
        depth_mm = [round(z, 3) for z in self.depth_mm]
        return {"model": self.model, "depth_mm": depth_mm, "answers": [a.as_dict() for a in self.answers]}


def sentences_of(given: Sequence[str], table: Path | None) -> list[str]:
    """Those of the command line and of a table.

    Raises:
        UsageError: `OPTION_UNKNOWN` without any, or with too many. InputRefused: `TEXT_ENCODING`; others as
            of `read_table`.
    """
    asked = [*given, *(_column(table) if table is not None else [])]
    asked = [text.strip() for text in asked]
    if not asked or not all(asked) or len(asked) > MOST_SENTENCES:
        raise UsageError(
            "OPTION_UNKNOWN",
            "there is something to locate",
            expected=f"1 to {MOST_SENTENCES} sentences, none empty",
            got=f"{len(asked)}, {sum(not text for text in asked)} empty",
        )
    return asked


def locate_in(
    path: str | Path,
    sentences: Sequence[str],
    model: str | Path,
    *,
    depth_mm: float | None = None,
    mode: Mode = "repair",
    answers: Answers = Answers(),  # noqa: B008  frozen
) -> LocatedAll:
    """The whole way, from a path.

    Raises:
        InputRefused: the input cannot be trusted. WeightsError: the model cannot. UsageError: `MODEL_INPUT`
            for a model of another kind; others as of `joint.put_in_space`.
    """
    loaded = load(model)
    if loaded.encoder.joint is None:
        # before a scan is read for nothing
        raise not_joint(loaded)
    volume = open_volume(path, mode=mode, answers=answers)
    scan = put_in_space(loaded, volume, depth_mm=depth_mm)
    found = locate(loaded, scan, sentences)
    told = [answer_of(text, one, volume) for text, one in zip(sentences, found, strict=True)]
    named = {"name": str(loaded.card["name"]), "sha256": str(loaded.card.get("sha256", ""))}
    return LocatedAll(tuple(told), tuple(map(float, scan.depth_mm)), named, volume)


def answer_of(text: str, found: Located, volume: CTVolume) -> Answer:
    """An answer as a place to go to."""
    grid = volume.geometry
    point = grid.to_mm((np.array(grid.shape) - 1)[None] / 2)[0]
    point[2] = found.z_mm
    axis = slice_axis_of(volume)
    return Answer(
        text,
        round(found.z_mm, 2) + 0.0,
        round(found.spread_mm, 2),
        nearest_voxel(volume.source, point)[axis],
        volume.source.shape[axis],
        image_at(volume, point),
        tuple(map(float, found.share)),
    )


def _column(table: Path) -> list[str]:
    asked = [row["sentence"] for row in read_table(table, ["sentence"])]
    if broken := [text for text in asked if "\ufffd" in text]:
        raise InputRefused("TEXT_ENCODING", "a table is UTF-8", got=f"{len(broken)} others", path=table)
    return asked
