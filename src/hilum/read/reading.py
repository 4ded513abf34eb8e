"""`Reading`: what Hilum says about one scan. Its JSON is `reading.json`, version 1.0, schema in
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

from pydantic import BaseModel, ConfigDict, Field, PrivateAttr

from hilum.types import ProbabilityMap
from hilum.volume import CTVolume

VERSION = "1.0"
NOTICE = "Research software. Model trained on synthetic phantoms. Not a medical device."
"""Stands on every output of a model that never saw a patient."""
NOTICE_OTHER = "Research software. Not a medical device."

PointMm = tuple[float, float, float]
SliceAxis = Literal[0, 1, 2]
Side = Literal["right", "left", "both", "midline"]
Probability = Annotated[float, Field(ge=0.0, le=1.0)]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class Record(BaseModel):
    """Frozen, and closed: an unknown field is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


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
    info: dict[str, str] = {}
    checks: list[Check] = []


class Model(Record):
    """Who answered. `synthetic`: it was trained on synthetic phantoms, never on patients."""

    name: str
    sha256: str
    trained_on: str
    synthetic: bool
    calibrated: bool


class ImageRef(Record):
    """The stored DICOM image nearest to a point."""

    series_uid: str | None
    series_number: int | None
    instance_number: int | None
    sop_uid: str


class Where(Record):
    """Where a finding is. Centroid and box are those of the piece that holds the map's peak.

    Args:
        box_mm_ras: (low corner, high corner) of the piece, voxel edges included. Same for LPS.
        peak_voxel: voxel of the peak on the input's own array, 0-based.
        slice_index: its index on `scan.grid.slice_axis`, 0-based.
        image: for DICOM, the stored image nearest to the peak.
        lobe_estimate: lobe, or third of the lung where no lobes were given (`lobe_basis` says which).
        pieces: connected pieces above the threshold. extent_mm: longest edge of the box.
        above_threshold: False when no voxel of the map reaches its threshold; then only the peak means
        anything.
    """

    peak_mm_ras: PointMm
    peak_mm_lps: PointMm
    centroid_mm_ras: PointMm
    centroid_mm_lps: PointMm
    box_mm_ras: tuple[PointMm, PointMm]
    box_mm_lps: tuple[PointMm, PointMm]
    extent_mm: float
    peak_voxel: tuple[int, int, int]
    slice_index: int
    image: ImageRef | None
    side: Side | None
    lobe_estimate: str | None
    lobe_basis: Literal["lobe masks", "lung height"] | None
    pieces: int
    above_threshold: bool

    @property
    def z_mm(self) -> float:
        """Height of the peak, mm (superior positive, the same in RAS and LPS)."""
        return self.peak_mm_ras[2]


class FindingReading(Record):
    """One of the 18 findings.

    Args:
        threshold: scan probability from which it counts as present. map_threshold: voxel probability of
        `volume_ml`.
        volume_ml: voxels of the map above its threshold, on the model's grid; None when not present.
        where: None when not present. map: file of its map inside the output folder, None when not written.
    """

    slug: str
    name: str
    probability: Probability
    threshold: Probability
    map_threshold: Probability
    calibrated: bool
    present: bool
    organ: str
    volume_ml: float | None = None
    where: Where | None = None
    map: str | None = None


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
    notes: list[str] = []


class Evidence(Record):
    """What a sentence rests on."""

    finding: str
    probability: Probability
    peak_mm_ras: PointMm | None = None
    slice_index: int | None = None
    image_number: int | None = None
    map: str | None = None


class Sentence(Record):
    """One sentence of the report. `finding` is a slug, or None for a sentence about the scan or the
    software."""

    text: str
    finding: str | None = None
    negated: bool = False
    evidence: list[Evidence] = []


class Report(Record):
    """A short report; sentences in order."""

    language: Literal["en", "de"]
    sentences: list[Sentence]

    @property
    def text(self) -> str:
        """As plain text, one sentence a line."""
        return "\n".join(s.text for s in self.sentences) + "\n"


class Receipt(Record):
    """What would be needed to get this reading again. `outputs`: file name -> sha256, filled when saved."""

    input_sha256: str
    code_version: str
    model_sha256: str
    seed: int
    mode: str
    prep: dict[str, Any]
    organs_sha256: str | None = None
    notes: list[str] = []
    versions: dict[str, str]
    outputs: dict[str, str] = {}
    use: str = NOTICE


@dataclass(frozen=True)
class Material:
    """The heavy half of a fresh reading, kept in memory for saving; never part of the JSON.

    Args:
        volume: what was read. map_of: slug -> map on `volume.geometry`. organ_of: channel -> probability
        there.
        timings_s: seconds of each step.
    """

    volume: CTVolume
    map_of: Callable[[str], ProbabilityMap]
    organ_of: Callable[[str], ProbabilityMap]
    timings_s: Mapping[str, float]


class Reading(Record):
    """What was found in one scan, how sure, and where. `print(reading.report.text)`,
    `reading.save("out")`."""

    version: Literal["1.0"] = "1.0"
    notice: str = NOTICE
    scan: Scan
    model: Model
    findings: list[FindingReading]
    organs: list[OrganReading]
    coverage: Coverage
    report: Report
    receipt: Receipt
    _material: Material | None = PrivateAttr(default=None)

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
            pydantic.ValidationError: not a reading of version 1.0.
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
