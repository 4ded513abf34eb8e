"""Preparation and the way back over all 48 stored orientations, all 48 axis orders of the tensor, and oblique
grids."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hilum.cohort.prep_presets import PRESETS, Pipeline, pipeline
from hilum.geometry import AxisMap, Geometry
from hilum.volume import CTVolume, Provenance

LETTERS = [
    "".join(letters[i][flip] for i, flip in zip(order, flips, strict=True))
    for letters in [("RL", "AP", "SI")]
    for order in itertools.permutations(range(3))
    for flips in itertools.product((0, 1), repeat=3)
]
SHAPE, SPACING = (46, 38, 31), (3.0, 3.5, 4.0)


def turned(angles: tuple[float, float, float]) -> np.ndarray:
    """A rotation about x, then y, then z, degrees."""
    matrix = np.eye(3)
    for axis, angle in enumerate(np.radians(angles)):
        a, b = [i for i in range(3) if i != axis]
        step = np.eye(3)
        step[a, a] = step[b, b] = np.cos(angle)
        step[a, b], step[b, a] = -np.sin(angle), np.sin(angle)
        matrix = step @ matrix
    return matrix


def ras_scan(
    angles: tuple[float, float, float] = (0, 0, 0), ramp: bool = False
) -> tuple[np.ndarray, Geometry]:
    affine = np.eye(4)
    affine[:3, :3] = turned(angles) @ np.diag(SPACING)
    affine[:3, 3] = -affine[:3, :3] @ ((np.array(SHAPE) - 1) / 2) + (12.0, -30.0, 7.0)
    geometry = Geometry(SHAPE, affine)
    mm = geometry.to_mm(np.indices(SHAPE).reshape(3, -1).T)
    if ramp:
        return (mm @ (1.0, -2.0, 1.5)).reshape(SHAPE).astype(np.float32), geometry
    noise = np.random.default_rng(0).normal(0, 80, SHAPE)
    bump = 900 * np.exp(-((np.linalg.norm(mm - (25.0, -50.0, 20.0), axis=1) / 12) ** 2)).reshape(SHAPE)
    return (noise - 400 + bump).astype(np.float32), geometry


def volume(array: np.ndarray, geometry: Geometry) -> CTVolume:
    return CTVolume.from_source(np.ascontiguousarray(array), geometry, Provenance("phantom", "0"))


@pytest.mark.parametrize("name", PRESETS)
def test_the_stored_order_of_axes_makes_no_difference(name: str) -> None:
    array, geometry = ras_scan((4, -3, 8))
    plain, plain_trace = pipeline(name).apply(volume(array, geometry))
    few = name in ("native", "colipri")
    for order in itertools.permutations(range(3)):
        for flips in itertools.product((False, True), repeat=3):
            if not few and (order, flips) not in (((2, 0, 1), (True, False, True)), ((1, 0, 2), (True,) * 3)):
                continue
            axes = AxisMap(order, flips, SHAPE)
            other, trace = pipeline(name).apply(volume(axes.apply(array), axes.geometry(geometry)))
            assert (other == plain).all()
            assert trace.grid.same_grid(plain_trace.grid, 1e-6)


@pytest.mark.parametrize("letters", LETTERS)
def test_every_voxel_is_at_its_millimetre_and_maps_come_back(letters: str) -> None:
    """A ramp in mm is its own linear interpolation: on the tensor's grid, and again on the scan's."""
    array, geometry = ras_scan((5, -7, 12), ramp=True)
    for anchor in ("first", "centre", "extent"):
        prep = Pipeline(
            "t", axes=letters, spacing_mm=(4.1, 5.3, 6.0), anchor=anchor, values="hu", clip_hu=None,
            fit="shape", fit_vox=(20, 60, 24),
        )  # fmt: skip
        tensor, trace = prep.apply(volume(array, geometry))
        assert trace.grid.axcodes == letters and tensor.shape == (1, 1, 20, 60, 24)
        mm = trace.grid.to_mm(np.indices(trace.grid.shape).reshape(3, -1).T)
        ramp = (mm @ (1.0, -2.0, 1.5)).reshape(trace.grid.shape).astype(np.float32)
        at = geometry.to_vox(mm).reshape(*trace.grid.shape, 3)
        inside = ((at >= -1e-3) & (at <= np.array(SHAPE) - 1 + 1e-3)).all(-1)
        assert inside.sum() > 2000
        assert np.abs(tensor[0, 0].numpy() - ramp)[inside].max() < 1e-3
        back = trace.invert(ramp)
        where = trace.grid.to_vox(geometry.to_mm(np.indices(SHAPE).reshape(3, -1).T)).reshape(*SHAPE, 3)
        last = np.array(trace.grid.shape) - 1
        covered = ((where >= -1e-3) & (where <= last + 1e-3)).all(-1)
        beyond = ((where < -0.51) | (where > last + 0.51)).any(-1)
        assert covered.sum() > 2000 and beyond.any()
        assert np.abs(back - array)[covered].max() < 2e-3
        assert (back[beyond] == 0).all()


@settings(max_examples=12, deadline=None)
@given(
    name=st.sampled_from([name for name in PRESETS if name not in ("radfinder", "ct-clip")]),
    angles=st.tuples(*[st.floats(-30, 30)] * 3),
)
def test_a_bump_is_found_where_it_is(name: str, angles: tuple[float, float, float]) -> None:
    array, geometry = ras_scan(angles)
    scan = volume(array, geometry)
    tensor, trace = pipeline(name).apply(scan)
    marked = np.zeros(trace.grid.shape, dtype=np.float32)
    at = np.round(trace.grid.to_vox(np.array([(25.0, -50.0, 20.0)]))[0]).astype(int)
    step = np.linalg.norm(trace.grid.spacing_mm)
    if pipeline(name).values not in ("clahe", "zscore-slice"):
        near = tuple(slice(max(0, i - 4), i + 5) for i in at)
        values = tensor[0, 0].numpy()
        assert values[near].mean() > np.median(values[values > values.min()])
    marked[tuple(at)] = 1.0
    back = trace.invert(marked)
    assert back.shape == scan.shape
    if max(trace.grid.spacing_mm) >= 1.5:  # a smaller voxel may fall between those of the scan
        weights = back.ravel() / back.sum()
        centre = weights @ scan.geometry.to_mm(np.indices(scan.shape).reshape(3, -1).T)
        assert np.linalg.norm(centre - (25.0, -50.0, 20.0)) < step + 3.0


def test_the_trace_is_plain_data() -> None:
    import json

    array, geometry = ras_scan()
    for name in PRESETS:
        _, trace = pipeline(name).apply(volume(array, geometry))
        facts = json.loads(json.dumps(trace.as_dict()))
        assert facts["prep"]["name"] == name and facts["grid_shape"] == list(trace.grid.shape)
        steps = [step["step"] for step in facts["steps"]]
        assert steps[0] == "orient" and steps[-1] == "crop or pad" and "scale" in steps
