"""What a sentence says about the 18 findings, by our own labeller: the judge of every sentence of a report,
whoever wrote it.

Source: `text.labels`. It reads one sentence at a time; a finding that is doubted counts as stated here, also
where the labels' policy leaves it unknown.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from hilum.text.labels import FindingLabel, label_report


@dataclass(frozen=True)
class Claims:
    """The findings that a text states, by slug, and those that it denies."""

    stated: dict[str, FindingLabel]
    denied: frozenset[str]

    @property
    def doubted(self) -> bool:
        """True when a finding is stated with doubt."""
        return any(label.status in ("doubted", "open") for label in self.stated.values())


@lru_cache(maxsize=4096)
def claims_of(text: str) -> Claims:
    """What a text claims. English and German; never raises."""
    labels = label_report(text)
    stated = {slug: label for slug, label in labels.items() if label.status in ("said", "doubted", "open")}
    return Claims(stated, frozenset(slug for slug, label in labels.items() if label.label == "absent"))
