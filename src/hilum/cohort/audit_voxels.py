"""Which scans of two cohorts are the same voxels: distances between fingerprints, all pairs at once.

Two cubes are compared where both were scanned: root mean square of the difference, in HU. A scan is also
looked for mirrored along each axis, because a re-export that loses its header's signs turns it so. Three
products of matrices give all pairs; no pair is looped over.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float32

from hilum.cohort.fingerprint import HIGH_HU, LOW_HU, SIDE, STEPS, UNKNOWN

THRESHOLD_HU = 45.0
"""At most this far apart are two fingerprints of one scan; measured by `benchmarks/audit_phantoms.py`."""
LEAST_SHARED = 0.5
"""Share of a cube that both must have scanned, or nothing is said."""
BLOCK = 1024

Prints = tuple[bytes, bytes]
Cubes = Float32[np.ndarray, "N 16 16 16"]
OtherCubes = Float32[np.ndarray, "M 16 16 16"]
Distances = Float32[np.ndarray, "N M"]


def distances_hu(a: Sequence[Prints], b: Sequence[Prints], mirrored: bool = True) -> Distances:
    """Distance of every scan of `a` from every scan of `b`, HU; infinity where nothing can be said.

    Args:
        a, b: fingerprints (`hilum.cohort.fingerprint.fingerprint`). mirrored: whether flips are tried.
    """
    best = np.full((len(a), len(b)), np.inf, dtype=np.float32)
    if not a or not b:
        return best
    tops, bases = (_cubes([p[k] for p in a]) for k in (0, 1))
    other_tops, other_bases = (_cubes([p[k] for p in b]) for k in (0, 1))
    flips = list(itertools.product((False, True), repeat=3)) if mirrored else [(False, False, False)]
    for flip in flips:
        axes = tuple(axis + 1 for axis, on in enumerate(flip) if on)
        # Upside down, what stood on the base hangs from the top.
        pairs = (
            ((tops, other_bases), (bases, other_tops))
            if flip[2]
            else ((tops, other_tops), (bases, other_bases))
        )
        for mine, theirs in pairs:
            np.minimum(best, _between(mine, np.flip(theirs, axes)), out=best)
    return best


def hits(a: Sequence[Prints], b: Sequence[Prints]) -> list[tuple[int, int, float]]:
    """Pairs that are one scan: index in `a`, index in `b`, distance in HU."""
    found = []
    for start in range(0, len(a), BLOCK):
        near = distances_hu(a[start : start + BLOCK], b)
        for i, j in np.argwhere(near <= THRESHOLD_HU):
            found.append((start + int(i), int(j), float(near[i, j])))
    return found


def _cubes(prints: Sequence[bytes]) -> Cubes:
    """HU above `LOW_HU`; NaN where not scanned or without fingerprint."""
    size = SIDE**3
    blank = bytes([UNKNOWN]) * size
    joined = b"".join(p if len(p) == size else blank for p in prints)
    steps = np.frombuffer(joined, dtype=np.uint8).reshape(len(prints), SIDE, SIDE, SIDE)
    hu = steps.astype(np.float32) * ((HIGH_HU - LOW_HU) / STEPS)
    hu[steps == UNKNOWN] = np.nan
    return hu


def _between(a: Cubes, b: OtherCubes) -> Distances:
    """Root mean square difference over what both scanned."""
    flat_a, flat_b = a.reshape(len(a), -1), b.reshape(len(b), -1)
    seen_a, seen_b = (np.isfinite(x).astype(np.float32) for x in (flat_a, flat_b))
    value_a, value_b = np.nan_to_num(flat_a), np.nan_to_num(flat_b)
    shared = seen_a @ seen_b.T
    square = (value_a**2) @ seen_b.T + seen_a @ (value_b**2).T - 2 * value_a @ value_b.T
    enough = shared >= LEAST_SHARED * SIDE**3
    mean = np.where(enough, np.maximum(square, 0) / np.maximum(shared, 1), np.inf)
    return np.sqrt(mean).astype(np.float32)
