"""NRRD in: pynrrd parses the header text, the voxels are read here, bounded and verified.

Read: three axes, raw or gzip data, attached or in one detached file of the same folder, a patient space
(LPS, RAS or LAS) with directions. Everything else is refused by name.
Source: "Definition of NRRD File Format", https://teem.sourceforge.net/nrrd/format.html.
"""

from __future__ import annotations

import hashlib
import math
from contextlib import ExitStack
from pathlib import Path, PurePosixPath
from typing import Any

import nrrd
import numpy as np

from hilum.errors import ContainerError, HeaderError
from hilum.geometry import LPS_FROM_RAS, Geometry
from hilum.io.affine import affine_from_letters, geometry_of
from hilum.io.archive import BinaryStream, Member
from hilum.io.assemble import build_volume, settle_geometry
from hilum.io.checks import Docket, check_shape
from hilum.io.hashing import sha256_of_parts
from hilum.io.limits import Answers, Limits, Mode
from hilum.io.streams import ByteStream, Source, check_inflation
from hilum.io.voxels import read_voxels
from hilum.volume import CTVolume, Finding, Level

MAGIC = b"NRRD000"
HEADER_BYTES = 1024 * 1024
TYPES = {
    "i1": "signed char,int8,int8_t",
    "u1": "uchar,unsigned char,uint8,uint8_t",
    "i2": "short,short int,signed short,signed short int,int16,int16_t",
    "u2": "ushort,unsigned short,unsigned short int,uint16,uint16_t",
    "i4": "int,signed int,int32,int32_t",
    "u4": "uint,unsigned int,uint32,uint32_t",
    "i8": "longlong,long long,long long int,signed long long,signed long long int,int64,int64_t",
    "u8": "ulonglong,unsigned long long,unsigned long long int,uint64,uint64_t",
    "f4": "float",
    "f8": "double",
}
DTYPES = {name: code for code, names in TYPES.items() for name in names.split(",")}
RAS_FROM_LAS = np.diag([-1.0, 1.0, 1.0, 1.0])
SPACES = {
    "left-posterior-superior": LPS_FROM_RAS,
    "lps": LPS_FROM_RAS,
    "right-anterior-superior": np.eye(4),
    "ras": np.eye(4),
    "left-anterior-superior": RAS_FROM_LAS,
    "las": RAS_FROM_LAS,
}
UNITS_MM = {"": 1.0, "mm": 1.0, "m": 1000.0, "cm": 10.0, "um": 0.001, "µm": 0.001}


def read_nrrd(
    path: str | Path | Member,
    *,
    mode: Mode = "repair",
    answers: Answers | None = None,
    limits: Limits | None = None,
    docket: Docket | None = None,
) -> CTVolume:
    """A `.nrrd` or `.nhdr` file as HU on RAS+ axes.

    Args:
        path: the file, or a member of an archive (attached data only).
        mode: what stops; ignored when a docket is given.
        answers, limits: see their classes.
        docket: collects findings; made from `mode` when None.

    Raises:
        InputRefused: `NRRD_HEADER`, `NRRD_TRUNCATED`, and the rows of files, affines and values.
    """
    answers, limits = answers or Answers(), limits or Limits()
    source = Source.of(path)
    docket = docket or Docket(mode)
    docket.path, docket.kind = docket.path or source.shown, "nrrd"
    with ExitStack() as stack:
        file = stack.enter_context(source.open())
        text, rest = _split_header(file, source.shown)
        header = _parse(text, source.shown)
        shape, dtype = _voxels_of(header, source.shown, limits)
        geometry = settle_geometry(_place(header, shape, docket, answers), docket, answers)
        gzipped = _encoding(header, source.shown) == "gzip"
        detached = header.get("data file", header.get("datafile"))
        if detached is None:
            data, stream = source, ByteStream(file, source.shown, text, rest, gzipped)
        else:
            data = _detached(source, detached)
            stream = ByteStream(stack.enter_context(data.open()), data.shown, gzipped=gzipped)
        total = math.prod(shape) * dtype.itemsize
        check_inflation(total, data.size, limits, data.shown)
        hu = read_voxels(stream, shape, dtype) if gzipped or total <= data.size else None
        if hu is None:
            raise _short(total, min(stream.count, data.size) if gzipped else data.size, gzipped, data.shown)
        stream.finish()
    sha256 = (
        stream.sha256
        if detached is None
        else sha256_of_parts([hashlib.sha256(text + rest).hexdigest(), stream.sha256])
    )
    return build_volume(hu, geometry, "nrrd", sha256, docket, answers, limits)


def _split_header(file: BinaryStream, shown: str) -> tuple[bytes, bytes]:
    """The header with its closing empty line, and what was read behind it."""
    block = b""
    while len(block) < HEADER_BYTES and (more := file.read(64 * 1024)):
        block += more
        for end in (b"\n\n", b"\r\n\r\n"):
            if (at := block.find(end)) >= 0:
                return block[: at + len(end)], block[at + len(end) :]
    if len(block) < HEADER_BYTES:
        return block, b""
    raise _refused("a header ends with an empty line", f"none in the first {HEADER_BYTES} bytes", shown)


def _parse(text: bytes, shown: str) -> dict[str, Any]:
    try:
        lines = text.decode("utf-8").splitlines()
        return dict(nrrd.read_header(iter(lines)))
    except Exception as error:
        # pynrrd lets many kinds out on damaged text (NRRDError, ValueError, TypeError, IndexError, KeyError).
        raise _refused(
            "a header follows the NRRD format", f"{type(error).__name__}: {error}"[:300], shown
        ) from error


