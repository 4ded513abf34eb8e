"""What validation judges a scan's answers by: area under the ROC curve, and Youden's threshold. NumPy only;
scikit-learn is the oracle in the tests."""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float
from scipy.stats import rankdata

Scores = Float[np.ndarray, "N"]
Truth = Bool[np.ndarray, "N"]


def auroc(scores: Scores, truth: Truth) -> float:
    """Area under the ROC curve, ties counted half; NaN when only one class is present."""
    positives = int(truth.sum())
    negatives = truth.size - positives
    if positives == 0 or negatives == 0:
        return float("nan")
    ranks = rankdata(scores)
    return float((ranks[truth].sum() - positives * (positives + 1) / 2) / (positives * negatives))


def youden(scores: Scores, truth: Truth) -> float:
    """Threshold with the largest sensitivity + specificity; 0.5 when only one class is present."""
    if truth.all() or not truth.any():
        return 0.5
    values = np.unique(scores)
    cuts = np.concatenate([[values[0]], (values[1:] + values[:-1]) / 2])
    sensitivity = np.array([(scores[truth] >= c).mean() for c in cuts])
    specificity = np.array([(scores[~truth] < c).mean() for c in cuts])
    return float(cuts[int((sensitivity + specificity).argmax())])
