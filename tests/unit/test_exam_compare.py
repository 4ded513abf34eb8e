"""Statistics of a comparison on made-up cases whose truth is known."""

import numpy as np
import pytest

from hilum.exam.bootstrap import Interval
from hilum.exam.compare import MEASURES, Goal, case_values, compare, finding_means, goals
from hilum.exam.compare_table import as_json, as_markdown
from hilum.exam.metrics import MAP_THRESHOLDS, auroc
from hilum.exam.phantom_cases import CaseScore, Localisation
from hilum.text.vocabulary import SLUGS
from hilum.train.budget import fill, minutes_apart, phases, planned_minutes
from hilum.train.recipe import OptimRecipe, Recipe

AT = {slug: float(MAP_THRESHOLDS[30]) for slug in SLUGS}
N = 40


def made_up(dice, peak, skill, seed=0, findings=SLUGS[:4]):
    """Cases with Dice near `dice` at the threshold and 0 elsewhere, a share `peak` of peaks inside, and
    scores that rise by `skill` with the label. Equal seeds give equal noise: models are then paired."""
    rng = np.random.default_rng(seed)
    cases = []
    for i in range(N):
        labels = np.zeros(18)
        found = {}
        for d, slug in enumerate(findings):
            noise, lucky = rng.normal(), rng.random()
            if (i + d) % 3 == 0:
                labels[d] = 1
                curve = np.zeros(len(MAP_THRESHOLDS))
                curve[30] = max(0.0, dice + 0.02 * noise)
                found[slug] = Localisation("mild", 1.0, curve.tolist(), lucky < peak, 0.0, 0.5 * dice)
        pooled = 0.3 + skill * labels + 0.1 * rng.normal(size=18)
        cases.append(CaseScore(100 + i, "m", pooled.tolist(), labels.tolist(), findings=found))
    return cases


def test_every_measure_is_its_plain_mean():
    cases = made_up(0.5, 0.7, 0.2)
    found = compare({"a": cases}, {"a": AT}, draws=10)
    for d, slug in enumerate(SLUGS[:4]):
        here = [c.findings[slug] for c in cases if slug in c.findings]
        assert found.positives[d] == len(here)
        rows = {m: found.findings["a"][m][d].value for m in MEASURES}
        assert rows["dice"] == pytest.approx(np.mean([f.curve[30] for f in here]))
        assert rows["peak_inside"] == pytest.approx(np.mean([f.peak_inside for f in here]))
        assert rows["hit5"] == rows["hit10"] == rows["hit5_aupr"] == 1.0
        assert rows["aupr"] == pytest.approx(0.25)
        truth = np.array([c.labels[d] for c in cases]) > 0.5
        assert rows["auroc"] == pytest.approx(auroc(np.array([c.pooled[d] for c in cases]), truth))
    per_finding = [row.value for row in found.findings["a"]["dice"][:4]]
    assert found.macro["a"]["dice"].value == pytest.approx(np.mean(per_finding))
    assert np.isnan(found.findings["a"]["dice"][10].value) and found.positives[10] == 0


def test_means_in_draws_are_those_of_a_loop():
    rng = np.random.default_rng(1)
    values = rng.random((6, 3))
    values[rng.random((6, 3)) < 0.4] = np.nan
    draws = rng.integers(0, 3, (5, 6)).astype(float)
    means = finding_means(values, draws)
    for b, draw in enumerate(draws):
        for d in range(3):
            drawn = [v for v, n in zip(values[:, d], draw, strict=True) for _ in range(int(n)) if v == v]
            assert means[b, d] == pytest.approx(np.mean(drawn)) if drawn else np.isnan(means[b, d])


def test_a_paired_difference_is_tighter_than_its_parts():
    a, b = made_up(0.5, 0.7, 0.2), made_up(0.48, 0.7, 0.2)
    found = compare({"a": a, "b": b}, {"a": AT, "b": AT}, draws=300)
    difference, own = found.differences["b"]["dice"], found.macro["a"]["dice"]
    assert difference.value == pytest.approx(0.02, abs=1e-9)
    # the noise is the same in both: it cancels, and any draw says 0.02
    assert difference.high - difference.low < 1e-9 < own.high - own.low
    assert found.differences["b"]["auroc"] == (0.0, 0.0, 0.0)


