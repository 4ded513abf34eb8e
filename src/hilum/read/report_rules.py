"""The rules of a report (data: `report_rules.toml`)."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

from hilum.read.found import FindingReading
from hilum.read.sentences import Certainty
from hilum.text.vocabulary import SLUGS


@dataclass(frozen=True)
class ReportRules:
    """See the head of each table in `report_rules.toml`.

    Args:
        importance: class of each finding, 1 first. needs: organs that must be seen before it is denied.
        joining: words of a language that say nothing by themselves.
    """

    plain: float
    probable: float
    seen_ml: dict[str, float]
    needs: dict[str, tuple[str, ...]]
    together: int
    most: int
    importance: dict[str, int]
    joining: dict[str, frozenset[str]]

    def certainty(self, finding: FindingReading) -> Certainty:
        """How a present finding is said: by its probability, if that is calibrated."""
        if not finding.calibrated:
            return "ungraded"
        p = finding.probability
        return "plain" if p >= self.plain else "probable" if p >= self.probable else "possible"

    def seen(self, organ: str, organ_ml: dict[str, float]) -> bool:
        """Whether enough of an organ lies in the field of view."""
        return organ_ml.get(organ, 0.0) >= self.seen_ml.get(organ, 0.0)

    def judged(self, finding: FindingReading, organ_ml: dict[str, float]) -> bool:
        """Whether a finding that is not present may be denied."""
        return all(self.seen(organ, organ_ml) for organ in self.needs.get(finding.slug, (finding.organ,)))

    def rank(self, finding: FindingReading) -> tuple[int, int, float]:
        """Order of the impression, lowest first."""
        sure = ("plain", "ungraded", "probable", "possible").index(self.certainty(finding))
        return self.importance[finding.slug], sure, -finding.probability

    def concludes(self, finding: FindingReading) -> bool:
        """Whether a present finding may stand in the impression."""
        return self.importance[finding.slug] == 1 or self.certainty(finding) != "possible"


@cache
def report_rules() -> ReportRules:
    """The rules that ship."""
    table = tomllib.loads((files("hilum.read") / "report_rules.toml").read_text(encoding="utf-8"))
    classes = (table["impression"][name] for name in ("first", "second", "third"))
    importance = {slug: n for n, slugs in enumerate(classes, 1) for slug in slugs}
    assert set(importance) == set(SLUGS), "each finding is of one class"
    return ReportRules(
        **table["certainty"],
        seen_ml=table["seen_ml"],
        needs={slug: tuple(organs) for slug, organs in table["needs"].items()},
        together=table["denials"]["together"],
        most=table["impression"]["most"],
        importance=importance,
        joining={name: frozenset(words.split()) for name, words in table["joining"].items()},
    )
