"""Readings without a scan, for exams of what is made of a reading. Synthetic.

Which findings a reading has, a phantom's plan says; places, volumes, probabilities and what of the organs is
in the field of view are drawn, so that they go together as in a reading of a scan.
"""

from __future__ import annotations

import numpy as np

from hilum.phantom.draw import draw_plan
from hilum.read.found import FindingReading, Side, Where
from hilum.read.reading import Coverage, OrganReading
from hilum.text.vocabulary import FINDINGS, LOBES, ORGAN_CHANNELS, FindingName

ORGAN_ML = {
    "lung": 4500.0, "airways": 60.0, "pleura": 350.0, "mediastinum": 450.0, "heart": 650.0,
    "oesophagus": 30.0, "global": 12000.0,
}  # fmt: skip
"""About an adult's."""
LOBED = ("lung", "airways", "pleura")
DrawnReading = tuple[list[FindingReading], list[OrganReading], Coverage]


def plan_reading(seed: int, *, calibrated: bool = True) -> DrawnReading:
    """Findings, organs and coverage of one imagined scan, a function of the seed."""
    present = {finding.slug for finding in draw_plan(seed).findings}
    rng = np.random.default_rng([seed, 31])
    findings = [_finding(known, known.slug in present, rng, calibrated) for known in FINDINGS]
    organs = [
        OrganReading(name=name, label=n + 1, volume_ml=_organ_ml(name, rng), source="model")
        for n, name in enumerate(ORGAN_CHANNELS)
    ]
    cut = bool(rng.random() < 0.2)
    return findings, organs, _coverage(cut, float(rng.uniform(0.4, 0.9)) if cut else 1.0)


def _organ_ml(name: str, rng: np.random.Generator) -> float:
    """Now and then an organ is not in the field of view."""
    unseen = name not in ("lung", "global") and rng.random() < 0.05
    return 0.0 if unseen else round(ORGAN_ML[name] * float(rng.uniform(0.7, 1.3)), 1)


def _finding(known: FindingName, present: bool, rng: np.random.Generator, calibrated: bool) -> FindingReading:
    threshold = round(float(rng.uniform(0.2, 0.6)), 4)
    span = (threshold, 1.0) if present else (0.0, threshold - 1e-3)
    where = _where(known, rng) if present else None
    return FindingReading(
        slug=known.slug, name=known.name, probability=round(float(rng.uniform(*span)), 4),
        threshold=threshold, map_threshold=0.5, calibrated=calibrated, present=present, organ=known.organ,
        volume_ml=None if where is None else round(float(np.exp(rng.uniform(-1.5, 6))), 3), where=where,
    )  # fmt: skip


def _where(known: FindingName, rng: np.random.Generator) -> Where:
    x, y, z = (round(float(v), 2) for v in rng.normal(0, 80, 3))
    half = float(np.exp(rng.uniform(0.7, 4)))
    low, high = (x - half, y - half, z - half), (x + half, y + half, z + half)
    sides: list[Side] = ["right", "left", "both"]
    sides += [] if known.organ in LOBED else ["midline"]
    side, found = sides[int(rng.integers(len(sides)))], bool(rng.random() < 0.95)
    lobed = known.organ in LOBED
    lobe = str(rng.choice([n for n in LOBES if side not in ("right", "left") or n.startswith(side)]))
    return Where(
        peak_mm_ras=(x, y, z), peak_mm_lps=(-x, -y, z), centroid_mm_ras=(x, y, z),
        centroid_mm_lps=(-x, -y, z), box_mm_ras=(low, high),
        box_mm_lps=((-high[0], -high[1], low[2]), (-low[0], -low[1], high[2])), extent_mm=round(2 * half, 1),
        peak_voxel=(0, 0, 0), slice_index=int(rng.integers(0, 400)), image=None, side=side,
        lobe_estimate=lobe if lobed else None, lobe_basis="lobe masks" if lobed else None,
        pieces=int(rng.integers(1, 6)) if found else 0, above_threshold=found,
    )  # fmt: skip


def _coverage(cut: bool, fraction: float) -> Coverage:
    return Coverage(
        lung_ml=4500.0, aerated_ml=4200.0, fraction=round(fraction, 2), cut_top=cut, cut_bottom=False,
        cut_sides=False, complete=not cut,
    )  # fmt: skip
