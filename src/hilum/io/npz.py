"""NPZ in: an array of HU and where it lies. Never pickled, every size checked before it is read.

Our layout, written by anyone with `numpy.savez_compressed`:

- `hu` (or `ct`): [X, Y, Z] on stored axes, integers or floats, HU;
- either `affine`: 4 x 4, voxel index -> mm, RAS+;
- or `spacing_mm`: three numbers, and `orientation`: three letters, each axis grows towards its letter.

RAD-ChestCT files hold `ct` and no place. With `--assume rad-chestct` they are read as their paper describes
them: int16, axes superior to inferior, anterior to posterior, right to left, 0.8 mm each (Draelos et al.,
Medical Image Analysis 67, 2021; the public release, doi 10.5281/zenodo.6406114).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from hilum.errors import ContainerError, HeaderError, UsageError
from hilum.geometry import Geometry
from hilum.io.affine import affine_from_letters, geometry_of
from hilum.io.archive import BinaryStream, Member, open_archive
from hilum.io.assemble import build_volume, settle_geometry
from hilum.io.checks import Docket, check_shape
from hilum.io.hashing import sha256_of
from hilum.io.limits import Answers, Limits, Mode
from hilum.io.streams import Source, check_inflation
from hilum.io.voxels import read_voxels
from hilum.volume import CTVolume, Finding, Level

ARRAYS = ("hu", "ct")
SMALL_BYTES = 4096
RAD_CHESTCT = "rad-chestct"
RAD_CHESTCT_AXES, RAD_CHESTCT_MM = "IPL", 0.8


def is_npz(members: Sequence[Member]) -> bool:
    """True when an archive is a NumPy one: members, all `.npy`."""
    return bool(members) and all(m.label.endswith(".npy") for m in members)


def read_npz(
    path: str | Path,
    *,
    mode: Mode = "repair",
    answers: Answers | None = None,
    limits: Limits | None = None,
    docket: Docket | None = None,
) -> CTVolume:
    """An `.npz` file as HU on RAS+ axes.

    Args:
        path: the file.
        mode: what stops; ignored when a docket is given.
        answers: `assume` for files without a place.
        limits: budgets.
        docket: collects findings; made from `mode` when None.

    Raises:
        InputRefused: `NPZ_LAYOUT`, `DTYPE`, and the rows of archives, affines and values.
    """
    answers, limits = answers or Answers(), limits or Limits()
    source = Source.of(path)
    docket = docket or Docket(mode)
    docket.path, docket.kind = docket.path or source.shown, "npz"
    with open_archive(path, limits) as members:
        arrays = {m.label.removesuffix(".npy"): m for m in members}
        name = next((n for n in ARRAYS if n in arrays), None)
        if name is None:
            raise _layout(f"arrays {sorted(arrays)[:8]}", source.shown)
        with arrays[name].open() as stream:
            shape, dtype, order = _npy_header(stream, arrays[name], source.shown, limits)
            check_inflation(math.prod(shape) * dtype.itemsize, source.size, limits, source.shown)
            geometry = settle_geometry(_place(arrays, shape, docket, answers), docket, answers)
            hu = read_voxels(stream, shape, dtype, order=order)
            extra = stream.read(1)
        if hu is None or extra:
            raise _layout("another length than its header announces", source.shown)
    return build_volume(hu, geometry, "npz", sha256_of(path), docket, answers, limits)


def _npy_header(
    stream: BinaryStream, member: Member, shown: str, limits: Limits
) -> tuple[tuple[int, int, int], np.dtype, Literal["C", "F"]]:
    sizes, fortran, dtype = _read_header(stream, shown)
    check_shape(sizes, limits, shown)
    if len(sizes) != 3:
        raise HeaderError("NDIM_4", "a volume has three axes", expected="X x Y x Z", got=sizes, path=shown)
    if dtype.kind not in "iuf" or dtype.itemsize > 8 or dtype == np.float16:
        raise HeaderError(
            "DTYPE",
            "a voxel is one real number",
            expected="integers, float32, float64",
            got=dtype,
            path=shown,
        )
    if member.size != stream.tell() + math.prod(sizes) * dtype.itemsize:
        raise _layout("another length than its header announces", shown)
    return (sizes[0], sizes[1], sizes[2]), dtype, "F" if fortran else "C"


def _read_header(stream: BinaryStream, shown: str) -> tuple[tuple[int, ...], bool, np.dtype]:
    """Shape, Fortran order and dtype of a `.npy`; object arrays (pickles) are refused here."""
    try:
        version = np.lib.format.read_magic(stream)
        reader = (
            np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        )
        shape, fortran, dtype = reader(stream, max_header_size=10_000)
    except (ValueError, SyntaxError, TypeError, EOFError, OverflowError) as error:
        raise _layout(f"a damaged .npy header: {error}"[:300], shown) from error
    if dtype.hasobject:
        raise HeaderError("DTYPE", "arrays hold numbers, never pickles", got="object dtype", path=shown)
    return tuple(int(n) for n in shape), bool(fortran), dtype


def _small(arrays: dict[str, Member], name: str, shown: str) -> np.ndarray:
    """A small array (affine, spacing, orientation) by its exact bytes."""
    member = arrays[name]
    if member.size > SMALL_BYTES:
        raise _layout(f"{name} of {member.size} bytes", shown)
    with member.open() as stream:
        shape, fortran, dtype = _read_header(stream, shown)
        count = math.prod(shape)
        if dtype.kind not in "iufU" or count * dtype.itemsize > SMALL_BYTES:
            raise _layout(f"{name} of {dtype}", shown)
        content = stream.read(count * dtype.itemsize)
    if len(content) != count * dtype.itemsize:
        raise _layout(f"{name} cut short", shown)
    return np.frombuffer(content, dtype).reshape(shape, order="F" if fortran else "C")


def _place(
    arrays: dict[str, Member], shape: tuple[int, int, int], docket: Docket, answers: Answers
) -> Geometry:
    shown = docket.path or ""
    if "affine" in arrays:
        affine = _small(arrays, "affine", shown)
        if affine.shape != (4, 4) or affine.dtype.kind == "U" or affine[3].tolist() != [0, 0, 0, 1]:
            raise _layout(f"affine of shape {affine.shape}", shown)
        return geometry_of(affine.astype(np.float64), shape, shown)
    spacing = _spacing(arrays, shown)
    if spacing is not None and "orientation" in arrays:
        named = _small(arrays, "orientation", shown).reshape(-1)
        letters = str(named[0]) if named.size == 1 else ""
        try:
            affine = affine_from_letters(letters, spacing, shape)
        except UsageError as error:
            raise _layout(f"orientation {letters[:16]!r}", shown) from error
        return geometry_of(affine, shape, shown)
    if answers.assume == RAD_CHESTCT:
        mm = RAD_CHESTCT_MM
        return _assumed(RAD_CHESTCT_AXES, (mm, mm, mm), RAD_CHESTCT, shape, docket)
    if spacing is not None and answers.assume is not None:
        return _assumed(answers.assume, spacing, answers.assume.upper(), shape, docket)
    raise HeaderError(
        "ORIENTATION_UNKNOWN",
        "a file says where left, front and head are",
        expected="affine, or spacing_mm with orientation",
        got=f"arrays {sorted(arrays)[:8]}",
        path=shown,
        hint="For RAD-ChestCT: --assume rad-chestct. With spacing_mm in the file: --assume RAS (or others).",
    )


def _spacing(arrays: dict[str, Member], shown: str) -> tuple[float, float, float] | None:
    if "spacing_mm" not in arrays:
        return None
    values = _small(arrays, "spacing_mm", shown)
    if values.shape != (3,) or values.dtype.kind == "U":
        raise _layout(f"spacing_mm of shape {values.shape}", shown)
    x, y, z = (float(v) for v in values)
    if not all(math.isfinite(s) and s > 0.0 for s in (x, y, z)):
        raise HeaderError(
            "SPACING_ZERO", "voxel sizes are positive", expected="> 0 mm", got=(x, y, z), path=shown
        )
    return x, y, z


def _assumed(
    letters: str, spacing: tuple[float, float, float], said: str, shape: tuple[int, int, int], docket: Docket
) -> Geometry:
    rule, fix = "a file says where left, front and head are", f"{said} assumed as asked, centre at 0 mm"
    docket.add(Finding("ORIENTATION_UNKNOWN", Level.NOTE, rule, "affine or orientation", "none", fix))
    docket.will(
        f"place the volume as {said}: axes {letters}, {spacing[0]:g} x {spacing[1]:g} x {spacing[2]:g} mm"
    )
    return geometry_of(affine_from_letters(letters, spacing, shape), shape, docket.path or "")


def _layout(got: str, shown: str) -> ContainerError:
    return ContainerError(
        "NPZ_LAYOUT",
        "an NPZ holds hu (or ct) and its place",
        expected="hu with affine, or hu with spacing_mm and orientation",
        got=got,
        path=shown,
    )
