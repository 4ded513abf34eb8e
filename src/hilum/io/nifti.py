"""NIfTI in and out. The header is nibabel's, the voxels are read here: bounded, and verified through the
gzip trailer.

Reading makes float32 HU; scaling is done in float64 block by block, so no integer ever wraps (row B17).
"""

from __future__ import annotations

import gzip
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from nibabel.nifti1 import Nifti1Header

from hilum.errors import ContainerError, HeaderError, UsageError
from hilum.geometry import Geometry
from hilum.io.affine import affine_from_letters, corner_distance_mm, geometry_of, usable
from hilum.io.archive import Member
from hilum.io.assemble import build_volume, settle_geometry
from hilum.io.atomic import atomic_write
from hilum.io.checks import Docket
from hilum.io.hashing import sha256_of_parts
from hilum.io.limits import Answers, Limits, Mode, Placement
from hilum.io.nifti_header import DTYPES, NiftiHeader, header_size, parse_header
from hilum.io.streams import ByteStream, Source, check_inflation
from hilum.io.voxels import read_voxels, to_hu
from hilum.types import AffineRas, VolumeHU
from hilum.volume import CTVolume, Finding, Level

SAME_PLACE_MM, ROUNDING_MM = 0.1, 0.01


def read_nifti(
    path: str | Path | Member,
    *,
    mode: Mode = "repair",
    answers: Answers | None = None,
    limits: Limits | None = None,
    docket: Docket | None = None,
) -> CTVolume:
    """A `.nii`, `.nii.gz` or `.hdr`/`.img` file as HU on RAS+ axes.

    Args:
        path: the file (either half of a pair), or a member of an archive.
        mode: what stops; ignored when a docket is given.
        answers, limits: see their classes.
        docket: collects findings; made from `mode` when None.

    Raises:
        InputRefused: rows A01-A06, A15-A19, B01-B18 of the catalogue.
    """
    answers, limits = answers or Answers(), limits or Limits()
    source = Source.of(path)
    docket = docket or Docket(mode)
    docket.path, docket.kind = docket.path or source.shown, "nifti"
    with ExitStack() as stack:
        stream = _stream(source, stack, docket)
        block = _header_block(stream)
        if stream.gzipped and len(block) < 348:
            raise _short(348, len(block), True, source.shown)
        header = parse_header(block, docket, answers, limits)
        place = _place if answers.placement is None else _placed
        geometry = settle_geometry(place(header, docket, answers), docket, answers)
        parts = [stream]
        if header.pair:
            stream.skip(limits.max_header_bytes)
            stream.finish()
            source = _partner(source)
            stream = _stream(source, stack, docket)
            parts.append(stream)
        _check_length(header, source, stream, limits)
        hu = _read_voxels(header, stream, source.shown)
        stream.finish()
    if answers.placement is not None and (answers.placement.slope, answers.placement.intercept) != (1.0, 0.0):
        hu = to_hu(hu, answers.placement.slope, answers.placement.intercept)
    sha256 = stream.sha256 if len(parts) == 1 else sha256_of_parts(p.sha256 for p in parts)
    return build_volume(hu, geometry, "nifti", sha256, docket, answers, limits)


def _stream(source: Source, stack: ExitStack, docket: Docket) -> ByteStream:
    stream = ByteStream(stack.enter_context(source.open()), source.shown)
    named = source.lower_name.endswith((".gz", ".gzip"))
    if named != stream.gzipped:
        docket.add(
            Finding(
                "NAME_NOT_CONTENT",
                Level.NOTE,
                "a name ends in .gz when the content is gzip",
                expected="gzip" if named else "not compressed",
                got="gzip" if stream.gzipped else "not compressed",
                hint="read by content",
            )
        )
    return stream


def _header_block(stream: ByteStream) -> bytes:
    block = stream.read(348)
    size = header_size(block)
    return block if size in (None, 348) else block + stream.read(540 - 348)


def _partner(source: Source) -> Source:
    """The `.img` of a `.hdr` pair (the same name, compressed or not)."""
    if isinstance(source.at, Member):
        raise HeaderError(
            "ENDIAN_PAIR", "inside an archive a NIfTI is one file", got="a .hdr/.img pair", path=source.shown
        )
    name = source.at.name
    stem = name[: -len(".hdr.gz")] if name.lower().endswith(".hdr.gz") else source.at.stem
    for suffix in (".img", ".img.gz", ".IMG"):
        if (candidate := source.at.with_name(stem + suffix)).exists():
            return Source.of(candidate)
    raise HeaderError(
        "ENDIAN_PAIR",
        "a .hdr has its .img beside it",
        expected=f"{stem}.img or {stem}.img.gz",
        got="no such file",
        path=source.shown,
    )


