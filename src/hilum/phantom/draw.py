"""A plan from a seed: which patient, which scanner, which findings. Numbers only, no voxel.

Every group of numbers has a stream of its own: asking for a spacing or for findings changes nothing else.
Sources: prevalence from CT-RATE's training labels; T stages from TNM-8, by size, invasion and satellites.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Literal, get_args

import numpy as np

from hilum.errors import UsageError
from hilum.phantom.plan import (
    DEGREES,
    ContrastPhase,
    Degree,
    FindingPlan,
    Patient,
    PhantomPlan,
    Scanner,
    TumourPlan,
)
from hilum.text.vocabulary import GATES, INDEX, SLUGS

DegreeMix = str | Mapping[str, float] | Mapping[str, str]

CT_RATE_PREVALENCE: dict[str, float] = {
    "medical_material": 0.1020,
    "arterial_wall_calcification": 0.2837,
    "cardiomegaly": 0.1072,
    "pericardial_effusion": 0.0705,
    "coronary_calcification": 0.2476,
    "hiatal_hernia": 0.1420,
    "lymphadenopathy": 0.2534,
    "emphysema": 0.1939,
    "atelectasis": 0.2558,
    "lung_nodule": 0.4548,
    "lung_opacity": 0.3666,
    "fibrotic_sequela": 0.2672,
    "pleural_effusion": 0.1185,
    "mosaic_attenuation": 0.0744,
    "peribronchial_thickening": 0.1034,
    "consolidation": 0.1755,
    "bronchiectasis": 0.0999,
    "septal_thickening": 0.0788,
}
"""Share of CT-RATE's training scans with each finding."""

PREVALENCE = {slug: float(np.clip(rate, 0.12, 0.35)) for slug, rate in CT_RATE_PREVALENCE.items()}
"""Ours: rare findings more often, common ones less, so that each is seen and each is also absent."""

NORMAL_SHARE = 0.12
TUMOUR_SHARE = 0.40
CALCIFICATIONS = ("arterial_wall_calcification", "coronary_calcification")
CARDIOMEGALY_SCALE: dict[Degree, float] = {"mild": 1.18, "moderate": 1.28, "severe": 1.40}
SLICE_MM = {1.0: 0.20, 1.25: 0.10, 1.5: 0.16, 2.0: 0.12, 2.5: 0.08, 3.0: 0.08, 5.0: 0.08}
"""Usual slice spacings and their share; the remaining 18 % lie anywhere in 0.6..5 mm."""

T_SIZES_MM: dict[str, tuple[float, float]] = {
    "T1a": (5.0, 10.0),
    "T1b": (10.5, 20.0),
    "T1c": (20.5, 30.0),
    "T2a": (30.5, 40.0),
    "T2b": (40.5, 50.0),
    "T3": (50.5, 70.0),
    "T4": (70.5, 85.0),
}
"""TNM-8: longest diameter of each stage, when size alone decides."""

T_BY_DEGREE: dict[Degree, tuple[str, ...]] = {
    "mild": ("T1a", "T1b"),
    "moderate": ("T1c", "T2a"),
    "severe": ("T2b", "T3", "T4"),
}


def draw_plan(
    seed: int,
    *,
    degrees: DegreeMix = "default",
    findings: Sequence[str] | None = None,
    spacing_mm: float | tuple[float, float, float] | None = None,
    prevalence: float | None = None,
    sibling: int = 0,
    changes: int | None = None,
    key: str | None = None,
) -> PhantomPlan:
    """One phantom's plan. Equal arguments give equal plans.

    Args:
        seed: of everything.
        degrees: ``default`` (a third each), one of ``DEGREES`` for all, weights
            ``{"mild": 3, "severe": 1}``, or a degree by finding ``{"emphysema": "severe"}``.
        findings: exactly these slugs instead of a draw; an empty list gives a normal chest.
        spacing_mm: x, y, z of the written volume, or z alone; None draws it.
        prevalence: chance of every finding instead of `PREVALENCE`, and no share of normal chests.
        sibling: above 0, the same patient and scanner with other findings (cardiomegaly is the patient's).
        changes: a sibling is a follow-up: so many findings came or went, in different organs if possible; the
            others are the same lesions. None draws a sibling's findings anew.
        key: name of the phantom; by default ``synthetic-<seed>``.

    Raises:
        UsageError: unknown finding, degree or spacing (`OPTION_UNKNOWN`, `SPACING_INVALID`).
    """
    streams = [np.random.default_rng(s) for s in np.random.SeedSequence(abs(int(seed))).spawn(5)]
    patient_rng, scanner_rng, which_rng, degree_rng, seed_rng = streams
    age = int(np.clip(round(patient_rng.normal(58, 15)), 25, 88))
    slugs = _draw_slugs(which_rng, age, prevalence) if findings is None else _checked(findings)
    chosen = _draw_degrees(degree_rng, degrees)
    seeds = seed_rng.integers(0, 2**31 - 1, size=len(SLUGS) + 2)
    shape_seed = int(seeds[-2])
    enlarged = chosen["cardiomegaly"] if "cardiomegaly" in slugs else None
    if sibling and changes is not None:
        own_rng = np.random.default_rng(np.random.SeedSequence((abs(int(seed)), sibling)))
        slugs = slugs ^ _draw_changes(own_rng, changes)
    elif sibling:
        own = np.random.SeedSequence((abs(int(seed)), sibling)).spawn(3)
        which_rng, degree_rng, seed_rng = (np.random.default_rng(s) for s in own)
        if findings is None:
            others = _draw_slugs(which_rng, age, prevalence) - {"cardiomegaly"}
            slugs = others | (slugs & {"cardiomegaly"})
        chosen = _draw_degrees(degree_rng, degrees) | {"cardiomegaly": chosen["cardiomegaly"]}
        seeds = seed_rng.integers(0, 2**31 - 1, size=len(SLUGS) + 2)
    plans = tuple(FindingPlan(s, chosen[s], int(seeds[INDEX[s]])) for s in SLUGS if s in slugs)
    patient = _draw_patient(patient_rng, age, enlarged, shape_seed=shape_seed)
    tumour = _draw_tumour(degree_rng, chosen["lung_nodule"], seed=int(seeds[-1]))
    scanner = _draw_scanner(scanner_rng, patient, spacing_mm)
    return PhantomPlan(
        key=key or f"synthetic-{seed:06d}" + (f"-{sibling}" if sibling else ""),
        seed=int(seed),
        patient=patient,
        findings=plans,
        tumour=tumour if "lung_nodule" in slugs else None,
        scanner=replace(scanner, seed=scanner.seed + sibling),
    )


