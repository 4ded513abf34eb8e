"""CIDEr of reports, each with one reference.

Source: Vedantam, Zitnick and Parikh, CIDEr: Consensus-based image description evaluation, CVPR 2015, in the
form CIDEr-D that published figures of reports mean: n-grams of 1 to 4 words weighed by frequency times
inverse document frequency among the references, counts clipped to the reference's, cosine, a Gaussian penalty
(sigma 6) on the difference in length, times 10, mean over n. Without stemming.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

ORDERS = 4
SIGMA = 6.0
Gram = tuple[str, ...]


def cider(reports: Sequence[Sequence[str]], references: Sequence[Sequence[str]]) -> list[float]:
    """CIDEr-D of each report, 0 to 10. Both are lists of words; document frequencies are the references'."""
    counted = [_grams(words) for words in references]
    held: Counter[Gram] = Counter(gram for grams in counted for gram in grams)
    size = math.log(len(references)) if references else 0.0
    rarity = {gram: size - math.log(count) for gram, count in held.items()}
    return [
        _score(_grams(report), other, rarity, size, len(report) - len(words))
        for report, other, words in zip(reports, counted, references, strict=True)
    ]


def _grams(words: Sequence[str]) -> Counter[Gram]:
    """All n-grams, n = 1 to 4, with their counts."""
    return Counter(
        tuple(words[start : start + n]) for n in range(1, ORDERS + 1) for start in range(len(words) - n + 1)
    )


def _score(
    report: Counter[Gram], reference: Counter[Gram], rarity: dict[Gram, float], size: float, longer: int
) -> float:
    """One pair. `size`: rarity of a gram that no reference has."""
    dots, left, right = [0.0] * ORDERS, [0.0] * ORDERS, [0.0] * ORDERS
    for gram, count in report.items():
        weight, n = rarity.get(gram, size), len(gram) - 1
        own, other = count * weight, reference.get(gram, 0) * weight
        left[n] += own * own
        dots[n] += min(own, other) * other
    for gram, count in reference.items():
        right[len(gram) - 1] += (count * rarity[gram]) ** 2
    penalty = math.exp(-(longer**2) / (2 * SIGMA**2))
    norms = [math.sqrt(a * b) for a, b in zip(left, right, strict=True)]
    return 10 * penalty * sum(d / n for d, n in zip(dots, norms, strict=True) if n > 0) / ORDERS
