"""Labels: what a report says about the 18 findings, and the sentence that decides.

    >>> labels = label_report("Small pleural effusion on the right. No nodules.")
    >>> labels["pleural_effusion"].label, labels["pleural_effusion"].side, labels["lung_nodule"].label
    ('present', 'right', 'absent')

Three answers: present, absent, and unknown where a report says nothing or leaves it open. Sections about the
past, the technique and the question are read over. Source: label names and their meaning are CT-RATE's (a
finding is present when the report describes it, whatever its size); the rules are our own.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from hilum.text.label_rules import LANGUAGES, WORD, Hit, Language, Lexicon, load_lexicon
from hilum.text.label_scope import Mention, SentenceHits, Status, mentions_of, sort_hits
from hilum.text.sections import SILENT, Section, sections_of
from hilum.text.sentences import sentence_spans
from hilum.text.vocabulary import FINDINGS, INDEX, SLUGS

Label = Literal["present", "absent", "unknown"]
Side = Literal["", "right", "left", "both"]

PROBABILITY: Mapping[str, float] = {
    "said": 0.94, "doubted": 0.5, "open": 0.3, "past": 0.2, "denied": 0.01, "normal": 0.01, "": 0.01,
}  # fmt: skip
"""Share of CT-RATE reports with the finding, by the strongest thing said; "" is nothing. From the development
half of `benchmarks/report_labels.py`, but for doubted, open and past: too few to count, so these are set."""
ORDER: tuple[Status, ...] = ("said", "doubted", "open", "denied", "normal", "past")
"""Which statement decides: the first of these that a report holds."""
MIXED = 20
"""Common words from which on a text may be taken to be in two languages."""
RANK = {status: rank for rank, status in enumerate(ORDER)}
LOBED = frozenset(
    {"emphysema", "atelectasis", "lung_nodule", "lung_opacity", "fibrotic_sequela", "mosaic_attenuation",
     "consolidation", "peribronchial_thickening", "bronchiectasis", "septal_thickening"}
)  # fmt: skip
"""Findings that lie in lobes."""


@dataclass(frozen=True)
class FindingLabel:
    """What a report says about one finding.

    Args:
        slug: the finding. label: the answer. probability: that a reader of the report marks it, 0 to 1.
        status: what the deciding statement does, "" when there is none.
        sentence: it, as it stands. span: its first and last+1 character in the text.
        words: characters of the finding's own words. section: kind of the section.
        column: of the table, "" for a plain text; characters count in its cell.
        side: where, as the clause says. lobes: of `vocabulary.LOBES`, or "upper lobe" where no side is said.
        organ: channel of `vocabulary.ORGAN_CHANNELS`.
    """

    slug: str
    label: Label
    probability: float
    status: Status | Literal[""]
    organ: str
    sentence: str = ""
    span: tuple[int, int] | None = None
    words: tuple[int, int] | None = None
    section: str = ""
    column: str = ""
    side: Side = ""
    lobes: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {
            "finding": FINDINGS[INDEX[self.slug]].name,
            "slug": self.slug,
            "label": self.label,
            "probability": self.probability,
            "status": self.status,
            "sentence": self.sentence,
            "span": None if self.span is None else list(self.span),
            "words": None if self.words is None else list(self.words),
            "section": self.section,
            "column": self.column,
            "side": self.side,
            "lobes": list(self.lobes),
            "organ": self.organ,
        }


@dataclass(frozen=True)
class Part:
    """One text of a report: all of it, or one column of a table.

    Args:
        text: it. column: where it stands. kind: the section it is, "" when its own headings tell.
    """

    text: str
    column: str = ""
    kind: str = ""


@dataclass(frozen=True)
class _Found:
    """A statement in its place."""

    mention: Mention
    span: tuple[int, int]
    section: str
    told: SentenceHits
    part: Part


def label_report(text: str) -> dict[str, FindingLabel]:
    """The 18 labels of a report, by slug, in the vocabulary's order. English and German; never raises.

    Args:
        text: the report; see `hilum.text.repair` for one with damaged characters. Work grows with its length.
    """
    return label_parts([Part(text)])


def label_parts(parts: Sequence[Part]) -> dict[str, FindingLabel]:
    """The 18 labels of a report in several texts. Never raises."""
    best: dict[str, _Found] = {}
    for part in parts:
        if part.kind in SILENT:
            continue
        for found in _found(part):
            held = best.get(found.mention.slug)
            if held is None or RANK[found.mention.status] < RANK[held.mention.status]:
                best[found.mention.slug] = found
    return {slug: _decided(slug, best.get(slug)) for slug in SLUGS}


def _found(part: Part) -> Iterator[_Found]:
    """Every statement of a text."""
    lowered = _lower(part.text)
    sections = sections_of(part.text)
    if len(sections) == 1 and not sections[0].kind:
        sections = [Section(part.kind, 0, 0, len(part.text))]
    by_language = []
    for lexicon in lexicons_for(lowered):
        found = []
        for span, told, mentions in _statements(part.text, lowered, lexicon, sections):
            section = _section_at(sections, span[0])
            found += [_Found(mention, span, section, told, part) for mention in mentions]
        by_language.append(found)
    for found in by_language:
        others = [f.mention for other in by_language if other is not found for f in other]
        yield from (f for f in found if not any(_overheard(f.mention, other) for other in others))


def _overheard(mention: Mention, other: Mention) -> bool:
    """True when the rules of one language take as said what another's see in doubt or denied: both know the
    finding in "Possible emphysema", one the doubt."""
    meets = mention.start < other.end and other.start < mention.end
    return mention.status == "said" != other.status and mention.slug == other.slug and meets


def lexicons_for(lowered: str) -> list[Lexicon]:
    """The rules of the languages a text is written in: usually one."""
    words = WORD.findall(lowered[:4000])
    shares = {}
    for language in LANGUAGES:
        lexicon = load_lexicon(language)
        shares[language] = sum(word in lexicon.markers for word in words)
    most = max(shares.values())
    chosen: list[Language] = [n for n in LANGUAGES if shares[n] * 2 >= most + (most < MIXED) * most]
    return [load_lexicon(language) for language in chosen]


def _lower(text: str) -> str:
    """Lower case, character by character, so that places stay."""
    lowered = text.lower()
    return (
        lowered
        if len(lowered) == len(text)
        else "".join(c.lower() if len(c.lower()) == 1 else c for c in text)
    )


def _section_at(sections: Sequence[Section], position: int) -> str:
    return next((s.kind for s in sections if s.start <= position < s.end), "")


def _statements(
    text: str, lowered: str, lexicon: Lexicon, sections: Sequence[Section]
) -> Iterator[tuple[tuple[int, int], SentenceHits, list[Mention]]]:
    """Sentence by sentence, silent sections left out."""
    hits = sorted(lexicon.hits(lowered), key=lambda h: (h.start, h.end))
    upcoming, carried = 0, set[str]()
    for section in sections:
        if section.kind in SILENT:
            continue
        for start, end in sentence_spans(text[section.body : section.end]):
            start, end = start + section.body, end + section.body
            while upcoming < len(hits) and hits[upcoming].start < start:
                upcoming += 1
            held: list[Hit] = []
            while upcoming < len(hits) and hits[upcoming].start < end:
                held.append(hits[upcoming])
                upcoming += 1
            told = sort_hits(lowered, start, end, held)
            again = any(h.start <= start + 2 for h in told.cues.get("again", ()))
            yield (start, end), told, mentions_of(told, lexicon, carried if again else set())
            places = told.places_in((start, end))
            carried = places if places or not again else carried


def _decided(slug: str, found: _Found | None) -> FindingLabel:
    organ = FINDINGS[INDEX[slug]].organ
    if found is None:
        return FindingLabel(slug, "unknown", PROBABILITY[""], "", organ)
    mention, (start, end) = found.mention, found.span
    side, lobes = _where(slug, mention, found.told)
    return FindingLabel(
        slug=slug,
        label=_answer(slug, mention.status),
        probability=PROBABILITY[mention.status],
        status=mention.status,
        organ=organ,
        sentence=found.part.text[start:end],
        span=(start, end),
        words=(mention.start, mention.end),
        section=found.section,
        column=found.part.column,
        side=side,
        lobes=lobes,
    )


def _answer(slug: str, status: Status) -> Label:
    if status == "doubted":
        return load_lexicon("en").policies[slug].hedged
    return {"said": "present", "denied": "absent", "normal": "absent"}.get(status, "unknown")  # type: ignore[return-value]


def _where(slug: str, mention: Mention, told: SentenceHits) -> tuple[Side, tuple[str, ...]]:
    """Side and lobes that the clause names."""
    low, high = mention.near
    said = [h for h in told.where if low <= h.start and h.end <= high]
    sides = {h.meaning.name for h in said if h.meaning.kind == "side"}
    side: Side = "both" if "both" in sides or {"right", "left"} <= sides else next(iter(sides), "")  # type: ignore[arg-type]
    if slug not in LOBED:
        return side, ()
    lobes: list[str] = []
    named = sorted(said, key=lambda h: h.start)
    current = ""
    for hit in named:
        if hit.meaning.kind == "side":
            current = hit.meaning.name
        elif hit.meaning.name == "middle":
            lobes.append("right middle lobe")
        else:
            ways = ("right", "left") if current == "both" else (current,)
            lobes += [f"{way} {hit.meaning.name} lobe".strip() for way in ways]
    return side, tuple(dict.fromkeys(lobes))
