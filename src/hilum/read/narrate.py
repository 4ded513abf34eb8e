"""From a reading to a report, English or German: technique, findings, impression.

Every sentence about a finding carries its evidence and says what the evidence holds (`read.sentences` refuses
any other); nothing unseen is called normal; nothing is graded by certainty that is not calibrated. The rules
are data (`report_rules.toml`).
"""

from __future__ import annotations

from itertools import pairwise
from typing import Literal

from hilum.read.found import FindingReading
from hilum.read.reading import Coverage, OrganReading
from hilum.read.report_rules import ReportRules, report_rules
from hilum.read.sentences import (
    ONE_HEART,
    Denial,
    Evidence,
    Remark,
    Report,
    Section,
    Statement,
    evidence_of,
)
from hilum.read.words import ORGANS, WORDS, Words
from hilum.text.vocabulary import FINDINGS, INDEX, ORGAN_CHANNELS

Language = Literal["en", "de"]
Told = list[Remark | Statement | Denial]

SIZED = {"lung_nodule", "lymphadenopathy", "hiatal_hernia"}
"""Findings a reader wants in mm rather than ml."""


def narrate(
    findings: list[FindingReading],
    organs: list[OrganReading],
    coverage: Coverage,
    notice: str,
    language: Language,
) -> Report:
    """The report of a reading.

    Args:
        notice: the last sentence, in English; said in the report's language where that is known.
    """
    teller = _Teller(findings, {o.name: o.volume_ml for o in organs}, coverage, WORDS[language])
    told = teller.technique() + teller.findings() + teller.impression()
    closing = Remark(section="notice", text=WORDS[language].notices.get(notice, notice))
    return Report(language=language, sentences=[*told, closing])


class _Teller:
    """One report in the making."""

    def __init__(
        self,
        findings: list[FindingReading],
        organ_ml: dict[str, float],
        coverage: Coverage,
        words: Words,
    ) -> None:
        self.all, self.organ_ml, self.coverage, self.words = findings, organ_ml, coverage, words
        self.rules: ReportRules = report_rules()
        self.present = sorted((f for f in findings if f.present), key=self.rules.rank)

    def technique(self) -> Told:
        """What was read by whom, and how its probabilities are to be taken."""
        calibrated = all(f.calibrated for f in self.all)
        texts = [self.words.technique, self.words.graded if calibrated else self.words.ungraded]
        return [Remark(section="technique", text=text) for text in texts]

    def findings(self) -> Told:
        """What is there, organ by organ; then what was looked for and is not."""
        told: Told = []
        if not self.coverage.complete:
            told.append(Remark(section="findings", text=_coverage(self.coverage, self.words)))
        told += [statement(f, self.organ_ml, self.words, "findings") for f in self.present]
        if not self.present:
            told.append(Remark(section="findings", text=self.words.nothing))
        return told + [s for organ in ORGAN_CHANNELS for s in self._absent(organ)]

    def impression(self) -> Told:
        """The most important findings, the most certain first (`report_rules.toml`)."""
        if not self.present:
            return [Remark(section="impression", text=self.words.nothing)]
        chosen = [f for f in self.present if self.rules.concludes(f)]
        most = self.rules.most - (len(self.present) > min(len(chosen), self.rules.most))
        told: Told = [statement(f, self.organ_ml, self.words, "impression") for f in chosen[:most]]
        left = len(self.present) - len(told)
        if left:
            text = self.words.further[0 if left == 1 else 1].format(n=left)
            told.append(Remark(section="impression", text=text))
        return told

    def _absent(self, organ: str) -> Told:
        of_organ = [f for f in self.all if f.organ == organ]
        absent = [f for f in of_organ if not f.present]
        judged = [f for f in absent if self.rules.judged(f, self.organ_ml)]
        told: Told = []
        if len(judged) < len(absent) and not self.rules.seen(organ, self.organ_ml):
            text = self.words.unseen if len(absent) == len(of_organ) else self.words.unseen_rest
            told.append(
                Remark(section="findings", text=text.format(organ=ORGANS[organ][self.words.language]))
            )
        return told + [self._denial(organ, group) for group in _groups(judged, self.rules.together)]

    def _denial(self, organ: str, absent: list[FindingReading]) -> Denial:
        language = self.words.language
        names = [_inside_sentence(finding_name(f.slug, language), language) for f in absent]
        listed = names[0] if len(names) == 1 else ", ".join(names[:-1]) + self.words.or_ + names[-1]
        scope = "" if self.coverage.complete else self.words.scanned_part
        text = self.words.no_sign.format(organ=ORGANS[organ][language], scope=scope, names=listed)
        return Denial(text=text, evidence=[evidence_of(f, self.organ_ml) for f in absent])


