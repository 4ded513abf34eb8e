"""Scan probability against threshold -> present or not. Source: EXACT §1.8; thresholds come from validation
data only."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from hilum.errors import RunError
from hilum.read.maps import finite
from hilum.text.vocabulary import FINDINGS, FindingName

DEFAULT_MAP_THRESHOLD = 0.5


def diagnose(
    probabilities: np.ndarray, thresholds: Mapping[str, float]
) -> list[tuple[FindingName, float, float, bool]]:
    """(finding, probability, threshold, present) in the order of `FINDINGS`.

    Args:
        probabilities: float [18] in 0..1. thresholds: slug -> scan probability from which it is present.

    Raises:
        RunError: a probability is not finite, or the number of them is not 18.
    """
    if probabilities.shape != (len(FINDINGS),):
        raise RunError(
            "MODEL_OUTPUT", "one probability per finding", expected=(len(FINDINGS),), got=probabilities.shape
        )
    finite(probabilities, "the scan probabilities")
    answers = []
    for finding, value in zip(FINDINGS, probabilities, strict=True):
        probability = float(np.clip(value, 0.0, 1.0))
        threshold = float(thresholds.get(finding.slug, 0.5))
        answers.append((finding, round(probability, 4), round(threshold, 4), probability >= threshold))
    return answers
