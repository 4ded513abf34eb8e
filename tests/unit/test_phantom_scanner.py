"""The scanner: grids and masks that tell the truth, padding, tilt, cover, noise, kernels."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from hilum.errors import UsageError
from hilum.phantom.anatomy import build_scene
from hilum.phantom.plan import PhantomPlan, Scanner
from hilum.phantom.scanner import Scan, resample, scan
from hilum.phantom.scene import LesionTruth, Scene

QUIET = Scanner(spacing_mm=(3.0, 3.0, 4.0), fov_mm=420.0, noise_hu=0.0, table=False)


@pytest.fixture(scope="module")
def scene() -> Scene:
    return build_scene(PhantomPlan("test", 1), work_mm=4.0)


def centre_mm(result: Scan, name: str) -> np.ndarray:
    return result.geometry.to_mm(result.mask(name).nonzero().double().mean(0, keepdim=True).numpy())[0]


@pytest.mark.parametrize("spacing", [(0.6, 0.6, 5.0), (1.0, 1.0, 1.0), (5.0, 5.0, 5.0)])
def test_spacing_and_masks(scene: Scene, spacing: tuple[float, float, float]) -> None:
    fov = 120.0 if min(spacing) <= 1.0 else 420.0
    result = scan(scene, replace(QUIET, fov_mm=fov), spacing)
    assert result.geometry.spacing_mm == pytest.approx(spacing)
    assert tuple(result.hu.shape) == result.geometry.shape == tuple(result.valid.shape)
    assert result.geometry.axcodes == "RAS"
    assert torch.equal(result.hu, result.hu.round()) and result.hu.dtype == torch.float32
    lung = result.mask("lung") & result.valid
    assert float(result.hu[lung].mean()) < -650


def test_masks_keep_volume_and_place(scene: Scene) -> None:
    result = scan(scene, QUIET)
    for name in ("lung", "heart", "liver", "body"):
        truth = scene.regions[name]
        expected = int(truth.sum()) * scene.grid.voxel_ml
        assert int(result.mask(name).sum()) * result.geometry.voxel_ml == pytest.approx(expected, rel=0.05), (
            name
        )
        here = scene.grid.to_mm(truth.nonzero().double().mean(0, keepdim=True).numpy())[0]
        assert np.abs(centre_mm(result, name) - here).max() < 2.0, name
    inner = result.mask("lung") & ~result.mask("vessels")
    assert float((result.hu[inner] < -500).float().mean()) > 0.9


@pytest.mark.parametrize("tilt", [0.0, 15.0])
def test_a_mask_is_drawn_from_its_box_alone(scene: Scene, tilt: float) -> None:
    result = scan(scene, replace(QUIET, tilt_deg=tilt, fov_mm=160.0))
    small = torch.zeros_like(scene.regions["lung"])
    small[40:43, 30:33, -2:] = True
    for name in ("heart", "body", "oesophagus", "lung_left"):
        whole = resample(scene.regions[name].float(), scene.grid, result.geometry) >= 0.5
        assert torch.equal(result.mask(name), whole), name
    assert torch.equal(result._resample(small), resample(small.float(), scene.grid, result.geometry) >= 0.5)
    beyond = torch.zeros_like(small)
    beyond[:2, :2, :2] = True
    assert not result._resample(beyond).any(), "nothing of it lies in the field of view"


@pytest.mark.parametrize("tilt", [-12.0, 15.0])
def test_tilted_geometry_is_truthful(scene: Scene, tilt: float) -> None:
    straight, tilted = scan(scene, QUIET), scan(scene, replace(QUIET, tilt_deg=tilt))
    column = tilted.geometry.affine_ras[:3, 1]
    assert column[2] / column[1] == pytest.approx(np.tan(np.deg2rad(tilt)))
    assert tilted.geometry.spacing_mm == pytest.approx((3.0, 3.0, 4.0))
    for name in ("heart", "lung_left"):
        assert np.abs(centre_mm(straight, name) - centre_mm(tilted, name)).max() < 3.0, name
    # A voxel of the tilted scan shows what the scene holds at the place the affine says.
    index = tilted.mask("heart").nonzero()[::97]
    world = tilted.geometry.to_mm(index.numpy())
    at = np.round(scene.grid.to_vox(world)).astype(int)
    heart = scene.regions["heart"][at[:, 0], at[:, 1], at[:, 2]]
    assert float(heart.float().mean()) > 0.9


def test_padding_and_field_of_view(scene: Scene) -> None:
    result = scan(scene, replace(QUIET, fov_mm=300.0, padding_hu=-2000))
    assert bool((result.hu[~result.valid] == -2000).all()) and not bool(result.valid[0, 0].any())
    assert float(result.hu[result.valid].min()) >= -1024


def test_partial_cover(scene: Scene) -> None:
    whole = scan(scene, QUIET).geometry
    patients = [replace(scene.plan, patient=replace(scene.plan.patient, shape_seed=s)) for s in range(6)]
    halves = [scan(replace(scene, plan=plan), replace(QUIET, z_cover=0.6)).geometry for plan in patients]
    low, high = whole.to_mm(np.zeros((1, 3)))[0, 2], whole.to_mm(np.array([[0, 0, whole.shape[2] - 1]]))[0, 2]
    for g in halves:
        z = g.to_mm(np.array([[0, 0, 0], [0, 0, g.shape[2] - 1]]))[:, 2]
        assert (
            z[0] >= low - 1e-6
            and z[1] <= high + 4.0
            and g.shape[2] == pytest.approx(0.6 * whole.shape[2], abs=2)
        )
    assert len({round(float(g.affine_ras[2, 3])) for g in halves}) == 2, "cut from the top or from the bottom"


def test_noise_is_by_seed_and_by_kernel(scene: Scene) -> None:
    clean = scan(scene, QUIET).hu
    core = scan(scene, QUIET).mask("liver")
    noise = {}
    for kernel in ("smooth", "standard", "sharp"):
        still = scan(scene, replace(QUIET, kernel=kernel)).hu
        a, b, c = (scan(scene, replace(QUIET, kernel=kernel, noise_hu=15.0, seed=s)).hu for s in (1, 1, 2))
        assert torch.equal(a, b) and not torch.equal(a, c)
        noise[kernel] = float((a - still)[core].std())
    assert noise["smooth"] < noise["standard"] < noise["sharp"]
    assert 7 < noise["standard"] < 40
    assert float((clean - scan(scene, replace(QUIET, kernel="sharp")).hu).abs().max()) > 0


def test_breathing_blurs_the_bases_only(scene: Scene) -> None:
    still, moved = scan(scene, QUIET), scan(scene, replace(QUIET, motion_mm=14.0))
    change = (still.hu - moved.hu).abs().mean((0, 1))
    third = len(change) // 3
    assert float(change[:third].mean()) > 5 * float(change[-third:].mean())


def test_table_lies_under_the_back(scene: Scene) -> None:
    without, with_table = scan(scene, QUIET), scan(scene, replace(QUIET, table=True))
    new = (with_table.hu - without.hu) > 100
    assert bool(new.any())
    y = with_table.geometry.to_mm(new.nonzero().numpy())[:, 1]
    assert y.max() < centre_mm(without, "spine")[1]
    assert not bool((new & with_table.mask("body")).any())


def test_tiny_lesion_keeps_a_voxel_and_unknown_names_are_refused(scene: Scene) -> None:
    mask = torch.zeros_like(scene.regions["lung"])
    i, j, k = scene.regions["lung_right"].nonzero()[5000].tolist()
    mask[i, j, k] = True
    lesion = LesionTruth("lung_nodule", mask, "mild")
    result = scan(replace(scene, lesions=[lesion]), QUIET, (5.0, 5.0, 5.0))
    found = result.mask("lesion/lung_nodule")
    assert 1 <= int(found.sum()) <= 2
    place = result.geometry.to_mm(found.nonzero().numpy())[0]
    assert np.abs(place - scene.grid.to_mm(np.array([[i, j, k]]))[0]).max() < 3.6
    with pytest.raises(UsageError, match="PHANTOM_REGION_UNKNOWN"):
        result.mask("tail")
    with pytest.raises(UsageError, match="PHANTOM_REGION_UNKNOWN"):
        result.mask("lesion/emphysema")
    with pytest.raises(UsageError, match="PHANTOM_SCANNER_BAD"):
        scan(scene, QUIET, (0.0, 1.0, 1.0))
