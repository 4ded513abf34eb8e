"""Small chest-like DICOM series, and every way to spoil one.

Bytes are made here; none come from a scanner.
"""

from __future__ import annotations

import base64
import struct
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pydicom
from pydicom.dataset import Dataset, FileDataset
from pydicom.sequence import Sequence
from pydicom.uid import UID

from hilum.geometry import Geometry
from hilum.io.dicom_write import SeriesHeader, uid_from, write_ct_series
from hilum.volume import SliceRef

SHAPE = (32, 34, 16)
STEP_MM = 10.0
Edit = Callable[[FileDataset], None]


def chest(shape: tuple[int, int, int] = SHAPE, seed: int = 0) -> np.ndarray:
    """RAS [X, Y, Z] HU: air, a body of 40 HU, two lungs of -850 HU (the right one larger), a spine, noise."""
    grid = np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij")
    x, y, z = grid
    hu = np.full(shape, -1000.0)
    hu[(x / 0.85) ** 2 + (y / 0.7) ** 2 < 1] = 40.0
    hu[((x - 0.42) / 0.3) ** 2 + (y / 0.45) ** 2 + (z / 1.3) ** 2 < 1] = -850.0
    hu[((x + 0.42) / 0.24) ** 2 + (y / 0.45) ** 2 + (z / 1.3) ** 2 < 1] = -860.0
    hu[(x / 0.12) ** 2 + ((y + 0.5) / 0.12) ** 2 < 1] = 350.0
    noise = np.random.default_rng(seed).normal(0, 12, shape)
    return np.clip(np.rint(hu + noise), -1024, 3000).astype(np.float32)


def grid(
    shape: tuple[int, int, int] = SHAPE,
    spacing: tuple[float, float, float] = (9.0, 9.0, STEP_MM),
    frame: str | None = None,
) -> Geometry:
    """Axial, stored LPS as scanners do: columns to the left, rows to the back, slices upwards."""
    affine = np.diag([-spacing[0], -spacing[1], spacing[2], 1.0])
    affine[:3, 3] = [144.0, 153.0, -400.0]
    return Geometry(shape, affine, frame)


def stored(hu_ras: np.ndarray) -> np.ndarray:
    """RAS array -> the axes of `grid()`."""
    return np.ascontiguousarray(hu_ras[::-1, ::-1])


def good(
    folder: Path,
    *,
    seed: str = "good",
    shape: tuple[int, int, int] = SHAPE,
    syntax: str = "explicit",
    spacing: tuple[float, float, float] = (9.0, 9.0, STEP_MM),
    noise: int = 0,
    **header,
) -> list[SliceRef]:
    """A series with nothing wrong; `header` goes to `SeriesHeader`."""
    hu = stored(chest(shape, noise))
    return write_ct_series(
        folder, hu, grid(shape, spacing), header=SeriesHeader(seed=seed, **header), transfer_syntax=syntax
    )


def files(folder: Path) -> list[Path]:
    """The slices, by name."""
    return sorted(folder.glob("*.dcm"))


def edit(paths: Path | Iterable[Path], change: Edit) -> None:
    """Rewrites files after `change`."""
    for path in [paths] if isinstance(paths, Path) else paths:
        with warnings.catch_warnings():
            warnings.simplefilter(
                "ignore"
            )  # pydicom remarks on the bad values that are written here on purpose
            ds = pydicom.dcmread(path)
            change(ds)
            ds.save_as(path)


def setting(**values) -> Edit:
    """An edit that sets attributes."""

    def change(ds: FileDataset) -> None:
        for name, value in values.items():
            setattr(ds, name, value)

    return change


def without(*names: str) -> Edit:
    """An edit that deletes attributes."""

    def change(ds: FileDataset) -> None:
        for name in names:
            if name in ds:
                delattr(ds, name)

    return change


def moved(offset: Callable[[int, np.ndarray], np.ndarray]) -> Callable[[Path], None]:
    """A spoiler that gives image k (by place, from the bottom) another position."""

    def change(folder: Path) -> None:
        def place(ds: FileDataset) -> None:
            position = np.array(ds.ImagePositionPatient, dtype=float)
            index = round((position[2] + 400.0) / STEP_MM)
            ds.ImagePositionPatient = [f"{v:.6f}" for v in offset(index, position)]

        edit(files(folder), place)

    return change


