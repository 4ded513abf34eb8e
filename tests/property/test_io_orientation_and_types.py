"""All 48 orientations and all stored types read to the same volume; scaling never wraps (row B17)."""

from __future__ import annotations

import io
import itertools
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parents[1] / "hostile"))
from fixtures_files import chest

from hilum.errors import InputRefused
from hilum.geometry import Geometry
from hilum.io.limits import Answers
from hilum.io.nifti import read_nifti, write_nifti
from hilum.io.open import open_volume
from hilum.io.voxels import read_voxels, to_hu

ORIENTATIONS = [
    "".join(letters)
    for order in itertools.permutations(("RL", "AP", "SI"))
    for letters in itertools.product(*order)
]
SHAPE = (30, 26, 22)
AFFINE = np.array([[10.0, 0, 0, -150], [0, 11.0, 0, -140], [0, 0, 9.0, -90], [0, 0, 0, 1]])


@pytest.mark.parametrize("letters", ORIENTATIONS)
def test_48_orientations_read_to_the_same_volume(tmp_path: Path, letters: str) -> None:
    hu = chest(SHAPE)
    image = nib.Nifti1Image(hu.astype(np.int16), AFFINE)
    turned = image.as_reoriented(
        nib.orientations.ornt_transform(
            nib.io_orientation(AFFINE), nib.orientations.axcodes2ornt(tuple(letters))
        )
    )
    path = tmp_path / "x.nii"
    nib.save(turned, path)
    volume = read_nifti(path)
    assert volume.source.axcodes == letters
    assert np.array_equal(volume.hu, hu)
    assert np.allclose(volume.geometry.affine_ras, AFFINE, atol=1e-4)
    assert np.array_equal(volume.to_source(volume.hu), np.asarray(turned.dataobj))


@pytest.mark.parametrize("letters", ORIENTATIONS)
def test_48_assumed_orientations(tmp_path: Path, letters: str) -> None:
    hu = chest(SHAPE)
    stored = Geometry(SHAPE, AFFINE)
    path = tmp_path / "x.npz"
    ornt = nib.orientations.ornt_transform(
        nib.orientations.axcodes2ornt("RAS"), nib.orientations.axcodes2ornt(tuple(letters))
    )
    turned = nib.orientations.apply_orientation(hu, ornt)
    spacing = [stored.spacing_mm["RLAPSI".index(c) // 2] for c in letters]
    np.savez_compressed(path, hu=turned.astype(np.int16), spacing_mm=np.array(spacing), orientation=letters)
    volume = open_volume(path)
    assert np.array_equal(volume.hu, hu) and volume.source.axcodes == letters


@settings(max_examples=60, deadline=None)
@given(
    dtype=st.sampled_from(["i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8", "f4", "f8"]),
    order=st.sampled_from("<>"),
    slope=st.sampled_from([None, 1.0, -1.0, 0.5, 2.0, 1e-3]),
    intercept=st.sampled_from([0.0, -1024.0, 32768.0, -8192.0]),
    seed=st.integers(0, 2**32 - 1),
)
def test_stored_values_become_hu_without_wrapping(dtype, order, slope, intercept, seed) -> None:
    kind = np.dtype(order + dtype)
    rng = np.random.default_rng(seed)
    if kind.kind == "f":
        stored = rng.normal(0, 1000, 64).astype(kind)
    else:
        info = np.iinfo(kind)
        stored = rng.integers(info.min, info.max, 64, dtype=kind.newbyteorder("="), endpoint=True).astype(
            kind
        )
        stored[:2] = info.min, info.max
    exact = [float(int(v) if kind.kind != "f" else v) for v in stored.tolist()]
    expected = np.array([v if slope is None else v * slope + intercept for v in exact]).astype(np.float32)
    assert np.array_equal(to_hu(stored, slope, intercept), expected)


@settings(max_examples=40, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 5), st.integers(1, 5), st.integers(1, 40)),
    order=st.sampled_from(["C", "F"]),
    missing=st.integers(0, 3),
)
def test_slabs_are_the_whole_array(shape, order, missing) -> None:
    values = np.arange(np.prod(shape), dtype=np.int16).reshape(shape)
    content = values.tobytes(order=order)
    found = read_voxels(io.BytesIO(content[: len(content) - missing]), shape, np.dtype("<i2"), order=order)
    if missing:
        assert found is None
    else:
        assert found is not None and np.array_equal(found, values) and found.flags.c_contiguous


@settings(
    max_examples=25,
    deadline=None,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    angles=st.tuples(*[st.floats(-0.6, 0.6)] * 3),
    origin=st.tuples(*[st.floats(-500, 500)] * 3),
    flips=st.tuples(*[st.sampled_from([-1.0, 1.0])] * 3),
    dtype=st.sampled_from(["i2", "f4"]),
)
def test_what_is_written_is_read_back(tmp_path: Path, angles, origin, flips, dtype) -> None:
    a, b, c = angles
    rx = np.array([[1, 0, 0], [0, np.cos(a), -np.sin(a)], [0, np.sin(a), np.cos(a)]])
    ry = np.array([[np.cos(b), 0, np.sin(b)], [0, 1, 0], [-np.sin(b), 0, np.cos(b)]])
    rz = np.array([[np.cos(c), -np.sin(c), 0], [np.sin(c), np.cos(c), 0], [0, 0, 1]])
    affine = np.eye(4)
    affine[:3, :3] = (rx @ ry @ rz) * (10.0, 11.0, 9.0) * flips
    affine[:3, 3] = origin
    path = tmp_path / "x.nii.gz"
    write_nifti(path, chest(SHAPE).astype(dtype), Geometry(SHAPE, affine))
    volume = read_nifti(path, answers=Answers(accept_fov=True))
    assert [f.code for f in volume.provenance.findings if f.code != "FOV_IMPLAUSIBLE"] == []
    assert volume.source.same_grid(Geometry(SHAPE, affine), tolerance_mm=0.01)
    assert np.array_equal(volume.to_source(volume.hu), chest(SHAPE))


def test_written_bytes_are_reproducible_and_nibabel_agrees(tmp_path: Path) -> None:
    for name in ("a.nii.gz", "b.nii.gz", "c.nii"):
        write_nifti(tmp_path / name, chest(SHAPE), Geometry(SHAPE, AFFINE), "SYNTHETIC")
    assert (tmp_path / "a.nii.gz").read_bytes() == (tmp_path / "b.nii.gz").read_bytes()
    assert (tmp_path / "a.nii.gz").read_bytes()[4:8] == bytes(4)
    for name in ("a.nii.gz", "c.nii"):
        image = nib.load(tmp_path / name)
        assert np.array_equal(image.get_fdata(), chest(SHAPE)) and np.allclose(image.affine, AFFINE)
        assert np.allclose(image.get_qform(), AFFINE) and image.header["descrip"].item() == b"SYNTHETIC"


def test_a_refused_write_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(Exception, match="GRID_MISMATCH"):
        write_nifti(tmp_path / "x.nii.gz", chest((4, 4, 4)), Geometry(SHAPE, AFFINE))
    with pytest.raises(Exception, match="DTYPE"):
        write_nifti(tmp_path / "x.nii.gz", chest(SHAPE).astype(complex), Geometry(SHAPE, AFFINE))
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(InputRefused):
        open_volume(tmp_path / "x.nii.gz")
