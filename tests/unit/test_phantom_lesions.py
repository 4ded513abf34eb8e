"""Every finding at every degree, in a toy chest: is it there, is it where the truth says?"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import lru_cache

import numpy as np
import pytest
import torch
from _lesion_scene import toy_scene
from scipy import ndimage
from scipy.spatial import cKDTree

from hilum.phantom.lesions import MAKERS, insert, insert_all, t_stage
from hilum.phantom.lesions._fields import (
    Dice,
    balls,
    cells,
    count,
    dilate,
    noise,
    shrink,
    window_at,
    window_of,
)
from hilum.phantom.lesions._truth import organ_mask
from hilum.phantom.plan import DEGREES, FindingPlan, TumourPlan
from hilum.phantom.scene import LesionTruth, Scene
from hilum.text.vocabulary import FINDINGS, INDEX, LOBES, SLUGS

HEART = {"mild": 1.2, "moderate": 1.3, "severe": 1.45}
NOT_DENSER = ("cardiomegaly", "emphysema", "bronchiectasis", "hiatal_hernia")
CHANGED_SHARE = {
    "cardiomegaly": 0.0,
    "septal_thickening": 0.25,
    "fibrotic_sequela": 0.3,
    "emphysema": 0.25,
    "coronary_calcification": 0.2,
    "arterial_wall_calcification": 0.2,
}
"""Least share of a mask's voxels whose HU moves by more than 15; 0.5 where not listed."""


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Tensors this small are slower on two threads than on one."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@lru_cache(maxsize=8)
def _base(work_mm: float = 5.0, heart: float = 1.0) -> Scene:
    return toy_scene(work_mm, heart=heart)


def _fresh(work_mm: float = 5.0, heart: float = 1.0, **plan: object) -> Scene:
    base = _base(work_mm, heart)
    hu, depth = base.hu.clone(), base.depth_mm.clone()
    return replace(
        base, plan=replace(base.plan, **plan), hu=hu, depth_mm=depth, regions=dict(base.regions), lesions=[]
    )


def _one(slug: str, degree: str, seed: int = 5) -> tuple[Scene, LesionTruth]:
    heart = HEART[degree] if slug == "cardiomegaly" else 1.0
    scene = _fresh(heart=heart)
    truth = insert(scene, FindingPlan(slug, degree, seed))
    assert truth is not None
    return scene, truth


def _assert_regions_agree(scene: Scene) -> None:
    r = scene.regions
    assert torch.equal(r["lung"], r["lung_right"] | r["lung_left"])
    lobes = torch.stack([r[n] for n in LOBES]).sum(0)
    assert int(lobes.max()) <= 1
    assert torch.equal(lobes > 0, r["lung"])
    assert not bool((r["lung"] & r["heart"]).any())
    assert float(scene.depth_mm[~r["lung"]].abs().sum()) == 0.0


def test_registry_is_the_vocabulary() -> None:
    assert sorted(MAKERS) == sorted(SLUGS)


@pytest.mark.parametrize("degree", DEGREES)
@pytest.mark.parametrize("slug", SLUGS)
def test_lesion_is_there_and_inside_its_organ(slug: str, degree: str) -> None:
    before = _fresh(heart=HEART[degree] if slug == "cardiomegaly" else 1.0)
    scene, truth = _one(slug, degree)
    assert truth.slug == slug and truth.degree == degree and scene.lesions == [truth]
    assert bool(truth.mask.any()) and truth.size_mm > 0 and truth.count >= 1
    inside = (truth.mask & organ_mask(scene, slug)).sum() / truth.mask.sum()
    assert float(inside) >= 0.95
    moved = (scene.hu - before.hu).abs() > 15
    share = float((moved & truth.mask).sum() / truth.mask.sum())
    assert share >= CHANGED_SHARE.get(slug, 0.5)
    assert (
        bool(torch.isfinite(scene.hu).all())
        and float(scene.hu.min()) >= -1024
        and float(scene.hu.max()) <= 3071
    )
    _assert_regions_agree(scene)


@pytest.mark.parametrize("slug", [s for s in SLUGS if s not in NOT_DENSER])
def test_mean_hu_rises(slug: str) -> None:
    scene, truth = _one(slug, "severe")
    assert float((scene.hu - _fresh().hu)[truth.mask].mean()) > 20


def test_emphysema_is_darker_and_bronchi_hold_air() -> None:
    scene, truth = _one("emphysema", "severe")
    assert float((scene.hu - _fresh().hu)[truth.mask].mean()) < -30
    scene, truth = _one("bronchiectasis", "severe")
    lumen = truth.mask & scene.regions["airway_lumen"]
    assert float(scene.hu[lumen].median()) < -800 and bool((scene.hu[truth.mask] > -300).any())


@pytest.mark.parametrize("slug", [s for s in SLUGS if s != "lung_nodule"])
def test_degrees_grow(slug: str) -> None:
    volumes = [np.mean([int(_one(slug, d, seed)[1].mask.sum()) for seed in range(3)]) for d in DEGREES]
    assert volumes[0] < volumes[1] < volumes[2]


