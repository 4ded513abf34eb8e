"""Label maps, masks and probability maps as files: their values and their grid. HU checks do not apply to
them; byte checks do."""

from __future__ import annotations

import gzip
import io
import json
import zlib
from pathlib import Path

import nibabel as nib
import numpy as np

from hilum.errors import ContainerError, HeaderError
from hilum.geometry import Geometry
from hilum.io.limits import Limits

MAX_NAMES_BYTES = 1024 * 1024


def read_labels(
    path: Path, limits: Limits | None = None, channel: int | None = None
) -> tuple[np.ndarray, Geometry]:
    """Integers [X, Y, Z] on the file's own axes, and the grid.

    Args:
        path: a NIfTI-1. limits: budgets. channel: which one of a 4-D file whose first axis is the channel
            (ReXGroundingCT); None for 3-D files.

    Raises:
        ContainerError: not a NIfTI, cut, damaged, or larger than the budget.
        HeaderError: not 3-D, values that are not whole numbers, an affine that is missing or unusable.
    """
    stored, header, shape = stored_array(path, limits, channel)
    return _whole_numbers(stored, path), _geometry(header, shape, path)


def read_map(path: Path, limits: Limits | None = None) -> tuple[np.ndarray, Geometry]:
    """Float32 values [X, Y, Z] on the file's own axes, scaled as its header says, and the grid.

    Args:
        path: a NIfTI-1 that some model wrote. limits: budgets.

    Raises:
        ContainerError, HeaderError: as of `read_labels`; values may be any numbers.
    """
    stored, header, shape = stored_array(path, limits)
    slope, intercept = (float(header[name]) for name in ("scl_slope", "scl_inter"))
    values = stored.astype(np.float32)
    if slope != 0 and np.isfinite([slope, intercept]).all():
        values = values * np.float32(slope) + np.float32(intercept)
    return values, _geometry(header, shape, path)


def stored_array(
    path: Path, limits: Limits | None = None, channel: int | None = None
) -> tuple[np.ndarray, nib.Nifti1Header, tuple[int, ...]]:
    """One 3-D array as a NIfTI-1 stores it, its header, and its shape; every byte is judged first.

    Args:
        path, limits, channel: as of `read_labels`.

    Raises:
        ContainerError, HeaderError: as of `read_labels`.
    """
    budget = limits or Limits()
    raw = _bytes(path, budget)
    try:
        header = nib.Nifti1Header.from_fileobj(io.BytesIO(raw[:348]))
        shape = tuple(int(n) for n in header.get_data_shape())
        dtype, offset = header.get_data_dtype(), int(header.get_data_offset())
    except Exception as error:
        raise ContainerError(
            "NOT_AN_IMAGE", "a label file is a NIfTI-1 image", got=type(error).__name__, path=path
        ) from error
    channels, shape = _channels(shape, channel, path)
    if len(shape) != 3 or min(shape) < 1 or dtype.kind not in "iuf":
        raise HeaderError(
            "NDIM_4",
            "a label map is one 3-D array of numbers",
            expected="X, Y, Z",
            got=(shape, str(dtype)),
            path=path,
        )
    count = channels * int(np.prod(shape, dtype=np.int64))
    if count > channels * budget.max_voxels or count * dtype.itemsize > budget.max_stored_bytes:
        raise ContainerError(
            "DIMS_HUGE", "a label map fits the budget", expected=budget.max_voxels, got=count, path=path
        )
    if offset < 348 or offset + count * dtype.itemsize > len(raw):
        raise ContainerError(
            "NII_TRUNCATED",
            "all voxels are in the file",
            expected=offset + count * dtype.itemsize,
            got=len(raw),
            path=path,
        )
    stored = np.frombuffer(raw, dtype, count, offset).reshape((channels, *shape), order="F")[channel or 0]
    return stored, header, shape


