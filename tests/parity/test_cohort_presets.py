"""Each preset against a slow twin that is plainly right: SimpleITK, torch's own interpolation, or loops."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hilum.cohort.clahe import clahe, percentile_window
from hilum.cohort.pipeline import apply, letters_map, to_store
from hilum.cohort.prep_presets import PIPELINES, PRESETS, Pipeline, pipeline
from hilum.errors import RunError, UsageError
from hilum.geometry import Geometry
from hilum.volume import CTVolume, Provenance


def scan(
    shape: tuple[int, int, int] = (41, 37, 29), spacing: tuple[float, ...] = (3.1, 3.3, 5.0)
) -> CTVolume:
    """Smooth structure, noise and values beyond the clip, on oblique LAS axes."""
    shape, spacing = (41, 37, 29), (3.1, 3.3, 5.0)
    rng = np.random.default_rng(3)
    index = np.stack(np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij"), -1)
    hu = 700 * np.sin(4 * index[..., 0]) * np.cos(3 * index[..., 1]) + 500 * np.sin(5 * index[..., 2])
    hu = (hu + rng.normal(0, 60, shape)).astype(np.float32)
    hu[:4] = -2048.0
    hu[20:23, 10:14, 9:12] = 2800.0
    angle = math.radians(9)
    turn = np.array(
        [[math.cos(angle), -math.sin(angle), 0], [math.sin(angle), math.cos(angle), 0], [0, 0, 1]]
    )
    affine = np.eye(4)
    affine[:3, :3] = turn @ np.diag([-spacing[0], spacing[1], spacing[2]])
    affine[:3, 3] = (70.0, -50.0, 30.0)
    return CTVolume.from_source(hu, Geometry(shape, affine), Provenance("phantom", "0"))


def sitk_image(array: np.ndarray, geometry: Geometry) -> sitk.Image:
    image = sitk.GetImageFromArray(np.ascontiguousarray(array.transpose(2, 1, 0)))
    affine = geometry.affine_lps
    image.SetSpacing([float(s) for s in geometry.spacing_mm])
    image.SetOrigin([float(x) for x in affine[:3, 3]])
    image.SetDirection((affine[:3, :3] / np.array(geometry.spacing_mm)).ravel().tolist())
    return image


def on_grid(array: np.ndarray, geometry: Geometry, grid: Geometry) -> np.ndarray:
    """SimpleITK's linear interpolation, borders repeated half a step further than the image reaches."""
    padded = sitk.ZeroFluxNeumannPad(sitk_image(array, geometry), [4, 4, 4], [4, 4, 4])
    like = sitk_image(np.zeros(grid.shape, dtype=np.float32), grid)
    return sitk.GetArrayFromImage(sitk.Resample(padded, like, sitk.Transform(), sitk.sitkLinear)).transpose(
        2, 1, 0
    )


def expected_grid(volume: CTVolume, letters: str, spacing: tuple[float, ...], rule: str) -> Geometry:
    """The oriented scan, then sizes and first voxel as the libraries that the papers used choose them."""
    axes = letters_map(letters, volume.shape)
    geometry = axes.geometry(volume.geometry)
    assert geometry.axcodes == letters
    shape, affine = [], geometry.affine_ras.copy()
    for axis, (n, own, wanted) in enumerate(zip(geometry.shape, geometry.spacing_mm, spacing, strict=True)):
        direction = geometry.affine_ras[:3, axis] / own
        if rule == "first":  # MONAI: from first to nearest the last centre
            m, start = round((n - 1) * own / wanted + 1), 0.0
        elif rule == "centre":  # TorchIO: floor, same middle
            m = math.floor(n * own / wanted)
            start = (n - 1) * own / 2 - (m - 1) * wanted / 2
        else:  # interpolate(size=int(...)): the field is kept
            m = int(n * own / wanted)
            wanted = n * own / m
            start = (wanted - own) / 2
        shape.append(m)
        affine[:3, axis] = direction * wanted
        affine[:3, 3] = affine[:3, 3] + direction * start
    return Geometry((shape[0], shape[1], shape[2]), affine)


def fitted(values: np.ndarray, size: tuple[int, ...], fill: float, more: int = 0) -> np.ndarray:
    """Centre crop and pad, one axis after the other; `more` 1 rounds up what is taken off or put before."""
    for axis, n in enumerate(size):
        have = values.shape[axis]
        if have >= n:
            low = (have - n + more) // 2
            values = np.take(values, range(low, low + n), axis=axis)
        else:
            before = (n - have + more) // 2
            widths = [(before, n - have - before) if a == axis else (0, 0) for a in range(3)]
            values = np.pad(values, widths, constant_values=fill)
    return values