def test_nodule_degrees_are_sizes() -> None:
    for seed in range(5):
        sizes = [_one("lung_nodule", d, seed)[1].size_mm for d in DEGREES]
        assert 4 <= sizes[0] <= 7 < 8 <= sizes[1] <= 15 < 16 <= sizes[2] <= 30


@pytest.mark.parametrize("slug", SLUGS)
def test_same_seed_same_lesion(slug: str) -> None:
    (a, one), (b, two) = _one(slug, "moderate", 11), _one(slug, "moderate", 11)
    assert torch.equal(a.hu, b.hu) and torch.equal(one.mask, two.mask) and one.attributes == two.attributes
    if slug != "cardiomegaly":
        other, _ = _one(slug, "moderate", 12)
        assert not torch.equal(a.hu, other.hu)


@pytest.mark.parametrize("slug", [f.slug for f in FINDINGS if f.organ in ("lung", "airways", "pleura")])
@pytest.mark.parametrize("seed", [1, 2])
def test_side_and_lobes_are_true(slug: str, seed: int) -> None:
    scene, truth = _one(slug, "mild", seed)
    i, _, _ = np.nonzero(truth.mask.numpy())
    right = float((scene.grid.to_mm(np.stack([i, 0 * i, 0 * i], 1))[:, 0] > 0).mean())
    expected = "right" if right > 0.95 else "left" if right < 0.05 else "both"
    assert truth.side == expected
    shares = {n: float((scene.regions[n] & truth.mask).sum() / truth.mask.sum()) for n in LOBES}
    assert set(truth.lobes) == {n for n, s in shares.items() if s >= 0.05}


def test_fluid_and_pouch_leave_the_lung() -> None:
    healthy = _fresh().regions
    for slug, home in (
        ("pleural_effusion", "pleura"),
        ("pericardial_effusion", "heart"),
        ("hiatal_hernia", "oesophagus"),
    ):
        scene, truth = _one(slug, "severe")
        assert not bool((truth.mask & scene.regions["lung"]).any())
        assert int(scene.regions["lung"].sum()) < int(healthy["lung"].sum())
        assert int(scene.regions[home].sum()) > int(healthy[home].sum())
    scene, truth = _one("pleural_effusion", "moderate")
    y = scene.axes_mm()[1].expand(scene.grid.shape)
    assert float(y[truth.mask].mean()) < float(y[healthy["lung"]].mean()) - 20  # the patient lies on the back


def test_collapsed_lobe_shrinks() -> None:
    scene, truth = _one("atelectasis", "severe", 2)
    lobe = str(truth.attributes["lobe"])
    assert int(scene.regions[lobe].sum()) < 0.6 * int(_fresh().regions[lobe].sum())
    assert truth.lobes == (lobe,)


def test_airways_grow_around_thick_walls() -> None:
    scene, truth = _one("peribronchial_thickening", "severe")
    assert not bool((truth.mask & ~scene.regions["airways"]).any())
    assert int(scene.regions["airways"].sum()) > int(_fresh().regions["airways"].sum())


def test_nothing_planned_nothing_changed() -> None:
    scene = _fresh()
    insert_all(scene)
    assert scene.lesions == [] and torch.equal(scene.hu, _base().hu)


@pytest.mark.parametrize("seed", [0, 1])
def test_all_together_keeps_truth(seed: int) -> None:
    findings = tuple(FindingPlan(s, DEGREES[(i + seed) % 3], seed * 100 + i) for i, s in enumerate(SLUGS))
    scene = _fresh(findings=findings, heart=1.2)
    insert_all(scene)
    assert len({t.slug for t in scene.lesions}) == len(scene.lesions) >= 16
    for truth in scene.lesions:
        assert not bool((truth.mask & ~organ_mask(scene, truth.slug)).any())
    by = {t.slug: t.mask for t in scene.lesions}
    for early in ("emphysema", "lung_opacity", "septal_thickening", "mosaic_attenuation"):
        for late in ("consolidation", "atelectasis", "lung_nodule"):
            if early in by and late in by:
                assert not bool((by[early] & by[late]).any())
    _assert_regions_agree(scene)


@pytest.mark.parametrize(
    ("diameter", "invades", "satellites", "other", "stage"),
    [
        (10, "", 0, False, "T1a"),
        (10.1, "", 0, False, "T1b"),
        (20, "", 0, False, "T1b"),
        (30, "", 0, False, "T1c"),
        (31, "", 0, False, "T2a"),
        (12, "pleura", 0, False, "T2a"),
        (45, "pleura", 0, False, "T2b"),
        (50, "", 0, False, "T2b"),
        (70, "", 0, False, "T3"),
        (25, "chest wall", 0, False, "T3"),
        (15, "", 1, False, "T3"),
        (71, "", 0, False, "T4"),
        (15, "mediastinum", 0, False, "T4"),
        (15, "", 1, True, "T4"),
    ],
)
def test_t_stage(diameter: float, invades: str, satellites: int, other: bool, stage: str) -> None:
    assert t_stage(float(diameter), invades, satellites, other) == stage


