"""Readings of any kind for the tests, each a function of a seed: findings, places, organs, coverage."""

from __future__ import annotations

from typing import Any

import numpy as np

from hilum.read.found import FindingReading, ImageRef, Where
from hilum.read.reading import Coverage, OrganReading
from hilum.text.vocabulary import FINDINGS, LOBES, ORGAN_CHANNELS, FindingName

THIRDS = [f"{t} third of the {s} lung" for t in ("upper", "middle", "lower") for s in ("right", "left")]


def random_reading(seed: int) -> tuple[list[FindingReading], list[OrganReading], Coverage]:
    """All 18 findings, present or not, with or without a place; organs of any size; whole lungs or not."""
    rng = np.random.default_rng(seed)
    calibrated, share = bool(rng.random() < 0.7), rng.random()
    findings = [_finding(known, rng, calibrated, bool(rng.random() < share)) for known in FINDINGS]
    volumes = rng.choice([0.0, 1.9, 25.0, 500.0], len(ORGAN_CHANNELS), p=[0.15, 0.1, 0.1, 0.65])
    organs = [
        OrganReading(name=name, label=i + 1, volume_ml=float(ml), source="model")
        for i, (name, ml) in enumerate(zip(ORGAN_CHANNELS, volumes, strict=True))
    ]
    return findings, organs, coverage(bool(rng.random() < 0.3), bool(rng.random() < 0.3))


def _finding(known: FindingName, rng: np.random.Generator, calibrated: bool, present: bool) -> FindingReading:
    low, high = sorted(round(float(x), 4) for x in rng.random(2))
    where = _place(known, rng) if present and rng.random() < 0.9 else None
    return finding(
        known.slug,
        probability=high if present else low,
        threshold=low if present else high,
        calibrated=calibrated,
        present=present,
        where=where,
        volume_ml=None if where is None else float(rng.choice([0.0, 0.05, 9.96, 14.4, 1234.5])),
    )


def _place(known: FindingName, rng: np.random.Generator) -> Where:
    """As `read.place` makes them: a lobe is of the side, unless both sides are met."""
    in_lung = known.organ in ("lung", "airways", "pleura")
    side = str(rng.choice(["right", "left", "both"] + ([] if in_lung else ["midline"])))
    lobes = [x for x in (*LOBES, *THIRDS) if side == "both" or f"{side} " in x]
    lobe = str(rng.choice(lobes)) if in_lung else None
    x, y, z = (round(float(v), 2) for v in rng.normal(0, 100, 3))
    point, found = (x, y, z), bool(rng.random() < 0.85)
    image = ImageRef(
        series_uid=None, series_number=rng.choice([None, 3]),
        instance_number=rng.choice([None, 87]), sop_uid="1.2",
    )  # fmt: skip
    return Where(
        peak_mm_ras=point, peak_mm_lps=point, centroid_mm_ras=point, centroid_mm_lps=point,
        box_mm_ras=(point, point), box_mm_lps=(point, point), extent_mm=float(rng.integers(1, 300)),
        peak_voxel=(1, 2, 3), slice_index=int(rng.integers(0, 700)),
        image=image if rng.random() < 0.6 else None, side=side, lobe_estimate=lobe,
        lobe_basis=None if lobe is None else "lobe masks" if lobe in LOBES else "lung height",
        pieces=int(rng.integers(1, 40)) if found else 0, above_threshold=found,
    )  # fmt: skip


def coverage(top: bool, sides: bool) -> Coverage:
    """Whole lungs, or lungs cut above or at the sides."""
    return Coverage(
        lung_ml=4000.0, aerated_ml=3900.0, fraction=0.6 if top else 1.0, cut_top=top, cut_bottom=False,
        cut_sides=sides, complete=not (top or sides),
    )  # fmt: skip


def finding(slug: str, **changes: Any) -> FindingReading:
    """One finding, absent at 0.1 unless changed."""
    known = next(f for f in FINDINGS if f.slug == slug)
    basic = {"probability": 0.1, "threshold": 0.5, "map_threshold": 0.5, "calibrated": True, "present": False}
    return FindingReading(slug=slug, name=known.name, organ=known.organ, **{**basic, **changes})
