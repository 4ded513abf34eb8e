"""Positions of a stack -> the grid of the volume, from positions alone (rows C01, C02, C07, C09, C10, C12).

SpacingBetweenSlices, SliceThickness, SliceLocation, GantryDetectorTilt and InstanceNumber are never
believed; where they disagree with the positions that is noted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from hilum.errors import SeriesError
from hilum.geometry import Geometry
from hilum.io.checks import Docket
from hilum.io.dicom_header import ImageHeader
from hilum.io.dicom_stack import MIN_SLICES, Stack, angle_rad, axes_of, offsets_mm, plane_name
from hilum.io.limits import Answers
from hilum.volume import Finding, Level

STEP_TOLERANCE = 0.03
"""Share of the step by which two steps may differ (positions are written with two or three decimals)..."""
STEP_ROUNDING_MM = 0.01
"""... and what rounding adds."""
STRAIGHT_MM = 0.15
"""How far a slice centre may lie off the straight line through all of them."""
TILT_RAD = 1e-3
MAX_GAP_SHARE = 0.2
"""More gaps than this share of all steps are no missing slices but another spacing."""


@dataclass(frozen=True)
class Ladder:
    """Which images make which slices of the volume, and where these lie.

    Args:
        images: sorted along the normal. coords: place of each output slice among them; 2.5 lies between the
            third and the fourth. geometry: of the output, source axes [columns, rows, slices]. tilted: the
            slice axis is sheared.
        filled: output slices that no image shows.
    """

    images: tuple[ImageHeader, ...]
    coords: tuple[float, ...]
    geometry: Geometry
    tilted: bool
    filled: tuple[int, ...] = ()


def build_ladder(stack: Stack, docket: Docket, answers: Answers) -> Ladder:
    """The grid of a stack.

    Raises:
        SeriesError: `SLICE_MISSING`, `GANTRY_TILT`, `SPACING_IRREGULAR`, `PIXELSPACING_CHANGE`,
        `FRAME_OF_REFERENCE`,
            `TOO_FEW`, as the docket's mode says.
    """
    images = stack.images
    _check_constant(images, docket)
    _note_order(images, docket)
    images = _split_at_gaps(images, docket, answers)
    offsets = offsets_mm(images)
    steps = np.diff(offsets)
    step = float(np.median(steps))
    shear = _shear(images, offsets, docket)
    if _even(steps):
        coords = np.arange(len(images), dtype=np.float64)
        step = float((offsets[-1] - offsets[0]) / (len(images) - 1))
    else:
        wanted = _wanted_offsets(offsets, step, answers)
        coords = np.interp(wanted, offsets, np.arange(len(images)))
        coords = np.where(np.abs(coords - np.rint(coords)) < 0.02, np.rint(coords), coords)
        step = float(wanted[1] - wanted[0])
    filled = tuple(int(k) for k in np.flatnonzero(coords != np.rint(coords)))
    tilted = bool(np.linalg.norm(shear) > TILT_RAD)
    if tilted:
        docket.add(_tilt_finding(shear, answers))
    _note_thickness(images[0], step, docket)
    return Ladder(
        images, tuple(float(c) for c in coords), _grid(images, step, shear, len(coords)), tilted, filled
    )


def _grid(images: Sequence[ImageHeader], step: float, shear: np.ndarray, count: int) -> Geometry:
    """Affine from the first position, mean cosines, pixel spacing, and the step along the normal plus
    shear."""
    cosines = np.mean(np.array([i.plane.orientation for i in images]), axis=0)
    row = cosines[:3] / np.linalg.norm(cosines[:3])
    column = cosines[3:] - (cosines[3:] @ row) * row
    column /= np.linalg.norm(column)
    first = images[0]
    row_mm, column_mm = (first.plane.spacing or (1.0, 1.0))[:2]
    affine = np.eye(4)
    affine[:3, 0], affine[:3, 1] = row * column_mm, column * row_mm
    affine[:3, 2] = (np.cross(row, column) + shear) * step
    affine[:3, 3] = first.plane.position or (0.0, 0.0, 0.0)
    return Geometry.from_lps((first.pixels.columns, first.pixels.rows, count), affine, first.frame_uid)


def _check_constant(images: Sequence[ImageHeader], docket: Docket) -> None:
    """Pixel spacing and frame of reference are those of the whole stack."""
    spacings = np.array([i.plane.spacing for i in images])
    if np.abs(spacings - spacings[0]).max() > 1e-4 * spacings[0].max():
        odd = [
            i.label
            for i, s in zip(images, spacings, strict=True)
            if not np.allclose(s, np.median(spacings, axis=0), rtol=1e-4)
        ]
        docket.add(
            Finding(
                "PIXELSPACING_CHANGE",
                Level.REFUSE,
                "pixel spacing is the same in all slices",
                expected=f"{np.median(spacings, axis=0).tolist()} mm",
                got=f"{spacings.min(axis=0).tolist()} to {spacings.max(axis=0).tolist()} mm",
                hint=f"Odd: {', '.join(odd[:4])}",
            ),
            SeriesError,
        )
    frames = {i.frame_uid for i in images}
    if len(frames) > 1:
        docket.add(
            Finding(
                "FRAME_OF_REFERENCE",
                Level.REFUSE,
                "all slices share one frame of reference",
                "one UID",
                f"{len(frames)} UIDs",
            ),
            SeriesError,
        )
    jitter = max(angle_rad(i, images[0]) for i in images)
    if jitter > 1e-6:
        docket.add(
            Finding(
                "IOP_JITTER",
                Level.NOTE,
                "orientations agree",
                "<= 1e-6 rad",
                f"{jitter:.2g} rad",
                "mean orientation taken",
            )
        )


def _note_order(images: Sequence[ImageHeader], docket: Docket) -> None:
    numbers = [i.number for i in images if i.number is not None]
    if len(numbers) > 1 and numbers not in (sorted(numbers), sorted(numbers, reverse=True)):
        docket.add(
            Finding(
                "ORDER",
                Level.NOTE,
                "instance numbers follow position",
                "rising or falling numbers",
                "shuffled",
                "sorted by position",
            )
        )
    if plane_name(images[0]) != "axial":
        docket.add(
            Finding(
                "REFORMAT",
                Level.NOTE,
                "slices are axial",
                "axial",
                plane_name(images[0]),
                "reoriented through the affine",
            )
        )


def _even(steps: np.ndarray) -> bool:
    step = float(np.median(steps))
    return bool(np.abs(steps - step).max() <= STEP_TOLERANCE * step + STEP_ROUNDING_MM)


def _split_at_gaps(
    images: tuple[ImageHeader, ...], docket: Docket, answers: Answers
) -> tuple[ImageHeader, ...]:
    """Judges the steps; with `--split` (and in report-only) the longest run without a gap is what remains."""
    offsets = offsets_mm(images)
    steps = np.diff(offsets)
    if _even(steps):
        return images
    gaps = _gaps(steps)
    if gaps is None:
        docket.add(_irregular(steps, answers), SeriesError)
        return images
    missing = int(gaps.sum())
    at = int(gaps.argmax())
    answered = answers.split or answers.fill >= gaps.max()
    docket.add(
        Finding(
            "SLICE_MISSING",
            Level.NOTE if answered else Level.ASK,
            "no slice is missing",
            expected=f"{np.median(steps):.4g} mm between slices",
            got=f"{missing} missing, first gap {steps[at]:.4g} mm between "
            f"{images[at].label} and {images[at + 1].label}",
            hint="longest run without a gap read"
            if answers.split
            else "interpolated, marked not valid"
            if answered
            else "Fetch the series again, read the longest run (--split), "
            f"or interpolate (--fill {gaps.max()}).",
        ),
        SeriesError,
    )
    if answered and not answers.split:
        return images
    runs = np.split(np.arange(len(images)), np.flatnonzero(gaps) + 1)
    longest = max(runs, key=len)
    if len(longest) < MIN_SLICES:
        raise SeriesError(
            "TOO_FEW",
            "a volume has slices",
            expected=f">= {MIN_SLICES} slices without a gap",
            got=f"{len(longest)}",
            path=docket.path,
        )
    docket.will(f"read {len(longest)} of {len(images)} slices: the longest run without a gap")
    return images[longest[0] : longest[-1] + 1]


def _gaps(steps: np.ndarray) -> np.ndarray | None:
    """How many slices are missing at each step, or None when the steps are no multiples of one step."""
    step = float(np.median(steps))
    times = np.rint(steps / step)
    off = np.abs(steps - times * step)
    if times.min() < 1 or (off > times * (STEP_TOLERANCE * step + STEP_ROUNDING_MM)).any():
        return None
    missing = (times - 1).astype(int)
    return missing if np.count_nonzero(missing) <= max(1, MAX_GAP_SHARE * len(steps)) else None


def _irregular(steps: np.ndarray, answers: Answers) -> Finding:
    return Finding(
        "SPACING_IRREGULAR",
        Level.NOTE if answers.regrid else Level.ASK,
        "slices lie at even distances",
        expected=f"{np.median(steps):.4g} mm between slices",
        got=f"{steps.min():.4g} to {steps.max():.4g} mm",
        hint="resampled at true positions"
        if answers.regrid
        else "Allow resampling at true positions with --regrid.",
    )


def _wanted_offsets(offsets: np.ndarray, step: float, answers: Answers) -> np.ndarray:
    """Even places from the first to the last slice, `step` apart as nearly as that fits."""
    length = float(offsets[-1] - offsets[0])
    count = max(1, round(length / step))
    return offsets[0] + np.arange(count + 1) * (length / count)


def _shear(images: Sequence[ImageHeader], offsets: np.ndarray, docket: Docket) -> np.ndarray:
    """In-plane drift per mm along the normal, LPS; positions must lie on one line.

    Raises:
        SeriesError: they do not (`SPACING_IRREGULAR`): the images were centred one by one.
    """
    positions = np.array([i.plane.position for i in images])
    normal = axes_of(images[0])[2]
    drift = positions - positions[0] - np.outer(offsets - offsets[0], normal)
    shear = drift[-1] / (offsets[-1] - offsets[0])
    off = float(np.linalg.norm(drift - np.outer(offsets - offsets[0], shear), axis=1).max())
    if off > STRAIGHT_MM:
        docket.add(
            Finding(
                "SPACING_IRREGULAR",
                Level.REFUSE,
                "slice positions lie on one straight line",
                f"within {STRAIGHT_MM} mm",
                f"{off:.3g} mm off",
            ),
            SeriesError,
        )
    return np.asarray(shear - normal * (shear @ normal))


def _tilt_finding(shear: np.ndarray, answers: Answers) -> Finding:
    degrees = float(np.degrees(np.arctan(np.linalg.norm(shear))))
    return Finding(
        "GANTRY_TILT",
        Level.NOTE if answers.rectify else Level.ASK,
        "slices are stacked at right angles",
        expected="< 0.06 degrees",
        got=f"{degrees:.2f} degrees",
        hint="resampled onto straight axes"
        if answers.rectify
        else "Allow resampling onto straight axes with --rectify.",
    )


def _note_thickness(image: ImageHeader, step: float, docket: Docket) -> None:
    declared, thickness = image.plane.declared_step, image.plane.thickness
    if declared is not None and abs(abs(declared) - step) > 0.05 * step:
        docket.add(
            Finding(
                "THICKNESS_TRAP",
                Level.NOTE,
                "SpacingBetweenSlices is the distance of positions",
                f"{step:.4g} mm",
                f"{declared:.4g} mm",
                "positions taken",
            )
        )
    elif thickness is not None and thickness > 0 and abs(thickness - step) > 0.05 * step:
        what = "overlap" if thickness > step else "leave gaps"
        docket.add(
            Finding(
                "THICKNESS_TRAP",
                Level.NOTE,
                "slices are as thick as they are apart",
                f"{step:.4g} mm",
                f"{thickness:.4g} mm thick: they {what}",
                "positions taken",
            )
        )