@pytest.mark.parametrize(
    "tumour",
    [
        TumourPlan(9.0, "T1a", "", 0, 1),
        TumourPlan(28.0, "T1c", "", 0, 2),
        TumourPlan(25.0, "T2a", "pleura", 0, 3),
        TumourPlan(35.0, "T3", "chest wall", 0, 4),
        TumourPlan(30.0, "T3", "", 2, 5),
        TumourPlan(30.0, "T4", "", 1, 6),
        TumourPlan(45.0, "T4", "mediastinum", 0, 7),
    ],
)
def test_tumour_has_its_stage(tumour: TumourPlan) -> None:
    scene = _fresh(work_mm=3.0, tumour=tumour, findings=(FindingPlan("lung_nodule", "severe", 1),))
    insert_all(scene)
    (truth,) = scene.lesions
    a = truth.attributes
    assert truth.size_mm == tumour.diameter_mm and truth.degree == "severe"
    assert truth.count == 1 + tumour.satellites and a["satellites"] == tumour.satellites
    assert t_stage(truth.size_mm, tumour.invades, tumour.satellites, tumour.t_stage == "T4") == tumour.t_stage
    assert a["t_stage"] == tumour.t_stage
    shell = scene.depth_mm[truth.mask].min() <= 8.0
    assert bool(shell) or tumour.invades == ""
    assert (float(a["outside_lung_ml"]) > 0) == (tumour.invades in ("chest wall", "mediastinum"))
    if tumour.t_stage == "T4" and tumour.satellites:
        homes = [n for n in LOBES if bool((scene.regions[n] & truth.mask).any())]
        assert len(homes) >= 2


def test_ball_has_its_volume() -> None:
    scene = _fresh()
    alpha = balls(scene, torch.tensor([[1.3, 2.1, -20.4], [500.0, 0.0, 0.0]]), torch.tensor([9.0, 9.0]))
    assert float(alpha.sum()) * 125 == pytest.approx(4 / 3 * np.pi * 9**3, rel=0.15)
    assert float(balls(scene, torch.zeros(0, 3), torch.zeros(0)).sum()) == 0


def test_cells_measure_distance_to_the_border() -> None:
    points = torch.rand(3000, 3, generator=torch.Generator().manual_seed(0)) * 60
    edge, value = cells(points, 15.0, Dice(torch.Generator().manual_seed(1)))
    assert float(edge.min()) >= 0 and float(edge.max()) < 15 * 0.87
    i, j = cKDTree(points.numpy()).query_pairs(5.0, output_type="ndarray").T
    apart = (points[i] - points[j]).norm(dim=1)
    # a step shorter than the distance to the border rarely leaves the cell: the border to the second
    # nearest site is nearly always the nearest border
    assert float((value[i] == value[j])[apart < edge[i]].float().mean()) > 0.97
    assert bool((value[i] != value[j]).any()) and len(torch.unique(value)) < 300


@pytest.mark.parametrize("radius", [0, 1, 3])
def test_dilate_is_scipys(radius: int) -> None:
    mask = torch.rand(9, 7, 8, generator=torch.Generator().manual_seed(2)) > 0.97
    expected = ndimage.binary_dilation(mask.numpy(), np.ones((2 * radius + 1,) * 3))
    assert np.array_equal(dilate(mask, radius).numpy(), expected)


def test_shrink_keeps_every_voxel() -> None:
    mask = torch.zeros(7, 5, 4, dtype=torch.bool)
    mask[6, 4, 3] = mask[2, 0, 1] = True
    small = shrink(mask, 2)
    assert small.shape == (4, 3, 2) and count(small) == 2
    assert small.nonzero().tolist() == [[1, 0, 0], [3, 2, 1]]


def test_windows_hold_what_they_should() -> None:
    scene = _fresh()
    mask = torch.zeros(scene.grid.shape, dtype=torch.bool)
    assert window_of(scene, mask) is None
    mask[3:6, 10:12, 7] = True
    window = window_of(scene, mask)
    assert window is not None and window.shape == (3, 2, 1) and bool(window.of(mask).all())
    near = window_at(scene, (0.0, 0.0, 0.0), 10.0)
    assert float(near.x.min()) <= -6 and float(near.x.max()) >= 6
    assert min(window_at(scene, (900.0, 0.0, 0.0), 5.0).shape) >= 1
    field = noise(window_at(scene, (0.0, 0.0, -20.0), 90.0), 12.0, Dice(torch.Generator().manual_seed(3)))
    assert 0.7 < float(field.std()) < 1.3 and abs(float(field.mean())) < 0.3


def test_masks_stay_in_organs_of_the_vocabulary() -> None:
    scene = _fresh()
    assert INDEX["medical_material"] == 0
    union = organ_mask(scene, "medical_material")
    assert not bool((scene.regions["bone"] & ~union).any())
    assert bool((union & ~scene.regions["lung"]).any())
