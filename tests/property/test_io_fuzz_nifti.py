"""Mutated NIfTI files: never an error outside the tree, never other voxels out of a `.nii.gz`."""

from __future__ import annotations

import gzip
import struct
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parents[1] / "hostile"))
from fixtures_files import chest, save_nifti

from hilum.errors import HilumError
from hilum.io.limits import Answers, Limits
from hilum.io.open import inspect, open_volume
from hilum.volume import CTVolume

SHAPE = (24, 20, 18)
PLACE = np.diag([16.0, 16.0, 16.0, 1.0])
BUDGET = Limits(max_voxels=2_000_000, max_stored_bytes=16_000_000)
# Shrinking a failing file byte by byte takes minutes and explains little.
RELAXED = settings(
    deadline=None,
    phases=[Phase.explicit, Phase.reuse, Phase.generate],
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, bytes, bytes, np.ndarray]:
    folder = tmp_path_factory.mktemp("fuzz")
    plain = save_nifti(folder / "good.nii", chest(SHAPE), PLACE)
    content = plain.read_bytes()
    return folder, content, gzip.compress(content, 1, mtime=0), open_volume(plain).hu


def attempt(path: Path, content: bytes) -> CTVolume | None:
    """The volume, or None when it was refused with an error of the tree. Anything else fails the test."""
    path.write_bytes(content)
    try:
        return open_volume(path, limits=BUDGET)
    except HilumError as error:
        assert error.code and error.exit_code in (2, 3)
        return None


@settings(RELAXED, max_examples=200)
@given(at=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_one_flipped_bit_in_gzip_never_changes_a_voxel(files, at: float, bit: int) -> None:
    folder, _, packed, truth = files
    damaged = bytearray(packed)
    damaged[int(at * len(packed))] ^= 1 << bit
    volume = attempt(folder / "x.nii.gz", bytes(damaged))
    # Some bits are no data: time and system in the header, padding, a match that may as well lie elsewhere.
    # What is read then is what was written; everything else must be noticed.
    if volume is not None:
        assert gzip.decompress(damaged) == gzip.decompress(packed)
        assert np.array_equal(volume.hu, truth)


@settings(RELAXED, max_examples=100)
@given(data=st.data())
def test_several_mutations_in_gzip(files, data: st.DataObject) -> None:
    folder, _, packed, truth = files
    damaged = bytearray(packed)
    for _ in range(data.draw(st.integers(1, 6))):
        kind = data.draw(st.sampled_from(["set", "cut", "insert", "delete", "swap"]))
        at = data.draw(st.integers(0, max(len(damaged) - 1, 0)))
        if kind == "set" and damaged:
            damaged[at] = data.draw(st.integers(0, 255))
        elif kind == "cut":
            del damaged[at:]
        elif kind == "insert":
            damaged[at:at] = data.draw(st.binary(min_size=1, max_size=8))
        elif kind == "delete":
            del damaged[at : at + data.draw(st.integers(1, 16))]
        else:
            damaged[at : at + 16] = damaged[at : at + 16][::-1]
    volume = attempt(folder / "x.nii.gz", bytes(damaged))
    if volume is not None:
        assert np.array_equal(volume.hu, truth)


@settings(RELAXED, max_examples=200)
@given(data=st.data())
def test_header_mutants_are_refused_or_mean_what_they_say(files, data: st.DataObject) -> None:
    folder, content, _, _ = files
    damaged = bytearray(content)
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, 347))
        damaged[at] = data.draw(st.integers(0, 255))
    path = folder / "x.nii"
    volume = attempt(path, bytes(damaged))
    if volume is None:
        return
    # What was read is what nibabel reads from this header, once our own findings are left out of account.
    try:
        with np.errstate(all="ignore"):
            image = nib.load(path)
            stored = np.asarray(image.dataobj, dtype=np.float64)
    except Exception:
        return
    codes = {f.code for f in volume.provenance.findings}
    if codes & {"UNITS_NOT_MM", "SCL_ZERO", "SCL_NONFINITE", "AFFINE_SHEAR", "VOXEL_NAN", "NDIM_4"}:
        return
    with np.errstate(all="ignore"):
        assert np.array_equal(volume.to_source(volume.hu), stored.astype(np.float32))
    assert np.allclose(volume.source.affine_ras, image.affine, rtol=1e-4, atol=1e-3)


FIELDS = [
    (40, "8h"),
    (70, "h"),
    (72, "h"),
    (76, "8f"),
    (108, "f"),
    (112, "2f"),
    (252, "2h"),
    (256, "6f"),
    (280, "12f"),
]
FLOATS = [0.0, -1.0, 1.0, 1e-30, 1e30, -1e30, 3e38, float("nan"), float("inf"), float("-inf"), 352.0, 0.7]
SHORTS = [-32768, -1, 0, 1, 2, 3, 4, 7, 8, 16, 32, 64, 128, 256, 512, 768, 1024, 1280, 2304, 32767]


@settings(RELAXED, max_examples=200)
@given(data=st.data())
def test_odd_numbers_in_header_fields(files, data: st.DataObject) -> None:
    folder, content, _, _ = files
    damaged = bytearray(content)
    for _ in range(data.draw(st.integers(1, 3))):
        at, form = data.draw(st.sampled_from(FIELDS))
        values = list(struct.unpack_from("<" + form, damaged, at))
        pool = FLOATS if form.endswith("f") else SHORTS
        for _ in range(data.draw(st.integers(1, len(values)))):
            values[data.draw(st.integers(0, len(values) - 1))] = data.draw(st.sampled_from(pool))
        struct.pack_into("<" + form, damaged, at, *values)
    path = folder / "x.nii"
    volume = attempt(path, bytes(damaged))
    if volume is not None:
        assert np.isfinite(volume.hu).all() and np.isfinite(volume.geometry.affine_ras).all()


@settings(RELAXED, max_examples=80)
@given(
    content=st.binary(max_size=2000),
    prefix=st.sampled_from(
        [b"", b"\x1f\x8b\x08\0", b"PK\x03\x04", b"NRRD0004\n", b"\x5c\x01\0\0", b"\0\0\x02\x1c"]
    ),
    answers=st.sampled_from([Answers(), Answers(assume="RAS", frame=0, accept_fov=True, affine="qform")]),
)
def test_any_bytes_at_all(files, content: bytes, prefix: bytes, answers: Answers) -> None:
    path = files[0] / "x.bin"
    path.write_bytes(prefix + content)
    seen = inspect(path, answers=answers, limits=BUDGET)
    assert seen.refused and seen.stopping