def test_a_ratio_has_the_value_of_its_parts_and_an_interval_around_it():
    found = compare({"a": made_up(0.5, 0.7, 0.2), "b": made_up(0.04, 0.1, 0.0, 5)}, {"a": AT, "b": AT})
    ratio = found.ratios["b"]["dice"]
    parts = [found.macro[name]["dice"].value for name in "ab"]
    assert ratio.value == pytest.approx(parts[0] / parts[1]) and ratio.low < ratio.value < ratio.high


def test_an_interval_holds_the_truth_as_often_as_it_says():
    inside = 0
    for seed in range(60):
        first = made_up(0.5, 0.7, 0.1, 2 * seed)
        second = made_up(0.5, 0.4, 0.1, 2 * seed + 1)
        row = compare({"a": first, "b": second}, {"a": AT, "b": AT}, draws=200).differences["b"][
            "peak_inside"
        ]
        inside += row.low <= 0.3 <= row.high
    assert 51 <= inside <= 60


def test_goals_are_judged_by_their_interval():
    good, bad = made_up(0.6, 1.0, 0.3), made_up(0.03, 0.0, 0.0, 9)
    found = compare({"exact": good, "clip_global": bad}, {"exact": AT, "clip_global": AT}, draws=200)
    judged = {g.claim: (g.reached, g.verdict) for g in goals(found, "clip_global")}
    assert len(judged) == 4 and set(judged.values()) == {(True, "holds")}
    found = compare({"exact": bad, "clip_global": good}, {"exact": AT, "clip_global": AT}, draws=200)
    assert {(g.reached, g.verdict) for g in goals(found, "clip_global")} == {(False, "is refuted")}
    assert Goal("x", 0.5, Interval(0.52, 0.4, 0.6)).verdict == "is open"
    assert Goal("x", 0.5, Interval(*[float("nan")] * 3)).verdict == "was not measured"


def test_models_are_compared_on_the_same_cases():
    a, b = made_up(0.5, 0.7, 0.2), made_up(0.5, 0.7, 0.2)[::-1]
    with pytest.raises(ValueError, match="same cases"):
        compare({"a": a, "b": b}, {"a": AT, "b": AT})


def test_hits_count_cases_above_five_and_ten_percent():
    cases = made_up(0.5, 0.7, 0.2, findings=SLUGS[:1])
    with_it = [case for case in cases if case.findings]
    for case, dice in zip(with_it, (0.04, 0.07, 0.2), strict=False):
        case.findings[SLUGS[0]].curve[30] = dice
    values = case_values(with_it[:3], AT)
    assert values["hit5"][:, 0].tolist() == [0, 1, 1] and values["hit10"][:, 0].tolist() == [0, 0, 1]


def test_tables_say_what_was_found():
    found = compare(
        {"exact": made_up(0.5, 0.7, 0.2), "cam": made_up(0.1, 0.2, 0.1, 3)},
        {"exact": AT, "cam": AT},
        draws=50,
    )
    listed = goals(found, None)
    data, page = as_json(found, listed), as_markdown(found, listed, ["note"])
    assert data["macro"]["exact"]["dice"][0] == pytest.approx(found.macro["exact"]["dice"].value, abs=1e-5)
    assert data["findings"]["cam"]["dice"][SLUGS[12]] is None
    assert page.count("| Medical material | 14 |") == len(MEASURES) and "nan" not in page


def test_minutes_are_filled_by_steps_of_their_own_cost():
    optim = OptimRecipe(steps=100, organ_steps=60, outline_steps=10)
    recipe = Recipe(name="x", method="exact_small", preset="x", optim=optim)
    assert phases(optim) == {"organs": (0, 60), "findings": (60, 30), "outlines": (90, 10)}
    seconds = {"organs": 1.0, "findings": 4.0, "outlines": 2.0}
    assert planned_minutes(optim, seconds) == pytest.approx((60 + 120 + 20) / 60)
    longer = fill(recipe, seconds, 10.0)
    assert planned_minutes(longer.optim, seconds) == pytest.approx(10, rel=0.01)
    counts = [count for _, count in phases(longer.optim).values()]
    assert counts == [180, 90, 30]
    plain = fill(recipe.model_copy(update={"optim": OptimRecipe(steps=7)}), {"both": 2.0}, 1.0)
    assert plain.optim.steps == 30 and plain.optim.organ_steps == plain.optim.outline_steps == 0
    assert minutes_apart([9, 10]) == pytest.approx(0.1) and minutes_apart([]) == 0
