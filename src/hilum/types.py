"""Every array that one room hands to another, with dtype and axes. NumPy only; tensors are in `tensors.py`.

Axes are `[X, Y, Z]`, RAS+ (X grows to the patient's right, Y to anterior, Z to superior), lengths in mm,
intensities in HU.
jaxtyping makes the names checkable: the test run verifies them, a user pays nothing.
"""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
from jaxtyping import Bool, Float32, Float64, Integer, UInt8

VolumeHU: TypeAlias = Float32[np.ndarray, "X Y Z"]
"""HU of every voxel; air -1000, water 0."""

StoredVolume: TypeAlias = (
    Integer[np.ndarray, "X Y Z"] | Float32[np.ndarray, "X Y Z"] | Float64[np.ndarray, "X Y Z"]
)
"""Values as a file stores them, before rescale."""

MaskVolume: TypeAlias = Bool[np.ndarray, "X Y Z"]
"""True inside."""

LabelVolume: TypeAlias = UInt8[np.ndarray, "X Y Z"]
"""One organ index per voxel; 0 is background."""

ProbabilityMap: TypeAlias = Float32[np.ndarray, "X Y Z"]
"""Per-voxel probability in [0, 1]."""

GridMap: TypeAlias = Float32[np.ndarray, "U V W"]
"""One value per voxel of a model's grid, which is not the volume's grid `X Y Z`."""

AffineRas: TypeAlias = Float64[np.ndarray, "4 4"]
"""Voxel index -> patient mm, RAS+."""

AffineLps: TypeAlias = Float64[np.ndarray, "4 4"]
"""Voxel index -> patient mm, LPS+ (DICOM, ITK)."""

PointsMm: TypeAlias = Float64[np.ndarray, "N 3"]
"""Points in patient mm."""

OtherPointsMm: TypeAlias = Float64[np.ndarray, "M 3"]
"""A second set of points beside `PointsMm`, of its own length."""

PointMm: TypeAlias = Float64[np.ndarray, "3"]
"""One point in patient mm."""

SpacingMm: TypeAlias = tuple[float, float, float]
"""Distance between voxel centres along each array axis, mm."""
