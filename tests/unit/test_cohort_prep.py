"""Prep: where things land, and the way back."""

import itertools

import numpy as np
import pytest

from hilum.cohort.prep import Prep
from hilum.errors import RunError
from hilum.geometry import Geometry
from hilum.volume import CTVolume, Provenance


def bump_volume(affine: np.ndarray, shape=(60, 50, 40), centre_mm=(20.0, -30.0, 15.0)) -> CTVolume:
    geometry = Geometry(shape, affine)
    index = np.stack(np.meshgrid(*(np.arange(n) for n in shape), indexing="ij"), -1).reshape(-1, 3)
    distance = np.linalg.norm(geometry.to_mm(index) - np.array(centre_mm), axis=1).reshape(shape)
    body = np.linalg.norm((index / (np.array(shape) - 1) - 0.5) / 0.45, axis=1).reshape(shape) < 1
    hu = np.where(body, 0.0, -1000.0) + 1000.0 * np.exp(-((distance / 9.0) ** 2))
    return CTVolume.from_source(hu.astype(np.float32), geometry, Provenance("phantom", "0"))


def orientation_affines():
    for order in itertools.permutations(range(3)):
        for signs in itertools.product((1, -1), repeat=3):
            matrix = np.zeros((4, 4))
            spacing = (2.0, 2.4, 3.0)
            for axis in range(3):
                matrix[order[axis], axis] = signs[axis] * spacing[axis]
            matrix[3, 3] = 1
            shape = np.array((60, 50, 40))
            matrix[:3, 3] = -matrix[:3, :3] @ ((shape - 1) / 2)
            yield matrix


@pytest.mark.parametrize("affine", list(orientation_affines()))
def test_prepared_bump_is_at_its_millimetre(affine):
    volume = bump_volume(affine)
    tensor, trace = Prep().apply(volume)
    peak = np.unravel_index(int(tensor[0, 0].argmax()), trace.grid.shape)
    assert np.linalg.norm(trace.grid.to_mm(np.array(peak))[0] - np.array((20.0, -30.0, 15.0))) < 3.0


@pytest.mark.parametrize("angle_deg", [0.0, 7.0, 25.0])
def test_invert_returns_to_the_source_grid(angle_deg):
    turn = np.eye(4)
    c, s = np.cos(np.radians(angle_deg)), np.sin(np.radians(angle_deg))
    turn[:2, :2] = [[c, -s], [s, c]]
    affine = turn @ next(iter(orientation_affines()))
    volume = bump_volume(affine)
    tensor, trace = Prep().apply(volume)
    back = trace.invert(np.clip(tensor[0, 0].numpy(), 0.2, None) - 0.2)
    assert back.shape == volume.shape
    peak = np.unravel_index(int(back.argmax()), back.shape)
    assert np.linalg.norm(volume.geometry.to_mm(np.array(peak))[0] - np.array((20.0, -30.0, 15.0))) < 3.0


def test_resampling_keeps_a_ramp_in_place():
    geometry = Geometry((40, 40, 40), np.diag([1.0, 1.0, 1.0, 1.0]))
    x = np.arange(40, dtype=np.float32)
    hu = np.broadcast_to(x[:, None, None], (40, 40, 40)).astype(np.float32)
    volume = CTVolume.from_source(hu, geometry, Provenance("phantom", "0"))
    tensor, trace = Prep(multiple=1, margin_mm=0.0).apply(volume)
    mm = trace.grid.to_mm(np.array([[i, 5, 5] for i in range(trace.grid.shape[0])]))[:, 0]
    got = tensor[0, 0, :, 5, 5].numpy() * 1000
    assert np.abs(got - mm)[1:-1].max() < 1e-2


def test_air_outside_is_padding_not_body():
    volume = bump_volume(np.diag([2.0, 2.4, 3.0, 1.0]))
    tensor, trace = Prep().apply(volume)
    assert all(n % 16 == 0 for n in trace.grid.shape)
    assert float(tensor.min()) >= -1.024 - 1e-6


def chest_volume(left_air: bool = True) -> CTVolume:
    """A wide body, two ellipsoid lungs, an arm and a long abdomen; 4 mm voxels."""
    shape = (120, 80, 160)
    index = np.stack(np.meshgrid(*(np.arange(n) for n in shape), indexing="ij"), -1).astype(float)

    def ellipsoid(centre, radii):
        return (((index - np.array(centre)) / np.array(radii)) ** 2).sum(-1) < 1

    hu = np.full(shape, -1000.0, dtype=np.float32)
    hu[(((index[..., :2] - (60, 40)) / (45, 30)) ** 2).sum(-1) < 1] = 30.0
    hu[ellipsoid((82, 40, 110), (17, 20, 30))] = -800.0
    if left_air:
        hu[ellipsoid((38, 40, 110), (17, 20, 30))] = -800.0
    return CTVolume.from_source(
        hu, Geometry(shape, np.diag([4.0, 4.0, 4.0, 1.0])), Provenance("phantom", "0")
    )


@pytest.mark.parametrize("left_air", [True, False])
def test_the_grid_is_the_chest_with_both_sides(left_air):
    volume = chest_volume(left_air)
    tensor, trace = Prep(spacing_mm=4.0).apply(volume)
    low, high = trace.grid.to_mm(np.array([[0, 0, 0], np.array(trace.grid.shape) - 1]))
    assert low[0] <= (38 - 17) * 4 and high[0] >= (82 + 17) * 4, "both lungs' places"
    assert low[2] >= 16.0, "most of a long abdomen is left out"
    assert high[2] >= (110 + 30) * 4
    assert tensor.shape[2:] == trace.grid.shape


def test_without_lungs_the_grid_is_the_body():
    volume = bump_volume(np.diag([2.0, 2.4, 3.0, 1.0]))
    _, trace = Prep(multiple=1).apply(volume)
    assert trace.grid.extent_mm[2] >= 0.95 * volume.geometry.extent_mm[2]


def test_another_scan_of_the_field_goes_on_the_same_grid():
    first, second = chest_volume(), chest_volume(left_air=False)
    _, trace = Prep(spacing_mm=4.0).apply(first)
    tensor, like = Prep(spacing_mm=4.0).apply_like(second, trace)
    assert np.array_equal(like.grid.affine_ras, trace.grid.affine_ras)
    own, own_trace = Prep(spacing_mm=4.0).apply(second)
    at = np.round(trace.grid.to_vox(own_trace.grid.to_mm(np.array([20, 20, 20])))[0]).astype(int)
    assert tensor[0, 0, *at] == own[0, 0, 20, 20, 20]
    with pytest.raises(RunError, match="GRID_MISMATCH"):
        Prep(spacing_mm=4.0).apply_like(bump_volume(np.diag([2.0, 2.4, 3.0, 1.0])), trace)