def _channels(shape: tuple[int, ...], channel: int | None, path: Path) -> tuple[int, tuple[int, ...]]:
    """How many channels there are, and the shape of one."""
    if channel is None:
        return 1, shape[:3] if len(shape) == 4 and shape[3] == 1 else shape
    # nibabel and others drop a last axis of 1, never a first one: a file of one finding has four axes too.
    if len(shape) != 4 or not 0 <= channel < shape[0]:
        raise HeaderError(
            "MASK_MISSING",
            "a file has the channel of its finding",
            expected=f"channel {channel} of (F, X, Y, Z)",
            got=shape,
            path=path,
        )
    return shape[0], shape[1:]


def _bytes(path: Path, limits: Limits) -> bytes:
    cap = limits.max_stored_bytes + limits.max_header_bytes
    try:
        with path.open("rb") as file:
            if file.read(2) != b"\x1f\x8b":
                file.seek(0)
                raw = file.read(cap + 1)
            else:
                file.seek(0)
                with gzip.GzipFile(fileobj=file) as packed:
                    # the header says how much may come; reading to the end makes gzip verify its checksum
                    head = packed.read(348)
                    raw = head + packed.read(min(cap, _announced(head)) + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise ContainerError(
            "GZ_CRC", "a label file can be read to its end", got=str(error), path=path
        ) from error
    if len(raw) > cap:
        raise ContainerError(
            "GZ_BOMB", "a label file fits the budget", expected=f"<= {cap} bytes", got="more", path=path
        )
    return raw


def _announced(head: bytes) -> int:
    try:
        header = nib.Nifti1Header.from_fileobj(io.BytesIO(head))
        shape = np.array(header.get_data_shape(), dtype=np.float64)
        return int(header.get_data_offset() + np.prod(shape) * header.get_data_dtype().itemsize)
    except Exception:
        return 0


def _whole_numbers(stored: np.ndarray, path: Path) -> np.ndarray:
    if stored.dtype.kind == "f" and not (np.isfinite(stored).all() and (stored == np.rint(stored)).all()):
        raise HeaderError(
            "LABEL_VALUES", "labels are whole numbers", got=f"{stored.dtype} with fractions", path=path
        )
    low, high = int(stored.min()), int(stored.max())
    if low < 0 or high > 65535:
        raise HeaderError("LABEL_VALUES", "labels are 0 to 65535", got=f"{low} to {high}", path=path)
    return stored.astype(np.uint16)


def _geometry(header: nib.Nifti1Header, shape: tuple[int, ...], path: Path) -> Geometry:
    if int(header["sform_code"]) == 0 and int(header["qform_code"]) == 0:
        raise HeaderError(
            "ORIENTATION_UNKNOWN",
            "a label file says how it lies in the patient",
            expected="sform or qform",
            got="neither",
            path=path,
        )
    return Geometry((shape[0], shape[1], shape[2]), np.asarray(header.get_best_affine(), dtype=np.float64))


def read_names(path: Path) -> dict[int, str]:
    """Names of label numbers: from ``<file>.json`` (`{"1": "lung"}`) or a `reading.json` beside; empty if
    neither exists.

    Raises:
        HeaderError: a names file that is not such a table.
    """
    plain = path.with_name(path.name.removesuffix(".gz").removesuffix(".nii") + ".json")
    for candidate in (plain, path.with_name("reading.json")):
        if candidate.is_file() and candidate.stat().st_size <= MAX_NAMES_BYTES * 16:
            try:
                table = json.loads(candidate.read_text(encoding="utf-8"))
                if "organs" in table:
                    table = {o["label"]: o["name"] for o in table["organs"] if o["label"] is not None}
                return {int(k): str(v) for k, v in table.items()}
            except (ValueError, TypeError, KeyError, AttributeError) as error:
                raise HeaderError(
                    "LABEL_NAMES",
                    "label names are a table of number to name",
                    expected='{"1": "lung"}',
                    got=str(error),
                    path=candidate,
                ) from error
    return {}
