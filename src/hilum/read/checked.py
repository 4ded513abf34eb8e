"""A report that something else wrote, held against the reading: sentence by sentence, what is borne out.

Our labeller says what a sentence claims (`read.claims`). A finding that is stated needs a reading of it that
is present and a map with a voxel above its threshold, on the side and in the lobe that are named; a finding
that is denied must not be present, and its organ must be seen. A sentence with one claim that fails is kept
apart, with the reason; nothing is passed silently. A sentence that claims none of the 18 passes without
evidence.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

from pydantic import Field, model_validator

from hilum.read.claims import claims_of
from hilum.read.found import FindingReading, Record
from hilum.read.report_rules import report_rules
from hilum.read.sentences import Evidence, evidence_of
from hilum.text.labels import FindingLabel, label_report
from hilum.text.sentences import sentence_spans

Why = Literal["not_present", "no_map", "side", "lobe", "denied_but_present", "organ_not_seen"]


class Written(Record):
    """A sentence whose claims the reading bears out.

    Args:
        states, denies: slugs. evidence: of each of them, in this order.
    """

    text: str
    states: list[str] = Field(default=[])
    denies: list[str] = Field(default=[])
    evidence: list[Evidence] = Field(default=[])

    @model_validator(mode="after")
    def _is_borne_out(self) -> Written:
        if [e.finding for e in self.evidence] != [*self.states, *self.denies]:
            raise ValueError("every claim has its evidence, in order")
        claims = claims_of(self.text)
        if not set(claims.stated) <= set(self.states) or claims.denied - set(self.denies):
            raise ValueError(f"a sentence claims {self.states} and not {self.denies}, got another claim")
        here = {e.finding: e for e in self.evidence}
        if any(here[s].pieces is None for s in self.states) or any(here[s].present for s in self.denies):
            raise ValueError("what is stated has a map, and what is denied is not present")
        return self


class Reason(Record):
    """Why a claim is not borne out: said of which finding, and what the reading holds."""

    finding: str
    why: Why
    detail: str


class Unsupported(Record):
    """A sentence that is kept apart."""

    text: str
    reasons: list[Reason] = Field(min_length=1)


class CheckedText(Record):
    """A written report after the check: what is borne out, and what is not, each in its order."""

    language: Literal["en", "de"]
    sentences: list[Written]
    unsupported: list[Unsupported]

    @property
    def text(self) -> str:
        """What is borne out, one sentence a line."""
        return "\n".join(s.text for s in self.sentences) + "\n"


def check_text(
    text: str,
    findings: Sequence[FindingReading],
    organ_ml: Mapping[str, float],
    language: Literal["en", "de"] = "en",
) -> CheckedText:
    """Hold a text against a reading.

    Args:
        findings, organ_ml: of the reading; volume of each organ, ml.
    """
    known = {finding.slug: finding for finding in findings}
    kept: list[Written] = []
    apart: list[Unsupported] = []
    spans = sentence_spans(text)
    carried = _claims_beyond(text, spans)
    for span in spans:
        said = text[slice(*span)].strip()
        claims = claims_of(said)
        stated = {**carried.get(span, {}), **claims.stated}
        reasons = [r for label in stated.values() for r in _against(label, known[label.slug])]
        reasons += [r for slug in sorted(claims.denied) for r in _against_denial(known[slug], organ_ml)]
        if reasons:
            apart.append(Unsupported(text=said, reasons=reasons))
            continue
        states, denies = sorted(stated), sorted(claims.denied)
        evidence = [evidence_of(known[slug], organ_ml) for slug in (*states, *denies)]
        kept.append(Written(text=said, states=states, denies=denies, evidence=evidence))
    return CheckedText(language=language, sentences=kept, unsupported=apart)


def _claims_beyond(
    text: str, spans: Sequence[tuple[int, int]]
) -> dict[tuple[int, int], dict[str, FindingLabel]]:
    """Findings that the whole text states and no sentence alone: what one sentence carries into the next."""
    alone = {slug for span in spans for slug in claims_of(text[slice(*span)].strip()).stated}
    found: dict[tuple[int, int], dict[str, FindingLabel]] = {}
    for slug, label in label_report(text).items():
        if label.status in ("said", "doubted", "open") and slug not in alone and label.words is not None:
            place = next((s for s in spans if s[0] <= label.words[0] < s[1]), spans[0])
            found.setdefault(place, {})[slug] = label
    return found


def _against(label: FindingLabel, finding: FindingReading) -> list[Reason]:
    """Why a stated finding is not borne out."""

    def reason(why: Why, detail: str) -> list[Reason]:
        return [Reason(finding=finding.slug, why=why, detail=detail)]

    if not finding.present:
        return reason("not_present", f"probability {finding.probability:g} below {finding.threshold:g}")
    where = finding.where
    if where is None or not where.above_threshold:
        return reason("no_map", f"no voxel of its map reaches {finding.map_threshold:g}")
    found: list[Reason] = []
    if label.side and where.side not in ("midline", None) and label.side != where.side:
        found += reason("side", f"the map lies {where.side}, the sentence says {label.side}")
    if where.lobe_basis == "lobe masks" and label.lobes and where.lobe_estimate not in label.lobes:
        found += reason("lobe", f"the map lies in {where.lobe_estimate}, not in {', '.join(label.lobes)}")
    return found


def _against_denial(finding: FindingReading, organ_ml: Mapping[str, float]) -> list[Reason]:
    """Why a denied finding is not borne out."""
    if finding.present:
        detail = f"probability {finding.probability:g}, threshold {finding.threshold:g}"
        return [Reason(finding=finding.slug, why="denied_but_present", detail=detail)]
    if not report_rules().judged(finding, dict(organ_ml)):
        detail = f"{finding.organ}: {organ_ml.get(finding.organ, 0.0):g} ml in the field"
        return [Reason(finding=finding.slug, why="organ_not_seen", detail=detail)]
    return []
