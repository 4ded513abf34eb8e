"""A folder, zip or file of DICOM -> one CT volume whose geometry comes from positions and whose HU come per
slice.

The steps, each in a file of its own: index (which CT images are there), stacks (which belong together,
which one is meant), ladder (where the slices lie), pixels (stored values -> HU). Slices are decoded one
after another: the decoders hold the interpreter lock, two threads measured no faster than one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from scipy import ndimage

from hilum.errors import HeaderError, HilumError, PixelError, SeriesError
from hilum.geometry import Geometry, axis_map
from hilum.io.assemble import rectify
from hilum.io.checks import Docket, Inspection, check_fov, check_shape
from hilum.io.dicom_guard import PIXEL_DATA, quiet
from hilum.io.dicom_header import ImageHeader
from hilum.io.dicom_index import Index, index_images, open_sources
from hilum.io.dicom_ladder import Ladder, build_ladder
from hilum.io.dicom_pixels import NOT_SCANNED_HU, DecodedImage, check_form, decode_frames, j2k_mismatch, to_hu
from hilum.io.dicom_remarks import remark_on_series, rescale_of
from hilum.io.dicom_stack import SameImage, choose, find_stacks
from hilum.io.hashing import sha256_of_parts
from hilum.io.limits import Answers, Limits, Mode
from hilum.io.values import judge_values, scanned_mask
from hilum.volume import CTVolume, Finding, Level, Provenance, SliceRef


def read_series(
    path: str | Path,
    *,
    mode: Mode = "repair",
    answers: Answers | None = None,
    limits: Limits | None = None,
    docket: Docket | None = None,
) -> CTVolume:
    """Reads one CT series.

    Args:
        path: a folder (searched through), a zip archive, or an enhanced (multi-frame) file.
        mode: what stops, see `Mode`. answers: what the user decided. limits: budgets.
        docket: where findings are recorded; given by an inspection, which then sets the mode.

    Returns:
        HU in float32; source axes are [columns, rows, slices along the normal]; `provenance.slices` has one
        entry per source slice (an interpolated slice names its nearest image).

    Raises:
        ContainerError, SeriesError, PixelError, HeaderError: rows A, C, D and B of the catalogue.
        UsageError: `answers.series` names no candidate.
    """
    answers, limits = answers or Answers(), limits or Limits()
    docket = docket or Docket(mode=mode, path=str(path), error=SeriesError)
    docket.kind, docket.path, docket.error = "dicom", docket.path or str(path), SeriesError
    with open_sources(path, docket, limits) as sources:
        index = index_images(sources, docket, limits)
        stack = choose(find_stacks(index.images, _same_pixels(index, limits), docket), docket, answers)
        docket.add(stack.findings, SeriesError)
        remark_on_series(stack.images, docket, answers)
        ladder = build_ladder(stack, docket, answers)
        docket.geometry = ladder.geometry
        check_shape(ladder.geometry.shape, limits)
        docket.add(check_fov(ladder.geometry, answers), HeaderError)
        hu, valid = _read_voxels(ladder, index, docket, answers, limits)
    return _finish(hu, valid, ladder, index, docket, answers, limits)


def inspect_series(
    path: str | Path, *, mode: Mode = "repair", answers: Answers | None = None, limits: Limits | None = None
) -> Inspection:
    """What `read_series` would say, without raising for bad input."""
    docket = Docket(mode="report-only", path=str(path), error=SeriesError, kind="dicom")
    try:
        read_series(path, answers=answers, limits=limits, docket=docket)
    except HilumError as error:
        return Inspection.of(docket, mode, error)
    return Inspection.of(docket, mode, None)


def _same_pixels(index: Index, limits: Limits) -> SameImage:
    """Whether two images hold the same pixels and mean the same HU by them; files are read again to see."""

    def same(a: ImageHeader, b: ImageHeader) -> bool:
        if (a.slope, a.intercept, a.pixels) != (b.slope, b.intercept, b.pixels):
            return False
        if a.source == b.source:
            return False  # two frames of one file are two images
        first, second = index.load(a.source, limits), index.load(b.source, limits)
        if first.syntax == second.syntax and first.value(PIXEL_DATA) == second.value(PIXEL_DATA):
            return True
        check_form(a, first.syntax)
        check_form(b, second.syntax)
        return bool(np.array_equal(decode_frames(first, [a])[0].values, decode_frames(second, [b])[0].values))

    return same


def _read_voxels(
    ladder: Ladder, index: Index, docket: Docket, answers: Answers, limits: Limits
) -> tuple[np.ndarray, np.ndarray | None]:
    """HU [columns, rows, slices] and where they are valid (None: everywhere)."""
    images = ladder.images
    columns, rows, _ = ladder.geometry.shape
    hu = np.empty((len(images), rows, columns), dtype=np.float32)
    valid: np.ndarray | None = None
    remarks: Counter[tuple[str, str]] = Counter()
    wanted: dict[int, list[int]] = {}
    for place, image in enumerate(images):
        wanted.setdefault(image.source, []).append(place)
    for source, places in wanted.items():
        decoded_file = _decode_file(source, [images[p] for p in places], index, answers, limits, remarks)
        for place, decoded in zip(places, decoded_file, strict=True):
            hu[place] = decoded.hu
            remarks.update(decoded.remarks)
            if decoded.valid is not None:
                valid = np.ones(hu.shape, dtype=bool) if valid is None else valid
                valid[place] = decoded.valid
    _check_extreme(hu, docket)
    for (code, got), count in remarks.items():
        docket.add(
            Finding(code, Level.NOTE, RULES[code], got=f"{got} in {count} of {len(images)} images"),
            PixelError,
        )
    return _climb(np.moveaxis(hu, 0, 2).transpose(1, 0, 2), valid, ladder, docket)


RULES = {
    "PADDING": "every pixel was scanned",
    "J2K_SIGN_BITS": "codestream and header agree on sign and bits",
    "HIGH_BITS": "the bits above the stored ones are empty",
}


def _decode_file(
    source: int,
    images: Sequence[ImageHeader],
    index: Index,
    answers: Answers,
    limits: Limits,
    remarks: Counter[tuple[str, str]],
) -> list[DecodedImage]:
    name = index.sources[source].name
    for image in images:
        check_form(image, index.syntaxes[source], name)
    guarded = index.load(source, limits)
    mismatch = j2k_mismatch(guarded, images[0])
    if mismatch:
        remarks[("J2K_SIGN_BITS", mismatch)] += len(images)
    with quiet():
        stored = decode_frames(guarded, images, name)
    return [to_hu(s, i.pixels, *rescale_of(i, answers)) for s, i in zip(stored, images, strict=True)]


def _check_extreme(hu: np.ndarray, docket: Docket) -> None:
    """D04: what no scanner measures comes from an absurd rescale."""
    low, high = float(hu.min()), float(hu.max())
    if low < -100_000 or high > 100_000:
        docket.add(
            Finding(
                "SLOPE_ABSURD",
                Level.REFUSE,
                "HU lie in the range of CT",
                "-100000 to 100000 HU",
                f"{low:g} to {high:g} HU",
            ),
            PixelError,
        )


def _climb(
    hu: np.ndarray, valid: np.ndarray | None, ladder: Ladder, docket: Docket
) -> tuple[np.ndarray, np.ndarray | None]:
    """Images -> output slices: a copy where every rung is an image, linear interpolation along the
    normal elsewhere."""
    if valid is not None:
        valid = np.moveaxis(valid, 0, 2).transpose(1, 0, 2)
    coords = np.array(ladder.coords)
    if not ladder.filled:
        keep = np.rint(coords).astype(int)
        if len(keep) != hu.shape[2]:
            hu, valid = hu[:, :, keep], None if valid is None else valid[:, :, keep]
        return hu, valid
    low = np.minimum(np.floor(coords).astype(int), hu.shape[2] - 2)
    weight = (coords - low).astype(np.float32)
    out = hu[:, :, low] * (1 - weight) + hu[:, :, low + 1] * weight
    mask = np.ones(out.shape, dtype=bool) if valid is None else valid[:, :, low] & valid[:, :, low + 1]
    mask[:, :, list(ladder.filled)] = False
    docket.will(f"interpolate {len(ladder.filled)} of {len(coords)} slices (linear), marked not valid")
    return out, mask


def _finish(
    hu: np.ndarray,
    valid: np.ndarray | None,
    ladder: Ladder,
    index: Index,
    docket: Docket,
    answers: Answers,
    limits: Limits,
) -> CTVolume:
    """Undeclared padding, values, tilt, provenance."""
    geometry = ladder.geometry
    scanned = scanned_mask(hu)
    if scanned is not None:
        docket.add(
            Finding("PADDING", Level.NOTE, RULES["PADDING"], got=f"undeclared, {float(hu.min()):g} HU")
        )
        hu[~scanned] = NOT_SCANNED_HU
        valid = scanned if valid is None else valid & scanned
    docket.add(judge_values(axis_map(geometry).apply(hu)), HeaderError)
    if ladder.tilted and answers.rectify:
        hu, valid, geometry = _straighten(hu, valid, geometry, limits)
        docket.will(f"resample onto straight axes, {'x'.join(map(str, geometry.shape))} voxels (trilinear)")
    docket.geometry = geometry
    first = ladder.images[0]
    provenance = Provenance(
        kind="dicom",
        sha256=sha256_of_parts({index.hashes[i.source] for i in ladder.images}),
        study_uid=first.study_uid,
        series_uid=first.series_uid,
        series_number=first.series_number,
        slices=_slice_refs(ladder),
        info=dict(first.info),
        findings=tuple(docket.findings),
    )
    return CTVolume.from_source(hu, geometry, provenance, valid)


def _straighten(
    hu: np.ndarray, valid: np.ndarray | None, geometry: Geometry, limits: Limits
) -> tuple[np.ndarray, np.ndarray, Geometry]:
    """Tilt taken out by resampling; what lies outside the scanned stack is not valid."""
    moved, straight = rectify(hu, geometry, limits)
    to_source = np.linalg.inv(geometry.affine_ras) @ straight.affine_ras
    seen = np.ones(hu.shape, dtype=np.float32) if valid is None else valid.astype(np.float32)
    mask = ndimage.affine_transform(
        seen,
        to_source[:3, :3],
        to_source[:3, 3],
        output_shape=straight.shape,
        order=1,
        cval=0.0,
        prefilter=False,
    )
    return moved, np.asarray(mask > 0.999), straight


def _slice_refs(ladder: Ladder) -> tuple[SliceRef, ...]:
    """The stored image of every output slice, with the place of that image; the nearest one where none lies
    there."""
    refs = []
    for coord in ladder.coords:
        image = ladder.images[round(coord)]
        row_mm, column_mm = (image.plane.spacing or (1.0, 1.0))[:2]
        cosines = np.array(image.plane.orientation)
        middle = (image.pixels.columns - 1) / 2 * column_mm * cosines[:3] + (
            image.pixels.rows - 1
        ) / 2 * row_mm * cosines[3:]
        x, y, z = np.array(image.plane.position) + middle
        refs.append(SliceRef(image.sop_uid, image.number, (float(-x), float(-y), float(z))))
    return tuple(refs)
