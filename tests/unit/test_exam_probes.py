"""Probes and bootstrap: known answers, and scikit-learn beside them."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score, roc_auc_score

from hilum.errors import InputRefused, UsageError
from hilum.exam.bootstrap import auroc_draws, interval, macro_draws, patient_draws, precision_draws
from hilum.exam.metrics import auroc
from hilum.exam.probe_linear import fit_linear, logistic_path
from hilum.exam.probe_neighbours import Neighbourhood, fit_neighbours
from hilum.exam.probes import Scaling, known_auroc, macro_auroc

FITS = (fit_linear, fit_neighbours)


def toy(scans: int, signal: float, seed: int, findings: int = 2) -> tuple[np.ndarray, np.ndarray]:
    """Features whose first columns carry the findings; prevalence a third."""
    generator = np.random.default_rng(seed)
    labels = (generator.random((scans, findings)) < 1 / 3).astype(np.float64)
    features = generator.normal(size=(scans, 12)) + 5.0
    features[:, :findings] += signal * labels
    return features.astype(np.float32), labels


@pytest.mark.parametrize("fit", FITS)
def test_what_can_be_separated_is_separated(fit):
    fitted = fit(toy(200, 12.0, 0), toy(60, 12.0, 1))
    features, labels = toy(60, 12.0, 2)
    assert macro_auroc(fitted.scores(features), labels) > 0.995
    assert fitted.validation > 0.995


@pytest.mark.parametrize("fit", FITS)
def test_features_without_signal_stay_near_chance(fit):
    fitted = fit(toy(300, 0.0, 0), toy(100, 0.0, 1))
    features, labels = toy(800, 0.0, 2)
    assert abs(macro_auroc(fitted.scores(features), labels) - 0.5) < 0.06


@pytest.mark.parametrize("fit", FITS)
def test_unknown_labels_change_nothing_that_is_known(fit):
    """Scans with an unknown label are as good as absent, whatever their features are."""
    train, validation = toy(120, 2.0, 0, findings=1), toy(60, 2.0, 1, findings=1)
    # the same features twice more, their labels unknown: scaling is the same, and so is the answer
    more = (np.concatenate([train[0]] * 3), np.concatenate([train[1], np.full((240, 1), np.nan)]))
    features, _ = toy(40, 2.0, 2, findings=1)
    plain, masked = fit(train, validation), fit(more, validation)
    assert plain.chosen == masked.chosen
    np.testing.assert_allclose(plain.scores(features), masked.scores(features), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("fit", FITS)
@pytest.mark.parametrize("value", [0.0, 1.0, np.nan])
def test_a_finding_of_one_class_is_not_measured(fit, value):
    features, labels = toy(80, 2.0, 0)
    labels[:, 1] = value
    fitted = fit((features, labels), toy(40, 2.0, 1))
    others, truth = toy(40, 2.0, 2)
    scores = fitted.scores(others)
    assert np.isnan(scores[:, 1]).all() and np.isfinite(scores[:, 0]).all()
    assert np.isnan(known_auroc(scores[:, 1], truth[:, 1]))
    assert macro_auroc(scores, truth) == known_auroc(scores[:, 0], truth[:, 0])


@pytest.mark.parametrize("fit", FITS)
def test_what_validation_cannot_measure_is_nan_and_not_a_half(fit):
    features, labels = toy(40, 2.0, 1)
    fitted = fit(toy(80, 2.0, 0), (features, np.zeros_like(labels)))
    assert np.isnan(fitted.validation)


@pytest.mark.parametrize("fit", FITS)
def test_features_that_are_not_finite_are_refused(fit):
    features, labels = toy(40, 2.0, 1)
    features[3, 2] = np.nan
    with pytest.raises(InputRefused, match="MODEL_OUTPUT") as caught:
        fit(toy(40, 2.0, 0), (features, labels))
    assert "1 scans" in str(caught.value)


@pytest.mark.parametrize("fit", FITS)
def test_there_must_be_something_to_choose(fit):
    with pytest.raises(UsageError, match="CONFIG_VALUE"):
        fit(toy(40, 2.0, 0), toy(40, 2.0, 1), [])


@pytest.mark.parametrize("strength", [0.1, 10.0, 1000.0])
def test_the_regression_is_scikit_learns(strength):
    generator = np.random.default_rng(4)
    features, labels = toy(150, 1.0, 3, findings=4)
    labels[generator.random(labels.shape) < 0.2] = np.nan
    scaled = Scaling.of(features).apply(features)
    ((_, weights),) = logistic_path(scaled, labels, [strength])
    for d in range(labels.shape[1]):
        known = np.isfinite(labels[:, d])
        oracle = LogisticRegression(C=1 / strength, tol=1e-10, max_iter=10_000)
        oracle.fit(scaled[known], labels[known, d])
        np.testing.assert_allclose(weights.margins(scaled)[:, d], oracle.decision_function(scaled), atol=2e-3)


def test_a_feature_that_never_varies_is_left_out():
    features, labels = toy(60, 3.0, 0)
    features[:, 7] = 0.1
    scaling = Scaling.of(features)
    assert scaling.factor[7] == 0
    assert np.isfinite(fit_linear((features, labels), (features, labels)).scores(features)).all()


def test_neighbours_by_hand():
    """Two positives and a negative around an east-pointing scan; the nearest of all is not labelled."""
    angles = np.radians([0.0, 10.0, 20.0, 30.0, 180.0])
    train = (np.stack([np.cos(angles), np.sin(angles)], 1), np.array([[np.nan], [1.0], [0.0], [1.0], [0.0]]))
    around = Neighbourhood.of(train, np.array([[2.0, 0.0]]), None)
    weights = np.exp(np.cos(angles[1:4]) / 0.5)
    assert around.scores(1, 0.5)[0, 0] == 1.0
    assert around.scores(3, 0.5)[0, 0] == pytest.approx((weights[0] + weights[2]) / weights.sum())
    assert around.scores(2, 0.5)[0, 0] == pytest.approx(weights[0] / weights[:2].sum())


def ties(scans: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    truth = generator.random(scans) < 0.3
    return np.round(generator.normal(size=scans) + 0.7 * truth, 1), truth


@pytest.mark.parametrize("seed", range(3))
def test_every_draw_is_scikit_learns_with_weights(seed):
    scores, truth = ties(70, seed)
    draws = patient_draws([n // 2 for n in range(70)], 5, seed)
    areas, precisions = auroc_draws(scores, truth, draws), precision_draws(scores, truth, draws)
    for weights, area, precision in zip(draws, areas, precisions, strict=True):
        assert area == pytest.approx(roc_auc_score(truth, scores, sample_weight=weights))
        assert precision == pytest.approx(average_precision_score(truth, scores, sample_weight=weights))
    once = np.ones((1, 70))
    assert auroc_draws(scores, truth, once)[0] == pytest.approx(auroc(scores, truth))


def test_equal_scores_are_worth_a_half_and_their_prevalence():
    truth = np.arange(20) < 5
    once = np.ones((1, 20))
    assert auroc_draws(np.zeros(20), truth, once)[0] == 0.5
    assert precision_draws(np.zeros(20), truth, once)[0] == 0.25


def test_scans_of_a_patient_are_drawn_together_and_draws_repeat():
    patients = ["b", "a", "b", "c", "a"]
    draws = patient_draws(patients, 50, 3)
    assert (draws[:, 0] == draws[:, 2]).all() and (draws[:, 1] == draws[:, 4]).all()
    assert (draws[:, [0, 1, 3]].sum(1) == 3).all()
    assert (draws == patient_draws(patients, 50, 3)).all()
    assert (draws != patient_draws(patients, 50, 4)).any()


@pytest.mark.parametrize("truth", [np.zeros(6, bool), np.ones(6, bool)])
def test_one_class_is_not_a_number_in_any_draw(truth):
    draws = patient_draws(range(6), 10, 0)
    assert np.isnan(auroc_draws(np.arange(6.0), truth, draws)).all()
    assert np.isnan(interval(float("nan"), np.full(10, np.nan))).all()


def test_the_macro_of_a_draw_is_over_what_it_measured():
    values = np.array([[0.5, np.nan], [0.5, 0.7], [np.nan, np.nan]])
    np.testing.assert_allclose(macro_draws(values), [0.5, 0.6, np.nan])


def test_intervals_cover_the_truth_about_as_often_as_they_say():
    """Normal scores one deviation apart: the true AUROC is 0.760."""
    generator = np.random.default_rng(0)
    covered = 0
    for seed in range(100):
        truth = np.arange(90) < 30
        scores = generator.normal(size=90) + truth
        drawn = auroc_draws(scores, truth, patient_draws(range(90), 200, seed))
        found = interval(auroc(scores, truth), drawn)
        assert found.low <= found.value <= found.high
        covered += found.low <= 0.7602 <= found.high
    assert 0.88 <= covered / 100 <= 0.99
