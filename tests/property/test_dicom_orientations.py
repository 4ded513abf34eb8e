"""C17: whatever the axes, signs and obliquity, a voxel stays where it is in the patient."""

from __future__ import annotations

import itertools
import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "hostile"))

from fixtures_dicom import chest

from hilum.geometry import AxisMap, Geometry
from hilum.io.dicom_series import read_series
from hilum.io.dicom_write import SeriesHeader, write_ct_series
from hilum.io.limits import Answers

ORDERS = list(itertools.permutations(range(3)))
FLIPS = list(itertools.product((False, True), repeat=3))
SHAPE_RAS = (14, 12, 11)
SPACING_RAS = (20.0, 19.0, 17.0)


def rotation(rng: np.random.Generator, degrees: float) -> np.ndarray:
    """A turn of exactly `degrees` about a random axis."""
    axis = rng.normal(size=3)
    axis /= np.linalg.norm(axis)
    cross = np.array([[0, -axis[2], axis[1]], [axis[2], 0, -axis[0]], [-axis[1], axis[0], 0]])
    angle = np.radians(degrees)
    return np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross


@pytest.mark.parametrize("order", ORDERS, ids=str)
@pytest.mark.parametrize("oblique_deg", [0.0, 13.0])
def test_voxels_stay_in_place(order: tuple[int, int, int], oblique_deg: float, tmp_path: Path) -> None:
    """Write, shuffle the file names, read: same HU at same mm for every voxel, same place for every image."""
    ras = chest(SHAPE_RAS)
    for flips in FLIPS:
        rng = np.random.default_rng(hash((order, flips)) % 2**32)
        axes = AxisMap(order, flips, _source_shape(order))
        hu = np.ascontiguousarray(axes.undo(ras))
        affine = np.eye(4)
        for ras_axis, (source, flip) in enumerate(zip(order, flips, strict=True)):
            affine[:3, source] = 0
            affine[ras_axis, source] = -SPACING_RAS[ras_axis] if flip else SPACING_RAS[ras_axis]
        affine[:3, :3] = rotation(rng, oblique_deg) @ affine[:3, :3]
        affine[:3, 3] = rng.uniform(-300, 300, 3)
        _round_trip(tmp_path / f"{flips}", hu, Geometry(hu.shape, affine), rng)


def _source_shape(order: tuple[int, int, int]) -> tuple[int, int, int]:
    shape = [0, 0, 0]
    for ras_axis, source in enumerate(order):
        shape[source] = SHAPE_RAS[ras_axis]
    return shape[0], shape[1], shape[2]


def _round_trip(
    folder: Path, hu: np.ndarray, geometry: Geometry, rng: np.random.Generator, mode: str = "repair"
) -> None:
    header = SeriesHeader(numbering=("top", "bottom")[int(rng.integers(2))])
    refs = write_ct_series(folder, hu, geometry, header=header)
    for path, name in zip(sorted(folder.iterdir()), rng.permutation(len(refs)), strict=True):
        path.rename(folder / f"{name}.bin")
    volume = read_series(folder, mode=mode, answers=Answers(accept_fov=True))  # type: ignore[arg-type]
    index = np.argwhere(np.ones(hu.shape, dtype=bool))
    place = volume.geometry.to_vox(geometry.to_mm(index))
    assert np.abs(place - np.rint(place)).max() < 1e-6
    found = volume.hu[tuple(np.rint(place).astype(int).T)]
    assert np.array_equal(found, hu[tuple(index.T)])
    written = {ref.sop_uid: ref for ref in refs}
    assert len(volume.provenance.slices) == len(refs)
    for k, ref in enumerate(volume.provenance.slices):
        twin = written[ref.sop_uid]
        assert np.allclose(ref.position_mm, twin.position_mm, atol=1e-6)
        assert ref.instance_number == twin.instance_number
        middle = [(n - 1) / 2 for n in volume.source.shape[:2]]
        assert np.allclose(volume.source.to_mm(np.array([[*middle, k]]))[0], ref.position_mm, atol=1e-6)


@pytest.mark.parametrize("degrees", [-20.0, 5.0])
@pytest.mark.parametrize("flips", [(False, False, False), (True, True, False), (True, False, True)])
def test_tilted_voxels_stay_in_place(degrees: float, flips: tuple[bool, bool, bool], tmp_path: Path) -> None:
    """C02: as stored (report-only) a tilted stack keeps its shear; the sign follows the positions."""
    ras = chest(SHAPE_RAS)
    hu = np.ascontiguousarray(AxisMap((0, 1, 2), flips, SHAPE_RAS).undo(ras))
    affine = np.diag([s * (-1 if f else 1) for s, f in zip(SPACING_RAS, flips, strict=True)] + [1.0])
    affine[1, 2] = SPACING_RAS[2] * np.tan(np.radians(degrees))
    _round_trip(tmp_path / "t", hu, Geometry(hu.shape, affine), np.random.default_rng(3), mode="report-only")
