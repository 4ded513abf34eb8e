"""A small space of scans and texts to be trained: kept windows of two grids, samples, text towers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from hilum.cohort.joint_samples import SAMPLES, JointSample, PlacedText, Report, write_samples
from hilum.io.feature_cache import open_cache
from hilum.model.preset import JointPreset
from hilum.model.radfinder import JointNumbers
from hilum.text.prompt_bank import Asked, PromptBank
from hilum.text.vocabulary import SLUGS
from hilum.train.joint_data import JointScans, read_joint
from hilum.train.joint_recipe import JointRecipe
from hilum.train.joint_task import JointRun, JointTower

WIDTH, TEXT = 5, 7
NUMBERS = JointNumbers(
    window_width=WIDTH, text_width=TEXT, width=12, depth=1, heads=2, frame="shared", hidden=9, bottleneck=6,
    size=8,
)  # fmt: skip
PRESET = JointPreset("tiny", "radfinder", NUMBERS)
BANK = PromptBank(
    tuple(
        Asked(
            name=slug, group="chest" if slug == SLUGS[1] else "ctrate",
            present=(f"There is {slug}.", f"{slug} is seen."), absent=(f"No {slug}.", f"{slug} is not seen."),
        )
        for slug in SLUGS[:3]
    )
)  # fmt: skip


def features(root: Path, scans: int = 8, source: str = "reader:phantom-small", model: str = "0" * 64) -> Path:
    """Windows of two grids; scan 0 has no placed sentence, scans 1 and 2 have the same report."""
    cache = open_cache(root, {"source": source, "model": model, "width": WIDTH, "depth_mm": 48.0})
    rng, samples = np.random.default_rng(0), []
    for i in range(scans):
        u, v, w = (2, 1, 2) if i % 2 else (1, 2, 3)
        step = np.arange(2 * w, dtype=np.float32) * 48 - 100 + i
        cache.put(
            f"scan{i}", "",
            {
                "both": rng.normal(size=(u, v, w, 2 * WIDTH)), "depths": rng.normal(size=(u, v, w, 2, WIDTH)),
                "depth_mm": step, "there": (np.arange(2 * w) > 0).astype(np.uint8),
            },
        )  # fmt: skip
        said = f"Report of scan {1 if i == 2 else i} with " + "many words " * 6
        placed = [
            PlacedText(text=f"Sentence {k} of scan {i}", z_mm=float(step[1] + 30 * k)) for k in range(i % 4)
        ]
        samples.append(
            JointSample(
                key=f"scan{i}", patient=f"p{i}", split="test" if i == scans - 1 else "train",
                labels={s: int((i >> n) & 1) for n, s in enumerate(SLUGS[:3]) if (i + n) % 4},
                reports=(Report(text=said),), snippets=tuple(placed),
            )
        )  # fmt: skip
    write_samples(cache.folder / SAMPLES, samples)
    return cache.folder


def recipe_of(folder: Path, **changes: Any) -> JointRecipe:
    """Four steps of four scans."""
    base: dict[str, Any] = {
        "name": "tiny", "method": "radfinder", "preset": "tiny", "features": folder, "steps": 4, "batch": 4,
        "precision": "fp32", "threads": 1, "checkpoint_every": 2, "bias": -1.0, "hide": 0.3,
        "synthetic": True, "rates": {"scaling": "none", "lr": {"peak": 0.01}, "ema": {"peak": 0.5}},
    }  # fmt: skip
    return JointRecipe.model_validate(base | changes)


def scans_of(folder: Path, split: str = "train") -> JointScans:
    """Those of a split."""
    return read_joint(folder, BANK, split, ("test",) if split == "train" else (), 5)


def frozen(scans: JointScans) -> JointTower:
    """A tower that said something of every text."""
    rows = torch.randn(len(scans.texts), TEXT, generator=torch.Generator().manual_seed(4))
    return JointTower("drawn", TEXT, rows)


def task_of(folder: Path, **changes: Any) -> JointRun:
    """The run, with a frozen tower."""
    scans = scans_of(folder)
    return JointRun(recipe_of(folder, **changes), PRESET, scans, frozen(scans))
