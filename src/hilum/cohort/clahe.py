"""EXACT's intensities (methods §1.3): a window between percentiles, then contrast-limited adaptive histogram
equalisation per slice.

CLAHE: Zuiderveld 1994, in the 8-bit form that image libraries agree on: 8x8 tiles, borders mirrored without
the edge until the tiles divide the slice, the clipped part of a histogram spread evenly, look-up tables
interpolated between tile centres.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float32, UInt8

TILES, LEVELS, CLIP_LIMIT = 8, 256, 2.0
ABOVE_DARKEST_HU = 100.0
PERCENTILES = (0.5, 99.5)


def percentile_window(hu: Float32[np.ndarray, "X Y Z"]) -> UInt8[np.ndarray, "X Y Z"]:
    """0..255 between the 0.5th and 99.5th percentile of what is 100 HU or more above the darkest voxel.

    What is darker than that becomes 0, as does a scan of one value.
    """
    seen = hu >= np.float32(hu.min() + ABOVE_DARKEST_HU)
    out = np.zeros(hu.shape, dtype=np.uint8)
    if not seen.any():
        return out
    values = hu[seen]
    low, high = np.percentile(values, PERCENTILES)
    if high > low:
        scaled = (np.clip(values, low, high) - low) / (high - low) * (LEVELS - 1)
        out[seen] = scaled.astype(np.uint8)
    return out


def clahe_slices(volume: UInt8[np.ndarray, "Z X Y"]) -> UInt8[np.ndarray, "Z X Y"]:
    """Each slice along the first axis equalised on its own."""
    return np.stack([clahe(np.ascontiguousarray(image)) for image in volume])


def clahe(image: UInt8[np.ndarray, "X Y"]) -> UInt8[np.ndarray, "X Y"]:
    """One slice."""
    tables = _tables(_padded(image))
    rows = _between(image.shape[0], _tile_size(image.shape)[0])
    columns = _between(image.shape[1], _tile_size(image.shape)[1])
    (top, bottom, down), (left, right, across) = rows, columns
    down, across = down[:, None], across[None, :]

    def look(row: np.ndarray, column: np.ndarray) -> np.ndarray:
        return tables[(row[:, None] * TILES + column[None, :]) * LEVELS + image]

    one = np.float32(1)
    upper = look(top, left) * (one - across) + look(top, right) * across
    lower = look(bottom, left) * (one - across) + look(bottom, right) * across
    return np.rint(upper * (one - down) + lower * down).clip(0, LEVELS - 1).astype(np.uint8)


def _padding(shape: tuple[int, int]) -> tuple[int, int]:
    """Rows and columns added; both are as soon as one is needed."""
    if all(n % TILES == 0 for n in shape):
        return 0, 0
    return TILES - shape[0] % TILES, TILES - shape[1] % TILES


def _tile_size(shape: tuple[int, int]) -> tuple[int, int]:
    rows, columns = _padding(shape)
    return (shape[0] + rows) // TILES, (shape[1] + columns) // TILES


def _padded(image: np.ndarray) -> np.ndarray:
    rows, columns = _padding(image.shape)
    return np.pad(image, ((0, rows), (0, columns)), mode="reflect") if rows else image


def _tables(padded: np.ndarray) -> Float32[np.ndarray, "N"]:
    """The look-up tables of all tiles, row after row, flat."""
    height, width = padded.shape[0] // TILES, padded.shape[1] // TILES
    area = height * width
    tile = (np.arange(padded.shape[0]) // height)[:, None] * TILES + np.arange(padded.shape[1]) // width
    counts = np.bincount((tile * LEVELS + padded).ravel(), minlength=TILES * TILES * LEVELS)
    counts = counts.reshape(TILES * TILES, LEVELS)
    limit = max(int(CLIP_LIMIT * area / LEVELS), 1)
    excess = (counts - limit).clip(0).sum(axis=1)
    counts = counts.clip(max=limit) + (excess // LEVELS)[:, None]
    for row, rest in zip(counts, excess % LEVELS, strict=True):
        if rest:
            row[:: max(LEVELS // int(rest), 1)][:rest] += 1
    scale = np.float32((LEVELS - 1) / area)
    cumulated = counts.cumsum(axis=1).astype(np.float32) * scale
    return np.rint(cumulated).clip(0, LEVELS - 1).astype(np.float32).ravel()


def _between(n: int, size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """For each row: the tiles before and after it, and how far it is towards the latter."""
    at = np.arange(n, dtype=np.float32) * np.float32(1 / size) - np.float32(0.5)
    lower = np.floor(at).astype(np.int64)
    share = at - lower.astype(np.float32)
    return lower.clip(0), (lower + 1).clip(max=TILES - 1), share
