"""Plans are reproducible, within their ranges, and change only where they are asked to."""

import dataclasses
from collections import Counter

import pytest

from hilum.errors import UsageError
from hilum.phantom.draw import CT_RATE_PREVALENCE, PREVALENCE, T_SIZES_MM, draw_plan
from hilum.phantom.plan import DEGREES
from hilum.text.vocabulary import GATES, INDEX, SLUGS

PLANS = [draw_plan(seed) for seed in range(1500)]


def test_equal_seeds_equal_plans():
    assert draw_plan(7) == draw_plan(7)
    assert draw_plan(7) != draw_plan(8)


def test_tables_follow_the_vocabulary():
    assert tuple(CT_RATE_PREVALENCE) == SLUGS
    assert min(PREVALENCE.values()) == 0.12 and max(PREVALENCE.values()) == 0.35


@pytest.mark.parametrize("slug", SLUGS)
def test_prevalence(slug):
    share = sum(any(f.slug == slug for f in p.findings) for p in PLANS) / len(PLANS)
    assert abs(share - 0.88 * PREVALENCE[slug]) < 0.04


def test_ranges():
    for plan in PLANS:
        patient, scanner = plan.patient, plan.scanner
        assert 0.85 <= patient.size <= 1.15 and 5 <= patient.fat_mm <= 40
        assert 0.2 <= patient.breathing <= 1 and abs(patient.rotation_deg) <= 8
        assert 25 <= patient.age_years <= 88 and 0 <= patient.kyphosis <= 1
        assert 0.6 <= scanner.spacing_mm[0] <= 0.98 and 0.6 <= scanner.spacing_mm[2] <= 5
        assert 8 <= scanner.noise_hu <= 45 and 0 <= scanner.motion_mm <= 4 and scanner.tilt_deg == 0
        assert 0.8 <= scanner.z_cover <= 1 and scanner.padding_hu in (-1024, -2000, -3024)


def test_heart_is_large_exactly_with_cardiomegaly():
    for plan in PLANS:
        degree = {f.slug: f.degree for f in plan.findings}.get("cardiomegaly")
        low = {"mild": 1.18, "moderate": 1.28, "severe": 1.40}.get(degree or "")
        if low is None:
            assert 0.85 <= plan.patient.heart_size <= 1.03
        else:
            assert low <= plan.patient.heart_size <= low + 0.1


def test_degrees_and_normals():
    counts = Counter(f.degree for p in PLANS for f in p.findings)
    assert all(abs(counts[d] / counts.total() - 1 / 3) < 0.03 for d in DEGREES)
    assert (
        0.11 < sum(not p.findings for p in PLANS) / len(PLANS) < 0.21
    )  # 12 % by choice, some more by chance


def test_calcification_follows_age():
    old = [p for p in PLANS if p.patient.age_years > 70]
    young = [p for p in PLANS if p.patient.age_years < 45]

    def share(plans):
        return sum(any(f.slug == "coronary_calcification" for f in p.findings) for p in plans) / len(plans)

    assert share(old) > share(young)


def test_tumours_have_sizes_of_their_stage():
    tumours = [p.tumour for p in PLANS if p.tumour]
    nodules = [p for p in PLANS if any(f.slug == "lung_nodule" for f in p.findings)]
    assert 0.3 < len(tumours) / len(nodules) < 0.5
    assert {t.t_stage for t in tumours} == set(T_SIZES_MM)
    for t in tumours:
        if not t.invades and not t.satellites:
            low, high = T_SIZES_MM[t.t_stage]
            assert low <= t.diameter_mm <= high


def test_asking_changes_nothing_else():
    drawn, asked = draw_plan(11), draw_plan(11, spacing_mm=5.0, findings=["emphysema"])
    assert asked.patient.size == drawn.patient.size and asked.scanner.noise_hu == drawn.scanner.noise_hu
    assert asked.scanner.spacing_mm == (*drawn.scanner.spacing_mm[:2], 5.0)
    assert [f.slug for f in asked.findings] == ["emphysema"]
    assert draw_plan(11, findings=[]).findings == ()
    assert draw_plan(11, spacing_mm=(3.0, 3.0, 3.0)).scanner.spacing_mm == (3.0, 3.0, 3.0)


def test_siblings_share_the_patient_and_not_the_findings():
    first, second = draw_plan(7, prevalence=0.5), draw_plan(7, prevalence=0.5, sibling=1)
    assert first.patient == second.patient
    assert dataclasses.replace(first.scanner, seed=0) == dataclasses.replace(second.scanner, seed=0)
    assert {f.slug for f in first.findings} != {f.slug for f in second.findings}
    assert first.key != second.key
    for seed in range(40):
        enlarged = {
            any(f.slug == "cardiomegaly" for f in draw_plan(seed, prevalence=0.5, sibling=k).findings)
            for k in range(3)
        }
        assert len(enlarged) == 1, "the heart is part of the anatomy"


def test_prevalence_is_the_share_of_each_finding():
    drawn = Counter(f.slug for seed in range(400) for f in draw_plan(seed, prevalence=0.3).findings)
    assert all(0.2 < drawn[slug] / 400 < 0.4 for slug in SLUGS)


def test_degree_rules():
    every = list(SLUGS)
    assert {f.degree for f in draw_plan(1, findings=every, degrees="severe").findings} == {"severe"}
    assert {f.degree for f in draw_plan(1, findings=every, degrees={"mild": 1.0}).findings} == {"mild"}
    named = draw_plan(1, findings=every, degrees={"emphysema": "severe", "atelectasis": "mild"})
    assert {f.slug: f.degree for f in named.findings}["emphysema"] == "severe"


@pytest.mark.parametrize(
    "arguments",
    [
        {"degrees": "awful"},
        {"findings": ["flu"]},
        {"spacing_mm": 0.0},
        {"degrees": {"flu": "mild"}},
        {"degrees": {"mild": 0.0}},
    ],
)
def test_refuses(arguments):
    with pytest.raises(UsageError):
        draw_plan(1, **arguments)


def test_a_follow_up_has_the_same_lesions_but_for_what_came_or_went():
    for seed in range(6):
        first, second = (draw_plan(seed, prevalence=0.4, sibling=k, changes=3) for k in (0, 2))
        assert first == draw_plan(seed, prevalence=0.4)
        assert second.patient == first.patient and second.scanner.seed != first.scanner.seed
        before, after = ({f.slug: f for f in plan.findings} for plan in (first, second))
        changed = [set(GATES[INDEX[slug]]) for slug in before.keys() ^ after.keys()]
        assert len(changed) == 3 and len(set.union(*changed)) == sum(map(len, changed)), "in different organs"
        assert all(before[slug] == after[slug] for slug in before.keys() & after.keys())
        assert ("cardiomegaly" in before) == ("cardiomegaly" in after)
