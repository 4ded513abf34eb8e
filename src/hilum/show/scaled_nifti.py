"""Probabilities as int16 with a slope of 1/1000: half the bytes of float32, and every reader still sees 0 to
1."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
from nibabel.nifti1 import Nifti1Header

from hilum.errors import RunError
from hilum.geometry import Geometry
from hilum.io.atomic import atomic_write
from hilum.types import ProbabilityMap

STEPS = 1000


def write_probability(path: Path, values: ProbabilityMap, geometry: Geometry, description: str) -> None:
    """Write a map on its grid; equal values give equal bytes.

    Args:
        path: ends in `.nii.gz`. values: 0..1 on `geometry` (stored axes). description: ASCII, nothing about
        a patient.

    Raises:
        RunError: the map is not on that grid (`GRID_MISMATCH`).
    """
    if values.shape != geometry.shape:
        raise RunError("GRID_MISMATCH", "a map lies on its grid", expected=geometry.shape, got=values.shape)
    header = Nifti1Header(endianness="<")
    header.set_data_dtype(np.int16)
    header.set_data_shape(geometry.shape)
    header.set_sform(geometry.affine_ras, code=1)
    header.set_qform(geometry.affine_ras, code=1, strip_shears=True)
    header["pixdim"][1:4] = geometry.spacing_mm
    header.set_xyzt_units("mm")
    header["scl_slope"], header["scl_inter"] = 1.0 / STEPS, 0.0
    header["cal_min"], header["cal_max"] = 0.0, 1.0
    header["vox_offset"] = 352
    header["magic"] = b"n+1"
    header["descrip"] = description.encode("ascii", "replace")[:79]
    # Row by row, then once to Fortran order: slices cut out of a C array would be read voxel by voxel.
    steps = np.empty(geometry.shape, dtype="<i2")
    for x in range(geometry.shape[0]):
        steps[x] = np.rint(values[x] * STEPS)
    stored = np.asfortranarray(steps)
    with (
        atomic_write(path) as file,
        gzip.GzipFile(filename="", fileobj=file, mode="wb", compresslevel=1, mtime=0) as packed,
    ):
        packed.write(header.binaryblock + b"\0\0\0\0")
        for z in range(geometry.shape[2]):
            packed.write(stored[:, :, z].tobytes(order="F"))
