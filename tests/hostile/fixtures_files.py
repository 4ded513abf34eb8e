"""Tiny plausible chests, files made from them, and files made wrong on purpose (no DICOM; see
fixtures_dicom)."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from hilum.errors import InputRefused
from hilum.io.open import inspect, open_volume
from hilum.volume import CTVolume

SHAPE = (48, 40, 32)
SPACING_MM = (8.0, 9.0, 7.5)
AFFINE = np.array([[-8.0, 0, 0, 180.0], [0, 9.0, 0, -150.0], [0, 0, 7.5, -300.0], [0, 0, 0, 1]])


def chest(shape: tuple[int, int, int] = SHAPE, seed: int = 0) -> np.ndarray:
    """Air, an elliptic body of 40 HU, two lungs of different size, spine and trachea; noise of 12 HU.
    float32, whole
    HU."""
    rng = np.random.default_rng(seed)
    x, y, z = np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij")
    hu = np.full(shape, -1000.0)
    hu[(x / 0.8) ** 2 + (y / 0.7) ** 2 < 1] = 40.0
    hu[((x - 0.35) / 0.25) ** 2 + (y / 0.45) ** 2 + (z / 0.8) ** 2 < 1] = -850.0
    hu[((x + 0.35) / 0.22) ** 2 + (y / 0.45) ** 2 + (z / 0.8) ** 2 < 1] = -850.0
    hu[x**2 + (y + 0.5) ** 2 < 0.01] = 700.0
    hu[(x**2 + (y - 0.1) ** 2 < 0.004) & (z > 0)] = -1000.0
    return np.round(hu + rng.normal(0, 12.0, shape)).clip(-1024, 3071).astype(np.float32)


def save_nifti(
    path: Path,
    hu: np.ndarray | None = None,
    affine: np.ndarray | None = None,
    dtype: str = "i2",
    cls=nib.Nifti1Image,
) -> Path:
    """A well-formed file by nibabel (not by the code under test)."""
    values = chest() if hu is None else hu
    image = cls(values.astype(dtype), AFFINE if affine is None else affine, dtype=np.dtype(dtype))
    image.header.set_xyzt_units("mm")
    image.header.set_slope_inter(1.0, 0.0)
    image.set_sform(AFFINE if affine is None else affine, code=1)
    if affine is None:
        image.set_qform(AFFINE, code=1)
    nib.save(image, path)
    return path


FIELDS = {
    "dim": (40, "8h"),
    "datatype": (70, "h"),
    "bitpix": (72, "h"),
    "pixdim": (76, "8f"),
    "vox_offset": (108, "f"),
    "scl_slope": (112, "f"),
    "scl_inter": (116, "f"),
    "xyzt_units": (123, "B"),
    "qform_code": (252, "h"),
    "sform_code": (254, "h"),
    "quatern": (256, "3f"),
    "qoffset": (268, "3f"),
    "srow_x": (280, "4f"),
    "srow_y": (296, "4f"),
    "srow_z": (312, "4f"),
}
"""NIfTI-1 header fields: byte offset and struct format."""


def get(content: bytes, field: str) -> tuple:
    """A header field of a plain little-endian NIfTI-1."""
    at, form = FIELDS[field]
    return struct.unpack_from("<" + form, content, at)


def patched(path: Path, **fields: object) -> Path:
    """Overwrites header fields of a NIfTI-1 in place; `.nii.gz` is packed again with a right checksum."""
    packed = path.read_bytes()[:2] == b"\x1f\x8b"
    content = bytearray(gzip.decompress(path.read_bytes()) if packed else path.read_bytes())
    for field, value in fields.items():
        at, form = FIELDS[field]
        values = value if isinstance(value, (tuple, list)) else (value,)
        struct.pack_into("<" + form, content, at, *values)
    path.write_bytes(gzip.compress(bytes(content), 1) if packed else bytes(content))
    return path


def refused(path: Path, code: str, **options: object) -> InputRefused:
    """Asserts that reading raises this code and that inspecting says the same; returns the error."""
    with pytest.raises(InputRefused) as caught:
        open_volume(path, **options)
    assert caught.value.code == code, caught.value.message
    assert caught.value.exit_code == 3
    seen = inspect(path, **options)
    assert seen.refused and code in {f.code for f in seen.stopping}, seen.as_dict()
    return caught.value


def accepted(path: Path, *codes: str, **options: object) -> CTVolume:
    """Asserts that reading works, that exactly these codes are recorded, and that inspecting agrees."""
    volume = open_volume(path, **options)
    found = [f.code for f in volume.provenance.findings]
    assert sorted(found) == sorted(codes), volume.provenance.findings
    seen = inspect(path, **options)
    assert not seen.refused and sorted(f.code for f in seen.findings) == sorted(codes), seen.as_dict()
    return volume


def ras(hu: np.ndarray) -> np.ndarray:
    """`hu` on the axes of AFFINE (LAS), reordered to RAS+."""
    return hu[::-1]
