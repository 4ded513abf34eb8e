"""Are these numbers Hounsfield units of a chest? Judged on values alone, for every format (rows B09,
B13-B15).

The tests are loose on purpose: real scans have padding of -2000 to -3024 outside the reconstruction circle,
blends of padding and air after somebody resampled them, metal, contrast, and sometimes no air outside a tight
field of view. What they must not pass is a volume that is not HU: a model answers anyway.
"""

from __future__ import annotations

import math

import numpy as np

from hilum.types import MaskVolume, VolumeHU
from hilum.volume import Finding, Level

MODEL_RANGE_HU = (-1024.0, 3071.0)
AIR_HU, AIR_TOLERANCE_HU = -1000.0, 100.0
PADDING_BELOW_HU = -1200.0
"""Nothing scanned is darker: air with noise and sharp kernels stays above."""
MAX_BELOW_AIR = 0.05
"""Share of scanned voxels that may be below `PADDING_BELOW_HU` (blends of padding and air)."""
MIN_AIR_SHARE, MIN_TISSUE_SHARE, MIN_PADDING_SHARE = 0.02, 0.005, 0.001
MIN_AIR_ELSEWHERE = 0.002
LABEL_MAP_VALUES = 64
SAMPLE_VOXELS = 2_000_000
BIN_HU = 10.0


def judge_values(hu: VolumeHU) -> list[Finding]:
    """Everything wrong with the values, worst reason only where several say the same.

    Args:
        hu: float32, axes nearest RAS+ (a view is fine); may hold NaN and infinities.

    Returns:
        Findings of `VOXEL_NAN`, `NOT_HU`, `HU_DOUBLE_RESCALE` (REFUSE) and `HU_RANGE` (NOTE); empty when all
        is well.
    """
    low, high, finite = _limits(hu)
    found = [] if finite else _judge_nonfinite(hu)
    sample = _finite(_sample(hu))
    if sample.size == 0:
        return found
    wrong = _not_hu(sample, low, high) or _off_air(sample, _finite(_outside(hu)), low)
    if wrong is not None:
        return [*found, wrong]
    return [*found, *_beyond_range(hu, low, high)]


def padding_hu(hu: VolumeHU) -> float | None:
    """The constant that stands for "not scanned" (-2048, -3024, ...), or None.

    It is the most frequent value among those darker than anything scanned. Not the smallest one: a resampling
    with overshoot leaves values below it.
    """
    return _padding(hu, _limits(hu)[0])


def scanned_mask(hu: VolumeHU) -> MaskVolume | None:
    """False in padding and where values are not finite, True elsewhere; None when everything was scanned.

    Same axes and memory order as `hu`.
    """
    low, _, finite = _limits(hu)
    padding = _padding(hu, low)
    if padding is None:
        return None if finite else np.isfinite(hu)
    mask = hu > padding + 1.0
    return mask if finite else mask & np.isfinite(hu)


def fill_nonfinite(hu: VolumeHU, value_hu: float = MODEL_RANGE_HU[0]) -> int:
    """Replaces NaN and infinities in place; returns how many there were."""
    if _limits(hu)[2]:
        return 0
    bad = ~np.isfinite(hu)
    hu[bad] = value_hu
    return int(bad.sum())


def air_peak_hu(values: np.ndarray) -> float | None:
    """Most frequent value (10 HU bins) below -300 HU, padding left out; None when less than 1 % is that
    dark."""
    scanned = _scanned(values)
    dark = scanned[scanned < -300.0]
    return None if dark.size < max(0.01 * scanned.size, 1) else (_mode(dark / BIN_HU) + 0.5) * BIN_HU


def _mode(values: np.ndarray) -> float:
    """Most frequent whole part."""
    whole, counts = np.unique(np.floor(values), return_counts=True)
    return float(whole[counts.argmax()])


def _spike(values: np.ndarray) -> float | None:
    dark = values[values < PADDING_BELOW_HU]
    if dark.size == 0:
        return None
    mode = _mode(dark + 0.5)
    return mode if np.mean(np.abs(values - mode) <= 1.0) >= MIN_PADDING_SHARE else None