def _place(header: NiftiHeader, docket: Docket, answers: Answers) -> Geometry:
    """The affine of the two that a NIfTI may hold (rows B01-B03, B05), in mm."""
    where = docket.path or ""
    # Row by row and not as a matrix product: infinity times zero would warn before it is refused.
    unit = np.array([[header.unit_mm]] * 3 + [[1.0]])
    forms = {"sform": header.sform, "qform": header.qform}
    held = {name: unit * form for name, form in forms.items() if form is not None}
    if not held:
        return _assumed(header, docket, answers)
    broken = {name: code for name, form in held.items() if (code := usable(form)) is not None}
    good = [name for name in held if name not in broken]
    for name, code in broken.items():
        # An unusable form makes the other one doubtful too: only the user can vouch for it.
        answered = bool(good) and answers.affine == good[0]
        hint = f"The {good[0]} is usable; vouch for it with --affine {good[0]}." if good else ""
        finding = Finding(
            code,
            Level.NOTE if answered else Level.REFUSE,
            "an affine that is set is finite and can be inverted",
            got=f"{name} (code {getattr(header, name + '_code')}) {held[name][:3].tolist()}",
            hint=f"{good[0]} taken as asked" if answered else hint,
        )
        docket.add(finding)
        if not good:
            return geometry_of(held[name], header.shape, where)
    chosen = answers.affine if answers.affine in good else good[0]
    if len(good) == 2:
        docket.add(_agreement(held["sform"], held["qform"], header, answers))
    elif "sform" in good and not broken:
        docket.add(_agreement_of_sizes(held["sform"], header))
    return geometry_of(held[chosen], header.shape, where)


def _placed(header: NiftiHeader, docket: Docket, answers: Answers) -> Geometry:
    """The affine of a data set's table in place of the header's."""
    said = answers.placement or Placement()
    if said.shape is not None and said.shape != header.shape:
        raise HeaderError(
            "GRID_MISMATCH",
            f"{said.source} and the file describe one grid",
            expected=f"{said.shape} voxels",
            got=f"{header.shape} voxels",
            path=docket.path,
        )
    docket.will(f"take place and rescale from {said.source}: slope {said.slope:g}, {said.intercept:g} HU")
    if said.affine_ras is None:
        return _place(header, docket, answers)
    affine = np.array([*said.affine_ras, 0.0, 0.0, 0.0, 1.0]).reshape(4, 4)
    return geometry_of(affine, header.shape, docket.path or "")


def _assumed(header: NiftiHeader, docket: Docket, answers: Answers) -> Geometry:
    if answers.assume is None:
        raise HeaderError(
            "ORIENTATION_UNKNOWN",
            "a file says where left, front and head are",
            expected="sform_code or qform_code > 0",
            got="both 0; readers disagree about left and right here",
            path=docket.path,
            hint="If you know the axes, say so: --assume RAS (each axis grows towards its letter).",
        )
    x, y, z = (s * header.unit_mm for s in header.voxel_size)
    affine = affine_from_letters(answers.assume, (x, y, z), header.shape)
    docket.add(
        Finding(
            "ORIENTATION_UNKNOWN",
            Level.NOTE,
            "a file says where left, front and head are",
            "sform_code or qform_code > 0",
            "both 0",
            f"axes {answers.assume.upper()} assumed as asked, centre at 0 mm",
        )
    )
    docket.will(f"place the volume by the assumed axes {answers.assume.upper()}")
    return geometry_of(affine, header.shape, docket.path or "")


def _agreement(sform: AffineRas, qform: AffineRas, header: NiftiHeader, answers: Answers) -> Finding | None:
    apart = corner_distance_mm(sform, qform, header.shape)
    diagonal_mm = float(np.linalg.norm(sform[:3, :3] @ np.asarray(header.shape, dtype=np.float64)))
    # Rounding of the quaternion turns the grid about its first voxel; it cannot move that voxel.
    turned_mm = header.qform_slack_rad * diagonal_mm
    moved = float(np.linalg.norm((sform - qform)[:3, 3]))
    if moved <= ROUNDING_MM and apart <= ROUNDING_MM + turned_mm:
        return None
    same = moved <= SAME_PLACE_MM and apart <= SAME_PLACE_MM + turned_mm
    settled = same or answers.affine is not None
    return Finding(
        "AFFINE_DISAGREE",
        Level.NOTE if settled else Level.ASK,
        "sform and qform put the voxels in the same place",
        expected=f"<= {SAME_PLACE_MM} mm apart at every corner",
        got=f"{apart:.3f} mm",
        hint=f"{answers.affine or 'sform'} taken"
        if settled
        else "Choose with --affine sform or --affine qform.",
    )


def _agreement_of_sizes(sform: AffineRas, header: NiftiHeader) -> Finding | None:
    """Without a qform the voxel sizes are a second witness; the sform wins, a contradiction is noted."""
    sizes = np.asarray(header.voxel_size) * header.unit_mm
    lengths = np.linalg.norm(sform[:3, :3], axis=0)
    if np.allclose(sizes, lengths, rtol=0.01):
        return None
    got = f"pixdim {sizes.round(4).tolist()} mm, sform {lengths.round(4).tolist()} mm"
    return Finding(
        "AFFINE_DISAGREE", Level.NOTE, "pixdim and sform agree", "the same sizes", got, "sform taken"
    )


