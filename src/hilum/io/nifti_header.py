"""What a NIfTI header says, believed only after it was checked (rows A15-A17, B05-B08, B10-B12, B18).

nibabel parses the fields (NIfTI-1 and -2, both byte orders); every judgement on them is made here.
Source: NIfTI-1 and NIfTI-2 data format, https://nifti.nimh.nih.gov.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from nibabel.nifti1 import Nifti1Header, Nifti1PairHeader
from nibabel.nifti2 import Nifti2Header, Nifti2PairHeader
from nibabel.spatialimages import HeaderDataError

from hilum.errors import ContainerError, HeaderError
from hilum.io.checks import Docket, check_shape
from hilum.io.limits import Answers, Limits
from hilum.types import AffineRas
from hilum.volume import Finding, Level

DTYPES = {
    2: "u1",
    4: "i2",
    8: "i4",
    16: "f4",
    64: "f8",
    256: "i1",
    512: "u2",
    768: "u4",
    1024: "i8",
    1280: "u8",
}
"""NIfTI datatype code -> NumPy; the ten that hold one real number per voxel."""
NAMES = {
    0: "unknown",
    1: "bool",
    32: "complex64",
    128: "RGB",
    1536: "float128",
    1792: "complex128",
    2304: "RGBA",
}
FORM_CODES = range(6)
"""Unknown, scanner, aligned, Talairach, MNI, other template."""
UNITS_MM = {1: 1000.0, 2: 1.0, 3: 0.001}
"""xyzt_units code -> mm."""


@dataclass(frozen=True)
class NiftiHeader:
    """The fields that decide, checked.

    Args:
        shape: voxels along the three stored axes.
        frames: how many volumes follow one another (T of a 4-D file).
        frame: which of them is read.
        dtype: of stored values, with its byte order.
        offset_bytes: where the voxels start in their file.
        slope, intercept: stored value -> HU; None: stored values are HU.
        unit_mm: length unit of affines and voxel sizes, mm.
        voxel_size: pixdim 1-3 in the header's unit.
        sform, qform: affines in the header's unit, None where their code is 0 or they cannot be computed.
        sform_code, qform_code: as stored.
        qform_slack_rad: how far float32 rounding alone can turn the qform.
        pair: True for `.hdr`/`.img`.
    """

    shape: tuple[int, int, int]
    frames: int
    frame: int
    dtype: np.dtype
    offset_bytes: int
    slope: float | None
    intercept: float
    unit_mm: float
    voxel_size: tuple[float, float, float]
    sform: AffineRas | None
    qform: AffineRas | None
    sform_code: int
    qform_code: int
    qform_slack_rad: float
    pair: bool

    @property
    def frame_bytes(self) -> int:
        """Bytes of one volume as stored."""
        return math.prod(self.shape) * self.dtype.itemsize

    @property
    def data_bytes(self) -> int:
        """Bytes of all volumes as stored."""
        return self.frame_bytes * self.frames


def header_size(head: bytes) -> int | None:
    """348 for NIfTI-1 (and Analyze), 540 for NIfTI-2, in either byte order; None when it is neither."""
    for order in ("little", "big"):
        size = int.from_bytes(head[:4], order)
        if size in (348, 540):
            return size
    return None


def is_nifti(head: bytes) -> bool:
    """True for the first bytes of a NIfTI or Analyze file (not compressed)."""
    return len(head) >= 4 and header_size(head) is not None


def parse_header(block: bytes, docket: Docket, answers: Answers, limits: Limits) -> NiftiHeader:
    """Checks the header bytes and says how to read the rest.

    Args:
        block: the first 348 or 540 bytes.
        docket: takes findings.
        answers: `frame` for 4-D files.
        limits: voxel and header budgets.

    Raises:
        InputRefused: see the rows named above.
    """
    raw, pair = _unpack(block, docket.path)
    shape, frames = _dimensions(raw, docket, limits)
    size = raw["pixdim"][1:4].astype(np.float64)
    if not (np.isfinite(size).all() and size.min() > 0.0):
        docket.add(
            Finding(
                "SPACING_ZERO", Level.REFUSE, "voxel sizes are positive", "pixdim 1-3 > 0", str(size.tolist())
            )
        )
    _check_codes(raw, docket.path)
    slope, intercept = _scaling(raw, docket)
    return NiftiHeader(
        shape=shape,
        frames=frames,
        frame=_frame(frames, docket, answers),
        dtype=_dtype(raw, docket.path),
        offset_bytes=_offset(raw, pair, docket.path, limits),
        slope=slope,
        intercept=intercept,
        unit_mm=_unit(raw, docket),
        voxel_size=(float(size[0]), float(size[1]), float(size[2])),
        sform=_sform(raw),
        qform=_qform(raw),
        sform_code=int(raw["sform_code"]),
        qform_code=int(raw["qform_code"]),
        qform_slack_rad=_quaternion_slack_rad(raw),
        pair=pair,
    )


def _unpack(block: bytes, path: str | None) -> tuple[Nifti1Header, bool]:
    size = header_size(block)
    if size is None or len(block) < size:
        raise ContainerError(
            "NII_TRUNCATED",
            "a NIfTI file starts with its header",
            expected=f"{size or 348} bytes of header",
            got=f"{len(block)} bytes",
            path=path,
        )
    magic = bytes(block[344:348] if size == 348 else block[4:8])
    if magic[:3] not in (b"n+1", b"ni1", b"n+2", b"ni2"):
        raise HeaderError(
            "ENDIAN_PAIR",
            "a header says which NIfTI it is",
            expected="magic n+1, ni1, n+2 or ni2",
            got=f"{magic!r}: Analyze 7.5 or damaged",
            path=path,
            hint="Analyze files do not say left from right; convert from the original DICOM.",
        )
    pair = magic[:2] == b"ni"
    kinds = {348: (Nifti1Header, Nifti1PairHeader), 540: (Nifti2Header, Nifti2PairHeader)}
    order = "<" if int.from_bytes(block[:4], "little") == size else ">"
    return kinds[size][int(pair)](bytes(block[:size]), endianness=order, check=False), pair


def _dimensions(raw: Nifti1Header, docket: Docket, limits: Limits) -> tuple[tuple[int, int, int], int]:
    count = int(raw["dim"][0])
    if not 1 <= count <= 7:
        raise ContainerError("DIMS_NONPOSITIVE", "an image has 1 to 7 axes", got=count, path=docket.path)
    sizes = [int(n) for n in raw["dim"][1 : count + 1]]
    check_shape(sizes[:3], limits, docket.path or "")
    if min(sizes) < 1:
        check_shape(sizes, limits, docket.path or "")
    frames, deeper = math.prod(sizes[3:4]), math.prod(sizes[4:])
    if count < 3 or deeper > 1:
        raise HeaderError(
            "NDIM_4",
            "a volume has three axes, with time four",
            expected="X x Y x Z or X x Y x Z x T",
            got=" x ".join(map(str, sizes)),
            path=docket.path,
        )
    if count > 3 and frames == 1:
        docket.add(
            Finding(
                "NDIM_4",
                Level.REPAIR,
                "a volume has three axes",
                "3 axes",
                f"{sizes}",
                "axes of length 1 dropped",
            )
        )
        docket.will("drop trailing axes of length 1")
    return (sizes[0], sizes[1], sizes[2]), frames


def _frame(frames: int, docket: Docket, answers: Answers) -> int:
    if frames == 1:
        return 0
    chosen = answers.frame is not None
    if answers.frame is not None and not 0 <= answers.frame < frames:
        raise HeaderError(
            "NDIM_4",
            "the chosen frame exists",
            expected=f"0 to {frames - 1}",
            got=answers.frame,
            path=docket.path,
        )
    docket.add(
        Finding(
            "NDIM_4",
            Level.NOTE if chosen else Level.ASK,
            "a scan is one volume",
            "1 frame",
            f"{frames} frames",
            f"frame {answers.frame} read" if chosen else f"Choose one with --frame 0 to {frames - 1}.",
        )
    )
    docket.will(f"read frame {answers.frame or 0} of {frames}")
    return answers.frame or 0


def _dtype(raw: Nifti1Header, path: str | None) -> np.dtype:
    code, bits = int(raw["datatype"]), int(raw["bitpix"])
    if code not in DTYPES or bits != int(DTYPES[code][1]) * 8:
        name = DTYPES.get(code) or NAMES.get(code, "no such type")
        raise HeaderError(
            "DTYPE",
            "a voxel is one real number and bitpix is its size",
            expected="8- to 64-bit integers, float32 or float64",
            got=f"datatype {code} ({name}), bitpix {bits}",
            path=path,
        )
    return np.dtype(DTYPES[code]).newbyteorder(raw.endianness)


def _offset(raw: Nifti1Header, pair: bool, path: str | None, limits: Limits) -> int:
    offset = float(raw["vox_offset"])
    least = 0 if pair else 352 if int(raw["sizeof_hdr"]) == 348 else 544
    if not (math.isfinite(offset) and offset == int(offset) and least <= offset <= limits.max_header_bytes):
        raise ContainerError(
            "OFFSET_BAD",
            "voxels start behind the header",
            expected=f"a whole number from {least} to {limits.max_header_bytes} bytes",
            got=f"vox_offset {offset:g}",
            path=path,
        )
    return int(offset)


def _scaling(raw: Nifti1Header, docket: Docket) -> tuple[float | None, float]:
    slope, intercept = float(raw["scl_slope"]), float(raw["scl_inter"])
    rule, got = "stored values become HU by slope and intercept", f"slope {slope:g}, intercept {intercept:g}"
    if slope == 0.0:
        if intercept != 0.0:
            docket.add(
                Finding("SCL_ZERO", Level.NOTE, rule, "slope != 0", got, "slope 0 means unscaled (NIfTI)")
            )
        return None, 0.0
    if not math.isfinite(slope):
        docket.add(Finding("SCL_NONFINITE", Level.NOTE, rule, "finite numbers", got, "read as unscaled"))
        return None, 0.0
    if not math.isfinite(intercept):
        docket.add(Finding("SCL_NONFINITE", Level.REFUSE, rule, "finite numbers", got))
        return None, 0.0
    return (None, 0.0) if (slope, intercept) == (1.0, 0.0) else (slope, intercept)


def _unit(raw: Nifti1Header, docket: Docket) -> float:
    code = int(raw["xyzt_units"]) & 0x07
    unit = UNITS_MM.get(code, 1.0)
    if unit != 1.0:
        name = {1: "metre", 3: "micron"}[code]
        docket.add(
            Finding("UNITS_NOT_MM", Level.NOTE, "lengths are in mm", "mm", name, f"multiplied by {unit:g}")
        )
        docket.will(f"convert lengths from {name} to mm")
    return unit


def _check_codes(raw: Nifti1Header, path: str | None) -> None:
    codes = {name: int(raw[name]) for name in ("sform_code", "qform_code")}
    if any(code not in FORM_CODES for code in codes.values()):
        raise HeaderError(
            "ORIENTATION_UNKNOWN", "form codes are those of NIfTI", expected="0 to 5", got=codes, path=path
        )


def _sform(raw: Nifti1Header) -> AffineRas | None:
    if int(raw["sform_code"]) <= 0:
        return None
    rows = [np.asarray(raw[name], dtype=np.float64) for name in ("srow_x", "srow_y", "srow_z")]
    return np.vstack([*rows, [0.0, 0.0, 0.0, 1.0]])


def _quaternion_slack_rad(raw: Nifti1Header) -> float:
    """Rotation that rounding of the stored quaternion leaves open.

    Its first part is not stored but computed as sqrt(1 - b2 - c2 - d2). Near a half turn, where it is about
    0, an error of 1e-7 in the sum becomes one of 3e-4 in the angle.
    """
    parts = [float(raw[name]) for name in ("quatern_b", "quatern_c", "quatern_d")]
    squared = max(1.0 - sum(p * p for p in parts), 0.0)
    if not math.isfinite(squared):
        return 0.0
    rounding = 4.0 * float(np.finfo(raw["quatern_b"].dtype).eps)
    sums = (squared, squared + rounding, max(squared - rounding, 0.0))
    stored, most, least = (math.sqrt(s) for s in sums)
    return 2.0 * max(most - stored, stored - least)


def _qform(raw: Nifti1Header) -> AffineRas | None:
    """The quaternion affine; NaN-filled when it is set but cannot be computed."""
    if int(raw["qform_code"]) <= 0:
        return None
    fixed = raw.copy()
    # NIfTI: qfac is -1 or +1; anything not negative counts as +1.
    fixed["pixdim"][0] = -1.0 if float(raw["pixdim"][0]) < 0 else 1.0
    try:
        return np.asarray(fixed.get_qform(coded=False), dtype=np.float64)
    except (HeaderDataError, ValueError):
        return np.full((4, 4), np.nan)
