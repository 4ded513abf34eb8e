"""Which reports of two cohorts are the same report, word for word or nearly: shingles that few reports share.

Normal reports are alike everywhere, and no leak: a run of five words that stands in the reports of many
people says nothing, and a short report says nothing at all. What is left must agree.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from hilum.cohort.report_hash import shingles_of, words_of

LEAST_WORDS = 30
"""Shorter reports are boilerplate too often to say anything."""
COMMON_PEOPLE, COMMON_SHARE = 3, 0.002
"""A shingle in the reports of more people than this is common: a number, or a share of all people."""
LEAST_RARE, LEAST_JACCARD = 12, 0.8
"""Rare shingles that two reports must share, and share of all their rare shingles."""


@dataclass(frozen=True)
class Text:
    """One report. Args: key: of its scan. patient: whose. text: the report."""

    key: str
    patient: str
    text: str


def near_duplicates(a: Sequence[Text], b: Sequence[Text]) -> list[tuple[int, int, float]]:
    """Pairs that are one report: index in `a`, index in `b`, share of rare shingles in common.

    Args:
        a, b: reports of two cohorts. One person's reports count once for what is common.
    """
    rare_a, rare_b = _rare(a, b)
    holders: dict[int, list[int]] = defaultdict(list)
    for j, shingles in enumerate(rare_b):
        for shingle in shingles:
            holders[shingle].append(j)
    found = []
    for i, shingles in enumerate(rare_a):
        shared: Counter[int] = Counter()
        for shingle in shingles:
            shared.update(holders.get(shingle, ()))
        for j, count in sorted(shared.items()):
            alike = count / (len(shingles) + len(rare_b[j]) - count)
            if count >= LEAST_RARE and alike >= LEAST_JACCARD:
                found.append((i, j, alike))
    return found


def _rare(a: Sequence[Text], b: Sequence[Text]) -> tuple[list[frozenset[int]], list[frozenset[int]]]:
    """Shingles of long reports that few people's reports hold."""
    held = [[_shingles(t.text) for t in side] for side in (a, b)]
    people: Counter[int] = Counter()
    everybody = {t.patient for side in (a, b) for t in side}
    for shingles in _by_person(zip((*a, *b), (*held[0], *held[1]), strict=True)):
        people.update(shingles)
    limit = max(COMMON_PEOPLE, round(COMMON_SHARE * len(everybody)))
    sides = [[frozenset(s for s in one if people[s] <= limit) for one in side] for side in held]
    return sides[0], sides[1]


def _shingles(text: str) -> frozenset[int]:
    return shingles_of(text) if len(words_of(text)) >= LEAST_WORDS else frozenset()


def _by_person(pairs: Iterable[tuple[Text, frozenset[int]]]) -> list[set[int]]:
    held: dict[str, set[int]] = defaultdict(set)
    for text, shingles in pairs:
        held[text.patient] |= shingles
    return list(held.values())
