"""Present or not, counted: F1, accuracy and their kin in every draw of patients at once.

Two F1s stand in the literature's tables and are not the same quantity (EXACT §2.1): of presence, and of
absence. `f1_weighted` is scikit-learn's ``average="weighted"``: both, each by how many cases it has.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool

Called = Bool[np.ndarray, "N"]


class Counts(NamedTuple):
    """Cases in every draw: called and present, called and absent, missed, rightly not called."""

    hits: Values
    false: Values
    missed: Values
    quiet: Values


def counts_of(called: Called, truth: Truth, draws: Draws) -> Counts:
    """The four counts in every draw.

    Args:
        called, truth: per case. draws: how often each case stands in each draw.
    """
    kinds = np.stack([called & truth, called & ~truth, ~called & truth, ~called & ~truth], axis=1)
    counted = draws @ kinds.astype(np.float64)
    return Counts(counted[:, 0], counted[:, 1], counted[:, 2], counted[:, 3])


def f1_present(c: Counts) -> Values:
    """2 TP / (2 TP + FP + FN) with presence as the positive class; NaN in draws without a positive."""
    return np.where(c.hits + c.missed > 0, _ratio(2 * c.hits, 2 * c.hits + c.false + c.missed), np.nan)


def f1_absent(c: Counts) -> Values:
    """The same with absence as the positive class; NaN in draws without a negative."""
    return f1_present(Counts(c.quiet, c.missed, c.false, c.hits))


def f1_weighted(c: Counts) -> Values:
    """Both F1s weighted by the cases of their class; a class without cases weighs nothing."""
    positives, negatives = c.hits + c.missed, c.quiet + c.false
    present, absent = np.nan_to_num(f1_present(c)), np.nan_to_num(f1_absent(c))
    return _ratio(positives * present + negatives * absent, positives + negatives)


def accuracy(c: Counts) -> Values:
    """Share of cases that were answered rightly."""
    return _ratio(c.hits + c.quiet, c.hits + c.false + c.missed + c.quiet)


def sensitivity(c: Counts) -> Values:
    """Share of the positives that were called."""
    return _ratio(c.hits, c.hits + c.missed)


def specificity(c: Counts) -> Values:
    """Share of the negatives that were not."""
    return _ratio(c.quiet, c.quiet + c.false)


def _ratio(above: Values, below: Values) -> Values:
    return np.divide(above, below, out=np.full(below.shape, np.nan), where=below > 0)
