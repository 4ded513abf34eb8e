"""Phantoms prepared for training and exam: made once, kept as checksummed files, never mixed between splits.

A training file holds the prepared scan, each voxel's share in seven organs, 18 scan labels and the sentences
of an English report. Lesion voxels are written for validation and exam only: a training run cannot see what
is not there.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save

from hilum.cohort.prep import Prep, PrepTrace
from hilum.cohort.resample import resample
from hilum.cohort.samples import report_json
from hilum.geometry import Geometry
from hilum.heap import keep_freed_memory
from hilum.io.atomic import atomic_write
from hilum.phantom.anatomy import build_scene
from hilum.phantom.draw import draw_plan
from hilum.phantom.make import Phantom, make_phantom
from hilum.phantom.narrator import narrate
from hilum.phantom.scene import Scene
from hilum.tensors import ScanBatch
from hilum.text.vocabulary import ORGAN_CHANNELS, REGIONS, SLUGS
from hilum.volume import CTVolume, Provenance

FORMAT = 8
"""Raised whenever phantoms or preparation change, so that stale files are made anew."""


@dataclass(frozen=True)
class PhantomSetSpec:
    """Which phantoms and how they are prepared; equal specs name equal files.

    Args:
        seed: of the first phantom; phantom i has seed + i. lesions: whether lesion masks are stored.
        prevalence: chance of each finding; None draws as `hilum phantom` does.
        siblings: scans of each patient, with different findings in the same anatomy; `count` is a multiple.
        changes: findings that came or went between the first scan of a patient and each other; None draws
            each scan's anew.
        finer: whether the first scan of each patient is stored at half the voxel too.
        spacing_mm: written spacing of the scan before preparation; None keeps each plan's own.
    """

    count: int
    seed: int
    prep: Prep
    work_mm: float = 2.5
    spacing_mm: tuple[float, float, float] | None = None
    lesions: bool = False
    prevalence: float | None = None
    siblings: int = 1
    changes: int | None = None
    finer: bool = False

    def folder(self, root: Path) -> Path:
        """Where its files are: named by everything but the count."""
        facts = {k: v for k, v in asdict(self).items() if k != "count"} | {"format": FORMAT}
        digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:12]
        return root / f"phantoms-{digest}"


def phantom_volume(phantom: Phantom) -> CTVolume:
    """The scan of a phantom as any reader would give it."""
    scan = phantom.scan
    return CTVolume.from_source(
        scan.hu.cpu().numpy().astype(np.float32),
        scan.geometry,
        Provenance("phantom", f"seed-{phantom.plan.seed}"),
    )


def channel_mask(mask_of: Callable[[str], torch.Tensor], channel: str) -> torch.Tensor:
    """Bool mask of an organ channel; `global` is the union of the nine regions (EXACT §1.4)."""
    if channel != "global":
        return mask_of(channel)
    union = mask_of(REGIONS[0]).clone()
    for name in REGIONS[1:]:
        union |= mask_of(name)
    return union


def prepare_phantom(
    phantom: Phantom, tensor: ScanBatch, grid: Geometry, *, lesions: bool
) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Tensors and metadata of one file. Masks go from the phantom's own world straight to the prepared
    grid."""
    scene = phantom.scene

    def on_grid(mask: torch.Tensor) -> torch.Tensor:
        return resample(mask.float().cpu(), scene.grid, grid, outside="zero")

    masks = (channel_mask(scene.regions.__getitem__, channel) for channel in ORGAN_CHANNELS)
    out = {
        "scan": (tensor[0, 0] * 1000).round().to(torch.int16),
        "organs": torch.stack([(255 * on_grid(mask)).round().to(torch.uint8) for mask in masks]),
        "labels": torch.as_tensor(phantom.labels, dtype=torch.float32),
    }
    if lesions:
        out["lesions"] = torch.zeros(grid.shape, dtype=torch.int32)
        for truth in scene.lesions:
            fine = on_grid(truth.mask)
            # a lesion smaller than a voxel keeps its densest voxel
            mask = fine >= min(0.5, float(fine.max()))
            out["lesions"] |= mask.to(torch.int32) << SLUGS.index(truth.slug)
    degrees = {truth.slug: truth.degree for truth in scene.lesions}
    meta = {
        "affine_ras": json.dumps(grid.affine_ras.tolist()),
        "degrees": json.dumps(degrees),
        # siblings have one plan seed and would be told in the same words; scanner seeds differ
        "report": report_json(narrate(phantom, seed=phantom.plan.scanner.seed).sentences),
    }
    return out, meta


def finer_phantom(phantom: Phantom, tensor: ScanBatch, trace: PrepTrace) -> dict[str, torch.Tensor]:
    """The same at half the voxel: HU, and organ masks packed into one byte, bit o = organ channel o."""
    bits = torch.zeros(trace.grid.shape, dtype=torch.uint8)
    for bit, channel in enumerate(ORGAN_CHANNELS):
        mask = channel_mask(phantom.scene.regions.__getitem__, channel).float().cpu()
        inside = resample(mask, phantom.scene.grid, trace.grid, outside="zero") >= 0.5
        bits |= inside.to(torch.uint8) << bit
    return {"fine": (tensor[0, 0] * 1000).round().to(torch.int16), "fine_organs": bits}


def _make_patient(job: tuple[int, PhantomSetSpec, list[Path]]) -> list[Path]:
    """All scans of one patient, on the grid of the first."""
    seed, spec, paths = job
    torch.set_num_threads(1)
    keep_freed_memory()
    anatomy: Scene | None = None
    first: PrepTrace | None = None
    for sibling, path in enumerate(paths):
        plan = draw_plan(
            seed,
            spacing_mm=spec.spacing_mm,
            prevalence=spec.prevalence,
            sibling=sibling,
            changes=spec.changes,
        )
        if anatomy is None:
            anatomy = build_scene(plan, work_mm=spec.work_mm)
        phantom = make_phantom(plan, anatomy=anatomy)
        volume = phantom_volume(phantom)
        tensor, trace = spec.prep.apply_like(volume, first) if first else spec.prep.apply(volume)
        first = first or trace
        tensors, meta = prepare_phantom(phantom, tensor, trace.grid, lesions=spec.lesions)
        if spec.finer and sibling == 0:
            tensors |= finer_phantom(phantom, *spec.prep.finer(volume, trace))
        body = save({k: v.contiguous() for k, v in tensors.items()}, metadata=meta)
        with atomic_write(path) as file:
            file.write(body)
    return paths


def build(spec: PhantomSetSpec, root: Path, *, workers: int = 2) -> Iterator[list[Path]]:
    """Make what is missing; yields each patient's files as they are ready, in order. Interrupted builds go on
    where they stopped."""
    folder = spec.folder(root)
    folder.mkdir(parents=True, exist_ok=True)
    patients = [
        [folder / f"{spec.seed + i}-{k}.safetensors" for k in range(spec.siblings)]
        for i in range(spec.count // spec.siblings)
    ]
    done = [all(path.exists() for path in paths) for paths in patients]
    jobs = [(spec.seed + i, spec, paths) for i, paths in enumerate(patients) if not done[i]]
    # spawn: fork and torch's thread pool do not mix
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        made = pool.map(_make_patient, jobs)
        for ready, paths in zip(done, patients, strict=True):
            yield paths if ready else next(made)
