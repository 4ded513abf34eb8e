"""One phantom, scored: everything the tables need, so that a model is run once per phantom."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, field

import numpy as np
import torch

from hilum.cohort.phantom_set import channel_mask, phantom_volume
from hilum.cohort.resample import resample
from hilum.exam.levels import average_precision
from hilum.exam.metrics import dice, dice_curve
from hilum.geometry import Geometry
from hilum.heap import keep_freed_memory
from hilum.phantom.draw import draw_plan
from hilum.phantom.make import Phantom, make_phantom
from hilum.read.scan_model import ModelOutput, ScanModel
from hilum.text.vocabulary import ORGAN_CHANNELS, SLUGS


@dataclass
class Localisation:
    """One present finding's map against its voxels.

    Args:
        degree: of the lesion. volume_ml: of the truth. curve: Dice at every `metrics.MAP_THRESHOLDS`.
        peak_inside: whether the map's highest voxel lies in the lesion (its own voxels, nothing dilated).
        peak_mm: distance from the peak to the nearest voxel of the lesion, 0 inside.
        aupr: average precision of the continuous map.
    """

    degree: str
    volume_ml: float
    curve: list[float]
    peak_inside: bool
    peak_mm: float
    aupr: float = float("nan")


@dataclass
class CaseScore:
    """One phantom, one model; `probabilities` are `pooled` after the card's calibration."""

    seed: int
    model: str
    pooled: list[float]
    labels: list[float]
    organs: dict[str, float] = field(default_factory=dict)
    findings: dict[str, Localisation] = field(default_factory=dict)
    probabilities: list[float] = field(default_factory=list)

    def as_dict(self) -> dict:
        """JSON-ready."""
        return asdict(self)


def score_case(phantom: Phantom, model: ScanModel) -> CaseScore:
    """Run the model on the phantom's scan and compare in the phantom's own world (its working grid, mm for
    mm)."""
    volume = phantom_volume(phantom)
    output = model.run(volume)
    case = CaseScore(
        phantom.plan.seed,
        model.name,
        output.pooled.tolist(),
        phantom.labels.tolist(),
        probabilities=output.probabilities.tolist(),
    )
    scene = phantom.scene

    def in_world(values: np.ndarray, grid: Geometry = output.grid) -> np.ndarray:
        return resample(torch.from_numpy(values), grid, scene.grid, outside="zero").numpy()

    # what was scanned, not what the model chose to look at
    scanned = volume.geometry.covers(scene.grid)
    if output.organs.any():
        for channel, probability in zip(ORGAN_CHANNELS, output.outlines, strict=True):
            truth = channel_mask(scene.regions.__getitem__, channel).numpy() & scanned
            case.organs[channel] = dice(in_world(probability, output.outline_trace.grid) > 0.5, truth)
    for lesion in phantom.lesions:
        mask = lesion.mask.numpy()
        values = output.maps[SLUGS.index(lesion.slug)]
        case.findings[lesion.slug] = _localise(values, output, in_world(values), mask, phantom, lesion.degree)
    return case


def _localise(
    values: np.ndarray, output: ModelOutput, fine: np.ndarray, mask: np.ndarray, phantom: Phantom, degree: str
) -> Localisation:
    grid = phantom.scene.grid
    # a flat map has no peak; argmax would name a corner
    peak_mm = output.grid.to_mm(np.array(np.unravel_index(int(values.argmax()), values.shape)))[0]
    where = grid.to_mm(np.argwhere(mask))
    distance = float(np.linalg.norm(where - peak_mm, axis=1).min())
    # the peak is the centre of a model voxel: inside when that voxel holds lesion
    inside = distance <= output.grid.spacing_mm[0] / 2
    volume_ml = float(mask.sum()) * grid.voxel_ml
    return Localisation(
        degree,
        volume_ml,
        dice_curve(fine, mask).tolist(),
        inside,
        0.0 if inside else distance,
        average_precision(fine, mask),
    )


@dataclass(frozen=True)
class Protocol:
    """How the phantoms of a suite are made.

    Args:
        work_mm: voxel of the phantom's world. spacing_mm: written spacing; None keeps each plan's own.
    """

    work_mm: float = 2.0
    spacing_mm: tuple[float, float, float] | None = None


def score_seed(job: tuple[int, tuple[str, ...], Protocol]) -> list[CaseScore]:
    """Make one phantom and score every model on it (a job for a process)."""
    seed, models, protocol = job
    torch.set_num_threads(1)
    keep_freed_memory()
    phantom = make_phantom(draw_plan(seed, spacing_mm=protocol.spacing_mm), work_mm=protocol.work_mm)
    return [score_case(phantom, ScanModel.load(name)) for name in models]


def score_seeds(
    seeds: Sequence[int], models: Sequence[str], *, protocol: Protocol | None = None, workers: int = 2
) -> Iterator[list[CaseScore]]:
    """Score many phantoms; yields in order as they are done."""
    jobs = [(seed, tuple(models), protocol or Protocol()) for seed in seeds]
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        yield from pool.map(score_seed, jobs)
