"""Calibration: fits against scikit-learn and by hand, the choice on validation, ECE, the diagram, cards."""

import json
import xml.etree.ElementTree as ET

import numpy as np
import pytest
from sklearn.calibration import calibration_curve
from sklearn.isotonic import IsotonicRegression
from sklearn.metrics import brier_score_loss
from sklearn.metrics import log_loss as sk_log_loss

from hilum.errors import WeightsError
from hilum.exam.bootstrap import patient_draws
from hilum.exam.calibrate import (
    KINDS,
    apply,
    choose_kind,
    fit,
    folds_of,
    isotonic,
    isotonic_entry,
    log_loss,
    logistic,
    temperature,
)
from hilum.exam.choose import choose_presence
from hilum.exam.reliability import (
    brier,
    calibration_facts,
    ece,
    ece_draws,
    floor,
    reliability,
)
from hilum.read.calibration import calibrated, logit, platt
from hilum.show.reliability import reliability_svg
from hilum.text.vocabulary import SLUGS


def overconfident(seed: int, n: int = 4000, scale: float = 3.0, offset: float = -1.0):
    """Probabilities whose log odds are wrong by a factor and a shift, and what came true."""
    generator = np.random.default_rng(seed)
    z = generator.normal(0, 1.2, n)
    truth = generator.random(n) < 1 / (1 + np.exp(-z))
    return 1 / (1 + np.exp(-(scale * z + offset))), truth


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("digits", [1, 2, 12])
def test_isotonic_regression_is_scikit_learns(seed, digits):
    generator = np.random.default_rng(seed)
    x = np.round(generator.random(80), digits)
    y = (generator.random(80) < x).astype(float)
    raw, level = isotonic(x, y)
    oracle = IsotonicRegression(out_of_bounds="clip").fit(x, y)
    at = np.linspace(-0.1, 1.1, 301)
    np.testing.assert_allclose(np.interp(at, raw, level), oracle.predict(at), atol=1e-12)
    assert (np.diff(level) >= 0).all()


def test_temperature_and_platt_find_what_was_done_to_the_log_odds():
    p, truth = overconfident(0, 20000, 3.0, 0.0)
    scale, offset = temperature(p, truth)
    assert scale == pytest.approx(1 / 3, rel=0.06) and offset == 0
    p, truth = overconfident(1, 20000, 3.0, -1.0)
    scale, offset = logistic(p, truth)
    assert scale == pytest.approx(1 / 3, rel=0.06) and offset == pytest.approx(1 / 3, abs=0.06)


@pytest.mark.parametrize("seed", range(3))
def test_platts_numbers_are_the_lowest_point_of_the_penalised_loss(seed):
    p, truth = overconfident(20 + seed, 60, 3.0, -1.0)
    x, y = logit(p), truth.astype(float)

    def cost(log_scale: float, offset: float) -> float:
        z = np.exp(log_scale) * x + offset
        return np.sum(np.logaddexp(0, z) - y * z) + 0.5 * log_scale**2 + 0.005 * offset**2

    scale, offset = logistic(p, truth)
    least = cost(np.log(scale), offset)
    nearby = [cost(np.log(scale) + a, offset + b) for a in (-0.01, 0, 0.01) for b in (-0.01, 0, 0.01)]
    assert least <= min(nearby) + 1e-9


def test_log_loss_and_brier_are_scikit_learns_and_unknown_labels_count_nowhere():
    p, truth = overconfident(2, 50)
    told, labels = np.stack([p, p], 1), np.stack([truth, np.full(50, np.nan)], 1).astype(float)
    losses = log_loss(told, labels)
    assert losses[:, 0].mean() == pytest.approx(sk_log_loss(truth, p)) and np.isnan(losses[:, 1]).all()
    assert brier(p, truth) == pytest.approx(brier_score_loss(truth, p))


def test_ece_is_the_weighted_gap_of_scikit_learns_curve():
    p, truth = overconfident(3, 500)
    for binning, strategy in (("width", "uniform"), ("mass", "quantile")):
        came, told = calibration_curve(truth, p, n_bins=15, strategy=strategy)
        found = reliability(p, truth, binning)
        np.testing.assert_allclose(found.frequency, came, atol=1e-12)
        np.testing.assert_allclose(found.confidence, told, atol=1e-12)
        by_hand = sum(abs(a - b) * n for a, b, n in zip(came, told, found.count, strict=True)) / 500
        assert ece(p, truth, binning) == pytest.approx(by_hand)


def test_ece_in_draws_is_ece_of_the_drawn_cases():
    generator = np.random.default_rng(4)
    p = generator.random((12, 3))
    labels = (generator.random((12, 3)) < p).astype(float)
    labels[2, 1] = np.nan
    draws = patient_draws(list("aabbccddeeff"), 20, 1)
    for value, row in zip(ece_draws(p, labels, draws), draws, strict=True):
        again = np.repeat(np.arange(12), row.astype(int))
        known = np.isfinite(labels[again])
        assert value == pytest.approx(ece(p[again][known], labels[again][known] > 0.5))


def test_a_calibrated_model_shows_about_the_floor_and_an_overconfident_one_more():
    p, truth = overconfident(5, 3000, 1.0, 0.0)
    assert ece(p, truth) == pytest.approx(floor(p), abs=0.015)
    wrong, truth = overconfident(5, 3000, 4.0, 0.0)
    assert ece(wrong, truth) > 4 * floor(wrong)


