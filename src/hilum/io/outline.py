"""Outlines to pixels: the even-odd rule at pixel centres.

Drawing libraries colour the border as well and round corners to whole pixels; a volume in ml must do neither.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float64

Slice = Bool[np.ndarray, "U V"]
Points = Float64[np.ndarray, "P 2"]


def fill(outline_vox: Points, shape: tuple[int, int]) -> Slice:
    """Pixels whose centre lies inside a closed outline.

    Args:
        outline_vox: corners in index coordinates of a [U, V] slice; the last joins the first. shape: of it.
    """
    inside = np.zeros(shape, dtype=bool)
    if len(outline_vox) < 3:
        return inside
    u, v = outline_vox[:, 0], outline_vox[:, 1]
    next_u, next_v = np.roll(u, -1), np.roll(v, -1)
    first = max(0, int(np.ceil(v.min())))
    last = min(shape[1] - 1, int(np.floor(v.max())))
    columns = np.arange(shape[0])
    for row in range(first, last + 1):
        # Half open, so that a corner on the row counts once.
        crosses = (v <= row) != (next_v <= row)
        at = u[crosses] + (row - v[crosses]) * (next_u[crosses] - u[crosses]) / (next_v[crosses] - v[crosses])
        inside[:, row] = (at[None] < columns[:, None]).sum(axis=1) % 2 == 1
    return inside