def smaller(name: str, size: tuple[int, int, int]) -> Pipeline:
    """The preset with a frame that a small test scan both exceeds and falls short of."""
    return replace(pipeline(name), fit_vox=size)


def check(got: torch.Tensor, wanted: np.ndarray, tolerance: float) -> None:
    assert tuple(got.shape) == (1, 1, *wanted.shape)
    assert np.abs(got[0, 0].numpy() - wanted).max() < tolerance


def test_flexict_3d() -> None:
    volume = scan()
    grid = expected_grid(volume, "LPS", (2.0, 2.0, 2.0), "first")
    hu = on_grid(volume.hu, volume.geometry, grid).clip(-1000, 1000)
    z = (hu - hu.mean(dtype=np.float64)) / hu.std(dtype=np.float64)
    wanted = fitted(z, tuple(max(n, 70) for n in grid.shape), z.min())
    tensor, trace = apply(smaller("flexict-3d", (70, 70, 70)), volume)
    check(tensor, wanted, 2e-3)
    assert trace.grid.axcodes == "LPS" and np.allclose(trace.grid.spacing_mm, 2.0)
    paper, _ = pipeline("flexict-3d", convention="paper").apply(volume)
    check(paper, fitted(z, (160, 160, 160), z.min()), 2e-3)


def test_flexict_2d() -> None:
    volume = scan()
    grid = expected_grid(volume, "LPS", (1.5, 1.5, 1.5), "first")
    hu = on_grid(volume.hu, volume.geometry, grid).clip(-1000, 1000)
    wanted = fitted(hu, (60, 90, grid.shape[2]), hu.min())
    for k in range(wanted.shape[2]):
        plane = wanted[:, :, k].astype(np.float64)
        wanted[:, :, k] = (plane - plane.mean()) / plane.std()
    tensor, trace = apply(smaller("flexict-2d", (60, 90, 0)), volume)
    check(tensor, wanted, 3e-3)
    assert pipeline("flexict-2d").apply(volume)[0].shape[2:4] == (384, 384)
    assert trace.slope == 1.0


def test_colipri() -> None:
    volume = scan()
    grid = expected_grid(volume, "RAS", (2.0, 2.0, 2.0), "centre")
    hu = on_grid(volume.hu, volume.geometry, grid).clip(-1000, 1000) / 1000
    for size in ((60, 70, 50), (61, 71, 51)):
        tensor, trace = apply(smaller("colipri", size), volume)
        check(tensor, fitted(hu, size, hu.min(), more=1), 2e-4)
        assert trace.grid.axcodes == "RAS"
        again = on_grid(volume.hu, volume.geometry, trace.grid).clip(-1000, 1000) / 1000
        inside = np.abs(again - tensor[0, 0].numpy()) < 2e-4
        assert inside[20:40, 20:40, 20:30].all()
    assert pipeline("colipri").apply(volume)[0].shape == (1, 1, 192, 192, 192)


@pytest.mark.parametrize("convention", ["hilum", "paper"])
def test_radfinder(convention: str) -> None:
    volume = scan()
    grid = expected_grid(volume, "RAS", (0.75, 0.75, 3.0), "first")
    hu = on_grid(volume.hu.clip(-1000, 1000), volume.geometry, grid)
    unit = (hu + 1000) / 2000
    x, y, z = grid.shape
    assert (x, y, z) == (166, 159, 48)
    size = (256, 256, 64) if convention == "hilum" else (128, 128, 32)
    tensor, _ = pipeline("radfinder", convention=convention).apply(volume)
    check(tensor, fitted(unit, size, 0.0), 2e-4)


