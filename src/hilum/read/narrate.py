"""A short report, English or German. Every sentence about a finding carries its evidence; nothing unseen is
called normal."""

from __future__ import annotations

from typing import Literal

from hilum.read.reading import Coverage, Evidence, FindingReading, OrganReading, Report, Sentence
from hilum.read.words import LOBES_DE, ORGANS, WORDS, Words
from hilum.text.vocabulary import FINDINGS, INDEX, ORGAN_CHANNELS

Language = Literal["en", "de"]

SEEN_ML = {
    "lung": 100.0,
    "airways": 5.0,
    "pleura": 30.0,
    "mediastinum": 40.0,
    "heart": 80.0,
    "oesophagus": 2.0,
}
"""An organ smaller than this was not seen, and nothing about it is called normal."""
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
    words = WORDS[language]
    sentences = [Sentence(text=words.technique)]
    if not coverage.complete:
        sentences.append(Sentence(text=_coverage(coverage, words)))
    present = sorted((f for f in findings if f.present), key=lambda f: -f.probability)
    sentences += [_present(f, words) for f in present] or [Sentence(text=words.nothing)]
    sentences += [s for organ in ORGAN_CHANNELS if (s := _absent(organ, findings, organs, coverage, words))]
    sentences.append(Sentence(text=words.notices.get(notice, notice)))
    return Report(language=language, sentences=sentences)


def certainty(finding: FindingReading) -> int:
    """2 plain, 1 probable, 0 possible: where the probability lies between its threshold and 1."""
    margin = (finding.probability - finding.threshold) / max(1.0 - finding.threshold, 1e-6)
    return 2 if margin >= 0.66 else 1 if margin >= 0.33 else 0


def finding_name(slug: str, language: str) -> str:
    """CT-RATE's name, or the German one."""
    finding = FINDINGS[INDEX[slug]]
    return finding.name_de if language == "de" else finding.name


def place_text(finding: FindingReading, words: Words) -> str:
    """Side and lobe, e.g. ``upper third of the right lung`` or ``on the left``; empty when there is nothing
    to say."""
    where = finding.where
    if where is None:
        return ""
    if where.side == "both" and finding.organ == "lung":
        return words.both_lungs
    if where.lobe_estimate is not None:
        return (
            LOBES_DE.get(where.lobe_estimate, where.lobe_estimate)
            if words.language == "de"
            else where.lobe_estimate
        )
    return words.sides.get(where.side or "", "")


def size_text(finding: FindingReading, words: Words) -> str:
    """Volume or extent, rounded to what a 3 mm grid can tell."""
    where = finding.where
    if where is None or not where.above_threshold or finding.volume_ml is None:
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


def _present(finding: FindingReading, words: Words) -> Sentence:
    name = finding_name(finding.slug, words.language)
    hedge = words.hedges[certainty(finding)]
    name = _inside_sentence(name, words.language) if hedge else name
    place = place_text(finding, words)
    parts = [hedge + name + (f"{words.place_joint}{place}" if place else ""), size_text(finding, words)]
    if finding.where is not None and finding.where.pieces > 1:
        parts.append(words.pieces.format(n=finding.where.pieces))
    if finding.where is not None and not finding.where.above_threshold:
        parts.append(words.unplaced)
    image = image_text(finding, words)
    text = ", ".join(p for p in parts if p) + (f" ({image})." if image else ".")
    return Sentence(text=text, finding=finding.slug, evidence=[evidence_of(finding)])


def evidence_of(finding: FindingReading) -> Evidence:
    """What a sentence about this finding rests on."""
    where = finding.where
    if where is None:
        return Evidence(finding=finding.slug, probability=finding.probability)
    return Evidence(
        finding=finding.slug,
        probability=finding.probability,
        peak_mm_ras=where.peak_mm_ras,
        slice_index=where.slice_index,
        image_number=None if where.image is None else where.image.instance_number,
        map=finding.map,
    )


def _absent(
    organ: str, findings: list[FindingReading], organs: list[OrganReading], coverage: Coverage, words: Words
) -> Sentence | None:
    absent = [f for f in findings if f.organ == organ and not f.present]
    if not absent:
        return None
    label = ORGANS[organ][words.language]
    volume_ml = next((o.volume_ml for o in organs if o.name == organ), 0.0)
    if volume_ml < SEEN_ML.get(organ, 0.0):
        return Sentence(text=words.unseen.format(organ=label))
    names = [finding_name(f.slug, words.language) for f in absent]
    names = [_inside_sentence(n, words.language) for n in names]
    listed = names[0] if len(names) == 1 else ", ".join(names[:-1]) + words.or_ + names[-1]
    scope = words.scanned_part if organ in ("lung", "pleura", "airways") and not coverage.complete else ""
    text = words.no_sign.format(organ=label, scope=scope, names=listed)
    return Sentence(text=text, negated=True, evidence=[evidence_of(f) for f in absent])


def _inside_sentence(name: str, language: str) -> str:
    # a German noun keeps its capital; a leading adjective ("Narbige Residuen") does not
    return name[0].lower() + name[1:] if language == "en" or " " in name else name


def _coverage(coverage: Coverage, words: Words) -> str:
    if coverage.cut_top or coverage.cut_bottom:
        return words.partial.format(percent=f"{coverage.fraction * 100:.0f}")
    return words.narrow
