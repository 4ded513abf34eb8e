"""What a report gives to training with language: captions, and sentences with their opposites.

Source: FlexiCT's third stage (§2): a caption is one of the findings section, a positive finding, a negative
one; blocks of the section are shuffled every other time. Its opposite sentences (COLIPRI, 2025) are told of
findings by rule.

What differs. Its captions come from a language model's rewriting of every report; ours are the report's own
sentences, found by `text.labels`. A block order is drawn anew each time, where the public code has one fixed
order. A sentence about another scan is false here only if this report denies the finding: what a report does
not mention is unknown, never absent.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from hilum.errors import UsageError
from hilum.text.label_rules import Language
from hilum.text.labels import FindingLabel, label_report, lexicons_for
from hilum.text.sections import SILENT, sections_of
from hilum.text.sentences import sentence_spans
from hilum.text.vocabulary import FINDINGS, INDEX

Truth = Literal[1, 0, -1]
SIDES: Mapping[str, Mapping[str, str]] = {
    "en": {"right": "on the right", "left": "on the left", "both": "on both sides"},
    "de": {"right": "rechts", "left": "links", "both": "beidseits"},
}
LEVELS_DE = {"upper": "Oberlappen", "middle": "Mittellappen", "lower": "Unterlappen"}
SIDES_DE = {"right": "rechten ", "left": "linken "}


@dataclass(frozen=True)
class Statement:
    """One finding as a report has it.

    Args:
        slug: the finding. sentence: the report's own, white space made single.
        place: where, in a few words of the report's language, "" where it says nothing.
    """

    slug: str
    sentence: str
    place: str = ""


@dataclass(frozen=True)
class ScanText:
    """What training takes from one report.

    Args:
        blocks: paragraphs of its findings, or sentences where there is one paragraph.
        positives, negatives: findings that it reports and denies. language: of the report.
    """

    blocks: tuple[str, ...]
    positives: tuple[Statement, ...]
    negatives: tuple[Statement, ...]
    language: Language

    @property
    def denied(self) -> frozenset[str]:
        """Slugs of the findings that are not there."""
        return frozenset(statement.slug for statement in self.negatives)


@dataclass(frozen=True)
class Pair:
    """A sentence and its opposite. truth: 1 the sentence is true of the scan, 0 its opposite, -1 neither is
    known (padding, both texts empty)."""

    sentence: str
    opposite: str
    truth: Truth


PADDING = Pair("", "", -1)


def scan_text(report: str) -> ScanText:
    """Never raises; a report without anything in it has no blocks and no statements."""
    language = lexicons_for(report.lower())[0].language
    labels = label_report(report).values()
    return ScanText(
        tuple(_blocks(report)),
        tuple(_statement(label, language) for label in labels if label.label == "present"),
        tuple(_statement(label, language) for label in labels if label.label == "absent"),
        language,
    )


def draw_caption(
    text: ScanText, rng: random.Random, *, shuffle_chance: float = 0.5, lower: bool = True
) -> str:
    """One of the findings section, a positive and a negative sentence, each as likely where there is one.

    Returns:
        The caption; "" for a report that says nothing, which is no caption: leave the scan out of the loss.
    """
    blocks = list(text.blocks)
    if rng.random() < shuffle_chance:
        rng.shuffle(blocks)
    kinds = [[" ".join(blocks)] if blocks else []]
    kinds += [[s.sentence for s in said] for said in (text.positives, text.negatives)]
    filled = [kind for kind in kinds if kind]
    if not filled:
        return ""
    caption = rng.choice(rng.choice(filled))
    return caption.lower() if lower else caption


def draw_pairs(
    text: ScanText, others: Sequence[ScanText], rng: random.Random, *, count: int = 8, lower: bool = True
) -> list[Pair]:
    """`count` pairs for one scan: at most half of them its own positives, at most half of them positives of
    other scans that this report denies, the rest padding.

    Args:
        others: of other patients; theirs in another language are left out.

    Raises:
        UsageError: `CONFIG_VALUE`, a count that is not even.
    """
    if count < 2 or count % 2:
        raise UsageError("CONFIG_VALUE", "pairs come in halves", expected="an even count", got=count)
    own = _some(text.positives, count // 2, rng)
    foreign = [s for o in others if o.language == text.language for s in o.positives if s.slug in text.denied]
    pairs = [_pair(s, text.language, 1, lower) for s in own]
    pairs += [_pair(s, text.language, 0, lower) for s in _some(foreign, count // 2, rng)]
    return pairs + [PADDING] * (count - len(pairs))


def told(statement: Statement, language: Language, *, there: bool) -> str:
    """A finding in one short sentence, as present or as absent."""
    finding = FINDINGS[INDEX[statement.slug]]
    place = f" {statement.place}" if statement.place else ""
    if language == "de":
        # "Kein Nachweis von" needs no gender
        return f"{finding.name_de}{place}." if there else f"Kein Nachweis von {finding.name_de}{place}."
    if there:
        return f"{finding.name}{place}."
    return f"No {finding.name[0].lower()}{finding.name[1:]}{place}."


def _pair(statement: Statement, language: Language, truth: Truth, lower: bool) -> Pair:
    sentence, opposite = (told(statement, language, there=there) for there in (True, False))
    return Pair(sentence.lower(), opposite.lower(), truth) if lower else Pair(sentence, opposite, truth)


def _some(statements: Sequence[Statement], most: int, rng: random.Random) -> list[Statement]:
    """Distinct short sentences, at most so many, in random order."""
    distinct = list({(s.slug, s.place): s for s in statements}.values())
    return rng.sample(distinct, min(most, len(distinct)))


def _blocks(report: str) -> list[str]:
    """Of the findings; without such a section, of all that speaks of this scan."""
    sections = sections_of(report)
    chosen = [s for s in sections if s.kind == "findings"] or [s for s in sections if s.kind not in SILENT]
    texts = [section.text(report) for section in chosen]
    blocks = [_single(line) for text in texts for line in text.splitlines()]
    blocks = [block for block in blocks if block]
    if len(blocks) == 1:
        return [blocks[0][a:b] for a, b in sentence_spans(blocks[0])]
    return blocks


def _statement(label: FindingLabel, language: Language) -> Statement:
    return Statement(label.slug, _single(label.sentence), _place(label, language))


def _place(label: FindingLabel, language: Language) -> str:
    if not label.lobes:
        return SIDES[language].get(label.side, "")
    if language == "en":
        return "in the " + " and the ".join(label.lobes)
    return "im " + " und im ".join(_lobe_de(lobe) for lobe in label.lobes)


def _lobe_de(lobe: str) -> str:
    *side, level, _ = lobe.split()
    return (SIDES_DE[side[0]] if side else "") + LEVELS_DE[level]


def _single(text: str) -> str:
    return " ".join(text.split())
