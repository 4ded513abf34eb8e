"""A simple chest and a model without a network: HU thresholds for organs, bumps at known millimetres for
findings."""

from __future__ import annotations

from dataclasses import dataclass, field

import cc3d
import numpy as np
import torch

from hilum.cohort.prep import Prep
from hilum.geometry import Geometry
from hilum.text.vocabulary import FINDINGS, INDEX, ORGAN_CHANNELS, SLUGS
from hilum.volume import CTVolume, Provenance

torch.set_num_threads(1)

NODULE_MM = np.array([-70.0, -20.0, 30.0])
"""In the left lung (RAS: left is negative x)."""


def chest_hu(points_mm: np.ndarray) -> np.ndarray:
    """HU of a chest of ellipsoids at points [..., 3] mm RAS: body, two lungs, heart left of the middle, a
    bright nodule."""

    def inside(centre: tuple[float, float, float], radii: tuple[float, float, float]) -> np.ndarray:
        return (((points_mm - np.array(centre)) / np.array(radii)) ** 2).sum(-1) < 1

    hu = np.full(points_mm.shape[:-1], -1000.0, dtype=np.float32)
    x, y = points_mm[..., 0] / 165, points_mm[..., 1] / 115
    hu[x**2 + y**2 < 1] = 40.0
    hu[inside((80, 0, 0), (55, 80, 105))] = -850.0
    hu[inside((-80, 0, 0), (55, 80, 105))] = -850.0
    hu[inside((-20, 30, -30), (45, 40, 50))] = 45.0
    hu[inside(tuple(NODULE_MM), (12, 12, 12))] = 60.0
    return hu


def chest(geometry: Geometry, provenance: Provenance | None = None) -> CTVolume:
    """The chest on any grid (stored axes)."""
    return CTVolume.from_source(
        chest_hu(points_of(geometry)), geometry, provenance or Provenance("nifti", "ab" * 32)
    )


def points_of(grid: Geometry) -> np.ndarray:
    """mm RAS of every voxel, [X, Y, Z, 3]."""
    i, j, k = (np.arange(n, dtype=np.float64) for n in grid.shape)
    a = grid.affine_ras[:3]
    return (
        i[:, None, None, None] * a[:, 0]
        + j[None, :, None, None] * a[:, 1]
        + k[None, None, :, None] * a[:, 2]
        + a[:, 3]
    )


def straight_grid(shape=(84, 64, 56), spacing=(4.5, 4.5, 5.0)) -> Geometry:
    """RAS+ grid centred on the chest."""
    affine = np.diag([*spacing, 1.0])
    affine[:3, 3] = -(np.array(shape) - 1) / 2 * np.array(spacing)
    return Geometry(shape, affine)


@dataclass
class Output:
    grid: Geometry
    organs: np.ndarray
    maps: np.ndarray
    probabilities: np.ndarray
    trace: object

    @property
    def outlines(self) -> np.ndarray:
        return self.organs

    @property
    def outline_trace(self) -> object:
        return self.trace


@dataclass
class Standin:
    """`bumps`: slug -> centre mm of a Gaussian of 8 mm; those findings are present at 0.9, the others at
    0.1."""

    bumps: dict[str, np.ndarray] = field(default_factory=lambda: {"lung_nodule": NODULE_MM})
    name: str = "standin"
    sha256: str = "cd" * 32
    trained_on: str = "nothing; synthetic thresholds"
    calibrated: bool = False
    sigma_mm: float = 8.0
    grid_mm: float = 4.0
    spoil: float | None = None

    def __post_init__(self) -> None:
        self.thresholds = dict.fromkeys(SLUGS, 0.5)
        self.map_thresholds = dict.fromkeys(SLUGS, 0.4)

    def run(self, volume: CTVolume) -> Output:
        tensor, trace = Prep(spacing_mm=self.grid_mm, multiple=4).apply(volume)
        hu = tensor[0, 0].numpy() * 1000
        grid = trace.grid
        organs = np.stack([o.astype(np.float32) for o in self._organs(hu, grid)])
        maps = np.zeros((len(FINDINGS), *grid.shape), dtype=np.float32)
        points = points_of(grid).astype(np.float32)
        probabilities = np.full(len(FINDINGS), 0.1, dtype=np.float32)
        for slug, centre in self.bumps.items():
            distance = ((points - np.float32(centre)) ** 2).sum(axis=-1)
            maps[INDEX[slug]] = 0.95 * np.exp(-distance / (2 * self.sigma_mm**2))
            probabilities[INDEX[slug]] = 0.9
        if self.spoil is not None:
            maps[INDEX["lung_nodule"], 3, 3, 3] = self.spoil
        return Output(grid, organs, maps, probabilities, trace)

    @staticmethod
    def _organs(hu: np.ndarray, grid: Geometry) -> list[np.ndarray]:
        air = cc3d.connected_components((hu < -400) & (hu > -960), connectivity=6)
        sizes = np.bincount(air.ravel())
        sizes[[0, *np.unique(air[0]), *np.unique(air[-1]), *np.unique(air[:, 0]), *np.unique(air[:, -1])]] = 0
        # a piece of blurred skin that the crop leaves free of the border is no lung
        lung = np.isin(air, np.flatnonzero(sizes * grid.voxel_ml > 250))
        x = (np.arange(grid.shape[0]) * grid.affine_ras[0, 0] + grid.affine_ras[0, 3])[:, None, None]
        middle = (hu > -100) & (np.abs(x) < 60)
        body = hu > -400
        masks = {
            "lung": lung,
            "mediastinum": middle & (x > 0),
            "heart": middle & (x <= 0),
            "global": body | lung,
        }
        empty = np.zeros(grid.shape, dtype=bool)
        return [masks.get(name, empty) for name in ORGAN_CHANNELS]
