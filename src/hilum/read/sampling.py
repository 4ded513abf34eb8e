"""Nearest-voxel look-up of one grid's array at another grid's voxels, any axes."""

from __future__ import annotations

import numpy as np
from scipy.ndimage import affine_transform

from hilum.geometry import Geometry


def sample_nearest(values: np.ndarray, source: Geometry, target: Geometry, fill: float) -> np.ndarray:
    """`values` on `source` -> the nearest of them at every voxel of `target`; `fill` outside.

    Args:
        values: [X, Y, Z] on `source`, any real dtype. Returns the same dtype, shape of `target`.
    """
    step = np.linalg.inv(source.affine_ras) @ target.affine_ras
    return affine_transform(
        values,
        step[:3, :3],
        offset=step[:3, 3],
        output_shape=target.shape,
        order=0,
        cval=fill,
        prefilter=False,
    )
