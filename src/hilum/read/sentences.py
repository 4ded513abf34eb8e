"""Sentences of a report. One that states a finding cannot be made without the finding's evidence.

Three kinds: a remark says nothing about a finding; a statement states exactly one, and rests on a reading of
it that is present; a denial denies findings that are not present in an organ that was seen. What a text says
is judged by our own labeller (`read.claims`) when a sentence is made, also out of a file.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import Field, model_validator

from hilum.read.claims import claims_of
from hilum.read.found import FindingReading, LobeBasis, PointMm, Probability, Record, Side

Section = Literal["technique", "findings", "impression", "notice"]
Certainty = Literal["plain", "probable", "possible", "ungraded"]
HEADINGS: dict[str, dict[str, str]] = {
    "en": {"technique": "Technique", "findings": "Findings", "impression": "Impression", "notice": ""},
    "de": {"technique": "Technik", "findings": "Befund", "impression": "Beurteilung", "notice": ""},
}
SECTIONS: tuple[Section, ...] = ("technique", "findings", "impression", "notice")


ONE_HEART = frozenset({"cardiomegaly"})
"""Findings of a whole organ: they have no side, and their map's volume is not their size."""


class Evidence(Record):
    """What a sentence rests on: the reading of one finding.

    Args:
        present, probability, threshold, calibrated: as in the finding. organ: where it lies.
        organ_ml: of that organ in the field of view; None when it was not measured.
        peak_mm_ras: highest voxel of its map; None when the map is empty, or the finding is not present.
        slice_index, series_number, image_number: of the peak.
        side, lobe, lobe_basis, volume_ml, extent_mm, pieces: of the map above its threshold; None when no
            voxel is.
        map: its file, when it was written.
    """

    finding: str
    present: bool
    probability: Probability
    threshold: Probability
    calibrated: bool
    organ: str
    organ_ml: float | None = None
    peak_mm_ras: PointMm | None = None
    slice_index: int | None = None
    series_number: int | None = None
    image_number: int | None = None
    side: Side | None = None
    lobe: str | None = None
    lobe_basis: LobeBasis | None = None
    volume_ml: float | None = None
    extent_mm: float | None = None
    pieces: int | None = None
    map: str | None = None


def evidence_of(finding: FindingReading, organ_ml: Mapping[str, float]) -> Evidence:
    """The evidence of a finding, present or not. organ_ml: volume of each organ, by name."""
    where = finding.where if finding.present else None
    known = Evidence(
        finding=finding.slug, present=finding.present, probability=finding.probability,
        threshold=finding.threshold, calibrated=finding.calibrated, organ=finding.organ,
        organ_ml=organ_ml.get(finding.organ), map=finding.map,
    )  # fmt: skip
    if where is None:
        return known
    place = {
        "peak_mm_ras": where.peak_mm_ras,
        "slice_index": where.slice_index,
        "series_number": None if where.image is None else where.image.series_number,
        "image_number": None if where.image is None else where.image.instance_number,
    }
    if where.above_threshold:
        # below it only the peak means anything
        place |= {
            "side": None if finding.slug in ONE_HEART else where.side,
            "lobe": where.lobe_estimate,
            "lobe_basis": where.lobe_basis,
            "volume_ml": finding.volume_ml,
            "extent_mm": where.extent_mm,
            "pieces": where.pieces,
        }
    return known.model_copy(update=place)


class Remark(Record):
    """A sentence about the scan, an organ or the software."""

    kind: Literal["remark"] = "remark"
    section: Section
    text: str

    @property
    def finding(self) -> None:
        """None: it is about no finding."""
        return None

    @property
    def evidence(self) -> list[Evidence]:
        """None at all."""
        return []

    @model_validator(mode="after")
    def _states_nothing(self) -> Remark:
        claims = claims_of(self.text)
        if claims.stated or claims.denied:
            raise ValueError(f"a remark is about no finding, got {[*claims.stated, *claims.denied]}")
        return self


