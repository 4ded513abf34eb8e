"""From a patient to the numbers of a body: frame, tables of the trunk, and where the great structures run.

All numbers are canonical mm: an average adult man at nearly full inspiration, carina at the origin, x to his
right, y to his front, z to his head.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from hilum.geometry import Geometry
from hilum.phantom.plan import PhantomPlan
from hilum.phantom.shapes import Frame, Mm3, Noise, smooth_line

RECESS_MM = -172.0
"""Lowest point of the lungs at the default breath."""


@dataclass(frozen=True)
class Build:
    """A patient in numbers.

    Args:
        frame: grid and warped coordinates. drop_mm: how far the diaphragm is below its default place
        (negative: expiration).
        heart_scale: linear factor. fat_mm, muscle: as in the plan. female: sex. seed: of every further
        detail.
        contrast: phase of the injection. breathing: 0..1. age_years: as in the plan.
    """

    frame: Frame
    drop_mm: float
    heart_scale: float
    fat_mm: float
    muscle: float
    female: bool
    seed: int
    contrast: str
    breathing: float
    age_years: int

    def rng(self, stream: int) -> np.random.Generator:
        """A generator of its own for each part, so that one part's draws do not move another's."""
        return np.random.default_rng([self.seed, stream])

    def noise(self, stream: int, knot_mm: float) -> Noise:
        """A smooth field of its own for each part."""
        seed = int(np.random.default_rng([self.seed, 7000 + stream]).integers(2**40))
        return Noise.draw(seed, knot_mm, self.frame.device)

    def low(self, z_mm: int | float | np.ndarray) -> np.ndarray:
        """A canonical height, moved with the breath: nothing above the carina, everything at the
        diaphragm."""
        z = np.asarray(z_mm, dtype=np.float64)
        return np.asarray(z - self.drop_mm * np.clip(-z / 90.0, 0.0, 1.0))

    def line(self, points: list[Mm3]) -> np.ndarray:
        """A canonical polyline (moved with the breath), smoothed and brought to scene mm."""
        p = np.array(points, dtype=np.float64)
        p[:, 2] = self.low(p[:, 2])
        if len(p) > 2:
            p = smooth_line(p, 8 * len(p))
        return self.frame.to_scene(p)


def make_build(plan: PhantomPlan, work_mm: float, device: torch.device) -> Build:
    """The grid and the numbers of a plan."""
    patient = plan.patient
    rng = np.random.default_rng([patient.shape_seed, 1])
    sex = (1.0, 1.0, 1.0) if patient.sex == "male" else (0.91, 0.92, 0.92)
    breath = patient.breathing - 0.8
    width = (1.0 + 0.02 * breath) * rng.normal(1.0, 0.02)
    depth = (1.0 + 0.04 * breath) * rng.normal(1.0, 0.03)
    height = rng.normal(1.0, 0.03)
    scale = tuple(float(patient.size * s * f) for s, f in zip(sex, (width, depth, height), strict=True))
    drop = 42.0 * breath
    fat = max(patient.fat_mm, 2.0)
    half_x = scale[0] * 182.0 + fat + 16.0
    back, front = (
        scale[1] * -136.0 - fat - 34.0,
        scale[1] * 116.0 + fat + (48.0 if patient.sex == "female" else 18.0),
    )
    low, high = scale[2] * (RECESS_MM - max(drop, drop * 1.0)) - 48.0, scale[2] * 96.0 + 46.0
    lo = np.floor(np.array([-half_x, back, low]) / work_mm) * work_mm
    shape = np.ceil((np.array([half_x, front, high]) - lo) / work_mm).astype(int) + 1
    affine = np.diag([work_mm, work_mm, work_mm, 1.0])
    affine[:3, 3] = lo
    grid = Geometry((int(shape[0]), int(shape[1]), int(shape[2])), affine)
    seeds = rng.integers(0, 2**40, 3)
    warp = tuple(Noise.draw(int(s), 85.0, device) for s in seeds)
    frame = Frame(
        grid,
        device,
        (scale[0], scale[1], scale[2]),
        float(np.deg2rad(patient.rotation_deg)),
        float((patient.kyphosis - 0.3) * 22.0),
        (warp[0], warp[1], warp[2]),
        4.0,
    )
    return Build(
        frame,
        float(drop),
        float(patient.heart_size),
        fat,
        patient.muscle,
        patient.sex == "female",
        patient.shape_seed,
        plan.scanner.phase,
        patient.breathing,
        patient.age_years,
    )
