"""From a recipe to a folder that reads a scan: the shipped recipes, made tiny."""

import json
import tomllib
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from hilum.cli.train import train
from hilum.cohort.phantom_set import PhantomSetSpec, build
from hilum.cohort.samples import load
from hilum.read.scan_model import ScanModel
from hilum.train import text_bank
from hilum.train.run import training_minutes

PHANTOM_METHODS = ("exact_small", "cam", "clip_global", "organ_clip")
RECIPES = sorted(
    path
    for path in (Path(__file__).parents[2] / "recipes").glob("*.toml")
    if tomllib.loads(path.read_text(encoding="utf-8")).get("method") in PHANTOM_METHODS
)
TINY = ("data.train=2", "data.siblings=2", "data.organ_patients=1", "data.validation=1", "data.work_mm=6.0",
        "data.workers=1", "data.spacing_mm=[6.0, 6.0, 6.0]", "optim.steps=2", "optim.organ_steps=1",
        "threads=1")  # fmt: skip


def letters(texts, cache=None):
    """A row per text from its bytes."""
    rows = [np.bincount(list(text.encode()), minlength=384)[:384] for text in texts]
    return np.stack([row / np.linalg.norm(row) for row in rows]).astype(np.float32)


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_becomes_a_model_that_reads(recipe, cache, tmp_path, monkeypatch):
    # stands for the text encoder, which is fetched
    monkeypatch.setattr(text_bank, "embedded", letters)
    out = tmp_path / "model"
    # it has no organs to learn
    steps = ("optim.organ_steps=0",) if 'method = "clip_global"' in recipe.read_text() else ()
    done = CliRunner().invoke(train, [str(recipe), *TINY, *steps, "--out", str(out), "--cache", str(cache)])
    assert done.exit_code == 0, done.output
    card = json.loads((out / "card.json").read_text())
    assert "3 scans of 2 synthetic chest phantoms (seeds 1000000 to 1000001)" in card["trained_on"]
    assert card["training_minutes"] >= 0
    model = ScanModel.load(str(out))
    spec = PhantomSetSpec(2, 1_000_000, model.preset.prep, 6.0, (6.0, 6.0, 6.0), prevalence=0.3, siblings=2)
    (paths,) = build(spec, cache, workers=1)
    scan = load(paths[0]).scan.float()[None, None] / 1000
    found = model.infer(scan)
    assert found.maps.shape == (18, *scan.shape[2:]) and bool(torch.isfinite(found.maps).all())


def test_a_step_that_ran_twice_counts_once(tmp_path):
    rows = [{"step": 0, "seconds": 30.0}, {"step": 1, "seconds": 90.0}, {"step": 1, "seconds": 60.0}]
    (tmp_path / "log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert training_minutes(tmp_path) == 1.5