def _checked(findings: Sequence[str]) -> set[str]:
    """The asked findings, or an error that names the unknown one."""
    for slug in findings:
        if slug not in INDEX:
            raise UsageError(
                "OPTION_UNKNOWN", "a finding is one of the 18", expected=", ".join(SLUGS), got=slug
            )
    return set(findings)


def _draw_changes(rng: np.random.Generator, count: int) -> set[str]:
    """Which findings come or go between two scans of a patient: in different organs as far as there are as
    many, so that what changed in an organ has one name. Cardiomegaly is the patient's."""
    order = [slug for slug in rng.permutation(SLUGS).tolist() if slug != "cardiomegaly"]
    apart: list[str] = []
    taken: set[int] = set()
    for slug in order:
        if taken.isdisjoint(GATES[INDEX[slug]]):
            apart.append(slug)
            taken.update(GATES[INDEX[slug]])
    rest = [slug for slug in order if slug not in apart]
    return set([*apart, *rest][:count])


def _draw_slugs(rng: np.random.Generator, age_years: int, prevalence: float | None) -> set[str]:
    """Each finding on its own; vessels calcify with age (half as often at 25, half as often again at 88)."""
    normal, draws = rng.random() < NORMAL_SHARE, rng.random(len(SLUGS))
    if prevalence is not None:
        return {slug for slug, u in zip(SLUGS, draws, strict=True) if u < prevalence}
    if normal:
        return set()
    old = 0.5 + (age_years - 25) / 63
    rate = {s: PREVALENCE[s] * (old if s in CALCIFICATIONS else 1.0) for s in SLUGS}
    return {slug for slug, u in zip(SLUGS, draws, strict=True) if u < rate[slug]}


def _draw_degrees(rng: np.random.Generator, degrees: DegreeMix) -> dict[str, Degree]:
    """A degree for each of the 18, present or not, so that asking for one leaves the others as they were."""
    weights, fixed = _degree_rule(degrees)
    draws = rng.choice(len(DEGREES), size=len(SLUGS), p=weights)
    return {slug: fixed.get(slug, DEGREES[d]) for slug, d in zip(SLUGS, draws, strict=True)}


def _degree_rule(degrees: DegreeMix) -> tuple[np.ndarray, dict[str, Degree]]:
    """Weights of mild, moderate, severe, and the degrees that are given by name."""
    weights = np.ones(len(DEGREES))
    fixed: dict[str, Degree] = {}
    if isinstance(degrees, str):
        if degrees in DEGREES:
            weights = np.array([float(d == degrees) for d in DEGREES])
        elif degrees != "default":
            raise _unknown_degree(degrees)
    elif set(degrees) <= set(DEGREES):
        weights = np.array([float(degrees.get(d, 0.0)) for d in DEGREES])
    else:
        for slug in _checked(list(degrees)):
            named = [d for d in DEGREES if d == degrees[slug]]
            if not named:
                raise _unknown_degree(degrees[slug])
            fixed[slug] = named[0]
    if weights.sum() <= 0 or (weights < 0).any():
        raise _unknown_degree(degrees)
    return weights / weights.sum(), fixed


def _unknown_degree(got: object) -> UsageError:
    return UsageError(
        "OPTION_UNKNOWN",
        "degrees are a name, weights by name, or a name by finding",
        expected=("default", *DEGREES),
        got=got,
    )


