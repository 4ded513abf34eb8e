"""However an input is stored, a map lands on the voxel of the input's own grid whose millimetres it has, and
left is left."""

from __future__ import annotations

import itertools
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from scipy.spatial.transform import Rotation

sys.path.insert(0, str(Path(__file__).parents[1] / "unit"))
from readshow_standin import NODULE_MM, Standin, chest, straight_grid

import hilum
from hilum.geometry import Geometry
from hilum.show import album
from hilum.show.cuts import SOFT
from hilum.show.figures import Overlay, figure

BASE = straight_grid((42, 32, 28), (9.0, 9.0, 10.0))
ORDERS = list(itertools.permutations(range(3)))
FLIPS = list(itertools.product((False, True), repeat=3))


def stored(order: tuple[int, ...], flips: tuple[bool, ...], world: np.ndarray | None = None) -> Geometry:
    """`BASE` with its axes stored in another order and direction; `world` turns the patient's axes."""
    matrix, shape = np.zeros((4, 4)), [0, 0, 0]
    matrix[3, 3] = 1.0
    for ras, (axis, flip) in enumerate(zip(order, flips, strict=True)):
        matrix[ras, axis] = -1.0 if flip else 1.0
        matrix[ras, 3] = BASE.shape[ras] - 1 if flip else 0.0
        shape[axis] = BASE.shape[ras]
    affine = BASE.affine_ras @ matrix
    return Geometry((shape[0], shape[1], shape[2]), affine if world is None else world @ affine)


def oblique(degrees: tuple[int, int, int]) -> np.ndarray:
    turned = np.eye(4)
    turned[:3, :3] = Rotation.from_euler("xyz", degrees, degrees=True).as_matrix()
    return turned


def check(grid: Geometry, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(album, "WIDTH_PX", 40)
    volume = chest(grid)
    voxel = np.rint(grid.to_vox(NODULE_MM)[0]).astype(int)
    centre = grid.to_mm(voxel[None])[
        0
    ]  # a voxel's own centre, so that the highest voxel is not a matter of rounding
    reading = hilum.read(volume, model=Standin(bumps={"lung_nodule": centre}, sigma_mm=12.0, grid_mm=6.0))
    where = next(f for f in reading.findings if f.slug == "lung_nodule").where
    assert where is not None
    assert where.peak_voxel == tuple(voxel)
    assert where.slice_index == voxel[reading.scan.grid.slice_axis]
    assert where.side == "left"

    reading.save(out)
    image = nib.load(out / "maps" / "lung_nodule.nii.gz")
    assert image.shape == grid.shape
    assert np.allclose(image.affine, grid.affine_ras, atol=1e-4)
    heat = image.get_fdata()
    assert 0.5 < heat.max() <= 1.0
    assert np.unravel_index(int(heat.argmax()), heat.shape) == tuple(voxel)
    index = np.argwhere(heat > 0)
    weights = heat[heat > 0]
    mean_mm = nib.affines.apply_affine(image.affine, (index * weights[:, None]).sum(0) / weights.sum())
    assert np.linalg.norm(mean_mm - centre) < 1.0

    organs = nib.load(out / "organs.nii.gz")
    assert organs.shape == grid.shape and np.allclose(organs.affine, grid.affine_ras, atol=1e-4)
    lung_mm = nib.affines.apply_affine(organs.affine, np.argwhere(np.asarray(organs.dataobj) == 1))
    expected_mm = grid.to_mm(
        np.argwhere((volume.to_source(volume.hu) < -700) & (volume.to_source(volume.hu) > -950))
    )
    assert np.linalg.norm(lung_mm.mean(0) - expected_mm.mean(0)) < 3.0

    # the nodule is on the patient's left: bright on the right half of an axial and a coronal picture
    material = reading.material
    assert material is not None
    for plane in ("axial", "coronal"):
        overlay = Overlay(material.map_of("lung_nodule"), 0.4)
        plain = np.asarray(figure(volume, plane, tuple(centre), window=SOFT, width_px=120), dtype=int)
        marked = np.asarray(
            figure(volume, plane, tuple(centre), window=SOFT, width_px=120, overlay=overlay), dtype=int
        )
        columns = np.argwhere(np.abs(plain - marked).sum(-1) > 0)[:, 1]
        assert len(columns) and columns.min() > 60


@pytest.mark.parametrize("order", ORDERS, ids=lambda o: "".join(map(str, o)))
def test_all_48_orientations(order: tuple[int, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number, flips in enumerate(FLIPS):
        check(stored(order, flips), tmp_path / str(number), monkeypatch)


@pytest.mark.parametrize(
    "degrees", [(12.0, 0.0, 0.0), (0.0, -10.0, 0.0), (0.0, 0.0, 25.0), (8.0, -7.0, 15.0)]
)
@pytest.mark.parametrize(
    ("order", "flips"), [((0, 1, 2), (True, True, False)), ((2, 0, 1), (False, True, True))]
)
def test_oblique(
    degrees: tuple[int, int, int],
    order: tuple[int, ...],
    flips: tuple[bool, ...],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    check(stored(order, flips, oblique(degrees)), tmp_path / "out", monkeypatch)
