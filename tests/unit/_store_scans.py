"""Small chests as files, for the tests of stores."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from hilum.geometry import Geometry
from hilum.io.nifti import write_nifti


def chest_hu(seed: int, shape: tuple[int, int, int] = (70, 50, 40)) -> np.ndarray:
    """Air around a body with two lungs and some noise; int16 HU."""
    rng = np.random.default_rng(seed)
    index = np.stack(np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij"), -1)

    def ellipsoid(centre: tuple[float, ...], radii: tuple[float, ...]) -> np.ndarray:
        return (((index - np.array(centre)) / np.array(radii)) ** 2).sum(-1) < 1

    hu = np.full(shape, -1000.0)
    hu[((index[..., :2] / (0.9, 0.85)) ** 2).sum(-1) < 1] = 40.0
    for side in (-0.42, 0.42):
        hu[ellipsoid((side, 0.05, 0.1), (0.3, 0.5, 0.8))] = -850.0
    hu += rng.normal(0, 12, shape)
    return hu.round().astype(np.int16)


def write_scans(folder: Path, count: int, shape: tuple[int, int, int] = (70, 50, 40)) -> list[Path]:
    """`count` chests of 5 mm voxels as NIfTI."""
    folder.mkdir(parents=True, exist_ok=True)
    affine = np.diag([-5.0, -5.0, 6.0, 1.0])
    affine[:3, 3] = (170.0, 120.0, -110.0)
    paths = []
    for seed in range(count):
        paths.append(folder / f"scan{seed}.nii.gz")
        write_nifti(paths[-1], chest_hu(seed, shape), Geometry(shape, affine))
    return paths