class Statement(Record):
    """A sentence that states one finding.

    Args:
        finding: slug. evidence: exactly one, of this finding, present.
        certainty: how it is said; ``ungraded`` when the model's probabilities are not calibrated.
        source: who worded it.
    """

    kind: Literal["finding"] = "finding"
    section: Literal["findings", "impression"]
    text: str
    finding: str
    certainty: Certainty
    evidence: list[Evidence] = Field(min_length=1, max_length=1)
    source: Literal["narrator", "refined"] = "narrator"

    @model_validator(mode="after")
    def _rests_on_its_evidence(self) -> Statement:
        evidence = self.evidence[0]
        if evidence.finding != self.finding or not evidence.present:
            raise ValueError(
                f"{self.finding} is stated on the evidence of {evidence.finding}, present or not"
            )
        if (self.certainty == "ungraded") == evidence.calibrated:
            raise ValueError("a sentence is graded by certainty if and only if the model is calibrated")
        if (fault := fault_of(self.text, evidence, self.certainty)) is not None:
            raise ValueError(fault)
        return self


class Denial(Record):
    """A sentence that denies findings of an organ that was seen.

    Args:
        evidence: of every finding that it denies, none present. source: who worded it.
    """

    kind: Literal["absence"] = "absence"
    section: Literal["findings"] = "findings"
    text: str
    evidence: list[Evidence] = Field(min_length=1)
    source: Literal["narrator", "refined"] = "narrator"

    @property
    def finding(self) -> None:
        """None: it may deny several."""
        return None

    @model_validator(mode="after")
    def _denies_what_was_looked_for(self) -> Denial:
        claims, looked_for = claims_of(self.text), {e.finding for e in self.evidence}
        if any(e.present for e in self.evidence) or claims.stated or claims.denied != looked_for:
            said = [*claims.stated, *claims.denied]
            raise ValueError(f"a denial denies {sorted(looked_for)} and nothing else, got {said}")
        return self


Sentence = Annotated[Remark | Statement | Denial, Field(discriminator="kind")]


def fault_of(text: str, evidence: Evidence, certainty: Certainty) -> str | None:
    """Why a text does not state what the evidence holds; None when it does."""
    claims = claims_of(text)
    if set(claims.stated) != {evidence.finding} or claims.denied:
        return f"a statement states {evidence.finding} alone, got {[*claims.stated, *claims.denied]}"
    if claims.doubted != (certainty in ("probable", "possible")):
        return f"{evidence.finding} is said as {certainty}"
    label = claims.stated[evidence.finding]
    if label.side and label.side != evidence.side:
        return f"{evidence.finding} lies {evidence.side}, got {label.side}"
    if set(label.lobes) - {evidence.lobe}:
        return f"{evidence.finding} lies in {evidence.lobe}, got {', '.join(label.lobes)}"
    return None


class Report(Record):
    """A report: technique, findings, impression, notice; sentences in order."""

    language: Literal["en", "de"]
    sentences: list[Sentence]

    @model_validator(mode="after")
    def _concludes_from_its_findings(self) -> Report:
        found = {s.finding for s in self.sentences if s.section == "findings"}
        new = [s.finding for s in self.sentences if s.section == "impression" and s.finding not in found]
        if [slug for slug in new if slug is not None]:
            raise ValueError(f"the impression states nothing that is not in the findings, got {new}")
        return self

    def of(self, section: Section) -> list[Remark | Statement | Denial]:
        """The sentences of a section."""
        return [s for s in self.sentences if s.section == section]

    @property
    def text(self) -> str:
        """As plain text: headings, one sentence a line."""
        parts = []
        for section in SECTIONS:
            lines = [s.text for s in self.of(section)]
            heading = HEADINGS[self.language][section]
            parts += ["\n".join(([heading] if heading else []) + lines)] if lines else []
        return "\n\n".join(parts) + "\n"