def _scanned(values: np.ndarray) -> np.ndarray:
    """Without padding; all of them when nothing else is left."""
    padding = _spike(values)
    kept = values if padding is None else values[values > padding + 1.0]
    return kept if kept.size else values


def _finite(values: np.ndarray) -> np.ndarray:
    return values[np.isfinite(values)]


def _limits(hu: VolumeHU) -> tuple[float, float, bool]:
    """Smallest and largest finite value, HU, and whether all are finite; NaN without any finite one."""
    low, high = float(hu.min()), float(hu.max())
    # NaN and infinities show in one of the two, and no mask of the volume's size is made
    if math.isfinite(low) and math.isfinite(high):
        return low, high, True
    finite = hu[np.isfinite(hu)]
    return (float(finite.min()), float(finite.max()), False) if finite.size else (math.nan, math.nan, False)


def _padding(hu: VolumeHU, low: float) -> float | None:
    return _spike(_finite(_sample(hu))) if low < PADDING_BELOW_HU else None


def _sample(hu: VolumeHU) -> np.ndarray:
    """At most about `SAMPLE_VOXELS` values, evenly spaced over all three axes."""
    step = max(1, math.ceil((hu.size / SAMPLE_VOXELS) ** (1 / 3)))
    return hu[::step, ::step, ::step].ravel()


