"""Rates: shapes, ends, ranges, FlexiCT's numbers; what makes no schedule is refused."""

import math

import pytest
from pydantic import ValidationError

from hilum.errors import UsageError
from hilum.train.phantom_task import learning_rate
from hilum.train.recipe import OptimRecipe
from hilum.train.schedule import Schedule, Schedules, constant, lr_factor


def schedule(**numbers):
    return Schedule.model_validate(numbers)


def test_a_constant_is_one_number():
    assert {constant(0.04).value(step) for step in (0, 1, 10**7)} == {0.04}


def test_a_linear_rise_wastes_no_step_and_stays_at_its_peak():
    rise = schedule(start=1.0, peak=3.0, rise=4)
    assert [rise.value(step) for step in range(6)] == [1.5, 2.0, 2.5, 3.0, 3.0, 3.0]


def test_a_cosine_rise_is_slow_fast_slow():
    rise = schedule(peak=2.0, rise=4, shape="cosine")
    values = [rise.value(step) for step in range(6)]
    half = math.sqrt(0.5)
    assert values == pytest.approx([1 - half, 1.0, 1 + half, 2.0, 2.0, 2.0])


def test_a_cosine_falls_to_its_end_and_stays_there():
    fall = schedule(peak=1.0, rise=2, end=0.2, steps=12)
    values = [fall.value(step) for step in range(15)]
    assert values[1] == values[2] == 1.0 and values[7] == pytest.approx(0.6)
    assert values[2:13] == sorted(values[2:13], reverse=True) and values[11] > 0.2
    assert values[12:] == pytest.approx([0.2] * 3)


def test_a_fall_may_go_up():
    """The momentum of DINO's teacher rises to 1 by the same cosine."""
    momentum = schedule(peak=0.992, end=1.0, steps=100)
    assert momentum.value(0) == 0.992 and momentum.value(50) == pytest.approx(0.996)
    assert momentum.value(100) == 1.0 and momentum.bounds == (0.992, 1.0)


def test_a_phase_of_the_loop_is_one_of_these():
    optim = OptimRecipe(steps=100, lr=3e-3, warmup=10)
    same = schedule(peak=3e-3, rise=10, end=3e-5, steps=100)
    for step in range(100):
        assert same.value(step) == pytest.approx(learning_rate(step, optim), rel=1e-12)


@pytest.mark.parametrize(
    "numbers",
    [
        {"peak": 1.0, "end": 0.0},
        {"peak": 1.0, "steps": 10},
        {"peak": 1.0, "end": 0.0, "rise": 10, "steps": 10},
        {"peak": math.nan},
        {"peak": 1.0, "start": math.inf, "rise": 2},
        {"peak": 1.0, "rise": -1},
        {"peak": 1.0, "shape": "square"},
        {"peak": 1.0, "warmup": 3},
        {},
    ],
)
def test_what_makes_no_schedule_is_refused(numbers):
    with pytest.raises(ValidationError):
        schedule(**numbers)


def test_there_is_no_step_before_the_first():
    with pytest.raises(UsageError, match="CONFIG_VALUE"):
        constant(1.0).value(-1)


@pytest.mark.parametrize(
    ("peak", "batch", "scaled"),
    [
        (2e-4, 800, 7.1e-4),
        (5e-5, 400, 1.25e-4),
        (2e-4, 200, 3.5e-4),
        (1e-4, 208, 1.8e-4),
        (1e-4, 280, 2.1e-4),
    ],
)
def test_learning_rates_of_the_published_stages(peak, batch, scaled):
    """Raw and scaled rates of the five stages, FlexiCT §2."""
    assert Schedules(lr=constant(peak)).at(0, batch).lr == pytest.approx(scaled, rel=0.015)
    assert Schedules(lr=constant(peak), scaling="none").at(0, batch).lr == peak


def test_a_batch_has_a_scan():
    assert lr_factor("sqrt_wrt_1024", 64) == 1
    with pytest.raises(UsageError, match="CONFIG_VALUE"):
        lr_factor("none", 0)


def test_a_stage_moves_everything_at_once():
    stage = Schedules.model_validate(
        {
            "lr": {"peak": 1.0, "rise": 4},
            "weight_decay": {"peak": 0.1, "start": 0.2, "rise": 2},
            "ema": {"peak": 0.9, "end": 1.0, "steps": 8},
            "temperature": {"start": 0.04, "peak": 0.07, "rise": 3},
            "last_frozen": 2,
        }
    )
    first, third = stage.at(0, 64), stage.at(2, 64)
    assert first == pytest.approx((0.25, 0.0, 0.15, 0.9, 0.05))
    assert third == pytest.approx((0.75, 0.75, 0.1, 0.9 + 0.1 * (1 - math.sqrt(0.5)) / 2, 0.07))
    assert stage.at(1, 64).last_lr == 0.0 and stage.at(2, 256).last_lr == 2 * third.last_lr
    assert Schedules.model_validate_json(stage.model_dump_json()).at(5, 7) == stage.at(5, 7)


@pytest.mark.parametrize(
    "wrong",
    [
        {"lr": {"peak": -1.0}},
        {"ema": {"peak": 1.01}},
        {"ema": {"peak": 0.9, "start": -0.1, "rise": 5}},
        {"temperature": {"peak": 0.07, "end": 0.0, "steps": 5}},
        {"weight_decay": {"peak": -1e-3}},
        {"last_frozen": -1},
        {"momentum": {"peak": 0.9}},
    ],
)
def test_rates_out_of_range_are_refused(wrong):
    with pytest.raises(ValidationError):
        Schedules.model_validate({"lr": {"peak": 1.0}} | wrong)


def test_a_start_without_a_rise_is_never_a_value():
    assert Schedules.model_validate({"lr": {"peak": 1.0}, "temperature": {"peak": 0.07, "start": 0.0}})
