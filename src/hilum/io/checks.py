"""What checks found, and what that means under a mode: a reader never decides by itself whether to stop.

A check is a small function that returns a `Finding` or None. A reader hands it to its `Docket`, which records
it and raises where the mode says so. `hilum check` runs the same readers with a docket that raises only on
what cannot be decoded: so an inspection can never say something else than a reading does.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hilum.errors import ContainerError, HeaderError, HilumError, InputRefused
from hilum.geometry import Geometry, axis_map
from hilum.io.limits import Answers, Limits, Mode
from hilum.volume import Finding, Level

IN_PLANE_FOV_MM = (150, 700)
LENGTH_FOV_MM = (100, 900)
STOPS_AT: dict[Mode, Level] = {"refuse": Level.REPAIR, "repair": Level.ASK}


def stops(finding: Finding, mode: Mode) -> bool:
    """True when this finding ends a reading in this mode; in `report-only` none does."""
    return mode in STOPS_AT and finding.level >= STOPS_AT[mode]


def to_error(
    finding: Finding, path: str | Path | None = None, kind: type[HilumError] = HeaderError
) -> HilumError:
    """The finding as an exception of `kind`, with the same parts."""
    where = finding.where or (None if path is None else str(path))
    return kind(
        finding.code,
        finding.rule,
        expected=finding.expected or None,
        got=finding.got or None,
        path=where,
        hint=finding.hint or None,
    )


def to_finding(error: HilumError) -> Finding:
    """An exception as a finding of level REFUSE, with the same parts."""
    return Finding(
        error.code,
        Level.REFUSE,
        error.rule,
        expected=error.expected or "",
        got=error.got or "",
        hint=error.hint or "",
        where=error.path or "",
    )


@dataclass
class Docket:
    """Everything found about one input while it is read.

    Args:
        mode: what stops (see `Mode`).
        path: named in errors.
        error: exception class of refusals (`HeaderError`, `SeriesError`, ...).
        kind: ``nifti``, ``nrrd``, ``npz``, ``dicom``; set by the reader.
        geometry: the grid as stored, once known.
        candidates: what the user may choose from (DICOM series), one dict of plain values each.
        plan: in words, what reading does or would do to the data.
    """

    mode: Mode = "repair"
    path: str | None = None
    error: type[InputRefused] = HeaderError
    kind: str = ""
    geometry: Geometry | None = None
    findings: list[Finding] = field(default_factory=list)
    candidates: list[dict[str, Any]] = field(default_factory=list)
    plan: list[str] = field(default_factory=list)

    def add(self, found: Finding | Iterable[Finding] | None, error: type[InputRefused] | None = None) -> None:
        """Records findings (None: nothing was wrong).

        Raises:
            InputRefused: of class `error` (default: the docket's), when the mode says that a finding stops.
        """
        if found is None:
            return
        for finding in [found] if isinstance(found, Finding) else found:
            self.findings.append(finding)
            if stops(finding, self.mode):
                raise to_error(finding, self.path, error or self.error)

    def will(self, step: str) -> None:
        """Records one step of what reading does, in words."""
        if step not in self.plan:
            self.plan.append(step)


@dataclass(frozen=True)
class Inspection:
    """What `inspect` says about an input. Never raised, always returned.

    Args:
        path: as given.
        kind: ``nifti``, ``nrrd``, ``npz``, ``dicom`` or ``""`` when it is none of them.
        mode: the mode that `refused` is judged by.
        findings: worst first, otherwise in the order found.
        geometry: the grid as stored; None when none could be trusted.
        candidates: what the user may choose from (DICOM series).
        plan: in words, what reading does or would do.
        refused: True when `open_volume` with the same mode and answers raises.
        stopping: the findings that make it so.
    """

    path: str
    kind: str
    mode: Mode
    findings: tuple[Finding, ...]
    geometry: Geometry | None
    candidates: tuple[dict[str, Any], ...]
    plan: tuple[str, ...]
    refused: bool
    stopping: tuple[Finding, ...]

    @classmethod
    def of(cls, docket: Docket, mode: Mode, fatal: HilumError | None) -> Inspection:
        """Judges under `mode` what a docket collected in `report-only`; `fatal` ended the reading."""
        found = list(docket.findings)
        fatal_finding = None if fatal is None else to_finding(fatal)
        if fatal_finding is not None:
            # What ended the reading may already be on the docket with fewer words.
            found = [f for f in found if f.code != fatal_finding.code] + [fatal_finding]
        stopping = tuple(f for f in found if f is fatal_finding or stops(f, mode))
        return cls(
            path=docket.path or "",
            kind=docket.kind,
            mode=mode,
            findings=tuple(sorted(found, key=lambda f: -f.level)),
            geometry=docket.geometry,
            candidates=tuple(docket.candidates),
            plan=tuple(docket.plan),
            refused=bool(stopping),
            stopping=stopping,
        )

    def as_dict(self) -> dict[str, Any]:
        """For `--json`. Lengths in mm."""
        return {
            "path": self.path,
            "kind": self.kind,
            "mode": self.mode,
            "refused": self.refused,
            "stopping": [f.code for f in self.stopping],
            "findings": [f.as_dict() for f in self.findings],
            "geometry": None if self.geometry is None else describe_grid(self.geometry),
            "candidates": [dict(c) for c in self.candidates],
            "plan": list(self.plan),
        }


def describe_grid(geometry: Geometry) -> dict[str, Any]:
    """Shape, spacing and extent in mm, stored axes and affine of a grid, as plain values."""
    return {
        "shape": list(geometry.shape),
        "spacing_mm": [round(s, 6) for s in geometry.spacing_mm],
        "extent_mm": [round(e, 3) for e in geometry.extent_mm],
        "stored_axes": geometry.axcodes,
        "affine_ras": geometry.affine_ras.tolist(),
    }


def check_shape(shape: Iterable[int], limits: Limits, where: str = "") -> None:
    """Axes have voxels and their product is within the budget; called before anything is allocated.

    Raises:
        ContainerError: `DIMS_NONPOSITIVE` or `DIMS_HUGE`. Never a finding: there is nothing to go on with.
    """
    sizes = [int(n) for n in shape]
    if not sizes or min(sizes) < 1:
        raise ContainerError(
            "DIMS_NONPOSITIVE",
            "every axis has voxels",
            expected=">= 1 voxel per axis",
            got=sizes,
            path=where or None,
        )
    if math.prod(sizes) > limits.max_voxels:
        raise ContainerError(
            "DIMS_HUGE",
            "a volume fits the voxel budget",
            expected=f"<= {limits.max_voxels} voxels",
            got=f"{'x'.join(map(str, sizes))} = {math.prod(sizes)} voxels",
            path=where or None,
        )


def check_fov(geometry: Geometry, answers: Answers) -> Finding | None:
    """B16: a chest CT is 150-700 mm wide and 100-900 mm long; anything else is most often a wrong header.

    In-plane are the two array axes nearest to left-right and front-back; the third is the length.
    """
    axes = axis_map(geometry)
    right, front, up = (geometry.extent_mm[axis] for axis in axes.order)
    (narrowest, widest), (shortest, longest) = IN_PLANE_FOV_MM, LENGTH_FOV_MM
    if all(narrowest <= e <= widest for e in (right, front)) and shortest <= up <= longest:
        return None
    return Finding(
        "FOV_IMPLAUSIBLE",
        Level.NOTE if answers.accept_fov else Level.ASK,
        "the field of view is that of a chest",
        expected=f"in-plane {narrowest}-{widest} mm, length {shortest}-{longest} mm",
        got=f"{right:.1f} x {front:.1f} mm, length {up:.1f} mm",
        hint="The voxel size in the header may be wrong. If it is right, say so with --accept-fov.",
    )
