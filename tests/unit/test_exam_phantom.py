"""The phantom suite's table: localisation per finding, calibration, intervals by patient. Cases are made up;
the whole line runs real ones."""

import json

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, roc_auc_score

from hilum.exam.bootstrap import patient_draws
from hilum.exam.choose import choose
from hilum.exam.metrics import MAP_THRESHOLDS
from hilum.exam.phantom_cases import CaseScore, Localisation, _localise
from hilum.exam.phantom_table import _summary, as_text, tabulate
from hilum.exam.reliability import ece
from hilum.geometry import Geometry
from hilum.text.vocabulary import SLUGS


def case(seed: int, patient: int, told: bool = True) -> CaseScore:
    generator = np.random.default_rng(seed)
    labels = generator.random(18) < 0.4
    pooled = np.clip(0.3 * labels + 0.7 * generator.random(18), 0, 1)
    findings = {
        slug: Localisation(
            "mild", 5.0 + seed, (generator.random(56) * 0.3).tolist(), bool(seed % 2), 4.0 * (seed % 5),
            float(generator.random() * 0.3),
        )
        for slug, there in zip(SLUGS, labels, strict=True)
        if there
    }  # fmt: skip
    return CaseScore(
        patient, "m", pooled.tolist(), labels.astype(float).tolist(), {"lung": 0.9, "heart": 0.8}, findings,
        (pooled**2).tolist() if told else [],
    )  # fmt: skip


CUTS = {slug: float(MAP_THRESHOLDS[20]) for slug in SLUGS}


def test_the_table_keeps_its_fields_and_has_the_new_ones():
    cases = [case(n, n // 2) for n in range(20)]
    table = tabulate(cases, CUTS)
    told = json.loads(json.dumps(table.as_dict()))
    assert {"model", "cases", "organs", "summary", "findings"} <= set(told)
    assert {"macro_auroc", "organ_dice", "localisation_dice", "peak_inside"} <= set(told["summary"])
    assert {"name", "positives", "auroc", "dice", "peak_inside", "median_ml"} <= set(told["findings"][0])
    there = [c.findings["emphysema"] for c in cases if "emphysema" in c.findings]
    row = told["findings"][SLUGS.index("emphysema")]
    assert row["positives"] == len(there)
    assert row["dice"] == pytest.approx(np.mean([f.curve[20] for f in there]))
    assert row["aupr"] == pytest.approx(np.mean([f.aupr for f in there]))
    assert row["hit5"] == pytest.approx(np.mean([f.curve[20] >= 0.05 for f in there]))
    assert row["hit10_aupr"] == pytest.approx(np.mean([f.aupr >= 0.10 for f in there]))
    assert row["peak_within_10_mm"] == pytest.approx(np.mean([f.peak_mm <= 10 for f in there]))
    for name, (value, low, high) in row["intervals"].items():
        assert value == pytest.approx(row[name], abs=1e-4) and low <= value <= high
    everything = [f for c in cases for f in c.findings.values()]
    assert told["summary"]["hit5_dice"][0] == pytest.approx(
        np.mean([f.curve[20] >= 0.05 for f in everything])
    )
    assert told["summary"]["localisation_aupr"][0] == pytest.approx(np.mean([f.aupr for f in everything]))


def test_the_table_says_how_well_probabilities_are_calibrated():
    cases = [case(n, n) for n in range(12)]
    table = tabulate(cases, CUTS)
    p = np.array([c.probabilities for c in cases]).ravel()
    truth = np.array([c.labels for c in cases]).ravel() > 0.5
    assert table.summary["ece"][0] == pytest.approx(ece(p, truth))
    assert table.calibration["calibrated"]["ece"] == pytest.approx(table.summary["ece"][0])
    assert table.summary["ece_raw"][0] == pytest.approx(table.calibration["raw"]["ece"])
    assert table.summary["ece_raw"][0] != pytest.approx(table.summary["ece"][0])
    assert table.diagrams["calibrated"].ece == pytest.approx(table.summary["ece"][0])
    text = as_text([table, tabulate([case(n, n, told=False) for n in range(12)], CUTS)])
    assert "ECE of m" in text and text.count("ece_raw") == 1


def test_intervals_draw_all_cases_of_a_patient_together():
    """Four equal scans of each of eight patients say no more than one scan of each."""
    once, often, apart = (
        tabulate(cases, CUTS).summary["localisation_dice"]
        for cases in (
            [case(n, n) for n in range(8)],
            [case(n, n) for n in range(8) for _ in range(4)],
            [case(n, 4 * n + k) for n in range(8) for k in range(4)],
        )
    )
    assert often == pytest.approx(once) and apart[0] == pytest.approx(once[0])
    assert apart[2] - apart[1] < 0.7 * (often[2] - often[1])


def test_intervals_are_those_of_drawn_cases_one_by_one():
    cases = [case(n, n) for n in range(9)]
    table = tabulate(cases, CUTS)
    aurocs, dices = [], []
    for row in patient_draws(range(9)):
        drawn = [c for c, n in zip(cases, row.astype(int), strict=True) for _ in range(n)]
        p, labels = (np.array([getattr(c, k) for c in drawn]) for k in ("pooled", "labels"))
        both = [d for d in range(18) if 0 < labels[:, d].sum() < len(drawn)]
        aurocs.append(np.mean([roc_auc_score(labels[:, d], p[:, d]) for d in both]))
        dices.append(np.mean([f.curve[20] for c in drawn for f in c.findings.values()]))
        if len(aurocs) == 25:
            break
    draws = np.concatenate([np.ones((1, 9)), patient_draws(range(9))[:25]])
    again = _summary(
        cases, {"raw": np.array([c.pooled for c in cases])}, np.array([c.labels for c in cases]) > 0.5,
        dict.fromkeys(SLUGS, 20), draws[1:],
    )  # fmt: skip
    for name, values in (("macro_auroc", aurocs), ("localisation_dice", dices)):
        assert again[name][1:] == pytest.approx(np.percentile(values, [2.5, 97.5]))
        assert again[name][0] == pytest.approx(table.summary[name][0])


def test_a_findings_average_precision_is_that_of_its_map_in_the_phantoms_world():
    class Held:
        def __init__(self, **facts):
            self.__dict__.update(facts)

    generator = np.random.default_rng(0)
    grid = Geometry((9, 8, 7), np.diag([2.0, 2.0, 2.0, 1.0]))
    heat = np.round(generator.random(grid.shape), 2).astype(np.float32)
    mask = generator.random(grid.shape) < 0.1
    found = _localise.__wrapped__ if hasattr(_localise, "__wrapped__") else _localise
    got = found(heat, Held(grid=grid), heat, mask, Held(scene=Held(grid=grid)), "mild")
    assert got.aupr == pytest.approx(average_precision_score(mask.ravel(), heat.ravel()))


def test_validation_phantoms_decide_a_card():
    cases = [case(n, n) for n in range(30)]
    told = choose(cases)
    assert {"thresholds", "thresholds_corner", "map_thresholds", "calibration", "calibration_kind"} <= set(
        told
    )
    assert set(told["thresholds"]) == set(SLUGS) and json.loads(json.dumps(told)) == told
    assert told == choose([case(n, n) for n in range(30)])
