"""Images -> stacks that may be volumes, and the choice of one (rows C03-C06, C08, C11, C13, C16, C20).

A series is split by orientation, matrix and, where positions collide or interleave, by acquisition. What
is split off is named. Several stacks that could each be read are a question to the user, never a guess.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from hilum.errors import SeriesError, UsageError
from hilum.io.checks import Docket
from hilum.io.dicom_header import ImageHeader
from hilum.io.limits import Answers
from hilum.volume import Finding, Level

MIN_SLICES = 4
SAME_ORIENTATION_RAD = 1e-4
SAME_PLACE_MM = 0.01
SCOUT_ANGLE_RAD = 0.087
"""Five degrees: an image that far off its series is another view, not jitter."""

SameImage = Callable[[ImageHeader, ImageHeader], bool]


@dataclass(frozen=True)
class Stack:
    """Images that may be the slices of one volume: one series, orientation, matrix and phase; sorted by
    position.

    Args:
        images: sorted along the normal. split: what sets it apart within its series, "" for a whole series.
        code: catalogue code of that split. findings: added to the reading when this stack is chosen.
    """

    images: tuple[ImageHeader, ...]
    split: str = ""
    code: str = "SERIES_MANY"
    findings: tuple[Finding, ...] = ()

    @property
    def step_mm(self) -> float:
        """Median distance between slices along the normal."""
        return float(np.median(np.diff(offsets_mm(self.images))))

    def as_row(self, number: int) -> dict[str, Any]:
        """A row of the table of candidates: plain values, nothing personal."""
        first = self.images[0]
        row, column = (first.plane.spacing or (0.0, 0.0))[:2]
        return {
            "choice": f"#{number}",
            "series_number": first.series_number,
            "series_uid": first.series_uid,
            "images": len(self.images),
            "matrix": f"{first.pixels.columns}x{first.pixels.rows}",
            "spacing_mm": [round(column, 4), round(row, 4), round(self.step_mm, 4)],
            "plane": plane_name(first),
            "image_type": "\\".join(first.image_type[:4]),
            "kernel": dict(first.info).get("kernel", ""),
            "split": self.split,
        }


@dataclass
class _Split:
    """One series on its way into stacks."""

    findings: list[Finding] = field(default_factory=list)
    stacks: list[Stack] = field(default_factory=list)


def axes_of(image: ImageHeader) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Unit vectors along a row, along a column, and their normal, LPS."""
    cosines = np.array(image.plane.orientation, dtype=np.float64)
    row = cosines[:3] / np.linalg.norm(cosines[:3])
    column = cosines[3:] - (cosines[3:] @ row) * row
    column /= np.linalg.norm(column)
    return row, column, np.cross(row, column)


def offsets_mm(images: Sequence[ImageHeader]) -> np.ndarray:
    """Position along the normal of the first image, mm; the only thing slices are ever sorted by (row
    C09)."""
    normal = axes_of(images[0])[2]
    return np.array([np.dot(i.plane.position or (0.0, 0.0, 0.0), normal) for i in images])


def plane_name(image: ImageHeader) -> str:
    """``axial``, ``coronal``, ``sagittal`` or ``oblique``, by the normal."""
    normal = np.abs(axes_of(image)[2])
    return ("sagittal", "coronal", "axial")[int(normal.argmax())] if normal.max() > 0.9 else "oblique"


def find_stacks(images: Sequence[ImageHeader], same: SameImage, docket: Docket) -> list[Stack]:
    """Every stack that may be read, in the order of series number and UID.

    Args:
        images: all CT images of the input. same: whether two images at one place hold the same pixels.

    Raises:
        SeriesError: no stack is left; the reason of the largest series is named.
    """
    series: dict[str, list[ImageHeader]] = {}
    for image in images:
        series.setdefault(image.series_uid, []).append(image)
    stacks: list[Stack] = []
    failures: list[tuple[int, Finding]] = []
    for members in sorted(series.values(), key=lambda m: (m[0].series_number or 0, m[0].series_uid)):
        split = _split_series(members, same)
        stacks.extend(replace(s, findings=(*split.findings, *s.findings)) for s in split.stacks)
        if not split.stacks:
            failures.append((len(members), split.findings[-1]))
    if not stacks:
        worst = max(failures, key=lambda f: f[0])[1]
        raise SeriesError(
            worst.code,
            worst.rule,
            expected=worst.expected,
            got=worst.got,
            hint=worst.hint or None,
            path=docket.path,
        )
    docket.add([replace(f, level=Level.NOTE, hint="this series was passed over") for _, f in failures])
    return stacks


