"""The frozen-feature suite: what encoders know of 18 findings without being trained further.

Every encoder is probed in one run with its baselines: the same network with fresh weights, densities alone,
and no information at all. Probes learn on train, are chosen on val and are measured once on test, all on the
same draws of test patients (`exam.frozen_measure`).
"""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hilum.errors import UsageError
from hilum.exam.frozen_cohort import FrozenCohort, open_cohort
from hilum.exam.frozen_measure import FRACTIONS, PROBES, Bench, Difference, Measured, Seeds, differences
from hilum.exam.frozen_models import Loaded, Looking, features_of, load_all, passes, scan_features_of
from hilum.exam.frozen_text import PROMPTS, zero_shot
from hilum.text.vocabulary import SLUGS

Steps = Callable[[str, int, int], None]
"""Called with what is being done, steps just done, and steps in all (of that work)."""


@dataclass(frozen=True)
class FrozenResult:
    """Everything the suite found.

    Args:
        facts: cohort, models, seeds, machine. rows: one per features, probe and share.
        differences: of every two. positives: per finding in train, val and test.
    """

    facts: dict[str, Any]
    rows: tuple[Measured, ...]
    differences: tuple[Difference, ...]
    positives: dict[str, dict[str, int]]

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {
            "suite": "frozen",
            **self.facts,
            "positives": self.positives,
            "rows": [row.as_dict() for row in self.rows],
            "differences": [row.as_dict() for row in self.differences],
        }


def examine_frozen(
    folders: Sequence[Path],
    prepared: Path,
    *,
    names: Sequence[str] | None = None,
    looking: Looking | None = None,
    fractions: Sequence[float] = FRACTIONS,
    seeds: Seeds | None = None,
    steps: Steps | None = None,
) -> FrozenResult:
    """The suite.

    Args:
        folders: of encoders (`io.encoder_file`). prepared: what `hilum prepare --prep PRESET` left.
        names: one per folder; None takes the cards'. looking: how scans are shown.
        fractions: of the training patients, each above 0 and at most 1. seeds: of everything random.
        steps: called as work goes on.

    Raises:
        UsageError: `CONFIG_VALUE` for a fraction. Others as of `open_cohort`, `load_all`, `scan_features`.
    """
    started = time.process_time()
    looking, seeds = looking or Looking(), seeds or Seeds()
    if not fractions or not all(0 < f <= 1 for f in fractions):
        raise UsageError(
            "CONFIG_VALUE", "shares of training patients", expected="0 < share <= 1", got=fractions
        )
    cohort = open_cohort(prepared)
    loaded = load_all(folders, cohort, looking.device, names)
    told = steps or (lambda what, done, total: None)
    sets = passes(loaded, cohort, looking, seeds.untrained)
    bench = Bench.of(cohort, seeds)
    rows = [majority(bench)]
    made = []

    def seen(scans: int) -> None:
        told("scans shown", scans, sets * len(cohort.keys))

    for named in features_of(loaded, cohort, looking, seeds.untrained, seen):
        made.append({"name": named.name, "width": int(named.features.shape[1]), **named.facts})
        for row in bench.probed(named.name, named.features, fractions):
            rows.append(row)
            told("probes", 1, sets * len(PROBES) * len(fractions))
    for one in loaded:
        rows += _zero_shot(bench, one, looking)
    facts = {
        "cohort": cohort.facts(),
        "encoders": [one.facts() for one in loaded],
        "features": made,
        "seeds": asdict(seeds),
        "looking": {k: v for k, v in asdict(looking).items() if k != "cache"},
        "machine": machine(looking.device),
        "cpu_seconds": round(time.process_time() - started, 1),
    }
    return FrozenResult(facts, tuple(rows), tuple(differences(rows)), positives_of(cohort))


def machine(device: str) -> dict[str, Any]:
    """What it ran on, and with which versions."""
    name = torch.cuda.get_device_name() if device.startswith("cuda") else platform.machine()
    versions = {name: version(name) for name in ("hilum", "torch", "numpy", "scipy")}
    return {"device": name, "cores": os.cpu_count(), "threads": torch.get_num_threads(), "versions": versions}


def positives_of(cohort: FrozenCohort) -> dict[str, dict[str, int]]:
    """Scans with each finding, per split."""
    splits = {split: cohort.labels[cohort.rows(split)] for split in ("train", "val", "test")}
    return {
        slug: {split: int((labels[:, d] == 1).sum()) for split, labels in splits.items()}
        for d, slug in enumerate(SLUGS)
    }


def majority(bench: Bench) -> Measured:
    """The same answer for every scan: where chance lies for each measure."""
    scores = np.zeros((len(bench.cohort.rows("test")), len(SLUGS))) + bench.learnable()
    return bench.measured("no information", "constant", 1.0, [scores])


def _zero_shot(bench: Bench, one: Loaded, looking: Looking) -> list[Measured]:
    if one.kind != "3d-vlm":
        return []
    features = scan_features_of(one, bench.cohort, looking).pooled("cls+mean")[bench.cohort.rows("test")]
    found = []
    for name, pairs in PROMPTS.items():
        scores = zero_shot(one, features, pairs) + bench.learnable()
        found.append(bench.measured(f"{one.name}: {name}", "zero-shot", 0.0, [scores]))
    return found
