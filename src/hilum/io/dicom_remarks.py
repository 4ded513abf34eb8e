"""What the headers of a chosen stack say about how far its HU may be trusted (rows C18, C19, D01-D04, D08,
D13, D15).
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from hilum.errors import PixelError, SeriesError
from hilum.io.checks import Docket
from hilum.io.dicom_header import ImageHeader
from hilum.io.limits import Answers
from hilum.volume import Finding, Level

PROJECTIONS = frozenset(
    {"MIP", "MINIP", "MAX_IP", "MIN_IP", "MAXIP", "MAXIMUM_IP", "MINIMUM_IP", "PROJECTION"}
)
MATERIALS = frozenset(
    [
        "MAT_SPECIFIC",
        "MAT_FRACTIONAL",
        "MAT_VALUE_BASED",
        "EFF_ATOMIC_NUM",
        "ELECTRON_DENSITY",
        "IODINE",
        "IODINE_MAP",
        "EFFECTIVE_Z",
        "Z_EFF",
        "RHO_Z",
        "CALCIUM",
        "URIC_ACID",
        "ED",
        "EDW",
    ]
)
"""ImageType values of maps that look like CT and are not HU (PS3.3 C.8.15.3.1, and what vendors write)."""
ENERGY = ("VMI", "MONO", "MAT_REMOVED", "MAT_MODIFIED", "VNC", "KEV", "DUAL", "DE_")
HU_UNITS = ("", "HU", "US", "HU_MOD")
SHARP = re.compile(
    r"lung|bone|edge|sharp|detail|^b[67]\d|^bl\d|^br[6-9]\d|^br5[6-9]|^fc(5\d|8\d|30)|^y[abc]$|^l$", re.I
)
MAX_SLOPE, MAX_INTERCEPT_HU = 64.0, 1e5


def rescale_of(image: ImageHeader, answers: Answers) -> tuple[float, float]:
    """Slope and intercept of one image: its own, else the user's answer, else none (only reached in
    report-only)."""
    if image.slope is not None and image.intercept is not None:
        return image.slope, image.intercept
    return answers.rescale or (1.0, 0.0)


def remark_on_series(images: Sequence[ImageHeader], docket: Docket, answers: Answers) -> None:
    """Records everything; raises what stops.

    Raises:
        PixelError: `RESCALE_MISSING`, `SLOPE_ZERO`, `SLOPE_ABSURD`, `CONTRAST_KERNEL`.
        SeriesError: `REFORMAT` for projections.
    """
    docket.add(_rescale(images, answers), PixelError)
    docket.add(_kind(images, answers), SeriesError)
    docket.add(_material(images), PixelError)
    docket.add(_notes(images))


def _rescale(images: Sequence[ImageHeader], answers: Answers) -> list[Finding]:
    found = []
    without = [i for i in images if i.slope is None or i.intercept is None]
    if without:
        found.append(
            Finding(
                "RESCALE_MISSING",
                Level.NOTE if answers.rescale else Level.ASK,
                "stored values come with slope and intercept",
                "RescaleSlope and RescaleIntercept",
                f"{len(without)} of {len(images)} images without, first {without[0].label}",
                "taken from --rescale"
                if answers.rescale
                else "If you know them, give --rescale slope,intercept.",
            )
        )
    pairs = {rescale_of(i, answers) for i in images}
    if any(slope == 0 for slope, _ in pairs):
        found.append(Finding("SLOPE_ZERO", Level.REFUSE, "the rescale slope is not zero", "slope > 0", "0"))
    elif any(not 1e-3 <= slope <= MAX_SLOPE or abs(shift) > MAX_INTERCEPT_HU for slope, shift in pairs):
        worst = max(pairs, key=lambda p: (abs(p[0] - 1), abs(p[1])))
        found.append(
            Finding(
                "SLOPE_ABSURD",
                Level.REFUSE,
                "slope and intercept give HU",
                f"slope 0.001 to {MAX_SLOPE:g}",
                f"slope {worst[0]:g}, intercept {worst[1]:g}",
            )
        )
    if len(pairs) > 1:
        found.append(
            Finding(
                "RESCALE_PER_SLICE",
                Level.NOTE,
                "all slices share one rescale",
                "one slope and intercept",
                f"{len(pairs)} pairs",
                "applied slice by slice",
            )
        )
    return found


def _kind(images: Sequence[ImageHeader], answers: Answers) -> list[Finding]:
    kinds = {v for i in images for v in i.image_type}
    shown = "\\".join(images[0].image_type[:5])
    if kinds & PROJECTIONS:
        level = Level.NOTE if answers.allow_mip else Level.ASK
        return [
            Finding(
                "REFORMAT",
                level,
                "slices are slices, not intensity projections",
                "no MIP or MinIP",
                shown,
                "read as asked" if answers.allow_mip else "Read it all the same with --allow-mip.",
            )
        ]
    if kinds & {"MPR", "REFORMATTED", "CSAMPR", "CSA MPR", "CURVED"}:
        return [
            Finding("REFORMAT", Level.NOTE, "slices are as reconstructed by the scanner", "ORIGINAL", shown)
        ]
    return []


def _material(images: Sequence[ImageHeader]) -> list[Finding]:
    kinds = {v for i in images for v in i.image_type}
    units = {i.rescale_type for i in images}
    wrong = sorted(units - set(HU_UNITS))
    if wrong or kinds & MATERIALS:
        return [
            Finding(
                "CONTRAST_KERNEL",
                Level.REFUSE,
                "values are HU, not a material or density map",
                "HU",
                f"unit {wrong[0][:16]}" if wrong else "\\".join(sorted(kinds & MATERIALS)),
            )
        ]
    remarks = [v for v in sorted(kinds) if v.startswith(ENERGY)]
    info = dict(images[0].info)
    remarks += [f"sharp kernel {info['kernel']}"] if SHARP.search(info.get("kernel", "")) else []
    remarks += ["contrast agent"] if info.get("contrast") else []
    if not remarks:
        return []
    return [
        Finding(
            "CONTRAST_KERNEL",
            Level.NOTE,
            "read every score beside kernel, contrast and energy",
            "standard kernel, no contrast",
            ", ".join(remarks),
        )
    ]


def _notes(images: Sequence[ImageHeader]) -> list[Finding]:
    found = []
    position = dict(images[0].info).get("patient_position", "")
    if position not in ("", "HFS", "FFS"):
        found.append(
            Finding(
                "POSITION_PRONE",
                Level.NOTE,
                "the patient lies on the back",
                "HFS or FFS",
                position,
                "orientation taken from the cosines",
            )
        )
    elif position == "FFS":
        found.append(
            Finding(
                "POSITION_PRONE",
                Level.NOTE,
                "the patient enters head first",
                "HFS",
                position,
                "orientation taken from the cosines",
            )
        )
    lossy = [i.lossy for i in images if i.lossy]
    if lossy:
        found.append(
            Finding("LOSSY", Level.NOTE, "images were never compressed with loss", "lossless", lossy[0][:80])
        )
    if any(i.burned_in for i in images):
        found.append(
            Finding(
                "BURNED_IN",
                Level.NOTE,
                "no text is burned into the pixels",
                "NO",
                "YES",
                "Do not share these images: the text may name a person.",
            )
        )
    return found
