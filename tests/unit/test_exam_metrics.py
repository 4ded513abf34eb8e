"""Metrics against scikit-learn and by hand."""

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from hilum.exam.calibrate import logistic
from hilum.exam.choose import best_map_threshold
from hilum.exam.metrics import MAP_THRESHOLDS, auroc, dice, dice_curve, nanmean, youden
from hilum.geometry import Geometry
from hilum.read.calibration import platt


@pytest.mark.parametrize("seed", range(5))
def test_auroc_equals_scikit_learn_with_ties(seed):
    generator = np.random.default_rng(seed)
    truth = generator.random(60) < 0.3
    scores = np.round(generator.random(60) + 0.3 * truth, 1)
    assert auroc(scores, truth) == pytest.approx(roc_auc_score(truth, scores))


def test_auroc_of_one_class_is_unknown():
    assert np.isnan(auroc(np.array([0.1, 0.2]), np.array([True, True])))


def test_dice_curve_equals_dice_at_every_threshold():
    generator = np.random.default_rng(0)
    truth = generator.random((6, 7, 8)) < 0.2
    scores = (generator.random((6, 7, 8)) * 0.5 + 0.4 * truth).astype(np.float32)
    curve = dice_curve(scores, truth)
    for threshold, value in zip(MAP_THRESHOLDS, curve, strict=True):
        assert value == pytest.approx(dice(scores >= threshold, truth))


def test_dice_of_nothing_is_one():
    empty = np.zeros(4, dtype=bool)
    assert dice(empty, empty) == 1.0


def test_youden_finds_the_gap():
    scores = np.array([0.1, 0.2, 0.3, 0.7, 0.8])
    truth = np.array([False, False, False, True, True])
    assert 0.3 < youden(scores, truth) < 0.7


def test_calibration_keeps_order_and_moves_towards_frequency():
    generator = np.random.default_rng(2)
    truth = generator.random(200) < 0.2
    p = np.clip(0.6 + 0.2 * truth + 0.1 * generator.normal(size=200), 0.01, 0.99)
    scale, offset = logistic(p, truth)
    calibrated = platt(p, scale, offset)
    assert scale > 0
    assert calibrated.mean() == pytest.approx(truth.mean(), abs=0.05)
    assert auroc(calibrated, truth) == pytest.approx(auroc(p, truth))


def test_the_map_threshold_is_the_best_mean():
    curves = np.zeros((2, MAP_THRESHOLDS.size))
    curves[0, 10], curves[1, 12], curves[:, 11] = 0.6, 0.6, 0.5
    assert best_map_threshold(curves.tolist()) == pytest.approx(MAP_THRESHOLDS[11])
    assert best_map_threshold([]) == 0.5


def test_nanmean_of_nothing_is_unknown():
    assert np.isnan(nanmean([]))
    assert nanmean([1.0, float("nan"), 3.0]) == 2.0


def test_a_field_covers_what_lies_in_it_and_nothing_more():
    grid = Geometry((6, 5, 4), np.diag([2.0, 2.0, 2.0, 1.0]))
    affine = np.diag([-1.0, 1.0, 4.0, 1.0])
    affine[:3, 3] = (8.0, 0.0, 2.0)
    mask = Geometry((5, 9, 1), affine).covers(grid)
    expected = np.zeros(grid.shape, dtype=bool)
    expected[2:5, :, 0:3] = True  # x 4..8 mm, y 0..8 mm, z 0..4 mm
    assert np.array_equal(mask, expected)