def _draw_patient(rng: np.random.Generator, age: int, enlarged: Degree | None, shape_seed: int) -> Patient:
    """The body; the heart is normal unless cardiomegaly is among the findings."""
    sex: Literal["female", "male"] = "female" if rng.random() < 0.45 else "male"
    mean_size = 0.96 if sex == "female" else 1.03
    normal, extra = rng.uniform(0.85, 1.03), rng.uniform(0.0, 0.1)
    return Patient(
        sex=sex,
        size=float(np.clip(rng.normal(mean_size, 0.06), 0.85, 1.15)),
        fat_mm=float(np.clip(rng.gamma(4.0, 4.5) + 2.0, 5.0, 40.0)),
        muscle=float(np.clip(rng.normal(1.0 - 0.003 * (age - 55), 0.12), 0.7, 1.35)),
        breathing=float(0.2 + 0.8 * rng.beta(3.0, 1.3)),
        rotation_deg=float(np.clip(rng.normal(0.0, 3.0), -8.0, 8.0)),
        heart_size=float(CARDIOMEGALY_SCALE[enlarged] + extra if enlarged else normal),
        kyphosis=float(np.clip(rng.normal(0.15 + 0.006 * (age - 25), 0.15), 0.0, 1.0)),
        age_years=age,
        shape_seed=shape_seed,
    )


def _draw_tumour(rng: np.random.Generator, degree: Degree, seed: int) -> TumourPlan | None:
    """Sometimes a tumour with a stage (TNM-8: the highest of size, invasion and satellites decides)."""
    present, pick, size, path, more = rng.random(5)
    if present >= TUMOUR_SHARE:
        return None
    stages = T_BY_DEGREE[degree]
    stage = stages[int(pick * len(stages))]
    low, high = T_SIZES_MM[stage]
    invades, satellites = "", 0
    if path >= 0.5:
        if stage == "T2a":
            (low, high), invades = (15.0, 30.0), "pleura"
        elif stage == "T3":
            low, high = 25.0, 50.0
            invades, satellites = ("chest wall", 0) if more < 0.5 else ("", 1 + int(more > 0.75))
        elif stage == "T4":
            low, high = 30.0, 70.0
            invades, satellites = ("mediastinum", 0) if more < 0.5 else ("", 1 + int(more > 0.75))
    return TumourPlan(round(float(low + size * (high - low)), 1), stage, invades, satellites, seed)


def _draw_scanner(
    rng: np.random.Generator, patient: Patient, spacing_mm: float | tuple[float, float, float] | None
) -> Scanner:
    """As in archives: a 512 matrix over a field of view around the body or tight on the lungs."""
    body_mm = 320.0 * patient.size + 2.0 * patient.fat_mm
    tight, around, lungs = rng.random() < 0.2, rng.uniform(1.03, 1.15), rng.uniform(0.82, 0.93)
    fov_mm = float(np.clip(body_mm * (lungs if tight else around), 307.0, 500.0))
    in_plane_mm = round(float(np.clip(fov_mm / 512.0, 0.60, 0.98)), 4)
    drawn = (in_plane_mm, in_plane_mm, _draw_slice_mm(rng))
    kernels: tuple[Literal["smooth", "standard", "sharp"], ...] = ("smooth", "standard", "sharp")
    phases: tuple[ContrastPhase, ...] = get_args(ContrastPhase)
    return Scanner(
        spacing_mm=_spacing(spacing_mm, drawn),
        fov_mm=round(fov_mm, 1),
        kernel=kernels[int(rng.choice(3, p=[0.25, 0.45, 0.30]))],
        noise_hu=float(np.exp(rng.uniform(np.log(8.0), np.log(45.0)))),
        phase=phases[int(rng.choice(3, p=[0.60, 0.15, 0.25]))],
        tilt_deg=0.0,
        motion_mm=float(max(0.0, rng.uniform(-4.0, 4.0))),
        padding_hu=int(rng.choice([-1024, -2000, -3024], p=[0.60, 0.20, 0.20])),
        z_cover=float(1.0 if rng.random() < 0.93 else rng.uniform(0.80, 0.97)),
        table=bool(rng.random() < 0.95),
        seed=int(rng.integers(0, 2**31 - 1)),
    )


def _draw_slice_mm(rng: np.random.Generator) -> float:
    """A usual slice spacing, or any between 0.6 and 5 mm."""
    pick, anywhere = rng.random(), rng.uniform(0.6, 5.0)
    for slice_mm, share in SLICE_MM.items():
        pick -= share
        if pick < 0:
            return slice_mm
    return round(float(anywhere), 2)


def _spacing(
    asked: float | tuple[float, float, float] | None, drawn: tuple[float, float, float]
) -> tuple[float, float, float]:
    """What was asked for, else what was drawn; a lone number is z."""
    if asked is None:
        return drawn
    x, y, z = (drawn[0], drawn[1], float(asked)) if isinstance(asked, (int, float)) else asked
    if not all(0.3 <= s <= 20.0 for s in (x, y, z)):
        raise UsageError(
            "SPACING_INVALID", "spacing lies in a range that a chest CT has", expected="0.3..20 mm", got=asked
        )
    return float(x), float(y), float(z)