def statement(
    finding: FindingReading,
    organ_ml: dict[str, float],
    words: Words,
    section: Literal["findings", "impression"],
) -> Statement:
    """The sentence about a present finding; in the impression without the way to its image."""
    evidence, certainty = evidence_of(finding, organ_ml), report_rules().certainty(finding)
    name, hedge = finding_name(finding.slug, words.language), words.hedges.get(certainty, "")
    head = hedge + (_inside_sentence(name, words.language) if hedge else name)
    place = words.place(evidence.side, evidence.lobe, finding.organ)
    parts = [f"{head} {place}" if place else head, size_text(finding, words)]
    if (evidence.pieces or 0) > 1:
        parts.append(words.pieces.format(n=evidence.pieces))
    image = image_text(finding, words)
    if evidence.pieces is None:
        parts.append(words.unplaced if image else words.no_place)
    text = ", ".join(p for p in parts if p)
    text += f" ({image})." if image and section == "findings" else "."
    return Statement(
        section=section, text=text, finding=finding.slug, certainty=certainty, evidence=[evidence]
    )


def finding_name(slug: str, language: str) -> str:
    """CT-RATE's name, or the German one."""
    finding = FINDINGS[INDEX[slug]]
    return finding.name_de if language == "de" else finding.name


def place_text(finding: FindingReading, words: Words) -> str:
    """Side and lobe for a table, e.g. ``upper third of the right lung``; empty when there is nothing to
    say."""
    where = finding.where
    if where is None or not where.above_threshold or finding.slug in ONE_HEART:
        return ""
    return words.place_name(where.side, where.lobe_estimate, finding.organ)


def size_text(finding: FindingReading, words: Words) -> str:
    """Volume or extent, rounded to what a 3 mm grid can tell."""
    where = finding.where
    if where is None or not where.above_threshold or finding.volume_ml is None or finding.slug in ONE_HEART:
        return ""
    if finding.slug in SIZED:
        return words.about_mm.format(mm=f"{where.extent_mm:.0f}")
    ml = finding.volume_ml
    return words.about_ml.format(ml=words.number(f"{ml:.0f}" if ml >= 10 else f"{ml:.1f}"))


def image_text(finding: FindingReading, words: Words) -> str:
    """``series 3, image 87`` for DICOM, else ``slice index 57``."""
    where = finding.where
    if where is None:
        return ""
    if where.image is not None and where.image.instance_number is not None:
        if where.image.series_number is None:
            return words.image.format(image=where.image.instance_number)
        return words.series_image.format(series=where.image.series_number, image=where.image.instance_number)
    return words.slice_index.format(index=where.slice_index)


def _groups(findings: list[FindingReading], most: int) -> list[list[FindingReading]]:
    """In pieces of nearly equal length, none longer than `most`."""
    count = -(-len(findings) // most)
    edges = [round(i * len(findings) / count) for i in range(count + 1)] if count else []
    return [findings[a:b] for a, b in pairwise(edges)]


def _inside_sentence(name: str, language: str) -> str:
    # a German noun keeps its capital; a leading adjective ("Narbige Residuen") does not
    return name[0].lower() + name[1:] if language == "en" or " " in name else name


def _coverage(coverage: Coverage, words: Words) -> str:
    if coverage.cut_top or coverage.cut_bottom:
        return words.partial.format(percent=f"{coverage.fraction * 100:.0f}")
    return words.narrow


__all__ = ["SIZED", "Evidence", "Section", "finding_name", "narrate", "place_text", "statement"]