def copy_as(source: Path, target: Path, change: Edit) -> None:
    """A changed copy with a SOP Instance UID of its own."""
    ds = pydicom.dcmread(source)
    ds.SOPInstanceUID = ds.file_meta.MediaStorageSOPInstanceUID = uid_from(target.name)
    change(ds)
    ds.save_as(target)


def patch(path: Path, change: Callable[[bytes], bytes]) -> None:
    """Rewrites raw bytes."""
    path.write_bytes(change(path.read_bytes()))


def element(tag: int, vr: bytes, value: bytes, length: int | None = None) -> bytes:
    """One explicit little endian element, its length a lie if wanted."""
    size = len(value) if length is None else length
    head = struct.pack("<HH", tag >> 16, tag & 0xFFFF) + vr
    if vr in (b"SQ", b"UN", b"OB", b"OW", b"UT"):
        return head + b"\0\0" + struct.pack("<I", size) + value
    return head + struct.pack("<H", size) + value


def nested(depth: int) -> bytes:
    """A sequence that holds a sequence that holds..., of undefined length."""
    open_ = element(0x00081115, b"SQ", b"", 0xFFFFFFFF) + b"\xfe\xff\x00\xe0\xff\xff\xff\xff"
    close = b"\xfe\xff\x0d\xe0\0\0\0\0" + b"\xfe\xff\xdd\xe0\0\0\0\0"
    return open_ * depth + close * depth


def split_meta(content: bytes) -> tuple[bytes, bytes]:
    """Preamble and file meta; dataset."""
    length = struct.unpack_from("<I", content, 140)[0]
    return content[: 144 + length], content[144 + length :]


def enhanced(path: Path, *, drop: str = "", frames: int | None = None, tilt: bool = False) -> np.ndarray:
    """One Enhanced CT file with the good volume, frames stored from the top; returns the stored HU."""
    hu, geometry = stored(chest()), grid()
    count = hu.shape[2]
    folder = path.parent / "single"
    write_ct_series(folder, hu, geometry, header=SeriesHeader(seed="enhanced"))
    ds = pydicom.dcmread(files(folder)[0])
    for single in files(folder):
        single.unlink()
    folder.rmdir()
    ds.SOPClassUID = ds.file_meta.MediaStorageSOPClassUID = UID("1.2.840.10008.5.1.4.1.1.2.1")
    for name in (
        "ImagePositionPatient",
        "ImageOrientationPatient",
        "PixelSpacing",
        "SliceThickness",
        "RescaleSlope",
        "RescaleIntercept",
        "RescaleType",
        "SliceLocation",
        "ConvolutionKernel",
    ):
        delattr(ds, name)
    shared = Dataset()
    orientation, measures, rescale = Dataset(), Dataset(), Dataset()
    orientation.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    measures.PixelSpacing, measures.SliceThickness = [9.0, 9.0], STEP_MM
    rescale.RescaleSlope, rescale.RescaleIntercept, rescale.RescaleType = 1, -1024, "HU"
    shared.PlaneOrientationSequence = Sequence([orientation])
    shared.PixelMeasuresSequence = Sequence([measures])
    shared.PixelValueTransformationSequence = Sequence([rescale])
    per_frame, planes = [], []
    for index in reversed(range(count)):
        group, place, content = Dataset(), Dataset(), Dataset()
        place.ImagePositionPatient = list((geometry.affine_lps @ [0, 0, index, 1])[:3])
        content.StackID, content.InStackPositionNumber = "1", index + 1
        group.PlanePositionSequence = Sequence([place])
        group.FrameContentSequence = Sequence([content])
        per_frame.append(group)
        planes.append((hu[:, :, index].T + 1024).astype(np.uint16))
    if drop:
        for group in (shared, *per_frame):
            if drop in group:
                delattr(group, drop)
    ds.SharedFunctionalGroupsSequence = Sequence([shared])
    ds.PerFrameFunctionalGroupsSequence = Sequence(per_frame)
    ds.NumberOfFrames = count if frames is None else frames
    ds.PixelData = np.stack(planes).tobytes()
    ds.save_as(path)
    return hu


