"""NRRD and NPZ: good twins, and what is refused by name."""

from __future__ import annotations

import gzip
import io
import zipfile
from pathlib import Path

import nrrd
import numpy as np
import pytest
from fixtures_files import AFFINE, SHAPE, SPACING_MM, accepted, chest, ras, refused

from hilum.errors import UsageError
from hilum.io.limits import Answers, Limits
from hilum.io.open import inspect, open_volume

HEADER = {
    "space": "right-anterior-superior",
    "space directions": AFFINE[:3, :3].T,
    "space origin": AFFINE[:3, 3],
    "encoding": "gzip",
}


def save_nrrd(path: Path, values: np.ndarray | None = None, **changes: object) -> Path:
    header = {k: v for k, v in {**HEADER, **changes}.items() if v is not None}
    nrrd.write(str(path), chest().astype(np.int16) if values is None else values, header)
    return path


def edited(path: Path, *swaps: tuple[bytes, bytes]) -> Path:
    head, _, data = path.read_bytes().partition(b"\n\n")
    for old, new in swaps:
        assert old in head, head
        head = head.replace(old, new)
    path.write_bytes(head + b"\n\n" + data)
    return path


@pytest.mark.parametrize("encoding", ["gzip", "raw"])
@pytest.mark.parametrize("dtype", ["i2", ">i2", "i4", "f4", "f8"])
def test_good_nrrd(tmp_path: Path, encoding: str, dtype: str) -> None:
    volume = accepted(save_nrrd(tmp_path / "x.nrrd", chest().astype(dtype), encoding=encoding))
    assert np.array_equal(volume.hu, ras(chest())) and np.allclose(volume.source.affine_ras, AFFINE)
    assert inspect(tmp_path / "x.nrrd").kind == "nrrd"


@pytest.mark.parametrize(
    ("space", "signs"),
    [("left-posterior-superior", (-1, -1, 1)), ("LPS", (-1, -1, 1)), ("left-anterior-superior", (-1, 1, 1))],
)
def test_spaces(tmp_path: Path, space: str, signs: tuple[int, int, int]) -> None:
    turned = {"space directions": (AFFINE[:3, :3].T * signs), "space origin": AFFINE[:3, 3] * signs}
    volume = accepted(save_nrrd(tmp_path / "x.nrrd", space=space, **turned))
    assert np.allclose(volume.source.affine_ras, AFFINE)


def test_detached_data(tmp_path: Path) -> None:
    path = tmp_path / "x.nhdr"
    nrrd.write(str(path), chest().astype(np.int16), HEADER, detached_header=True)
    assert np.array_equal(accepted(path).hu, ras(chest()))
    content = path.read_bytes()
    name = content.split(b"data file: ")[1].split(b"\n")[0]
    for escape in (
        b"../x.raw.gz",
        b"/etc/passwd",
        b"LIST",
        b"x%03d.raw 1 3 1",
        b"sub/x.raw.gz",
        b"..\\x.raw",
    ):
        path.write_bytes(content.replace(b"data file: " + name, b"data file: " + escape))
        refused(path, "PATH_ESCAPE")
    path.write_bytes(content.replace(b"data file: " + name, b"data file: gone.raw.gz"))
    refused(path, "NOT_FOUND")


