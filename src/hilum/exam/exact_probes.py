"""The frozen-feature suite for models of EXACT: what their encoder knows of 18 findings, by linear probe and
by neighbours, beside the same network with fresh weights and no information at all (`exam.frozen`).

A scan's features are the means of the encoder's three coarsest levels over the whole field.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch

from hilum.cohort.store import Store
from hilum.errors import UsageError
from hilum.exam.frozen import FrozenResult, Steps, machine, majority, positives_of
from hilum.exam.frozen_cohort import FrozenCohort, open_cohort, require_untrained_on
from hilum.exam.frozen_measure import FRACTIONS, PROBES, Bench, Seeds, differences
from hilum.exam.frozen_models import AllFeatures
from hilum.model.preset import ExactPreset, build_exact
from hilum.model.ymamba import YMamba
from hilum.read.scan_dense import placed
from hilum.read.scan_model import ScanModel
from hilum.train.exact_data import ExactScans

LEVELS = 3
"""How many of the encoder's levels are averaged, from the coarsest on."""


def is_dense(folder: Path) -> bool:
    """Whether a folder is a model of EXACT, by its card alone."""
    try:
        return "rule" in json.loads((folder / "card.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False


@torch.inference_mode()
def dense_features(
    network: YMamba,
    store: Store,
    keys: Sequence[str],
    shape_vox: tuple[int, int, int] | None = None,
    on_scans: Callable[[int], None] | None = None,
    device: str = "cpu",
) -> AllFeatures:
    """One row per scan, float32.

    Args:
        network: whose encoder. store: on its grid. keys: of the scans. shape_vox: as it was trained.
        on_scans: called with the number of scans just done.
    """
    network = network.to(device).eval()
    unknown = torch.full((len(keys), 18), float("nan"))
    scans = ExactScans(tuple(keys), (store,) * len(keys), (None,) * len(keys), unknown)
    rows = []
    for i in range(len(keys)):
        scan = scans.sample(i, None).scan[None]
        shown = scan if shape_vox is None else placed(scan, shape_vox, float(scan.min()))
        levels = network.skip_features(shown.to(device))[-LEVELS:]
        rows.append(torch.cat([level.mean((2, 3, 4))[0] for level in levels]).float().cpu().numpy())
        if on_scans is not None:
            on_scans(1)
    return np.stack(rows)


def examine_dense(
    folders: Sequence[Path],
    prepared: Path,
    *,
    fractions: Sequence[float] = FRACTIONS,
    seeds: Seeds | None = None,
    device: str = "cpu",
    steps: Steps | None = None,
) -> FrozenResult:
    """The suite.

    Args:
        folders: of models. prepared: what `hilum prepare --prep PRESET` left. fractions: of the training
            patients. seeds: of everything random. device: where networks run. steps: called as work goes on.

    Raises:
        UsageError: `GRID_MISMATCH`, no store on a model's grid; `CONFIG_VALUE`, a network without levels.
        LeakError: `PATIENT_LEAK`, a model has seen the test split. Others as of `open_cohort`.
    """
    started = time.process_time()
    seeds, cohort = seeds or Seeds(), open_cohort(prepared)
    told = steps or (lambda what, done, total: None)
    bench, rows, made, models = Bench.of(cohort, seeds), [], [], []
    rows.append(majority(bench))
    loaded = [(folder.name, ScanModel.from_folder(folder)) for folder in folders]
    for name, model in loaded:
        if not isinstance(model.network, YMamba):
            raise UsageError(
                "CONFIG_VALUE", "probed features are those of a network with levels", expected="ymamba",
                got=f"{name}: {model.preset.network}",
            )  # fmt: skip
    presets = {model.name: model for _, model in loaded}
    sets = len(loaded) + len(presets)
    named: list[tuple[str, torch.nn.Module, ScanModel]]
    named = [(f"untrained {name}", fresh(model, seeds.untrained), model) for name, model in presets.items()]
    named += [(name, model.network, model) for name, model in loaded]
    for name, network, model in named:
        assert isinstance(network, YMamba), "checked by the preset"
        store = store_of(cohort, model)
        shape = model.card.get("shape_vox")
        features = dense_features(
            network, store, cohort.keys, None if shape is None else (shape[0], shape[1], shape[2]),
            lambda done: told("scans shown", done, sets * len(cohort.keys)), device,
        )  # fmt: skip
        made.append({"name": name, "width": int(features.shape[1]), "levels": LEVELS})
        for row in bench.probed(name, features, fractions):
            rows.append(row)
            told("probes", 1, sets * len(PROBES) * len(fractions))
    for name, model in loaded:
        unseen = require_untrained_on(model.card, cohort)
        keys = ("sha256", "synthetic", "trained_on", "steps", "licence")
        models.append({"name": name, **{k: model.card[k] for k in keys}, "unseen": unseen})
    facts = {
        "cohort": cohort.facts(),
        "encoders": models,
        "features": made,
        "seeds": asdict(seeds),
        "looking": {"device": device, "levels": LEVELS},
        "machine": machine(device),
        "cpu_seconds": round(time.process_time() - started, 1),
    }
    return FrozenResult(facts, tuple(rows), tuple(differences(rows)), positives_of(cohort))


def fresh(model: ScanModel, seed: int) -> YMamba:
    """The model's network with fresh weights."""
    assert isinstance(model.preset, ExactPreset), "checked by the card"
    torch.manual_seed(seed)
    network = build_exact(model.preset)
    assert isinstance(network, YMamba), "checked when models were loaded"
    return network


def store_of(cohort: FrozenCohort, model: ScanModel) -> Store:
    """The store that was prepared exactly as the model's scans were.

    Raises:
        UsageError: `GRID_MISMATCH`.
    """
    for store in cohort.stores.values():
        if dict(store.prep) == model.card["prep"]:
            return store
    raise UsageError(
        "GRID_MISMATCH", "a model is examined on the grid that it was trained on",
        expected=model.card["prep"]["name"], got=f"stores {', '.join(cohort.stores)}", path=cohort.root,
        hint=f"Run hilum prepare with --prep {model.card['prep']['name']} into the same folder.",
    )  # fmt: skip
