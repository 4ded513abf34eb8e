"""Axial, coronal and sagittal cuts of a volume, as a radiologist lays them out: patient's right on the left
of the picture.

A cut is taken along the axes of the volume nearest to RAS+, so an axial cut of a tilted series is the image
the scanner made. Rows run downwards: anterior on top of an axial cut, head on top of the other two.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np

from hilum.geometry import Geometry
from hilum.types import PointMm

Point: TypeAlias = tuple[float, float, float] | PointMm
"""mm RAS+."""
Plane = Literal["axial", "coronal", "sagittal"]
PLANES: tuple[Plane, ...] = ("axial", "coronal", "sagittal")

NORMAL_AXIS: dict[str, int] = {"axial": 2, "coronal": 1, "sagittal": 0}
LETTERS: dict[str, tuple[str, str, str, str]] = {
    "axial": ("R", "L", "A", "P"),
    "coronal": ("R", "L", "S", "I"),
    "sagittal": ("A", "P", "S", "I"),
}
"""Plane -> letters at the left, right, top and bottom edge of the picture."""


@dataclass(frozen=True)
class Window:
    """Which HU are shown: black at `level_hu - width_hu / 2`, white at `level_hu + width_hu / 2`."""

    name: str
    level_hu: float
    width_hu: float

    def grey(self, hu: np.ndarray) -> np.ndarray:
        """HU -> uint8."""
        low = self.level_hu - self.width_hu / 2
        return np.clip((hu - low) * (255.0 / self.width_hu) + 0.5, 0, 255).astype(np.uint8)


LUNG = Window("lung", -600.0, 1500.0)
SOFT = Window("soft", 40.0, 400.0)
WINDOWS = (LUNG, SOFT)


@dataclass(frozen=True)
class CutGrid:
    """One cut: which plane, which index along its normal, how many mm a row and a column are, and where it
    starts.

    Args:
        rows, columns: of the array cut. row_mm, column_mm: distance of rows and of columns.
    """

    plane: Plane
    index: int
    rows: int
    columns: int
    row_mm: float
    column_mm: float

    @property
    def height_mm(self) -> float:
        """Height of the picture, mm."""
        return self.rows * self.row_mm

    @property
    def width_mm(self) -> float:
        """Width of the picture, mm."""
        return self.columns * self.column_mm


def cut_array(values: np.ndarray, plane: Plane, index: int) -> np.ndarray:
    """[X, Y, Z] on RAS+ axes -> [rows, columns] in radiological layout (a view)."""
    if plane == "axial":
        return values[::-1, ::-1, index].T
    if plane == "coronal":
        return values[::-1, index, ::-1].T
    return values[index, ::-1, ::-1].T


def cut_grid(geometry: Geometry, plane: Plane, index: int) -> CutGrid:
    """Size of a cut of an array on `geometry` (RAS+ axes)."""
    x, y, z = geometry.shape
    sx, sy, sz = geometry.spacing_mm
    rows, columns, row_mm, column_mm = {
        "axial": (y, x, sy, sx),
        "coronal": (z, x, sz, sx),
        "sagittal": (z, y, sz, sy),
    }[plane]
    return CutGrid(plane, index, rows, columns, row_mm, column_mm)


VoxelPlace = tuple[int | float, int | float, int | float]
"""A voxel, or a place between voxels."""


def picture_point(geometry: Geometry, plane: Plane, voxel: VoxelPlace) -> tuple[float, float]:
    """(column mm, row mm) from the top left corner of the picture to a voxel's centre."""
    x, y, z = (n - 0.5 - v for n, v in zip(geometry.shape, voxel, strict=True))
    sx, sy, sz = geometry.spacing_mm
    return {"axial": (x * sx, y * sy), "coronal": (x * sx, z * sz), "sagittal": (y * sy, z * sz)}[plane]