def test_nrrd_cut_damaged_or_longer(tmp_path: Path) -> None:
    raw, packed = save_nrrd(tmp_path / "r.nrrd", encoding="raw"), save_nrrd(tmp_path / "g.nrrd")
    content = raw.read_bytes()
    raw.write_bytes(content[:-1])
    refused(raw, "NRRD_TRUNCATED")
    raw.write_bytes(content + b"x")
    refused(raw, "TRAILING_BYTES")
    content = packed.read_bytes()
    packed.write_bytes(content[: len(content) // 2])
    refused(packed, "GZ_TRUNCATED")
    packed.write_bytes(content[:-3])
    refused(packed, "GZ_NO_TRAILER")
    damaged = bytearray(content)
    damaged[-6] ^= 1
    packed.write_bytes(bytes(damaged))
    refused(packed, "GZ_CRC")


@pytest.mark.parametrize(
    ("old", "new", "code"),
    [
        (b"encoding: gzip", b"encoding: ascii", "NRRD_HEADER"),
        (b"encoding: gzip", b"encoding: bzip2", "NRRD_HEADER"),
        (b"encoding: gzip", b"encoding: gzip\nbyte skip: 10", "NRRD_HEADER"),
        (b"endian: little", b"endian: middle", "NRRD_HEADER"),
        (b"type: int16", b"type: block", "DTYPE"),
        (b"sizes: 48 40 32", b"sizes: 48 40 -32", "DIMS_NONPOSITIVE"),
        (b"sizes: 48 40 32", b"sizes: 99999 99999 99999", "DIMS_HUGE"),
        (b"sizes: 48 40 32", b"sizes: 48 1280", "NDIM_4"),
        (b"sizes: 48 40 32", b"sizes: a b c", "NRRD_HEADER"),
        (b"space: right-anterior-superior", b"space: scanner-xyz", "ORIENTATION_UNKNOWN"),
        (b"(-8,0,0)", b"(nan,0,0)", "AFFINE_NAN"),
        (b"(-8,0,0)", b"(0,0,0)", "AFFINE_SINGULAR"),
        (b"(-8,0,0)", b"(-8,0)", "NRRD_HEADER"),
        (b"NRRD0005", b"NRRD0009", "NRRD_HEADER"),
    ],
)  # fmt: skip
def test_nrrd_headers_that_are_refused(tmp_path: Path, old: bytes, new: bytes, code: str) -> None:
    path = save_nrrd(tmp_path / "x.nrrd")
    swap = (path.read_bytes()[:8], new) if old.startswith(b"NRRD") else (old, new)
    refused(edited(path, swap), code)


def test_nrrd_without_end_of_header(tmp_path: Path) -> None:
    (tmp_path / "x.nrrd").write_bytes(b"NRRD0004\n" + b"# comment\n" * 200_000)
    refused(tmp_path / "x.nrrd", "NRRD_HEADER")


def test_nrrd_units_origin_and_assumed_axes(tmp_path: Path) -> None:
    metres = save_nrrd(
        tmp_path / "m.nrrd",
        **{
            "space directions": AFFINE[:3, :3].T / 1000,
            "space origin": AFFINE[:3, 3] / 1000,
            "space units": ["m"] * 3,
        },
    )
    assert np.allclose(accepted(metres, "UNITS_NOT_MM").source.affine_ras, AFFINE)
    accepted(save_nrrd(tmp_path / "o.nrrd", **{"space origin": None}), "ORIGIN_MISSING")
    bare = {"space": None, "space directions": None, "space origin": None, "spacings": np.array(SPACING_MM)}
    path = save_nrrd(tmp_path / "b.nrrd", **bare)
    refused(path, "ORIENTATION_UNKNOWN")
    volume = accepted(path, "ORIENTATION_UNKNOWN", answers=Answers(assume="LAS"))
    assert np.array_equal(volume.hu, ras(chest())) and np.allclose(volume.spacing_mm, SPACING_MM)


def save_npz(path: Path, **arrays: object) -> Path:
    given = {"hu": chest().astype(np.int16), "affine": AFFINE, **arrays}
    np.savez_compressed(path, **{k: np.asarray(v) for k, v in given.items() if v is not None})
    return path


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("dtype", ["i2", "f4", "f8", ">i2"])
def test_good_npz(tmp_path: Path, order: str, dtype: str) -> None:
    path = save_npz(tmp_path / "x.npz", hu=np.asarray(chest().astype(dtype), order=order))
    volume = accepted(path)
    assert np.array_equal(volume.hu, ras(chest())) and np.allclose(volume.source.affine_ras, AFFINE)
    assert volume.provenance.kind == "npz" and len(volume.provenance.sha256) == 64


def test_npz_by_spacing_and_orientation(tmp_path: Path) -> None:
    path = save_npz(tmp_path / "x.npz", affine=None, spacing_mm=SPACING_MM, orientation="LAS")
    assert np.array_equal(accepted(path).hu, ras(chest()))
    refused(save_npz(tmp_path / "y.npz", affine=None, spacing_mm=SPACING_MM), "ORIENTATION_UNKNOWN")
    accepted(tmp_path / "y.npz", "ORIENTATION_UNKNOWN", answers=Answers(assume="LAS"))


def test_rad_chestct_is_read_only_when_said(tmp_path: Path) -> None:
    hu = chest((38, 38, 42)).repeat(5, 0).repeat(5, 1).repeat(3, 2)
    stored = np.transpose(hu[::-1, ::-1, ::-1], (2, 1, 0))
    path = tmp_path / "trn00001.npz"
    np.savez_compressed(path, ct=stored.astype(np.int16))
    assert "rad-chestct" in (refused(path, "ORIENTATION_UNKNOWN").hint or "")
    volume = accepted(path, "ORIENTATION_UNKNOWN", answers=Answers(assume="rad-chestct"))
    assert volume.source.axcodes == "IPL" and np.allclose(volume.spacing_mm, 0.8)
    assert np.array_equal(volume.hu, hu)


@pytest.mark.parametrize(
    ("arrays", "code"),
    [
        ({"hu": None}, "NPZ_LAYOUT"),
        ({"hu": np.array([{"a": 1}], dtype=object)}, "DTYPE"),
        ({"hu": chest().astype(complex)}, "DTYPE"),
        ({"hu": chest().astype(np.float16)}, "DTYPE"),
        ({"hu": chest() > 0}, "DTYPE"),
        ({"hu": chest()[..., None]}, "NDIM_4"),
        ({"hu": np.zeros((0, 4, 4), np.int16)}, "DIMS_NONPOSITIVE"),
        ({"affine": np.eye(3)}, "NPZ_LAYOUT"),
        ({"affine": np.zeros((4, 4))}, "NPZ_LAYOUT"),
        ({"affine": np.diag([0.0, 1, 1, 1])}, "AFFINE_SINGULAR"),
        ({"affine": np.diag([np.nan, 1, 1, 1])}, "AFFINE_NAN"),
        ({"affine": np.array([[{}] * 4] * 4, dtype=object)}, "DTYPE"),
        ({"affine": None, "spacing_mm": (1, 2), "orientation": "RAS"}, "NPZ_LAYOUT"),
        ({"affine": None, "spacing_mm": (1, 0, 2), "orientation": "RAS"}, "SPACING_ZERO"),
        ({"affine": None, "spacing_mm": SPACING_MM, "orientation": "RAR"}, "NPZ_LAYOUT"),
        ({"affine": None, "spacing_mm": SPACING_MM, "orientation": ["RAS", "LPS"]}, "NPZ_LAYOUT"),
        ({"affine": None, "spacing_mm": SPACING_MM, "orientation": "R" * 2000}, "NPZ_LAYOUT"),
    ],
)  # fmt: skip
def test_npz_that_are_refused(tmp_path: Path, arrays: dict, code: str) -> None:
    refused(save_npz(tmp_path / "x.npz", **arrays), code)


def test_npz_sizes_are_checked_before_reading(tmp_path: Path) -> None:
    path = tmp_path / "x.npz"
    head = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        head, {"descr": "<i2", "fortran_order": False, "shape": (9000, 9000, 9000)}
    )
    small = io.BytesIO()
    np.lib.format.write_array_header_1_0(small, {"descr": "<i2", "fortran_order": False, "shape": SHAPE})
    for content, code in (
        (head.getvalue(), "DIMS_HUGE"),
        (small.getvalue() + b"xx", "NPZ_LAYOUT"),
        (b"junk", "NPZ_LAYOUT"),
    ):
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("hu.npy", content)
        refused(path, code)
    refused(save_npz(tmp_path / "y.npz"), "DIMS_HUGE", limits=Limits(max_voxels=10))


def test_npz_orientation_in_the_file_is_never_a_usage_error(tmp_path: Path) -> None:
    path = save_npz(tmp_path / "x.npz", affine=None)
    with pytest.raises(UsageError):
        open_volume(
            save_npz(tmp_path / "y.npz", affine=None, spacing_mm=SPACING_MM), answers=Answers(assume="???")
        )
    refused(path, "ORIENTATION_UNKNOWN")


def test_gzip_around_a_nrrd_is_not_a_nrrd(tmp_path: Path) -> None:
    path = save_nrrd(tmp_path / "x.nrrd", encoding="raw")
    path.write_bytes(gzip.compress(path.read_bytes()))
    assert inspect(path).refused
