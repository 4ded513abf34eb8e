"""Every array that one room hands to another, with dtype and axes. NumPy only; tensors are in `tensors.py`.

Axes are `[X, Y, Z]`, RAS+ (X grows to the patient's right, Y to anterior, Z to superior), lengths in mm,
intensities in HU.
jaxtyping makes the names checkable: the test run verifies them, a user pays nothing.
"""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
from jaxtyping import Bool, Float32, Float64, Int16, Int64, Integer, UInt8

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

PackedMasks: TypeAlias = Int16[np.ndarray, "U V W"]
"""Several masks on a model's grid, bit o of a voxel is mask o."""

ProbabilityMap: TypeAlias = Float32[np.ndarray, "X Y Z"]
"""Per-voxel probability in [0, 1]."""

GridMap: TypeAlias = Float32[np.ndarray, "U V W"]
"""One value per voxel of a model's grid, which is not the volume's grid `X Y Z`."""

FeatureVector: TypeAlias = Float32[np.ndarray, "W"]
"""What a backbone says of a whole scan."""

PatchFeatures: TypeAlias = Float32[np.ndarray, "N W"]
"""What it says of each patch, in the order of its grid (the last axis fastest)."""

SliceVectors: TypeAlias = Float32[np.ndarray, "S W"]
"""What it says of each of S slices."""

SlicePatches: TypeAlias = Float32[np.ndarray, "S N W"]
"""What it says of each patch of each slice."""

SliceNumbers: TypeAlias = Int64[np.ndarray, "S"]
"""Which slices of a prepared scan."""

SliceHeights: TypeAlias = Float64[np.ndarray, "S"]
"""Where they lie, mm RAS+ along Z."""

EmbeddingVector: TypeAlias = Float32[np.ndarray, "E"]
"""A scan in the space that it shares with texts; length 1."""

EmbeddingRows: TypeAlias = Float32[np.ndarray, "B E"]
"""Texts there, one per row."""

ScanEmbeddings: TypeAlias = Float32[np.ndarray, "A E"] | Float32[np.ndarray, "E"]
"""One scan there, or several."""

Similarities: TypeAlias = Float32[np.ndarray, "A B"] | Float32[np.ndarray, "B"]
"""Cosine times scale, of each scan with each text; of one scan a row alone."""

PatchValues: TypeAlias = Float32[np.ndarray, "N"]
"""One number per patch."""

PatchBits: TypeAlias = Bool[np.ndarray, "N"]
"""One bit per patch."""

Probabilities: TypeAlias = Float32[np.ndarray, "D"]
"""One probability per question asked."""

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

TokenIds: TypeAlias = Int64[np.ndarray, "B L"]
"""Numbers of a tokenizer's vocabulary, one row per text, padded to the longest."""

TokenMask: TypeAlias = Bool[np.ndarray, "B L"]
"""True where a token belongs to the text (special tokens included), False where it pads."""
