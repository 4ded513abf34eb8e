"""Ranks, recalls, pools and scans that look for scans, against plain loops."""

import numpy as np
import pytest

from hilum.errors import UsageError
from hilum.exam.bootstrap import patient_draws
from hilum.exam.retrieval import kept, map_at, pool_recall, ranks, recalls

RNG = np.random.default_rng(0)


def test_ranks_are_those_of_a_plain_sort():
    similar = RNG.normal(size=(7, 30))
    own = RNG.integers(0, 30, 7)
    for row, at, found in zip(similar, own, ranks(similar, own), strict=True):
        assert sorted(row, reverse=True).index(row[at]) + 1 == found


def test_ties_are_no_luck():
    flat = np.zeros((5, 5))
    assert ranks(flat, np.arange(5)).tolist() == [3.0] * 5
    assert ranks(np.zeros((4, 4)), np.arange(4)).tolist() == [3.0] * 4, "half places are rounded up"


def test_equal_reports_have_one_row_or_each_its_own():
    texts = ["a", "b", "a", "c", "b"]
    assert kept(texts, "all").tolist() == [0, 1, 2, 3, 4] and kept(texts, "first").tolist() == [0, 1, 3]


def test_recalls_and_their_draws():
    found = np.array([1.0, 2.0, 6.0, 11.0, 400.0])
    once = recalls(found, np.ones((1, 5)))
    assert {k: once[k][0].value for k in ("R@1", "R@5", "R@10", "R@50", "R@100")} == {
        "R@1": 0.2, "R@5": 0.4, "R@10": 0.6, "R@50": 0.8, "R@100": 0.8,
    }  # fmt: skip
    assert once["median rank"][0].value == 6.0 == once["median rank"][1][0]
    assert once["mean rank"][0].value == pytest.approx(84.0)
    draws = patient_draws(list("aabbc"), 300, 1)
    told = recalls(found, draws)
    for draw, median in zip(draws[:50], told["median rank"][1][:50], strict=True):
        spread = np.repeat(found, draw.astype(int))
        assert sorted(spread)[(len(spread) - 1) // 2] == median
    assert all(row.low <= row.value <= row.high for row, _ in told.values())


def test_pools_are_dealt_and_each_is_a_gallery():
    perfect = np.eye(40)
    assert pool_recall(perfect, 8, (1, 8), repeats=3) == {"R@1 of 8": 1.0, "R@8 of 8": 1.0}
    chance = pool_recall(RNG.normal(size=(64, 64)), 32, (1, 8), repeats=60)
    assert chance["R@1 of 32"] == pytest.approx(1 / 32, abs=0.03)
    assert chance["R@8 of 32"] == pytest.approx(0.25, abs=0.08)
    with pytest.raises(UsageError, match="CONFIG_VALUE"):
        pool_recall(perfect, 41)


def test_scans_that_are_alike_against_a_plain_loop():
    labels = (RNG.random((25, 4)) < 0.3).astype(float)
    labels[3] = 0
    labels[7, 0] = np.nan
    similar = RNG.normal(size=(25, 25))
    found = map_at(similar, labels, (5, 10))
    for i in range(25):
        asks = [j for j in range(25) if j != i and (labels[j] == 1).any()]
        for k in (5, 10):
            if not (labels[i] == 1).any():
                assert np.isnan(found[f"MAP@{k}"][i])
                continue
            order = sorted(asks, key=lambda j: -similar[i, j])
            like = [bool(((labels[i] == 1) & (labels[j] == 1)).any()) for j in order]
            precision = [sum(like[: n + 1]) / (n + 1) for n in range(min(k, len(like))) if like[n]]
            most = min(k, sum(like))
            assert found[f"MAP@{k}"][i] == pytest.approx(sum(precision) / most if most else 0.0)
