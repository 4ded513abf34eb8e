"""Tiny runs of EXACT for tests: small chests with masks, a dense network of a few thousand numbers."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _store_scans import write_scans
from torch import nn
from torch.nn import functional as F

from hilum.cohort.mask_sources import MaskJob, MaskPreparation
from hilum.cohort.prep_presets import Pipeline
from hilum.cohort.records import ScanRecord
from hilum.cohort.store import open_store
from hilum.cohort.store_write import StoreJob, prepare_store
from hilum.model.ynet import YNetOutput
from hilum.text.vocabulary import ORGAN_CHANNELS
from hilum.train.exact_data import ExactScans
from hilum.train.exact_recipe import ExactRecipe
from hilum.train.exact_run import ExactRun

PREP = Pipeline("tiny", axes="SRA", spacing_mm=(15.0, 20.0, 16.0), anchor="extent", values="unit",
                squash_vox=(16, 16, 16))  # fmt: skip


class TinyDense(nn.Module):
    """Two resolutions of one convolution each; no scan of a batch sees another."""

    def __init__(self, width: int = 6) -> None:
        super().__init__()
        self.stem = nn.Conv3d(1, width, 3, padding=1)
        self.down = nn.Conv3d(width, 2 * width, 2, stride=2)
        self.mix = nn.Conv3d(2 * width, 2 * width, 1)
        self.up = nn.ConvTranspose3d(2 * width, width, 2, stride=2)
        self.organ_head = nn.Conv3d(width, 7, 1)
        self.low_head = nn.Conv3d(2 * width, 18, 1)
        self.high_head = nn.Conv3d(width, 18, 1)

    def forward(self, scan: torch.Tensor) -> YNetOutput:
        first = torch.tanh(self.stem(scan))
        low = torch.tanh(self.mix(torch.tanh(self.down(first))))
        high = torch.tanh(first + self.up(low))
        return YNetOutput(self.organ_head(high), self.low_head(low), self.high_head(high))


@dataclass(frozen=True)
class Thresholds:
    """Masks by density: lungs, everything soft, and their union. A source that knows three channels."""

    channels: tuple[str, ...] = ORGAN_CHANNELS

    def facts(self) -> dict[str, Any]:
        return {"kind": "thresholds"}

    def has(self, record: ScanRecord) -> bool:
        return record.key != "scan3"

    def masks(self, volume: Any, job: MaskJob) -> dict[str, np.ndarray]:
        lung, soft = (volume.hu > -950) & (volume.hu < -500), volume.hu > -200
        return {"lung": lung, "heart": soft, "global": lung | soft}


def tiny_stores(folder: Path, scans: int = 4, prep: Pipeline = PREP) -> tuple[Path, Path]:
    """A store, and its masks; `scan3` has none."""
    jobs = [StoreJob(f"scan{i}", str(p)) for i, p in enumerate(write_scans(folder / "scans", scans))]
    prepare_store(jobs, folder / "store", prep, where="here")
    source = Thresholds()
    masked = [
        MaskJob(job.key, job.path, record=ScanRecord(job.key, job.path, job.key), root=str(folder))
        for job in jobs
        if source.has(ScanRecord(job.key, "", ""))
    ]
    prepare_store(masked, folder / "masks", MaskPreparation(prep, source), where="here")
    return folder / "store", folder / "masks"


def tiny_scans(store: Path, masks: Path) -> ExactScans:
    """Labels are drawn; some are unknown."""
    opened, beside = open_store(store), open_store(masks)
    generator = torch.Generator().manual_seed(5)
    labels = torch.randint(0, 3, (len(opened.keys), 18), generator=generator).float()
    labels[labels == 2] = float("nan")
    held = tuple(beside if key in beside.rows else None for key in opened.keys)
    where = (opened,) * len(opened.keys)
    return ExactScans(opened.keys, where, held, labels, tuple(f"phantom:{k}" for k in opened.keys))


def tiny_recipe(**changes: Any) -> ExactRecipe:
    base: dict[str, Any] = {
        "name": "tiny", "method": "exact", "preset": "tiny", "data": [{"cohort": "."}], "steps": 4,
        "batch": 4, "precision": "fp32", "threads": 1,
        "checkpoint_every": 2, "lr": 0.01, "lr_end": 0.001, "micro": None,
        "rule": {"k_low": 2, "k_high": 9},
    }  # fmt: skip
    return ExactRecipe.model_validate(base | changes)


def tiny_network() -> TinyDense:
    torch.manual_seed(3)
    return TinyDense()


def tiny_task(scans: ExactScans, recipe: ExactRecipe) -> ExactRun:
    return ExactRun(recipe, scans, tiny_network())


def mixed_shapes(scans: ExactScans, folder: Path) -> ExactScans:
    """The same with the last scan on another grid."""
    other = replace(PREP, name="other", squash_vox=(16, 8, 16))
    paths = write_scans(folder / "more", 4)
    prepare_store([StoreJob("scan3", str(paths[3]))], folder / "other", other, where="here")
    where = (*scans.where[:3], open_store(folder / "other"))
    return replace(scans, where=where)


def pooled_like(logits: torch.Tensor) -> torch.Tensor:
    """Half the resolution of a map, for tests that need both."""
    return F.avg_pool3d(logits, 2)