HTJ2K_SLICE = base64.b64decode(
    "/0//UQApQAAAAAAgAAAAIgAAAAAAAAAAAAAAIAAAACIAAAAAAAAAAAABDwEB/1AACAACAAAACv9SAAwAAgABAAUEBEAB/1wAEyCI"
    "kJCQkJCQkJCQkJCQiIiI/2QAFwABT3BlbkpQSCBWZXIgMC4yNi4zLv+QAAoAAAAAA6MAAf+TwAAqAPH8e/wFC3QAwAATwAATQAAT"
    "AKAk6wKLdABa/QKHdADs/QKHdADAABWQAAVMAAFUvNdfuCvgnwLMgpUAuSDhpcIBQrQAlAeMBH7qAMGUAMAAF0UAAFuQAAW4hp0Q"
    "gSsGVDRdk1DR+JkpVmHChZX5QiJc/QCzmSpGIBGZAHKRVZMAbzdsBikgQ9vMBoZKMEzyAJJIiGBqmAAK878QmW/KhiUPsPaJ52mW"
    "eMpUzf4LKkYwIZcAwAAXrsAAF6tAABepAB2BFMcMCzJFbbSICw/+EA0N++YbmJoAv5A6LPWpTTuzNNkSXKtbh0nBYMQHypCXhKRr"
    "nvBAg55OATnDplYQZANrBjClXP4U7AFq4K5Y6HN7zOASHAYYYEcAABBXARvAwkAFiCBoQEXzBkJCJClwAHsEgzEk6jYEMybgaoU2"
    "+EHYizW/Ar2bQmY+UJgYlW8mXypwCgyVcgAscRhlKMOjTIAAKQXLznzWhDg0WhjAhwYQbLMBeQx4g4MlmC+YJt444hhjiuEpxcXv"
    "fZDmA4kAjUX1OLS4OejYvWPXPAiLohCOAUyWu4K4NIQJ48HEV1e8A3H+GarhyDAC3hTCtBcIgEUEIDBTAcAAL6lgABfTUAAL6ACA"
    "BgBZKFBg4EAgCgsUACSSA4QHugHkJpBAhQMVphAASOOMA8LUipu6sakbTFcAIlH4gUgGIu+Kbrh5Vzgg0UAgaRzTQJvcbOoGUyCQ"
    "NB5IwEBhQBYOBAACBVJYIIESBQQwoDDQQkAEBvr8BxgBJz8OAOWIVgEggPYxDAJ/4oejujjEtn5zPwY/t9nnignW5M2QrEKO24Bv"
    "BRxCMgwM34yARvxgvAOAiAQQxhsD8sCFOXCikQQiEEg2DgQ4cOBAhLmBPvpuIAYCUnghIIEWdr7bjZvdTAcOHEih8q7r7jIJFBAY"
    "SKBCN4HQo+8GCigUGKiwQkAAiURhBxiHRKKBNA6SQBIFCDwAiPwzwFPRCsCCFnylAl9yxLWfKmxwRJ+1GGCwwge/YyAZy3Adqx9G"
    "RQERywjkC0pQGe8pAN/MoLgDBnrAQAMOPHCgAznwgIEPWJg3vAe6sIEMGGigTbzhtemBAw/YxBuvTQ44cKADeeM90IEDFzaQgR44"
    "YMCBBx7IAQMPGPj8BbD4CATIIyLykA9jIUAsd7EEuOMF+7KULlGBH3KQC0so/ijALn/uZBj9gYT8njkEZSgZf5SADvygvAP/2Q=="
)
"""`flat_slice()` + 1024 as reversible HTJ2K (OpenJPH 0.26.3): no installed library writes that syntax."""


def flat_slice() -> np.ndarray:
    """A noise-free slice [columns, rows] HU, whole numbers that can be computed again anywhere."""
    x, y = np.meshgrid(np.arange(32), np.arange(34), indexing="ij")
    hu = np.full((32, 34), -1000)
    hu[(x - 15.5) ** 2 * 2 + (y - 16.5) ** 2 * 3 < 400] = 40
    hu[(x - 9) ** 2 + (y - 16) ** 2 < 25] = -850
    return hu.astype(np.float32)
