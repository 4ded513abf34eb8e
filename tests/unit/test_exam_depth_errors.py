"""Errors of places, and the baselines that need no model."""

import numpy as np
import pytest

from hilum.exam.depth_errors import Placed, measured, middle_errors, prior_errors, random_errors

RNG = np.random.default_rng(0)


def placed(count: int = 200, noise: float = 0.0) -> Placed:
    """Sentences whose first number says how high in their scan they belong."""
    low, high = RNG.uniform(-300, -100, count), RNG.uniform(50, 200, count)
    share = RNG.random(count)
    rows = np.column_stack([share + noise * RNG.normal(size=count), RNG.normal(size=(count, 3))])
    of = np.arange(count, dtype=np.int64) // 4
    return Placed(rows.astype(np.float32), low + share * (high - low), low, high, of)


def test_figures_are_those_of_the_sentences():
    errors, of = np.array([0.0, 10.0, 20.0, 30.0, 100.0]), np.array([0, 0, 0, 1, 1])
    told = {name: row.value for name, (row, _) in measured(errors, of, np.ones((1, 2))).items()}
    assert told == {
        "MAE mm": 32.0, "median mm": 20.0, "within 12 mm": 0.4, "within 24 mm": 0.6, "per-scan MAE mm": 37.5,
    }  # fmt: skip
    # a patient that is drawn twice counts twice, one that is not drawn not at all
    drawn = measured(errors, of, np.array([[2.0, 0.0], [0.0, 2.0]]))
    assert drawn["MAE mm"][1].tolist() == [10.0, 65.0] and drawn["median mm"][1].tolist() == [10.0, 30.0]


def test_the_middle_and_chance():
    some = placed(6)
    assert middle_errors(some) == pytest.approx(np.abs(some.at_mm - (some.low_mm + some.high_mm) / 2))
    drawn = RNG.uniform(some.low_mm, some.high_mm, (200_000, 6))
    assert random_errors(some) == pytest.approx(np.abs(drawn - some.at_mm).mean(0), rel=0.01)


def test_the_prior_learns_from_sentences_alone():
    train, val, test = placed(400, 0.01), placed(80, 0.01), placed(80, 0.01)
    errors, penalty = prior_errors(train, val, test)
    assert errors.mean() < 10 < middle_errors(test).mean() and penalty <= 1.0
    deaf = Placed(RNG.normal(size=test.rows.shape), test.at_mm, test.low_mm, test.high_mm, test.of_scan)
    assert prior_errors(train, val, deaf)[0].mean() > 4 * errors.mean()