def choose(stacks: list[Stack], docket: Docket, answers: Answers) -> Stack:
    """The only stack, or the one that `answers.series` names: a UID, a series number, or ``#2`` of the table.

    In `report-only`, where a question does not stop: the thinnest axial original.

    Raises:
        SeriesError: several fit (`SERIES_MANY`, `PHASES_MIXED`, ...), with the table in the hint.
        UsageError: the answer names none of them (`ANSWER_INVALID`).
    """
    rows = [stack.as_row(number) for number, stack in enumerate(stacks, 1)]
    docket.candidates = rows
    fits = stacks
    if answers.series is not None:
        fits = [s for s, row in zip(stacks, rows, strict=True) if _named(row, str(answers.series))]
        if not fits:
            raise UsageError(
                "ANSWER_INVALID",
                "--series names one of the candidates",
                got=str(answers.series)[:64],
                expected=_table(rows),
            )
    if len(fits) == 1:
        if len(stacks) > 1:
            docket.add(
                Finding(
                    fits[0].code,
                    Level.NOTE,
                    "one series is read",
                    got=f"{len(stacks)} candidates",
                    hint=f"--series chose {rows[stacks.index(fits[0])]['choice']}",
                )
            )
        return fits[0]
    one_series = len({s.images[0].series_uid for s in fits}) == 1
    docket.add(
        Finding(
            fits[0].code if one_series else "SERIES_MANY",
            Level.ASK,
            "one series is read, and it is clear which",
            expected="one candidate",
            got=f"{len(fits)} candidates",
            hint=f"Choose with --series (UID, series number, or #n of this table): {_table(rows)}",
        )
    )
    return min(fits, key=_preference)


def _preference(stack: Stack) -> tuple[bool, bool, float, int]:
    first = stack.images[0]
    return (
        plane_name(first) != "axial",
        "ORIGINAL" not in first.image_type,
        stack.step_mm,
        -len(stack.images),
    )


def _named(row: dict[str, Any], answer: str) -> bool:
    return answer in (row["choice"], row["series_uid"], str(row["series_number"]))


def _table(rows: list[dict[str, Any]]) -> str:
    def line(row: dict[str, Any]) -> str:
        spacing = "x".join(f"{v:g}" for v in row["spacing_mm"])
        number = "" if row["series_number"] is None else f" series {row['series_number']}"
        extra = " ".join(p for p in (row["kernel"], row["split"], row["series_uid"][-12:]) if p)
        size = f"{row['images']} {row['plane']} images {row['matrix']}, {spacing} mm"
        return f"{row['choice']}{number}: {size}, {extra}"

    shown = "; ".join(line(r) for r in rows[:20])
    return shown + (f"; and {len(rows) - 20} more" if len(rows) > 20 else "")


def _split_series(images: list[ImageHeader], same: SameImage) -> _Split:
    """One series into stacks, with what was dropped or went wrong on the way (the reason last when none is
    left)."""
    split = _Split()
    images = _without_localizers(images, split)
    if not images:
        return split
    bad = [i for i in images if not placed(i)]
    if bad:
        split.findings.append(
            Finding(
                "NO_GEOMETRY",
                Level.REFUSE,
                "every image has a position, an orientation and a pixel spacing",
                expected="ImagePositionPatient, ImageOrientationPatient (unit, orthogonal), PixelSpacing",
                got=f"{len(bad)} of {len(images)} images without, first {bad[0].label}",
            )
        )
        return split
    clusters = _clusters(images)
    large = [c for c in clusters if len(c) >= MIN_SLICES]
    if not large:
        split.findings.append(
            Finding(
                "TOO_FEW",
                Level.REFUSE,
                "a volume has slices",
                expected=f">= {MIN_SLICES} slices",
                got=f"{len(images)} in {len(clusters)} orientations or matrix sizes"
                if len(clusters) > 1
                else f"{len(images)}",
            )
        )
        return split
    split.findings.extend(_stray(c, large[0]) for c in clusters if len(c) < MIN_SLICES)
    for cluster in large:
        label = (
            ""
            if len(large) == 1
            else f"{plane_name(cluster[0])} {cluster[0].pixels.columns}x{cluster[0].pixels.rows}"
        )
        other = large[0] if cluster is not large[0] else large[-1]
        code = _difference(cluster[0], other[0])
        code = code if code in ("MATRIX_CHANGE", "IOP_JITTER") else "SERIES_MANY"
        _split_phases(cluster, label, code, same, split)
    return split


