"""Tiny cohorts in exactly the layouts of the data sets. Every text in them was written for these tests."""

from __future__ import annotations

import csv
from pathlib import Path

import nibabel as nib
import numpy as np

SHAPE = (48, 40, 32)
AFFINE = np.array([[-8.0, 0, 0, 180.0], [0, 9.0, 0, -150.0], [0, 0, 7.5, -300.0], [0, 0, 0, 1]])


def chest(seed: int = 0, shape: tuple[int, int, int] = SHAPE) -> np.ndarray:
    """int16 HU: air, a body whose size and lungs depend on the seed, spine, noise."""
    rng = np.random.default_rng(seed)
    wide, deep, apart, high = rng.uniform([0.72, 0.62, 0.3, 0.65], [0.88, 0.78, 0.4, 0.9])
    x, y, z = np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij")
    hu = np.full(shape, -1000.0)
    hu[(x / wide) ** 2 + (y / deep) ** 2 < 1] = 40.0
    for side in (-1, 1):
        size = rng.uniform(0.2, 0.26)
        hu[((x - side * apart) / size) ** 2 + (y / 0.45) ** 2 + (z / high) ** 2 < 1] = -850.0
    hu[x**2 + (y + 0.5) ** 2 < 0.012] = 500.0
    return np.round(hu + rng.normal(0, 12.0, shape)).clip(-1024, 3071).astype(np.int16)


def save(
    path: Path, values: np.ndarray | None = None, affine: np.ndarray | None = None, seed: int = 0
) -> Path:
    """A NIfTI by nibabel."""
    path.parent.mkdir(parents=True, exist_ok=True)
    stored = chest(seed) if values is None else values
    image = nib.Nifti1Image(stored, AFFINE if affine is None else affine, dtype=stored.dtype)
    image.header.set_xyzt_units("mm")
    nib.save(image, path)
    return path


def save_mask(path: Path, shape: tuple[int, ...] = SHAPE) -> Path:
    """A NIfTI of zeros and ones."""
    mask = np.zeros(shape, dtype=np.uint8)
    mask[..., 10:12, 10:12] = 1
    return save(path, mask)


def table(path: Path, rows: list[dict], delimiter: str = ",") -> Path:
    """A CSV with the columns of the first row."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), delimiter=delimiter)
        writer.writeheader()
        writer.writerows(rows)
    return path


def plain_cohort(root: Path, count: int, **columns) -> Path:
    """`count` scans and `cohort.csv`; a column's value may be a function of the number."""
    rows = []
    for i in range(count):
        save(root / f"scans/{i:03d}.nii.gz", seed=i)
        row = {"path": f"scans/{i:03d}.nii.gz", "patient": f"p{i}"}
        rows.append(row | {k: v(i) if callable(v) else v for k, v in columns.items()})
    table(root / "cohort.csv", rows)
    return root
