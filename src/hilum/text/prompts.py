"""Texts for models that align scans with words: a report's own sentences by place, and a finding's two
prompts.

A place is what opens the gate of a finding (`vocabulary.GATES`): an organ channel, or the union of two.

Sources: CT-CLIP aligns a scan with findings and impression, and asks "X is present." against "X is not
present."; fVLM aligns each organ with its own sentences of both sections, gives an organ that has none the
sentence of `NORMAL`, and asks "X." against "Not X." (EXACT §4).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Protocol, runtime_checkable

from hilum.text.vocabulary import FINDINGS, GATES, INDEX, ORGAN_CHANNELS

PLACES = tuple(dict.fromkeys(GATES))
"""Organ channels of each place."""

PLACE_OF = tuple(PLACES.index(gate) for gate in GATES)
"""Place of each finding."""

_SPOKEN: Mapping[tuple[str, ...], str] = MappingProxyType(
    {
        ("airways", "lung"): "Airways",
        ("mediastinum", "heart"): "Aorta",
        ("global",): "Chest",
    }
)


def _spoken(place: tuple[int, ...]) -> str:
    channels = tuple(ORGAN_CHANNELS[i] for i in place)
    return _SPOKEN.get(channels) or channels[0].capitalize()


PLACE_NAMES = tuple(_spoken(place) for place in PLACES)

NORMAL = "{place} shows no significant abnormalities."

PROMPTS: Mapping[str, tuple[str, str]] = MappingProxyType(
    {"ct-clip": ("{name} is present.", "{name} is not present."), "fvlm": ("{name}.", "Not {name}.")}
)
"""Name -> the sentence that a finding is there, and the one that it is not."""

ABOUT_NOW = ("findings", "impression")
"""Sections that say what is seen; technique is left out, as CT-CLIP leaves it out."""


@runtime_checkable
class Said(Protocol):
    """A sentence with what it is about (`phantom.narrator_sentence.Sentence`)."""

    @property
    def text(self) -> str:
        """As written."""

    @property
    def section(self) -> str:
        """Where it stands."""

    @property
    def slug(self) -> str | None:
        """Finding it speaks of."""

    @property
    def status(self) -> str:
        """`absent` when the finding is denied, `none` without one."""

    @property
    def also(self) -> tuple[str, ...]:
        """Further findings it speaks of."""


def prompt_pairs(style: str) -> list[tuple[str, str]]:
    """Both sentences of every finding, in the vocabulary's order.

    Args:
        style: of `PROMPTS`.
    """
    there, not_there = PROMPTS[style]
    return [(there.format(name=f.name), not_there.format(name=f.name)) for f in FINDINGS]


def report_sentences(report: Iterable[Said]) -> list[str]:
    """What a report says of the scan, sentence by sentence."""
    return [said.text for said in report if said.section in ABOUT_NOW]


def normal_sentence(place: int) -> str:
    """Of a place that a report does not mention."""
    return NORMAL.format(place=PLACE_NAMES[place])


def place_sentences(report: Sequence[Said]) -> list[tuple[list[str], bool]]:
    """Per place, its sentences (at least one) and whether the report finds nothing abnormal there.

    A sentence that speaks of findings in two places stands in both. What is not about one of the 18 findings
    belongs to no place.
    """
    told: list[list[str]] = [[] for _ in PLACES]
    normal = [True] * len(PLACES)
    for said in report:
        if said.section not in ABOUT_NOW or said.slug is None:
            continue
        for place in {PLACE_OF[INDEX[slug]] for slug in (said.slug, *said.also)}:
            told[place].append(said.text)
            normal[place] &= said.status == "absent"
    return [
        (texts or [normal_sentence(i)], ok) for i, (texts, ok) in enumerate(zip(told, normal, strict=True))
    ]