def test_ct_clip() -> None:
    volume = scan()
    axes = letters_map("SLP", volume.shape)
    clipped = torch.from_numpy(np.ascontiguousarray(axes.apply(volume.hu.clip(-1000, 1000))))
    spacing = axes.geometry(volume.geometry).spacing_mm
    size = [int(n * s / t + 1e-6) for n, s, t in zip(clipped.shape, spacing, (1.5, 0.75, 0.75), strict=True)]
    moved = torch.nn.functional.interpolate(
        clipped[None, None], size=size, mode="trilinear", align_corners=False
    )
    wanted = fitted(moved[0, 0].numpy() / 1000, (240, 480, 480), -1.0)
    tensor, trace = pipeline("ct-clip").apply(volume)
    check(tensor, wanted, 2e-4)
    # and the affine says where those voxels are: SimpleITK finds the same values there
    again = on_grid(volume.hu.clip(-1000, 1000), volume.geometry, trace.grid) / 1000
    inside = tuple(
        slice(max(0, (n - m) // 2) + 3, max(0, (n - m) // 2) + min(n, m) - 3)
        for n, m in zip(wanted.shape, size, strict=True)
    )
    assert np.abs(again[inside] - wanted[inside]).max() < 2e-4


def test_ct_clip_crops_before_it_resamples() -> None:
    """What an early crop leaves out makes no difference to what stays."""
    volume = scan()
    early, early_trace = apply(smaller("ct-clip", (60, 90, 200)), volume)
    whole, trace = apply(replace(smaller("ct-clip", (60, 90, 200)), pad="min"), volume)
    kept = early != -1
    assert torch.allclose(early[kept], whole[kept], atol=1e-6)
    assert early_trace.grid.same_grid(trace.grid, 1e-6)


def plain_window(hu: np.ndarray) -> np.ndarray:
    """EXACT §1.3, step 1, as it is written there."""
    values = hu.astype(np.float32).copy()
    values[values < values.min() + 100] = np.nan
    low, high = np.nanpercentile(values, (0.5, 99.5))
    scaled = (np.clip(values, low, high) - low) / (high - low) * 255
    return np.where(np.isnan(scaled), 0, scaled).astype(np.uint8)


def plain_clahe(image: np.ndarray) -> np.ndarray:
    """8x8 tiles, clip limit 2: loops over tiles, levels and pixels."""
    height, width = image.shape
    if height % 8 or width % 8:
        image = np.pad(image, ((0, 8 - height % 8), (0, 8 - width % 8)), mode="reflect")
    rows, columns = image.shape[0] // 8, image.shape[1] // 8
    tables = {}
    for i in range(8):
        for j in range(8):
            tile = image[i * rows : (i + 1) * rows, j * columns : (j + 1) * columns]
            counts = [int((tile == level).sum()) for level in range(256)]
            limit = max(int(2.0 * rows * columns / 256), 1)
            excess = sum(max(0, c - limit) for c in counts)
            counts = [min(c, limit) + excess // 256 for c in counts]
            left = excess % 256
            if left:
                step = max(256 // left, 1)
                for level in range(0, 256, step):
                    if left:
                        counts[level] += 1
                        left -= 1
            total, table = 0, []
            for count in counts:
                total += count
                table.append(
                    min(255.0, float(np.rint(np.float32(total) * np.float32(255 / (rows * columns)))))
                )
            tables[i, j] = table
    out = np.empty((height, width), dtype=np.uint8)
    for y in range(height):
        fy = np.float32(y) * np.float32(1 / rows) - np.float32(0.5)
        i, dy = math.floor(fy), fy - np.float32(math.floor(fy))
        for x in range(width):
            fx = np.float32(x) * np.float32(1 / columns) - np.float32(0.5)
            j, dx = math.floor(fx), fx - np.float32(math.floor(fx))
            value = int(image[y, x])
            corner = [
                [np.float32(tables[min(max(a, 0), 7), min(max(b, 0), 7)][value]) for b in (j, j + 1)]
                for a in (i, i + 1)
            ]
            one = np.float32(1)
            upper = corner[0][0] * (one - dx) + corner[0][1] * dx
            lower = corner[1][0] * (one - dx) + corner[1][1] * dx
            out[y, x] = int(np.rint(upper * (one - dy) + lower * dy))
    return out


@settings(max_examples=15, deadline=None)
@given(st.integers(9, 50), st.integers(9, 50), st.integers(0, 2**32 - 1), st.sampled_from([3, 40, 256]))
def test_clahe_is_the_plain_one(height: int, width: int, seed: int, levels: int) -> None:
    rng = np.random.default_rng(seed)
    image = (rng.integers(0, levels, (height, width)) * (255 // max(levels - 1, 1))).astype(np.uint8)
    image[: height // 3] = 7
    assert np.array_equal(clahe(image), plain_clahe(image))


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**32 - 1), st.floats(1, 2000))
def test_window_is_the_plain_one(seed: int, spread: float) -> None:
    hu = np.random.default_rng(seed).normal(-300, spread, (9, 11, 7)).astype(np.float32)
    hu[0] = -3024
    assert np.array_equal(percentile_window(hu), plain_window(hu))


def test_windows_of_one_value_are_black() -> None:
    for hu in (np.full((4, 4, 4), -1000, dtype=np.float32), np.where(np.eye(4)[None] > 0, 50.0, -1000.0)):
        assert percentile_window(hu.astype(np.float32)).max() == 0


def exact_twin(volume: CTVolume, clip: tuple[float, float] | None) -> tuple[np.ndarray, Geometry]:
    """Steps 1 and 2 on the 1x1x3 mm grid, RAS axes."""
    grid = expected_grid(volume, "RAS", (1.0, 1.0, 3.0), "extent")
    hu = volume.hu if clip is None else volume.hu.clip(*clip)
    grey = plain_window(on_grid(hu, volume.geometry, grid))
    equal = np.stack([clahe(np.ascontiguousarray(grey[:, :, k])) for k in range(grey.shape[2])], axis=2)
    return equal.astype(np.float32) / 255, grid


@pytest.mark.parametrize("convention", ["hilum", "paper"])
def test_exact(convention: str) -> None:
    volume = scan()
    equal, grid = exact_twin(volume, (-1000, 1000) if convention == "hilum" else None)
    tensor, trace = pipeline("exact", convention=convention).apply(volume)
    assert tensor.shape == (1, 1, 64, 128, 128) and trace.grid.axcodes == "SRA"
    wanted = on_grid(equal, grid, trace.grid)
    # one grey level of the window may fall to the other side of a rounding; CLAHE then moves it a little more
    difference = np.abs(tensor[0, 0].numpy() - wanted)
    assert np.quantile(difference, 0.999) < 2 / 255 and difference.max() < 0.1
    field = [n * s for n, s in zip(trace.grid.shape, trace.grid.spacing_mm, strict=True)]
    assert np.allclose(field, [grid.extent_mm[2], grid.extent_mm[0], grid.extent_mm[1]])


def test_exact_mm_keeps_millimetres_and_does_not_alias() -> None:
    volume = scan()
    equal, grid = exact_twin(volume, (-1000, 1000))
    tensor, trace = pipeline("exact-mm").apply(volume)
    assert np.allclose(trace.grid.spacing_mm, 3.0) and all(n % 16 == 0 for n in trace.grid.shape)
    # the triangle filter, voxel by voxel
    start = grid.to_vox(trace.grid.to_mm(np.zeros((1, 3))))[0]
    for i, j, k in ((20, 22, 25), (25, 21, 27), (30, 26, 24)):
        x, y, z = start + np.array((i, j, k)) * 3.0 / np.array(grid.spacing_mm)
        weights = [
            np.maximum(0, 1 - np.abs(np.arange(n) - at) / max(1, 3.0 / own))
            for n, at, own in zip(grid.shape, (x, y, z), grid.spacing_mm, strict=True)
        ]
        wx, wy, wz = (w / w.sum() for w in weights)
        wanted = np.einsum("xyz,x,y,z->", equal.astype(np.float64), wx, wy, wz)
        assert abs(float(tensor[0, 0, i, j, k]) - wanted) < 1e-3


def test_native_is_the_scan() -> None:
    volume = scan()
    tensor, trace = pipeline("native").apply(volume)
    assert np.allclose(tensor[0, 0].numpy() * 1000, volume.hu.clip(-1024, 3071), atol=1e-3)
    assert trace.grid.same_grid(volume.geometry)


@pytest.mark.parametrize("name", PRESETS)
def test_stores_keep_what_the_tensor_holds(name: str) -> None:
    volume = scan()
    tensor, trace = pipeline(name).apply(volume)
    stored = to_store(pipeline(name), volume)
    values = stored.values.astype(np.float64) * stored.slope + stored.intercept
    if pipeline(name).values == "zscore-slice":
        values = (values - values.mean((0, 1))) / values.std((0, 1))
    assert stored.trace.as_dict() == trace.as_dict()
    half_step = 0.5 * abs(stored.slope) if pipeline(name).values != "zscore-slice" else 5e-3
    assert np.abs(values - tensor[0, 0].numpy()).max() <= half_step + 1e-5


def test_unknown_presets_and_facts() -> None:
    with pytest.raises(UsageError, match=r"PRESET_UNKNOWN.*flexict-3d"):
        pipeline("flexict")
    assert set(PIPELINES) == set(PRESETS)
    facts = pipeline("exact").facts()
    assert facts["squash_vox"] == [64, 128, 128] and facts["clip_hu"] == [-1000.0, 1000.0]


def test_a_map_of_another_grid_is_refused() -> None:
    _, trace = pipeline("native").apply(scan())
    with pytest.raises(RunError, match="GRID_MISMATCH"):
        trace.invert(np.zeros((3, 3, 3), dtype=np.float32))


def test_what_does_not_fit_memory_is_refused() -> None:
    with pytest.raises(UsageError, match="MEMORY_PLAN"):
        apply(Pipeline("fine", spacing_mm=(0.05, 0.05, 0.05)), scan())