def _check_length(header: NiftiHeader, source: Source, stream: ByteStream, limits: Limits) -> None:
    """The voxels fit the budget and, without compression, the file; before memory is taken."""
    check_inflation(header.data_bytes, source.size, limits, source.shown)
    if stream.gzipped or isinstance(source.at, Member):
        return
    if header.offset_bytes > source.size:
        raise ContainerError(
            "OFFSET_BAD",
            "voxels start inside the file",
            expected=f"<= {source.size} bytes",
            got=f"vox_offset {header.offset_bytes}",
            path=source.shown,
        )
    if header.offset_bytes + header.data_bytes > source.size:
        raise _short(header.offset_bytes + header.data_bytes, source.size, stream.gzipped, source.shown)


def _read_voxels(header: NiftiHeader, stream: ByteStream, shown: str) -> VolumeHU:
    """Float32 HU on stored axes (NIfTI stores them in Fortran order)."""
    ahead = header.offset_bytes - stream.count + header.frame * header.frame_bytes
    if ahead < 0 or stream.skip(ahead) != ahead:
        raise _short(header.offset_bytes + header.data_bytes, stream.count, stream.gzipped, shown)
    hu = read_voxels(stream, header.shape, header.dtype, header.slope, header.intercept)
    if hu is None:
        raise _short(header.offset_bytes + header.data_bytes, stream.count, stream.gzipped, shown)
    behind = (header.frames - header.frame - 1) * header.frame_bytes
    if stream.skip(behind) != behind:
        raise _short(header.offset_bytes + header.data_bytes, stream.count, stream.gzipped, shown)
    return hu


def _short(expected: int, got: int, gzipped: bool, shown: str) -> ContainerError:
    code = "GZ_TRUNCATED" if gzipped else "NII_TRUNCATED"
    return ContainerError(
        code,
        "a file holds every voxel that its header announces",
        expected=f"{expected} bytes" + (" inflated" if gzipped else ""),
        got=f"{got} bytes",
        path=shown,
        hint="The file was cut; copy or download it again.",
    )


def write_nifti(
    path: str | Path, array_on_source_axes: np.ndarray, geometry: Geometry, description: str = ""
) -> None:
    """Writes a NIfTI-1 file in one step; equal arguments give equal bytes (gzip level 1, no time, no name in
    it).

    Args:
        path: ends in `.nii` or `.nii.gz`.
        array_on_source_axes: [X, Y, Z] on `geometry`, int8 to int32 or uint8 to uint16, float32, float64,
            bool (as uint8).
        geometry: its affine becomes sform and qform.
        description: at most 79 ASCII characters; never anything about a patient.

    Raises:
        UsageError: array and grid differ (`GRID_MISMATCH`), a dtype NIfTI lacks (`DTYPE`), or another suffix.
        OutputError: see `atomic_write`.
    """
    final = Path(path)
    if array_on_source_axes.shape != geometry.shape:
        raise UsageError(
            "GRID_MISMATCH",
            "an array lies on its grid",
            expected=geometry.shape,
            got=array_on_source_axes.shape,
        )
    if not final.name.lower().endswith((".nii", ".nii.gz")):
        raise UsageError(
            "NAME_NOT_CONTENT", "a NIfTI file ends in .nii or .nii.gz", got=final.name, path=final
        )
    stored = (
        array_on_source_axes.astype(np.uint8) if array_on_source_axes.dtype == bool else array_on_source_axes
    )
    header = _header_for(stored, geometry, description)
    with atomic_write(final) as file:
        if final.name.lower().endswith(".gz"):
            with gzip.GzipFile(filename="", fileobj=file, mode="wb", compresslevel=1, mtime=0) as packed:
                _write_body(packed, header, stored)
        else:
            _write_body(file, header, stored)


def _header_for(stored: np.ndarray, geometry: Geometry, description: str) -> Nifti1Header:
    header = Nifti1Header(endianness="<")
    try:
        header.set_data_dtype(stored.dtype)
    except Exception as error:
        raise UsageError("DTYPE", "NIfTI can hold this type", got=stored.dtype) from error
    if int(header["datatype"]) not in DTYPES:
        raise UsageError(
            "DTYPE", "a voxel is one real number", expected=list(DTYPES.values()), got=stored.dtype
        )
    header.set_data_shape(stored.shape)
    header.set_sform(geometry.affine_ras, code=1)
    header.set_qform(geometry.affine_ras, code=1, strip_shears=True)
    header["pixdim"][1:4] = geometry.spacing_mm
    header.set_xyzt_units("mm")
    header["scl_slope"], header["scl_inter"] = 1.0, 0.0
    header["vox_offset"] = 352
    header["descrip"] = description.encode("ascii", "replace")[:79]
    header["magic"] = b"n+1"
    return header


def _write_body(file: Any, header: Nifti1Header, stored: np.ndarray) -> None:
    file.write(header.binaryblock + b"\0\0\0\0")
    little = stored.dtype.newbyteorder("<")
    # One slice at a time: a Fortran copy of the whole would double the memory.
    for z in range(stored.shape[2]):
        file.write(np.asarray(stored[:, :, z], dtype=little).tobytes(order="F"))
