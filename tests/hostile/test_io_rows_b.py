"""Catalogue rows B: NIfTI header and values. Every bad file has a good twin."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from fixtures_files import AFFINE, SHAPE, SPACING_MM, accepted, chest, patched, ras, refused, save_nifti

from hilum.errors import HeaderError, UsageError
from hilum.geometry import Geometry
from hilum.io.assemble import rectify
from hilum.io.limits import Answers, Limits
from hilum.io.open import inspect, open_volume
from hilum.io.values import judge_values, scanned_mask

NAN, INF = float("nan"), float("inf")


@pytest.fixture
def plain(tmp_path: Path) -> Path:
    return save_nifti(tmp_path / "chest.nii")


@pytest.mark.parametrize("bad", [NAN, INF, -INF])
@pytest.mark.parametrize("row", ["srow_x", "srow_z"])
def test_b01_affine_nan(plain: Path, bad: float, row: str) -> None:
    refused(patched(plain, **{row: (bad, 0, 0, 0)}), "AFFINE_NAN")
    volume = accepted(plain, "AFFINE_NAN", answers=Answers(affine="qform"))
    assert np.allclose(volume.source.affine_ras, AFFINE)


def test_b01_quaternion_that_is_none(plain: Path) -> None:
    refused(patched(plain, quatern=(5.0, 5.0, 5.0)), "AFFINE_NAN")
    accepted(plain, "AFFINE_NAN", answers=Answers(affine="sform"))


def test_b02_affine_singular(plain: Path) -> None:
    patched(plain, srow_x=(0, 0, 0, 0), srow_y=(0, 0, 0, 0), srow_z=(0, 0, 0, 0))
    assert "--affine qform" in (refused(plain, "AFFINE_SINGULAR").hint or "")
    volume = accepted(plain, "AFFINE_SINGULAR", answers=Answers(affine="qform"))
    assert np.allclose(volume.source.affine_ras, AFFINE)
    patched(plain, qform_code=0)
    refused(plain, "AFFINE_SINGULAR")
    refused(plain, "AFFINE_SINGULAR", answers=Answers(affine="qform"))


def test_b02_two_axes_along_one_line(plain: Path) -> None:
    patched(plain, qform_code=0, srow_x=(8, 8, 0, 0), srow_y=(0, 0.001, 0, 0), srow_z=(0, 0, 7.5, 0))
    refused(plain, "AFFINE_SINGULAR")


def test_b03_affine_disagree(plain: Path) -> None:
    patched(plain, qoffset=(180.05, -150.0, -300.0))
    assert np.allclose(accepted(plain, "AFFINE_DISAGREE").source.affine_ras, AFFINE)
    patched(plain, qoffset=(230.0, -150.0, -300.0))
    error = refused(plain, "AFFINE_DISAGREE")
    assert (error.got or "").startswith("50.000")
    by_q = accepted(plain, "AFFINE_DISAGREE", answers=Answers(affine="qform"))
    by_s = accepted(plain, "AFFINE_DISAGREE", answers=Answers(affine="sform"))
    assert by_q.source.affine_ras[0, 3] == 230.0 and by_s.source.affine_ras[0, 3] == 180.0


def test_b03_sizes_against_a_lone_sform(plain: Path) -> None:
    accepted(patched(plain, qform_code=0))
    accepted(patched(plain, pixdim=(1, 1, 1, 1, 1, 1, 1, 1)), "AFFINE_DISAGREE")


def test_b04_rounding_is_repaired_by_the_nearest_rotation(plain: Path) -> None:
    patched(plain, qform_code=0, srow_x=(-8.0, 0.003, 0, 180.0))
    volume = accepted(plain, "AFFINE_SHEAR")
    spacing = volume.source.affine_ras[:3, :3]
    assert np.allclose(spacing.T @ spacing, np.diag(np.square(volume.source.spacing_mm)), atol=1e-6)
    refused(plain, "AFFINE_SHEAR", mode="refuse")


def test_b04_real_shear_is_resampled_when_asked(plain: Path) -> None:
    tilted = AFFINE.copy()
    tilted[1, 2] = -2.0
    patched(plain, qform_code=0, srow_y=tuple(tilted[1]))
    refused(plain, "AFFINE_SHEAR")
    volume = accepted(plain, "AFFINE_SHEAR", "AFFINE_DISAGREE", answers=Answers(rectify=True))
    matrix = volume.geometry.affine_ras[:3, :3]
    assert np.allclose(matrix.T @ matrix, np.diag(np.square(volume.spacing_mm)), atol=1e-6)
    assert np.allclose(volume.spacing_mm, (8.0, 9.0, 7.5))


@pytest.mark.parametrize("column", [(1, 2), (0, 2), (2, 1)])
def test_b04_resampling_puts_every_value_where_it_belongs(column: tuple[int, int]) -> None:
    tilted = AFFINE.copy()
    tilted[column] = -2.0
    source = Geometry(SHAPE, tilted)
    index = np.stack(np.meshgrid(*map(np.arange, SHAPE), indexing="ij"), axis=-1).reshape(-1, 3)
    weights = np.array([0.5, -0.25, 0.75])
    hu = (source.to_mm(index) @ weights).reshape(SHAPE).astype(np.float32)
    moved, straight = rectify(hu, source, Limits())
    grid = np.stack(np.meshgrid(*map(np.arange, straight.shape), indexing="ij"), axis=-1).reshape(-1, 3)
    expected = (straight.to_mm(grid) @ weights).reshape(straight.shape)
    at = source.to_vox(straight.to_mm(grid))
    inside = ((at >= 0) & (at <= np.array(SHAPE) - 1)).all(axis=1).reshape(straight.shape)
    assert inside.mean() > 0.7
    assert np.abs(moved - expected)[inside].max() < 0.01
    outside = ((at < -1) | (at > np.array(SHAPE))).any(axis=1).reshape(straight.shape)
    assert outside.any() and (moved[outside] == -1024).all()


def test_b05_orientation_unknown(plain: Path) -> None:
    patched(plain, qform_code=0, sform_code=0)
    assert "--assume" in (refused(plain, "ORIENTATION_UNKNOWN").hint or "")
    assert inspect(plain).geometry is None
    volume = accepted(plain, "ORIENTATION_UNKNOWN", answers=Answers(assume="LAS"))
    assert np.array_equal(volume.hu, ras(chest()))
    assert np.allclose(volume.geometry.centre_mm, 0) and np.allclose(volume.spacing_mm, SPACING_MM)


@pytest.mark.parametrize("letters", ["", "RA", "RRS", "XYZ", "RASA", "rad-chestct"])
def test_b05_letters_that_are_no_orientation(plain: Path, letters: str) -> None:
    patched(plain, qform_code=0, sform_code=0)
    with pytest.raises(UsageError, match="ANSWER_INVALID"):
        open_volume(plain, answers=Answers(assume=letters))


@pytest.mark.parametrize(("code", "scale"), [(1, 1e-3), (3, 1e3)])
def test_b06_units_not_mm(plain: Path, code: int, scale: float) -> None:
    rows = {f"srow_{c}": tuple(AFFINE[i] * scale) for i, c in enumerate("xyz")}
    patched(plain, xyzt_units=code, qform_code=0, **rows)
    patched(plain, pixdim=(1, *(s * scale for s in SPACING_MM), 1, 1, 1, 1))
    volume = accepted(plain, "UNITS_NOT_MM")
    assert np.allclose(volume.source.affine_ras, AFFINE, rtol=1e-6)


def test_b06_unknown_units_are_judged_by_the_field_of_view(plain: Path) -> None:
    accepted(patched(plain, xyzt_units=0))


def test_b07_slope_zero_means_unscaled(plain: Path) -> None:
    accepted(patched(plain, scl_slope=0.0, scl_inter=0.0))
    assert np.array_equal(accepted(patched(plain, scl_inter=5.0), "SCL_ZERO").hu, ras(chest()))


@pytest.mark.parametrize("slope", [NAN, INF, -INF])
def test_b08_slope_not_finite_means_unscaled(plain: Path, slope: float) -> None:
    assert np.array_equal(accepted(patched(plain, scl_slope=slope), "SCL_NONFINITE").hu, ras(chest()))


def test_b08_intercept_not_finite_is_refused(plain: Path) -> None:
    refused(patched(plain, scl_slope=2.0, scl_inter=NAN), "SCL_NONFINITE")


def test_scaling_is_applied(plain: Path, tmp_path: Path) -> None:
    stored = save_nifti(tmp_path / "stored.nii", (chest() + 1024) * 2)
    volume = accepted(patched(stored, scl_slope=0.5, scl_inter=-1024.0))
    assert np.array_equal(volume.hu, ras(chest()))


@pytest.mark.parametrize(("slope", "intercept"), [(1.0, -1024.0), (1.0, -8192.0), (2.0, -1024.0)])
@pytest.mark.parametrize("padding", [None, -1024.0, -2048.0])
def test_b09_double_rescale(tmp_path: Path, slope: float, intercept: float, padding: float | None) -> None:
    hu = chest()
    if padding is not None:
        hu[:6, :6] = padding
    refused(save_nifti(tmp_path / "x.nii.gz", hu * slope + intercept), "HU_DOUBLE_RESCALE")


def test_b09_air_that_is_not_air(tmp_path: Path) -> None:
    refused(save_nifti(tmp_path / "x.nii.gz", np.maximum(chest() + 300, -1024)), "HU_DOUBLE_RESCALE")
    accepted(save_nifti(tmp_path / "y.nii.gz", chest() + 60))


def save_4d(path: Path, frames: int) -> Path:
    hu = np.stack([chest(seed=k) for k in range(frames)], axis=-1).astype(np.int16)
    nib.save(nib.Nifti1Image(hu, AFFINE), path)
    return path


def test_b10_trailing_axis_of_one_is_dropped(tmp_path: Path) -> None:
    path = save_4d(tmp_path / "x.nii", 1)
    assert "NDIM_4" in [f.code for f in open_volume(path).provenance.findings]
    refused(path, "NDIM_4", mode="refuse")


def test_b10_of_several_frames_one_is_chosen(tmp_path: Path) -> None:
    path = save_4d(tmp_path / "x.nii.gz", 3)
    refused(path, "NDIM_4")
    refused(path, "NDIM_4", answers=Answers(frame=3))
    for frame in range(3):
        volume = open_volume(path, answers=Answers(frame=frame))
        assert np.array_equal(volume.hu, ras(chest(seed=frame)))


@pytest.mark.parametrize(
    "dim", [(2, 48, 1280, 1), (1, 30000, 1, 1), (5, 48, 40, 32, 1, 2), (5, 48, 40, 16, 1, 2)]
)
def test_b10_other_numbers_of_axes(plain: Path, dim: tuple[int, ...]) -> None:
    refused(patched(plain, dim=(*dim, *[1] * (8 - len(dim)))), "NDIM_4")


@pytest.mark.parametrize(
    ("code", "bits"), [(128, 24), (32, 64), (1792, 128), (1536, 128), (1, 1), (2304, 32), (0, 0)]
)
def test_b11_dtype(plain: Path, code: int, bits: int) -> None:
    refused(patched(plain, datatype=code, bitpix=bits), "DTYPE")


def test_b11_datatype_and_bitpix_contradict(plain: Path) -> None:
    refused(patched(plain, bitpix=32), "DTYPE")


@pytest.mark.parametrize("sizes", [(0, 9, 7.5), (8, -9, 7.5), (NAN, 9, 7.5)])
def test_b12_spacing_zero(plain: Path, sizes: tuple[float, ...]) -> None:
    refused(patched(plain, pixdim=(1, *sizes, 1, 1, 1, 1)), "SPACING_ZERO")


@pytest.mark.parametrize("bad", [NAN, INF, -INF])
def test_b13_nan_outside_the_body_is_filled(tmp_path: Path, bad: float) -> None:
    hu = chest()
    hu[0:2, 0:3, :] = bad
    volume = accepted(save_nifti(tmp_path / "x.nii.gz", hu, dtype="f4"), "VOXEL_NAN")
    assert np.isfinite(volume.hu).all() and (ras(volume.hu)[0:2, 0:3] == -1024).all()
    assert volume.valid_mask is not None and not ras(volume.valid_mask)[0:2, 0:3].any()
    assert volume.valid_mask.sum() == hu.size - 2 * 3 * hu.shape[2]
    refused(tmp_path / "x.nii.gz", "VOXEL_NAN", mode="refuse")


@pytest.mark.parametrize("at", [(24, 20, 16), (32, 20, 16), (12, 20, 3), (slice(None), slice(None), 16)])
def test_b13_nan_inside_the_body_is_refused(tmp_path: Path, at: tuple) -> None:
    hu = chest()
    hu[at] = NAN
    error = refused(save_nifti(tmp_path / "x.nii.gz", hu, dtype="f4"), "VOXEL_NAN")
    assert "index (" in (error.got or "")


def test_b13_nan_everywhere(tmp_path: Path) -> None:
    refused(save_nifti(tmp_path / "x.nii.gz", np.full(SHAPE, NAN), dtype="f4"), "VOXEL_NAN")


@pytest.mark.parametrize("padding", [-2000.0, -2048.0, -3024.0, -32768.0])
def test_b14_padding_is_kept_counted_and_masked(tmp_path: Path, padding: float) -> None:
    hu = chest()
    hu[:5, :5] = padding
    hu[24, 20, 16] = 30000.0
    volume = accepted(save_nifti(tmp_path / "x.nii.gz", hu), "HU_RANGE")
    assert volume.hu.min() == padding and volume.hu.max() == 30000.0
    assert f"{25 * 32} voxels below, 1 above" in volume.provenance.findings[0].got
    assert volume.valid_mask is not None and np.array_equal(volume.valid_mask, ras(hu) != padding)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (np.full(SHAPE, 7.0), "every voxel is 7"),
        ((chest() + 1024) / 4096, "normalised"),
        (chest() / 1100.0, "normalised"),
        ((chest() - chest().mean()) / chest().std(), "normalised"),
        (np.round((chest().clip(-1000, 400) + 1000) / 1400 * 255), "looks like"),
        ((chest() > -500).astype(np.float32), "label map"),
        (np.digitize(chest(), np.arange(-1000, 800, 60)).astype(np.float32), "label map"),
        (chest() + 1024, "without their intercept"),
        (np.random.default_rng(0).integers(0, 4096, SHAPE), "without their intercept"),
        (np.full(SHAPE, -1000.0) + np.random.default_rng(0).normal(0, 10, SHAPE), "air and soft tissue"),
    ],
)  # fmt: skip
def test_b15_not_hu(tmp_path: Path, values: np.ndarray, words: str) -> None:
    error = refused(save_nifti(tmp_path / "x.nii.gz", values, dtype="f4"), "NOT_HU")
    assert words in f"{error.rule} {error.got}"


@pytest.mark.parametrize(
    "change",
    [
        lambda hu: hu.clip(-1000, 400),
        lambda hu: hu.clip(-1000, 1000),
        lambda hu: hu[10:38, 8:32],
        lambda hu: hu[12:36, 12:28],
        lambda hu: hu + 0.37,
        lambda hu: np.where(hu < -900, -1024, hu),
        lambda hu: hu + np.random.default_rng(1).normal(0, 60, hu.shape),
        lambda hu: np.round(hu / 50) * 50,
    ],
)  # fmt: skip
def test_b15_twins_that_are_hu(change) -> None:
    codes = {f.code for f in judge_values(np.asarray(change(chest()), dtype=np.float32))}
    assert codes <= {"HU_RANGE"}


@pytest.mark.parametrize("sizes", [(1, 1, 7.5), (8, 9, 1), (40, 40, 7.5), (8, 9, 40)])
def test_b16_fov_implausible(tmp_path: Path, sizes: tuple[float, float, float]) -> None:
    path = save_nifti(tmp_path / "x.nii.gz", affine=np.diag([*sizes, 1.0]))
    assert "--accept-fov" in (refused(path, "FOV_IMPLAUSIBLE").hint or "")
    accepted(path, "FOV_IMPLAUSIBLE", answers=Answers(accept_fov=True))


def test_b16_length_is_the_axis_that_points_up(tmp_path: Path) -> None:
    hu = np.transpose(chest(), (2, 0, 1))
    affine = np.array([[0, 8.0, 0, 0], [0, 0, 9.0, 0], [20.0, 0, 0, 0], [0, 0, 0, 1]])
    volume = accepted(save_nifti(tmp_path / "x.nii", hu, affine))
    assert np.array_equal(volume.hu, chest()) and volume.source.axcodes == "SRA"


@pytest.mark.parametrize("dtype", ["i2", "i4", "i8", "f4", "f8"])
def test_b17_stored_types(tmp_path: Path, dtype: str) -> None:
    assert np.array_equal(accepted(save_nifti(tmp_path / "x.nii.gz", dtype=dtype)).hu, ras(chest()))


def test_b17_negative_slope_on_the_smallest_integer_does_not_wrap(tmp_path: Path) -> None:
    hu = chest()
    hu[24, 20, 16] = 32768.0
    path = patched(save_nifti(tmp_path / "x.nii", -hu), scl_slope=-1.0)
    volume = accepted(path, "HU_RANGE")
    assert ras(volume.hu)[24, 20, 16] == 32768.0


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_b18_big_endian_and_nifti_2(tmp_path: Path, suffix: str) -> None:
    for kind, name in ((nib.Nifti1Image, "one"), (nib.Nifti2Image, "two")):
        for order in "<>":
            header = kind.header_class(endianness=order)
            image = kind(chest().astype(order + "i2"), AFFINE, header)
            image.header.set_xyzt_units("mm")
            path = tmp_path / f"{name}{'le' if order == '<' else 'be'}{suffix}"
            nib.save(image, path)
            raw = nib.load(path)
            assert raw.header.endianness == order
            assert np.array_equal(open_volume(path).hu, ras(chest()))


@pytest.mark.parametrize(("first", "second"), [(".hdr", ".img"), (".hdr.gz", ".img.gz")])
def test_b18_pair_by_either_half(tmp_path: Path, first: str, second: str) -> None:
    save_nifti(tmp_path / f"pair{second}", cls=nib.Nifti1Pair)
    header, image = tmp_path / f"pair{first}", tmp_path / f"pair{second}"
    for path in (header, image):
        volume = open_volume(path)
        assert np.array_equal(volume.hu, ras(chest()))
        assert not inspect(path).refused
    image.unlink()
    refused(header, "ENDIAN_PAIR")


def test_b18_pair_with_a_short_image(tmp_path: Path) -> None:
    save_nifti(tmp_path / "pair.img", cls=nib.Nifti1Pair)
    image = tmp_path / "pair.img"
    image.write_bytes(image.read_bytes()[:-1])
    refused(tmp_path / "pair.hdr", "NII_TRUNCATED")


def test_b18_analyze_is_refused(tmp_path: Path) -> None:
    nib.save(nib.AnalyzeImage(chest().astype(np.int16), AFFINE), tmp_path / "old.img")
    refused(tmp_path / "old.hdr", "ENDIAN_PAIR")


def test_report_only_reads_what_can_be_decoded(plain: Path) -> None:
    patched(plain, qoffset=(230.0, -150.0, -300.0))
    volume = open_volume(plain, mode="report-only")
    assert [f.code for f in volume.provenance.findings] == ["AFFINE_DISAGREE"]
    plain.write_bytes(plain.read_bytes()[:-10])
    with pytest.raises(Exception, match="NII_TRUNCATED"):
        open_volume(plain, mode="report-only")


def test_scanned_mask_is_none_when_all_was_scanned() -> None:
    assert scanned_mask(chest()) is None


def test_errors_name_file_rule_and_numbers(plain: Path) -> None:
    error = refused(patched(plain, bitpix=32), "DTYPE")
    assert isinstance(error, HeaderError)
    assert error.path == str(plain) and "bitpix 32" in error.message and "expected" in error.message