def _without_localizers(images: list[ImageHeader], split: _Split) -> list[ImageHeader]:
    scouts = [i for i in images if "LOCALIZER" in i.image_type]
    if scouts:
        names = ", ".join(i.label for i in scouts[:4])
        split.findings.append(
            Finding(
                "LOCALIZER",
                Level.NOTE,
                "a localizer is no slice",
                got=f"{len(scouts)}: {names}",
                hint="dropped",
            )
        )
    return [i for i in images if "LOCALIZER" not in i.image_type]


def placed(image: ImageHeader) -> bool:
    """True when position, orientation (unit, orthogonal) and pixel spacing are there and possible."""
    plane = image.plane
    if plane.position is None or plane.orientation is None or plane.spacing is None:
        return False
    row, column = np.array(plane.orientation[:3]), np.array(plane.orientation[3:])
    units = abs(np.linalg.norm(row) - 1) < 1e-2 and abs(np.linalg.norm(column) - 1) < 1e-2
    sane = max(abs(v) for v in plane.position) < 1e6 and all(1e-3 < s < 1e3 for s in plane.spacing)
    return bool(units and abs(row @ column) < 1e-3 and sane)


def _clusters(images: list[ImageHeader]) -> list[list[ImageHeader]]:
    """Images of one orientation (within `SAME_ORIENTATION_RAD`) and matrix, largest first."""
    clusters: list[list[ImageHeader]] = []
    # The commonest cosines first, so that one odd image cannot become what the others are measured against.
    common = Counter(i.plane.orientation for i in images)
    for image in sorted(images, key=lambda i: -common[i.plane.orientation]):
        for cluster in clusters:
            if _difference(image, cluster[0]) == "":
                cluster.append(image)
                break
        else:
            clusters.append([image])
    return sorted(clusters, key=len, reverse=True)


def angle_rad(a: ImageHeader, b: ImageHeader) -> float:
    """Largest angle between the rows or the columns of two images, radians."""
    first, second = np.array(a.plane.orientation), np.array(b.plane.orientation)
    chords = [np.linalg.norm(first[:3] - second[:3]), np.linalg.norm(first[3:] - second[3:])]
    return float(2 * np.arcsin(min(1.0, float(max(chords)) / 2)))


def _difference(a: ImageHeader, b: ImageHeader) -> str:
    """Why two images cannot be slices of one stack, as a catalogue code; "" when they can."""
    if (a.pixels.rows, a.pixels.columns) != (b.pixels.rows, b.pixels.columns):
        return "MATRIX_CHANGE" if angle_rad(a, b) <= SCOUT_ANGLE_RAD else "LOCALIZER"
    angle = angle_rad(a, b)
    return "" if angle <= SAME_ORIENTATION_RAD else "IOP_JITTER" if angle <= SCOUT_ANGLE_RAD else "LOCALIZER"


def _stray(cluster: list[ImageHeader], main: list[ImageHeader]) -> Finding:
    """A few images that do not belong: dropped and named. A gap they leave is judged with the positions."""
    code = _difference(cluster[0], main[0])
    names = ", ".join(i.label for i in cluster)
    what = {
        "LOCALIZER": (
            Level.NOTE,
            "all images of a stack look the same way",
            f"{np.degrees(angle_rad(cluster[0], main[0])):.0f} degrees off: {names}",
        ),
        "MATRIX_CHANGE": (
            Level.REPAIR,
            "all images of a stack have one matrix",
            f"{cluster[0].pixels.columns}x{cluster[0].pixels.rows}: {names}",
        ),
        "IOP_JITTER": (
            Level.REPAIR,
            f"orientations agree within {SAME_ORIENTATION_RAD:g} rad",
            f"{angle_rad(cluster[0], main[0]):.2g} rad: {names}",
        ),
    }[code]
    return Finding(code, what[0], what[1], got=what[2], hint="split off")


