"""The healthy body: sizes and places of organs, what the patient's numbers change, determinism."""

from dataclasses import replace
from functools import lru_cache

import numpy as np
import pytest
import torch

from hilum.phantom.anatomy import build_scene
from hilum.phantom.plan import Patient, PhantomPlan, Scanner
from hilum.phantom.scene import Scene
from hilum.text.vocabulary import LOBES, REGIONS

BODY = PhantomPlan("test", 1)
PROMISED = (
    *LOBES, *REGIONS, "body", "lung_right", "lung_left", "airway_lumen", "airway_wall", "vessels", "liver",
    "left_ventricle", "right_ventricle", "left_atrium", "right_atrium", "myocardium", "aorta", "vena_cava",
    "pulmonary_artery", "spine", "ribs", "sternum", "spleen", "stomach", "muscle", "fat",
)  # fmt: skip


@lru_cache(maxsize=8)
def made(**kwargs: object) -> Scene:
    phase = kwargs.pop("phase", "none")
    plan = replace(BODY, patient=Patient(**kwargs), scanner=Scanner(phase=phase))
    return build_scene(plan, work_mm=4.0)


def ml(scene: Scene, name: str) -> float:
    return int(scene.regions[name].sum()) * scene.grid.voxel_ml


def centre(scene: Scene, name: str) -> np.ndarray:
    return scene.grid.to_mm(scene.regions[name].nonzero().double().mean(0, keepdim=True).numpy())[0]


def test_every_region_is_there_and_has_the_grid() -> None:
    scene = made()
    assert set(PROMISED) <= set(scene.regions)
    for name in PROMISED:
        mask = scene.regions[name]
        assert mask.dtype == torch.bool and tuple(mask.shape) == scene.grid.shape, name
        assert bool(mask.any()), name
    assert scene.hu.dtype == torch.float32 and bool(torch.isfinite(scene.hu).all())


@pytest.mark.parametrize(
    ("name", "low", "high"),
    [("lung", 3000, 7000), ("heart", 450, 950), ("liver", 1000, 2800), ("spleen", 90, 450),
     ("aorta", 120, 400),
     ("oesophagus", 20, 110), ("thyroid", 6, 35), ("left_ventricle", 60, 200), ("body", 14000, 32000)],
)  # fmt: skip
def test_volumes_are_plausible(name: str, low: float, high: float) -> None:
    assert low < ml(made(), name) < high


def test_organs_are_where_they_belong() -> None:
    scene = made()
    heart, liver, spleen = (centre(scene, n) for n in ("heart", "liver", "spleen"))
    spine, sternum, aorta = (centre(scene, n) for n in ("spine", "sternum", "aorta"))
    assert heart[0] < -8, "the heart lies left of the midline"
    assert liver[0] > 20 and spleen[0] < -40, "liver right, spleen left"
    assert spine[1] < heart[1] < sternum[1]
    assert liver[2] < heart[2] < 0, "heart above liver, below the carina"
    assert centre(scene, "lung_right")[0] > 0 > centre(scene, "lung_left")[0]
    assert aorta[0] < 10
    lobes = {n: centre(scene, n) for n in LOBES}
    assert lobes["right upper lobe"][2] > lobes["right middle lobe"][2]
    assert lobes["right middle lobe"][1] > lobes["right lower lobe"][1]
    assert lobes["left upper lobe"][1] > lobes["left lower lobe"][1]


def test_regions_are_nested_as_documented() -> None:
    r = made().regions
    lobes = torch.stack([r[n] for n in LOBES])
    assert bool((lobes.sum(0) <= 1).all()) and bool((lobes.any(0) == r["lung"]).all())
    assert bool(((r["lung_right"] | r["lung_left"]) == r["lung"]).all())
    assert not bool((r["lung_right"] & r["lung_left"]).any())
    for name in ("left_ventricle", "right_ventricle", "left_atrium", "right_atrium", "myocardium"):
        assert not bool((r[name] & ~r["heart"]).any()), name
    for name in PROMISED:
        assert not bool((r[name] & ~r["body"]).any()), name
    for a, b in (
        ("lung", "heart"),
        ("lung", "mediastinum"),
        ("heart", "mediastinum"),
        ("lung", "bone"),
        ("lung", "liver"),
    ):
        assert not bool((r[a] & r[b]).any()), (a, b)
    assert not bool((r["vessels"] & ~r["lung"]).any())


def test_the_heart_lets_bronchi_and_the_root_of_the_aorta_pass() -> None:
    r, voxel_ml = made().regions, made().grid.voxel_ml
    assert int((r["heart"] & (r["airway_lumen"] | r["airway_wall"])).sum()) * voxel_ml < 1.0
    root = r["aorta"] & r["pericardium"]
    assert int(root.sum()) * voxel_ml > 20, "the root lies in the sac"
    assert int((root & r["heart"]).sum()) < 0.2 * int(root.sum()), "only where a coronary leaves it"