def _voxels_of(header: dict[str, Any], shown: str, limits: Limits) -> tuple[tuple[int, int, int], np.dtype]:
    sizes = [int(n) for n in np.atleast_1d(header.get("sizes", []))]
    check_shape(sizes, limits, shown)
    if len(sizes) != 3:
        raise HeaderError("NDIM_4", "a volume has three axes", expected="X x Y x Z", got=sizes, path=shown)
    name = str(header.get("type", ""))
    if name not in DTYPES:
        raise HeaderError(
            "DTYPE",
            "a voxel is one real number",
            expected="8- to 64-bit integers, float or double",
            got=name,
            path=shown,
        )
    dtype, endian = np.dtype(DTYPES[name]), str(header.get("endian", "")).lower()
    if dtype.itemsize > 1 and endian not in ("little", "big"):
        raise _refused("values of several bytes have a byte order", f"endian {endian!r}", shown)
    return (sizes[0], sizes[1], sizes[2]), dtype.newbyteorder(">" if endian == "big" else "<")


def _encoding(header: dict[str, Any], shown: str) -> str:
    name = str(header.get("encoding", "")).lower()
    for field in ("line skip", "lineskip", "byte skip", "byteskip"):
        if int(header.get(field, 0) or 0) != 0:
            raise _refused("data start right behind the header", f"{field} {header[field]}", shown)
    if name in ("gz", "gzip"):
        return "gzip"
    if name == "raw":
        return "raw"
    raise _refused("data are raw or gzip", f"encoding {name!r}", shown)


def _place(header: dict[str, Any], shape: tuple[int, int, int], docket: Docket, answers: Answers) -> Geometry:
    shown = docket.path or ""
    space = str(header.get("space", "")).lower()
    directions = np.asarray(header.get("space directions", np.full((3, 3), np.nan)), dtype=np.float64)
    if space not in SPACES or directions.shape != (3, 3):
        return _assumed(header, shape, docket, answers)
    unit = _unit(header, docket)
    origin = np.asarray(header.get("space origin", [0.0, 0.0, 0.0]), dtype=np.float64)
    if "space origin" not in header or origin.shape != (3,):
        rule = "a file says where its first voxel is"
        docket.add(Finding("ORIGIN_MISSING", Level.NOTE, rule, "space origin", "none", "0 mm taken"))
        origin = np.zeros(3)
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = directions.T * unit, origin * unit
    return geometry_of(SPACES[space] @ affine, shape, shown)


def _assumed(
    header: dict[str, Any], shape: tuple[int, int, int], docket: Docket, answers: Answers
) -> Geometry:
    spacing = np.asarray(header.get("spacings", [math.nan] * 3), dtype=np.float64)
    if "space directions" in header:
        spacing = np.linalg.norm(np.asarray(header["space directions"], dtype=np.float64), axis=-1)
    told = f"space {header.get('space', 'none')!r}"
    if answers.assume is None or spacing.shape != (3,):
        raise HeaderError(
            "ORIENTATION_UNKNOWN",
            "a file says where left, front and head are",
            expected="space LPS, RAS or LAS with three space directions",
            got=told,
            path=docket.path,
            hint="If you know the axes, say so: --assume RAS (each axis grows towards its letter).",
        )
    if not (np.isfinite(spacing).all() and spacing.min() > 0.0):
        got = spacing.tolist()
        raise HeaderError(
            "SPACING_ZERO", "voxel sizes are positive", expected="> 0 mm", got=got, path=docket.path
        )
    x, y, z = (float(s) for s in spacing)
    fix = f"axes {answers.assume.upper()} assumed as asked, centre at 0 mm"
    rule = "a file says where left, front and head are"
    docket.add(Finding("ORIENTATION_UNKNOWN", Level.NOTE, rule, "a patient space", told, fix))
    docket.will(f"place the volume by the assumed axes {answers.assume.upper()}")
    return geometry_of(affine_from_letters(answers.assume, (x, y, z), shape), shape, docket.path or "")


def _unit(header: dict[str, Any], docket: Docket) -> float:
    named = header.get("space units") or ["mm"]
    names = {str(n).strip('"').strip() for n in ([named] if isinstance(named, str) else named)}
    name = next(iter(names))
    if len(names) != 1 or name not in UNITS_MM:
        raise _refused("lengths have one known unit", f"space units {sorted(names)}", docket.path or "")
    if UNITS_MM[name] != 1.0:
        fix = f"multiplied by {UNITS_MM[name]:g}"
        docket.add(Finding("UNITS_NOT_MM", Level.NOTE, "lengths are in mm", "mm", name, fix))
        docket.will(f"convert lengths from {name} to mm")
    return UNITS_MM[name]


def _detached(source: Source, named: object) -> Source:
    """The one data file that a header names: a plain name in the same folder, nothing else."""
    name = str(named)
    plain = PurePosixPath(name.replace("\\", "/")).name
    if (
        isinstance(source.at, Member)
        or name != plain
        or name in ("", ".", "..")
        or "%" in name
        or name == "LIST"
    ):
        raise ContainerError(
            "PATH_ESCAPE",
            "a header names one data file in its own folder",
            expected="a plain file name",
            got=name[:200],
            path=source.shown,
        )
    return Source.of(source.at.with_name(name))


def _short(expected: int, got: int, gzipped: bool, shown: str) -> ContainerError:
    return ContainerError(
        "GZ_TRUNCATED" if gzipped else "NRRD_TRUNCATED",
        "a file holds every voxel that its header announces",
        expected=f"{expected} bytes" + (" inflated" if gzipped else ""),
        got=f"{got} bytes",
        path=shown,
        hint="The file was cut; copy or download it again.",
    )


def _refused(rule: str, got: str, shown: str) -> HeaderError:
    return HeaderError("NRRD_HEADER", rule, expected="a NRRD that Hilum reads", got=got, path=shown)
