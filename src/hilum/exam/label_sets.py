"""Which findings a table is about: all 18, or the 16 that a data set or a published model knows. Data.

RAD-ChestCT labels 16 of the 18 (EXACT §3.2): no mosaic attenuation, and one calcification for arteries and
coronaries. It is scored with the arterial probability alone (EXACT) or with the larger of the two (CT-CLIP).
fVLM's tables on CT-RATE lack medical material and lymphadenopathy (EXACT §2.1).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np

from hilum.cohort.records import Label
from hilum.cohort.sources.base import Calcification
from hilum.cohort.sources.rad_chestct import ARTERIAL, CALCIFICATION, CORONARY, SLUGS_16, scores_16
from hilum.errors import UsageError
from hilum.text.vocabulary import INDEX, SLUGS


@dataclass(frozen=True)
class LabelSet:
    """Findings in order.

    Args:
        name: of `LABEL_SETS`. slugs: in CT-RATE's order. joined: arterial and coronary calcification are one
            label, which stands under the arterial slug.
    """

    name: str
    slugs: tuple[str, ...]
    joined: bool = False

    def scores(self, scores_18: np.ndarray, rule: Calcification) -> np.ndarray:
        """[..., 18] in CT-RATE's order -> [..., len(slugs)]; the larger of two for booleans is OR."""
        if self.joined:
            return scores_16(scores_18, rule)
        return scores_18[..., [INDEX[slug] for slug in self.slugs]]

    def truth(self, labels: Mapping[str, Label], rule: Calcification) -> list[float]:
        """A record's labels in this set's order: 1, 0 or NaN for unknown."""
        held = dict(labels)
        if self.joined:
            held[ARTERIAL] = _calcification(labels, rule)
        return [float("nan") if held.get(slug) is None else float(held[slug] or 0) for slug in self.slugs]


LABEL_SETS: Mapping[str, LabelSet] = MappingProxyType(
    {
        "ct-rate": LabelSet("ct-rate", SLUGS),
        "rad-chestct": LabelSet("rad-chestct", SLUGS_16, joined=True),
        "fvlm": LabelSet("fvlm", tuple(s for s in SLUGS if s not in ("medical_material", "lymphadenopathy"))),
    }
)


def label_set(name: str | None, source: str) -> LabelSet:
    """By name; None takes the 16 for RAD-ChestCT and the 18 for every other data set.

    Raises:
        UsageError: `OPTION_UNKNOWN`.
    """
    chosen = name or ("rad-chestct" if source == "rad-chestct" else "ct-rate")
    if chosen not in LABEL_SETS:
        raise UsageError(
            "OPTION_UNKNOWN", "a label set is one of those known", expected=", ".join(LABEL_SETS), got=chosen
        )
    return LABEL_SETS[chosen]


def _calcification(labels: Mapping[str, Label], rule: Calcification) -> Label:
    """As the data set says it; of a cohort that tells two kinds apart, as the rule reads its scores."""
    if CALCIFICATION in labels:
        return labels[CALCIFICATION]
    kinds = [labels.get(ARTERIAL)] + ([labels.get(CORONARY)] if rule == "either" else [])
    if 1 in kinds:
        return 1
    return None if None in kinds else 0