def test_the_pulmonary_arteries_belong_to_the_heart_up_to_the_lungs() -> None:
    r, voxel_ml = made().regions, made().grid.voxel_ml
    arteries = r["pulmonary_artery"] & ~r["lung"] & ~r["aorta"]
    assert 40 < int(arteries.sum()) * voxel_ml < 160
    assert int((arteries & r["heart"]).sum()) > 0.9 * int(arteries.sum())


def test_hu_of_tissues() -> None:
    scene = made()
    mean = {n: float(scene.hu[scene.regions[n]].mean()) for n in PROMISED}
    assert -900 < mean["lung"] < -740
    assert 20 < mean["liver"] < 90 and 30 < mean["muscle"] < 80 and -120 < mean["fat"] < -70
    assert mean["bone"] > 180
    assert mean["airway_lumen"] < -780
    assert float(scene.hu[~scene.regions["body"]].max()) == -1000.0
    lung, y = scene.regions["lung_right"] & ~scene.regions["vessels"], scene.axes_mm()[1].expand_as(scene.hu)
    back, front = scene.hu[lung & (y < -60)].mean(), scene.hu[lung & (y > 40)].mean()
    assert back > front, "the dependent lung is denser"


def test_depth_is_zero_outside_and_grows_inwards() -> None:
    scene = made()
    lung = scene.regions["lung"]
    assert float(scene.depth_mm[~lung].abs().max()) == 0.0
    assert float(scene.depth_mm[lung].min()) > 0.0 and 25 < float(scene.depth_mm.max()) < 80


def test_equal_plans_give_equal_scenes_and_seeds_differ() -> None:
    plan = replace(BODY, patient=Patient(shape_seed=5))
    a, b = build_scene(plan, work_mm=6.0), build_scene(plan, work_mm=6.0)
    assert torch.equal(a.hu, b.hu) and a.branches == b.branches
    assert all(torch.equal(a.regions[n], b.regions[n]) for n in a.regions)
    other = build_scene(replace(BODY, patient=Patient(shape_seed=6)), work_mm=6.0)
    assert other.hu.shape != a.hu.shape or not torch.equal(other.hu, a.hu)


def test_shape_does_not_depend_on_the_voxel_size() -> None:
    fine, coarse = made(), build_scene(BODY, work_mm=6.0)
    for name in ("lung", "heart", "liver"):
        assert ml(coarse, name) == pytest.approx(ml(fine, name), rel=0.08), name
        assert np.abs(centre(coarse, name) - centre(fine, name)).max() < 4.0, name


def test_breathing_heart_and_fat_act() -> None:
    lungs = [ml(made(breathing=b), "lung") for b in (0.1, 0.5, 0.9)]
    assert lungs[0] < lungs[1] < lungs[2]
    density = [made(breathing=b) for b in (0.1, 0.9)]
    means = [float(s.hu[s.regions["lung"]].mean()) for s in density]
    assert means[0] > means[1] + 50
    hearts = [ml(made(heart_size=h), "heart") for h in (0.9, 1.0, 1.3)]
    assert hearts[0] < hearts[1] < hearts[2] and hearts[2] > 1.5 * hearts[1]
    assert ml(made(fat_mm=35.0), "fat") > 1.5 * ml(made(fat_mm=8.0), "fat")
    assert ml(made(size=1.1), "lung") > ml(made(), "lung") > ml(made(sex="female"), "lung")


def test_contrast_lights_the_blood() -> None:
    plain, arterial, venous = (made(phase=p) for p in ("none", "arterial", "venous"))
    mean = [
        float(s.hu[s.regions["aorta"] & s.regions["mediastinum"]].mean()) for s in (plain, arterial, venous)
    ]
    assert mean[0] < 60 and mean[1] > 180 and mean[0] + 50 < mean[2] < mean[1]
    left = float(arterial.hu[arterial.regions["left_ventricle"]].mean())
    muscle = float(arterial.hu[arterial.regions["myocardium"]].mean())
    assert left > muscle + 80


def test_trees_fill_their_lobes() -> None:
    scene = made()
    kinds = {b.kind for b in scene.branches}
    assert kinds == {"airway", "artery", "vein", "coronary", "aorta"}
    assert {b.generation for b in scene.branches if b.kind == "airway"} >= {0, 1, 2, 3, 4}
    for lobe in LOBES:
        ends = np.array([b.end_mm for b in scene.branches if b.lobe == lobe and b.kind == "artery"])
        index = np.round(scene.grid.to_vox(ends)).astype(int)
        inside = scene.regions["lung"][tuple(torch.as_tensor(index[:, i]) for i in range(3))].float().mean()
        assert len(ends) > 60 and float(inside) > 0.85, lobe
    radius = {
        g: np.mean([b.radius_mm for b in scene.branches if b.kind == "airway" and b.generation == g])
        for g in range(5)
    }
    assert radius[0] > radius[1] > radius[2] > radius[3] > radius[4]
