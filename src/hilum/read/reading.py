"""`Reading`: what Hilum says about one scan. Its JSON is `reading.json`, version 1.2, schema in
`docs/reading.schema.json`.

Points are mm, RAS+ unless a name says LPS. No field holds a patient's name, number, date or a path of the
input.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field, PrivateAttr, model_validator

from hilum.geometry import Geometry
from hilum.read.asked import AskedInWords
from hilum.read.found import FindingReading, Probability, Record, SliceAxis
from hilum.read.sentences import Report, evidence_of
from hilum.types import ProbabilityMap
from hilum.volume import CTVolume

VERSION = "1.2"
NOTICE = "Research software. Model trained on synthetic phantoms. Not a medical device."
"""Stands on every output of a model that never saw a patient."""
NOTICE_OTHER = "Research software. Not a medical device."

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class Grid(Record):
    """The input's own voxel grid, as stored.

    Args:
        slice_axis: which array axis (0, 1, 2) `slice_index` counts on: the third of a DICOM series,
        otherwise the
            axis nearest to the patient's foot-head direction.
        axcodes: closest anatomical letters of the array axes; each axis grows towards its letter.
        affine_ras: 4 x 4, voxel index -> mm.
    """

    shape: tuple[int, int, int]
    spacing_mm: tuple[float, float, float]
    axcodes: str
    affine_ras: list[list[float]]
    frame_uid: str | None
    slice_axis: SliceAxis


class Check(Record):
    """One finding of the input checks: code of the catalogue, level, and what was found."""

    code: str
    level: Literal["note", "repair", "ask", "refuse"]
    rule: str
    expected: str = ""
    got: str = ""
    hint: str = ""


class Scan(Record):
    """What was read. `info` holds acquisition facts only (kernel, thickness, position of the patient)."""

    kind: str
    sha256: str
    grid: Grid
    series_uid: str | None = None
    series_number: int | None = None
    images: int = 0
    info: dict[str, str] = Field(default={})
    checks: list[Check] = Field(default=[])


class Model(Record):
    """Who answered. `synthetic`: it was trained on synthetic phantoms, never on patients."""

    name: str
    sha256: str
    trained_on: str
    synthetic: bool
    calibrated: bool


class OrganReading(Record):
    """One organ channel. `label`: its number in `organs.nii.gz`; None when it has none (`global` is a union).

    Args:
        source: ``model``, ``file`` (`--organs`) or ``derived`` (built from other masks of the file).
    """

    name: str
    label: int | None
    volume_ml: float
    source: Literal["model", "file", "derived"]


class Coverage(Record):
    """How much of the lungs is in the field. Fractions are estimates, see `read.coverage`.

    Args:
        lung_ml: lungs found. aerated_ml: of these, voxels with HU of aerated lung.
        fraction: estimated share of the lungs inside the field, 1.0 when no end slice cuts them.
        cut_top, cut_bottom: lungs reach the first or last slice. cut_sides: lungs reach the border of the
        picture.
    """

    lung_ml: float
    aerated_ml: float
    fraction: Probability
    cut_top: bool
    cut_bottom: bool
    cut_sides: bool
    complete: bool
    notes: list[str] = Field(default=[])


class Receipt(Record):
    """What would be needed to get this reading again. `outputs`: file name -> sha256, filled when saved."""

    input_sha256: str
    code_version: str
    model_sha256: str
    seed: int
    mode: str
    prep: dict[str, Any]
    organs_sha256: str | None = None
    notes: list[str] = Field(default=[])
    versions: dict[str, str]
    outputs: dict[str, str] = Field(default={})
    use: str = NOTICE


@dataclass(frozen=True, eq=False)
class GridMaps:
    """A model's maps where it made them.

    Args:
        grid: of all. high: gated maps, [18, U, V, W], of which the scan probabilities follow. low: the same
            of half the resolution, or None. shown: the prepared scan, or None.
        pooled: probabilities before calibration, [18].
    """

    grid: Geometry
    high: np.ndarray
    pooled: np.ndarray
    low: np.ndarray | None = None
    shown: np.ndarray | None = None


@dataclass(frozen=True)
class Material:
    """The heavy half of a fresh reading, kept in memory for saving; never part of the JSON.

    Args:
        volume: what was read. map_of: slug -> map on `volume.geometry`. organ_of: channel -> probability
        there.
        timings_s: seconds of each step. on_grid: the maps on the model's own grid, before anything was put
            back; None for a model that does not hand them out.
    """

    volume: CTVolume
    map_of: Callable[[str], ProbabilityMap]
    organ_of: Callable[[str], ProbabilityMap]
    timings_s: Mapping[str, float]
    on_grid: GridMaps | None = None


class Reading(Record):
    """What was found in one scan, how sure, and where. `print(reading.report.text)`,
    `reading.save("out")`."""

    version: Literal["1.2"] = "1.2"
    notice: str = NOTICE
    scan: Scan
    model: Model
    findings: list[FindingReading]
    organs: list[OrganReading]
    coverage: Coverage
    report: Report
    asked: list[AskedInWords] = Field(default=[])
    receipt: Receipt
    _material: Material | None = PrivateAttr(default=None)

    @model_validator(mode="after")
    def _says_what_was_found(self) -> Reading:
        """No sentence rests on evidence that is not that of a finding here."""
        organ_ml = {o.name: o.volume_ml for o in self.organs}
        known = {f.slug: evidence_of(f, organ_ml) for f in self.findings}
        for evidence in (e for s in self.report.sentences for e in s.evidence):
            if evidence != known.get(evidence.finding):
                raise ValueError(f"a sentence about {evidence.finding} rests on what no finding says")
        return self

    @property
    def present(self) -> list[FindingReading]:
        """Findings that count as present, most probable first."""
        return sorted((f for f in self.findings if f.present), key=lambda f: -f.probability)

    @property
    def material(self) -> Material | None:
        """Volume and maps, when this reading was just made; None when it was loaded from JSON."""
        return self._material

    def with_material(self, material: Material) -> Reading:
        """The same reading, with volume and maps at hand."""
        known = self.model_copy()
        known._material = material
        return known

    def to_json(self) -> str:
        """`reading.json`, indented, without NaN."""
        return self.model_dump_json(indent=1) + "\n"

    @classmethod
    def from_json(cls, text: str | bytes) -> Reading:
        """A reading from `reading.json`; maps stay in their files.

        Raises:
            pydantic.ValidationError: not a reading of version 1.2, or a report that its findings do not
                bear out.
        """
        return cls.model_validate_json(text)

    def save(self, out: str | Path, *, overwrite: bool = False, all_maps: bool = False) -> Path:
        """Write the output folder, all or nothing: see `hilum.show.save.save`.

        Raises:
            OutputError: `out` exists (`OUTPUT_EXISTS`) or cannot be written.
            UsageError: this reading was loaded from JSON and has no maps (`NO_MATERIAL`).
        """
        # Pictures and pages are made one room further down; reading itself never needs them.
        writer = importlib.import_module("hilum.show.save")
        return Path(writer.save(self, out, overwrite=overwrite, all_maps=all_maps))


def schema() -> dict[str, Any]:
    """JSON schema of `reading.json` (draft 2020-12)."""
    known = Reading.model_json_schema(mode="serialization")
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": f"Hilum reading {VERSION}",
        **{k: v for k, v in known.items() if k != "title"},
    }
