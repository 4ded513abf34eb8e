"""The record of a run: a line per step, and other trackers where they are installed."""

import json
import sys
from types import ModuleType

import pytest

from hilum.errors import UsageError
from hilum.train.recipe import RunRecipe
from hilum.train.schedule import Rates
from hilum.train.track import Tracker

RATES = Rates(0.5, 0.0, 0.04, 0.99, 0.07)


def recipe(*track):
    return RunRecipe.model_validate({"name": "tiny", "track": track})


def test_every_step_is_a_line_and_other_ranks_write_nothing(tmp_path):
    with Tracker(tmp_path / "a", recipe(), writes=True) as tracker:
        for step in range(2):
            tracker.log(step, 0.25, {"dino": 1.5 - step}, RATES)
    rows = [json.loads(line) for line in (tmp_path / "a" / "log.jsonl").read_text().splitlines()]
    assert rows[1] == {"step": 1, "seconds": 0.25, "lr": 0.5, "dino": 0.5}
    with Tracker(tmp_path / "b", recipe("tensorboard"), writes=False) as tracker:
        tracker.log(0, 0.25, {"dino": 1.5}, RATES)
    assert not (tmp_path / "b").exists()


@pytest.mark.parametrize("name", ["tensorboard", "mlflow"])
def test_a_tracker_that_is_not_installed_is_named(tmp_path, monkeypatch, name):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    monkeypatch.setitem(sys.modules, "mlflow", None)
    with pytest.raises(UsageError, match=f"EXTRA_MISSING.*{name}"):
        Tracker(tmp_path, recipe(name), writes=True)


def test_trackers_get_every_value_of_every_step(tmp_path, monkeypatch):
    calls = []

    class Writer:
        def __init__(self, folder):
            calls.append(("folder", folder))

        def add_scalar(self, name, value, step):
            calls.append((name, value, step))

        def close(self):
            calls.append("closed")

    board, flow = ModuleType("torch.utils.tensorboard"), ModuleType("mlflow")
    board.SummaryWriter = Writer
    flow.set_experiment = lambda name: calls.append(("experiment", name))
    flow.start_run = lambda run_name: calls.append(("run", run_name))
    flow.log_dict = lambda facts, name: calls.append((name, facts["name"]))
    flow.log_metrics = lambda values, step: calls.append((step, values))
    flow.end_run = lambda: calls.append("ended")
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", board)
    monkeypatch.setitem(sys.modules, "mlflow", flow)
    with Tracker(tmp_path, recipe("tensorboard", "mlflow"), writes=True) as tracker:
        tracker.log(3, 0.25, {"dino": 1.5}, RATES)
    assert calls == [
        ("folder", str(tmp_path / "tensorboard")), ("experiment", "hilum"), ("run", "tiny"),
        ("recipe.json", "tiny"), ("dino", 1.5, 3), ("lr", 0.5, 3), ("seconds", 0.25, 3),
        (3, {"dino": 1.5, "lr": 0.5, "seconds": 0.25}), "closed", "ended",
    ]  # fmt: skip