def _outside(hu: VolumeHU) -> np.ndarray:
    """Values on the four sides of the axial field of view: mostly outside the body."""
    sides = [hu[0, :, :], hu[-1, :, :], hu[:, 0, :], hu[:, -1, :]]
    values = np.concatenate([side[:, :: max(1, side.shape[1] // 200)].ravel() for side in sides])
    return values


def _not_hu(sample: np.ndarray, low: float, high: float) -> Finding | None:
    """B15: values that are something else than HU, with the reason it looks so."""
    if low == high:
        reason = f"every voxel is {low:g}"
    elif high - low <= 8.0 and low >= -4.0 and high <= 8.0 and not _few_integers(sample):
        reason = f"values from {low:g} to {high:g}: looks normalised"
    elif low >= 0.0 and _few_integers(sample):
        reason = f"{np.unique(sample).size} whole numbers from {low:g} to {high:g}: looks like a label map"
    elif low >= 0.0 and high <= 255.0:
        reason = f"values from {low:g} to {high:g}: looks like an 8-bit windowed picture"
    elif low >= -200.0:
        reason = (
            f"values from {low:g} to {high:g}, none is air: looks like stored values without their intercept"
        )
    else:
        return None
    return _refuse(
        "NOT_HU", "voxel values are Hounsfield units", "air near -1000 and tissue near 0 HU", reason
    )


def _few_integers(sample: np.ndarray) -> bool:
    if not np.array_equal(sample, np.round(sample)):
        return False
    return bool(np.unique(sample).size <= LABEL_MAP_VALUES)


def _off_air(sample: np.ndarray, outside: np.ndarray, low: float) -> Finding | None:
    """B09 and what is left of B15: where air and tissue lie on the scale."""
    scanned = _scanned(sample)
    below = float(np.mean(scanned < PADDING_BELOW_HU))
    if below > MAX_BELOW_AIR:
        got = f"{below:.0%} of scanned voxels below {PADDING_BELOW_HU:.0f} HU, smallest {low:.0f} HU"
        return _refuse(
            "HU_DOUBLE_RESCALE",
            "nothing scanned is darker than air",
            f"<= {MAX_BELOW_AIR:.0%} of voxels",
            got,
            "The rescale was probably applied twice; use the file as it came from the scanner.",
        )
    peak = air_peak_hu(outside)
    if peak is not None and abs(peak - AIR_HU) > AIR_TOLERANCE_HU and not _tight(outside, scanned):
        got = f"{peak:.0f} HU"
        expected = f"{AIR_HU:.0f} ± {AIR_TOLERANCE_HU:.0f} HU"
        return _refuse("HU_DOUBLE_RESCALE", "the air outside the body is air", expected, got)
    if outside.size and float(np.mean(outside > 500.0)) > 0.5:
        got = f"{np.mean(outside > 500.0):.0%} of the border above 500 HU: looks inverted"
        return _refuse(
            "NOT_HU", "the border of the field of view is air or tissue", "mostly below 500 HU", got
        )
    dark, tissue = _dark_share(scanned), float(np.mean((scanned > -200.0) & (scanned < 300.0)))
    if dark < MIN_AIR_SHARE or tissue < MIN_TISSUE_SHARE:
        got = f"{dark:.2%} of voxels darker than -300 HU, {tissue:.2%} between -200 and 300 HU"
        return _refuse(
            "NOT_HU", "a chest has air and soft tissue", ">= 2 % air or lung, >= 0.5 % tissue", got
        )
    return None


def _dark_share(scanned: np.ndarray) -> float:
    """Share of values below -300 HU, without their most frequent one: that may be padding and not air."""
    dark = scanned[scanned < -300.0]
    return 0.0 if dark.size == 0 else float(np.sum(np.abs(dark - _mode(dark + 0.5)) > 1.0)) / scanned.size


def _tight(outside: np.ndarray, scanned: np.ndarray) -> bool:
    """True when the border lies inside the body, so that what is dark there is lung.

    Then little of the border is dark, or there is air somewhere else (trachea, bronchi, bowel).
    """
    air = float(np.mean(np.abs(scanned - AIR_HU) <= AIR_TOLERANCE_HU))
    return float(np.mean(outside < -300.0)) < 0.2 or air >= MIN_AIR_ELSEWHERE


def _beyond_range(hu: VolumeHU, low: float, high: float) -> list[Finding]:
    """B14: values outside what a model takes; kept as they are, clipped by the preparation."""
    floor, ceiling = MODEL_RANGE_HU
    if low >= floor and high <= ceiling:
        return []
    # part by part: a mask of the whole volume would leave the cache
    below = sum(np.count_nonzero(part < floor) for part in hu) if low < floor else 0
    above = sum(np.count_nonzero(part > ceiling) for part in hu) if high > ceiling else 0
    got = f"{low:.0f} to {high:.0f} HU; {below} voxels below, {above} above"
    expected = f"{floor:.0f} to {ceiling:.0f} HU"
    return [
        Finding(
            "HU_RANGE", Level.NOTE, "values lie in the range of CT; models see them clipped", expected, got
        )
    ]


def _judge_nonfinite(hu: VolumeHU) -> list[Finding]:
    """B13: NaN and infinities outside the body can be filled with air; inside they hide what was there."""
    bad = ~np.isfinite(hu)
    inside = np.argwhere(bad & _inside_body(hu, bad))
    total = int(bad.sum())
    if len(inside):
        where = ", ".join(str(int(i)) for i in inside[0])
        got = f"{len(inside)} of {total} NaN or infinite voxels inside the body, first at RAS index ({where})"
        return [_refuse("VOXEL_NAN", "every voxel of the body has a value", "finite values", got)]
    got = f"{total} NaN or infinite voxels outside the body"
    fix = f"filled with {MODEL_RANGE_HU[0]:.0f} HU"
    return [Finding("VOXEL_NAN", Level.REPAIR, "every voxel has a value", "finite values", got, fix)]


def _inside_body(hu: VolumeHU, bad: MaskVolume) -> MaskVolume:
    """True where the axial slice has body on all four sides; only slices with non-finite values are looked
    at."""
    inside = np.zeros(hu.shape, dtype=bool)
    for z in np.flatnonzero(bad.any(axis=(0, 1))):
        body = np.isfinite(hu[:, :, z]) & (np.nan_to_num(hu[:, :, z], nan=-1024.0) > -500.0)
        sides = np.ones(body.shape, dtype=bool)
        for axis in (0, 1):
            sides &= np.logical_or.accumulate(body, axis=axis)
            sides &= np.flip(np.logical_or.accumulate(np.flip(body, axis), axis=axis), axis)
        inside[:, :, z] = sides
    # A slice that is all NaN has no body to judge by: nothing says that it is outside.
    blind = bad.all(axis=(0, 1))
    inside[:, :, blind] = True
    return inside


def _refuse(code: str, rule: str, expected: str, got: str, hint: str = "") -> Finding:
    return Finding(code, Level.REFUSE, rule, expected, got, hint)