def _split_phases(images: list[ImageHeader], label: str, code: str, same: SameImage, split: _Split) -> None:
    """Twins dropped; colliding or interleaved acquisitions become stacks of their own."""
    offsets = offsets_mm(images)
    ordered = [images[i] for i in np.argsort(offsets, kind="stable")]
    if np.ptp(offsets) < SAME_PLACE_MM:
        split.findings.append(
            Finding(
                "POSITION_CONSTANT",
                Level.REFUSE,
                "slices lie at different places",
                expected="positions that differ",
                got=f"{len(images)} images within {np.ptp(offsets):.3g} mm",
            )
        )
        return
    ordered = _without_twins(ordered, same, split)
    if _regular(ordered):
        split.stacks.append(Stack(tuple(ordered), label, code))
        return
    for name, key in (("acquisition", lambda i: i.acquisition), ("time", lambda i: i.time or None)):
        groups: dict[Any, list[ImageHeader]] = {}
        for image in ordered:
            groups.setdefault(key(image), []).append(image)
        if _are_phases(list(groups.values())):
            for number, group in enumerate(
                sorted(groups.values(), key=lambda g: str(key(g[0])).zfill(32)), 1
            ):
                suffix = f"{name} {key(group[0])}" if name == "acquisition" else f"phase {number}"
                split.stacks.append(Stack(tuple(group), f"{label} {suffix}".strip(), "PHASES_MIXED"))
            return
    collisions = int(np.count_nonzero(np.diff(offsets_mm(ordered)) < SAME_PLACE_MM))
    if collisions:
        split.findings.append(
            Finding(
                "PHASES_MIXED",
                Level.REFUSE,
                "one image lies at one place",
                expected="acquisition number or time that tells the phases apart",
                got=f"{collisions} places with several different images",
            )
        )
        return
    split.stacks.append(Stack(tuple(ordered), label, code))


def _without_twins(ordered: list[ImageHeader], same: SameImage, split: _Split) -> list[ImageHeader]:
    """Exact copies at one place dropped (row C03), compared with every image kept at that place."""
    offsets = offsets_mm(ordered)
    kept: list[int] = []
    dropped: list[str] = []
    for index, image in enumerate(ordered):
        here = [k for k in kept if offsets[index] - offsets[k] < SAME_PLACE_MM]
        if any(same(ordered[k], image) for k in here):
            dropped.append(image.label)
        else:
            kept.append(index)
    if dropped:
        split.findings.append(
            Finding(
                "SLICE_DUPLICATE",
                Level.REPAIR,
                "every slice is there once",
                expected="one image per place",
                got=f"{len(dropped)} exact copies: {', '.join(dropped[:4])}",
                hint="copies dropped",
            )
        )
    return [ordered[k] for k in kept]


def _regular(ordered: Sequence[ImageHeader]) -> bool:
    steps = np.diff(offsets_mm(ordered))
    if len(steps) == 0 or steps.min() < SAME_PLACE_MM:
        return False
    return bool(np.abs(steps - np.median(steps)).max() <= 0.03 * np.median(steps) + 0.01)


def _are_phases(groups: list[list[ImageHeader]]) -> bool:
    """True when each group is a regular stack by itself and they cover the same stretch of the body.

    Groups end to end are one scan in steps, not phases; what is missing between them is judged with the
    positions.
    """
    if len(groups) < 2 or any(len(g) < MIN_SLICES or not _regular(g) for g in groups):
        return False
    normal = axes_of(groups[0][0])[2]
    spans = [[float(np.dot(i.plane.position or (0.0,) * 3, normal)) for i in (g[0], g[-1])] for g in groups]
    ends = [(min(s), max(s)) for s in spans]
    shared = min(high for _, high in ends) - max(low for low, _ in ends)
    return shared > 0.5 * min(high - low for low, high in ends)