@pytest.mark.parametrize("kind", ["temperature", "platt", "isotonic"])
def test_calibration_on_validation_helps_on_other_cases(kind):
    p, truth = overconfident(6, 400, 3.0, 0.0)
    other, came = overconfident(7, 4000, 3.0, 0.0)
    (entry,) = fit(p[:, None], truth[:, None].astype(float), kind)
    told = calibrated(other, entry)
    assert ece(told, came) < 0.5 * ece(other, came)
    order = np.argsort(other)
    assert (np.diff(told[order]) >= 0).all()
    assert json.loads(json.dumps(entry)) == entry


def test_the_kind_is_chosen_by_held_out_patients():
    generator = np.random.default_rng(8)
    z = generator.normal(0, 1.5, (600, 3))
    labels = (generator.random(z.shape) < 1 / (1 + np.exp(-z))).astype(float)
    right, tempered = 1 / (1 + np.exp(-z)), 1 / (1 + np.exp(-4 * z))
    shifted = 1 / (1 + np.exp(-(2 * z - 2)))
    bent = np.clip(right**6, 1e-5, 1)  # no logistic curve undoes this
    people = [f"p{n // 2}" for n in range(600)]
    assert choose_kind(tempered, labels, people)[0] == "temperature"
    assert choose_kind(shifted, labels, people)[0] == "platt"
    kind, losses = choose_kind(np.where(bent > 0.02, 0.9 + bent / 10, bent), labels, people)
    assert set(losses) == set(KINDS) and losses[kind] == min(losses.values())
    assert losses["none"] > losses["isotonic"]


def test_folds_keep_patients_whole():
    people = [f"p{n // 3}" for n in range(60)]
    fold = folds_of(people, 5)
    assert len(set(zip(people, fold.tolist(), strict=True))) == 20
    assert sorted(np.bincount(fold)) == [12] * 5


def test_a_card_with_every_kind_reads_as_it_was_fitted():
    generator = np.random.default_rng(9)
    p = generator.random((80, 18))
    labels = (generator.random((80, 18)) < p).astype(float)
    labels[:, 3] = 0.0  # one class: nothing to fit
    for kind in KINDS:
        entries = fit(p, labels, kind)
        assert entries[3] is None
        np.testing.assert_allclose(apply(p, entries)[:, 3], p[:, 3])
    table = dict(zip(SLUGS, fit(p, labels, "isotonic"), strict=True))
    told = calibrated(p[:, 0], json.loads(json.dumps(table))[SLUGS[0]])
    assert told.min() > 0 and told.max() < 1
    with pytest.raises(WeightsError, match="CONFIG_VALUE"):
        calibrated(p[:, 0], {"raw": [0.3, 0.1], "calibrated": [0.0, 1.0]})
    with pytest.raises(WeightsError, match="CONFIG_VALUE"):
        calibrated(p[:, 0], [1.0])


def test_choosing_gives_thresholds_on_the_calibrated_scale():
    p, truth = overconfident(10, 500)
    table = np.tile(p[:, None], (1, 18))
    labels = np.tile(truth[:, None].astype(float), (1, 18))
    labels[:, 5] = np.nan
    told = choose_presence(table, labels, list(range(500)))
    assert told["calibration_kind"] in ("platt", "isotonic")
    assert SLUGS[5] not in told["thresholds"] and SLUGS[5] not in told["calibration"]
    again = calibrated(p, told["calibration"][SLUGS[0]])
    called = again >= told["thresholds"][SLUGS[0]]
    assert called[truth].mean() + (~called[~truth]).mean() > 1.4
    assert abs(told["thresholds"][SLUGS[0]] - truth.mean()) < 0.25


def test_levels_of_few_cases_stay_away_from_certainty():
    entry = isotonic_entry(np.array([0.1, 0.2, 0.8, 0.9]), np.array([False, False, True, True]))
    assert entry["calibrated"][0] == 0.125 and entry["calibrated"][-1] == 0.875


def test_platt_is_the_formula():
    p = np.array([0.0, 0.2, 0.7, 1.0])
    np.testing.assert_allclose(platt(p, 1.0, 0.0), np.clip(p, 1e-6, 1 - 1e-6))
    np.testing.assert_allclose(logit(platt(p[1:3], 2.0, -0.5)), 2 * logit(p[1:3]) - 0.5)


def test_the_diagram_is_one_harmless_document():
    p, truth = overconfident(11, 300)
    facts = calibration_facts(p[:, None], truth[:, None].astype(float))
    assert facts["ece"] == pytest.approx(facts["ece_per_finding"][0])
    svg = reliability_svg('a <b> & "c"', {"raw": reliability(p, truth), "calibrated": reliability(p, truth)})
    root = ET.fromstring(svg)
    space = "{http://www.w3.org/2000/svg}"
    assert root.find(f"{space}title").text == 'a <b> & "c"'
    assert len(root.findall(f"{space}polyline")) == 2
    assert f"ECE {facts['ece']:.3f}" in svg
    bars = [float(r.get("height")) for r in root.findall(f"{space}rect") if r.get("fill-opacity")]
    assert len(bars) == len(reliability(p, truth).count) and max(bars) == 44
