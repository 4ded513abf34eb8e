"""Texts and scans that find each other: ranks, recall, pools, and scans that find scans like them.

Sources: RadFinder §1.8 (whole galleries; R@K, median and mean rank; both CT-RATE protocols; MAP@K of
abnormal volumes); Merlin's pools. Equal scores are no luck: the rank of a pair is the mean over the orders of
those that tie with it, rounded down against us.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Literal

import numpy as np
from jaxtyping import Float, Float64, Int64

from hilum.errors import UsageError
from hilum.exam.bootstrap import Draws, Interval, Values, interval, mean_draws

RECALLS = (1, 5, 10, 50, 100)
Rows = Float[np.ndarray, "N E"]
Similar = Float64[np.ndarray, "Q G"]
Ranks = Float64[np.ndarray, "Q"]
Numbers = Int64[np.ndarray, "Q"]
Protocol = Literal["all", "first"]


def ranks(similar: Similar, own: Numbers) -> Ranks:
    """Place of each query's own row among the whole gallery, from 1. Rows that tie with it count half, and
    half places are rounded up.

    Args:
        similar: of every query with every row. own: row of each query.
    """
    score = similar[np.arange(len(own)), own][:, None]
    above = (similar > score).sum(1)
    ties = (similar == score).sum(1) - 1
    return np.ceil(1.0 + above + ties / 2)


def kept(texts: Sequence[Hashable], protocol: Protocol) -> Int64[np.ndarray, "K"]:
    """Rows of a gallery.

    Args:
        texts: equal for equal reports. protocol: ``all``, every scan its own row, also where reports are the
            same (CT-RATE `dup_all`); ``first``, the first scan of each report.
    """
    if protocol == "all":
        return np.arange(len(texts), dtype=np.int64)
    first: dict[Hashable, int] = {}
    for i, text in enumerate(texts):
        first.setdefault(text, i)
    return np.array(sorted(first.values()), dtype=np.int64)


def recalls(found: Ranks, draws: Draws) -> dict[str, tuple[Interval, Values]]:
    """R@K of `RECALLS`, median and mean rank: value with interval, and its draws."""
    told = {}
    for k in RECALLS:
        hit = (found <= k).astype(np.float64)
        drawn = mean_draws(hit, draws)
        told[f"R@{k}"] = (interval(float(hit.mean()), drawn), drawn)
    middle = _median_draws(found, draws)
    told["median rank"] = (interval(float(np.median(found)), middle), middle)
    mean = mean_draws(found, draws)
    told["mean rank"] = (interval(float(found.mean()), mean), mean)
    return told


def pool_recall(
    similar: Similar, size: int, at: Sequence[int] = (1, 8), repeats: int = 100, seed: int = 42
) -> dict[str, float]:
    """Merlin's protocol: pairs are dealt into pools, and each text looks for its scan in its own pool.

    Args:
        similar: square, pair i is row and column i. size: of a pool; pairs that fill none are left out of
            that deal. at: K of R@K.

    Raises:
        UsageError: `CONFIG_VALUE` for pools larger than the gallery.
    """
    count = len(similar)
    if not 1 < size <= count:
        raise UsageError("CONFIG_VALUE", "a pool is not larger than the gallery", expected=count, got=size)
    generator, hits = np.random.default_rng(seed), {k: list[float]() for k in at}
    for _ in range(repeats):
        order = generator.permutation(count)
        for first in range(0, count - size + 1, size):
            pool = order[first : first + size]
            found = ranks(similar[np.ix_(pool, pool)], np.arange(size, dtype=np.int64))
            for k in at:
                hits[k].append(float((found <= k).mean()))
    return {f"R@{k} of {size}": float(np.mean(values)) for k, values in hits.items()}


def map_at(
    similar: Similar, labels: Float[np.ndarray, "N D"], ks: Sequence[int] = (5, 10, 50)
) -> dict[str, Float64[np.ndarray, "N"]]:
    """MAP@K of scans that look for scans: a scan is like another with at least one finding in common. NaN
    for scans without findings: they ask nothing, and are in nobody's gallery.

    Args:
        similar: square. labels: 1 for a finding.
    """
    there = labels == 1
    asks = np.flatnonzero(there.any(1))
    told = {f"MAP@{k}": np.full(len(labels), np.nan) for k in ks}
    alike = (there[asks].astype(float) @ there[asks].T.astype(float)) > 0
    scores = similar[np.ix_(asks, asks)].copy()
    np.fill_diagonal(scores, -np.inf)
    order = np.argsort(-scores, axis=1, kind="stable")[:, :-1]
    relevant = np.take_along_axis(alike, order, axis=1)
    precision = np.cumsum(relevant, axis=1) / np.arange(1, relevant.shape[1] + 1)
    for k in ks:
        hits = relevant[:, :k]
        most = np.minimum(relevant.sum(1), k)
        total = (precision[:, :k] * hits).sum(1)
        told[f"MAP@{k}"][asks] = np.divide(total, most, out=np.zeros_like(total), where=most > 0)
    return told


def _median_draws(found: Ranks, draws: Draws) -> Values:
    order = np.argsort(found, kind="stable")
    weight = np.cumsum(draws[:, order], axis=1)
    half = weight[:, -1:] / 2
    at = (weight >= half).argmax(1)
    return found[order][at]
