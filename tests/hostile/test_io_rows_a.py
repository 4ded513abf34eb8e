"""Catalogue rows A that are not DICOM: bytes and containers. Every bad file has a good twin."""

from __future__ import annotations

import gzip
import os
import socket
import stat
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest
from fixtures_files import AFFINE, accepted, chest, get, patched, ras, refused, save_nifti

from hilum.errors import ContainerError
from hilum.io.archive import open_archive
from hilum.io.limits import Limits
from hilum.io.open import inspect, open_volume


@pytest.fixture
def good(tmp_path: Path) -> Path:
    return save_nifti(tmp_path / "chest.nii.gz")


def test_good_twin_opens_without_findings(good: Path) -> None:
    volume = accepted(good)
    assert np.array_equal(volume.hu, ras(chest()))
    assert inspect(good).kind == "nifti"


@pytest.mark.parametrize("share", [0.3, 0.7, 0.99, 0.999])
def test_a01_gz_truncated(good: Path, share: float) -> None:
    content = good.read_bytes()
    good.write_bytes(content[: int(len(content) * share)])
    error = refused(good, "GZ_TRUNCATED")
    assert "bytes" in (error.expected or "") and "bytes" in (error.got or "")


@pytest.mark.parametrize("missing", [1, 1000, 100_000])
def test_a02_nii_truncated(tmp_path: Path, missing: int) -> None:
    path = save_nifti(tmp_path / "chest.nii")
    accepted(path)
    content = path.read_bytes()
    path.write_bytes(content[:-missing])
    refused(path, "NII_TRUNCATED")
    path.write_bytes(content[:200])
    refused(path, "NII_TRUNCATED")


def test_a03_gz_crc_every_flipped_bit_is_refused(good: Path) -> None:
    content = good.read_bytes()
    rng = np.random.default_rng(3)
    for at in rng.integers(20, len(content) - 8, 40):
        damaged = bytearray(content)
        damaged[at] ^= 1 << int(rng.integers(8))
        good.write_bytes(bytes(damaged))
        with pytest.raises(ContainerError) as caught:
            open_volume(good)
        assert caught.value.code in ("GZ_CRC", "GZ_TRUNCATED", "GZ_BOMB")


@pytest.mark.parametrize("at", [-8, -1])
def test_a03_checksum_or_length_in_the_trailer(good: Path, at: int) -> None:
    content = bytearray(good.read_bytes())
    content[at] ^= 1
    good.write_bytes(bytes(content))
    refused(good, "GZ_CRC")


@pytest.mark.parametrize("missing", [1, 4, 8])
def test_a04_gz_no_trailer(good: Path, missing: int) -> None:
    good.write_bytes(good.read_bytes()[:-missing])
    refused(good, "GZ_NO_TRAILER")


def test_a05_name_not_content(tmp_path: Path) -> None:
    plain = save_nifti(tmp_path / "plain.nii")
    packed = gzip.compress(plain.read_bytes())
    (tmp_path / "liar.nii.gz").write_bytes(plain.read_bytes())
    (tmp_path / "liar.nii").write_bytes(packed)
    for name in ("liar.nii.gz", "liar.nii"):
        assert np.array_equal(accepted(tmp_path / name, "NAME_NOT_CONTENT").hu, ras(chest()))


def test_a06_gz_bomb_by_the_headers_own_size(tmp_path: Path) -> None:
    path = save_nifti(tmp_path / "bomb.nii")
    header = bytearray(path.read_bytes()[:352])
    struct.pack_into("<8h", header, 40, 3, 1000, 1000, 500, 1, 1, 1, 1)
    struct.pack_into("<8f", header, 76, 1.0, 0.4, 0.4, 0.5, 1, 1, 1, 1)
    for row, values in enumerate([(0.4, 0, 0, 0), (0, 0.4, 0, 0), (0, 0, 0.5, 0)]):
        struct.pack_into("<4f", header, 280 + 16 * row, *values)
    struct.pack_into("<h", header, 252, 0)
    bomb = tmp_path / "bomb.nii.gz"
    with gzip.open(bomb, "wb", compresslevel=9) as file:
        file.write(bytes(header) + bytes(1024 * 1024))
    refused(bomb, "GZ_BOMB")


def test_a06_gz_that_holds_more_than_it_says(tmp_path: Path) -> None:
    path = save_nifti(tmp_path / "more.nii")
    more = tmp_path / "more.nii.gz"
    more.write_bytes(gzip.compress(path.read_bytes() + bytes(100)))
    refused(more, "GZ_BOMB")
    path.write_bytes(path.read_bytes() + bytes(100))
    refused(path, "TRAILING_BYTES")


def test_several_gzip_members_are_one_file(tmp_path: Path) -> None:
    content = save_nifti(tmp_path / "plain.nii").read_bytes()
    path = tmp_path / "members.nii.gz"
    path.write_bytes(gzip.compress(content[:1000]) + gzip.compress(content[1000:]))
    assert np.array_equal(accepted(path).hu, ras(chest()))
    path.write_bytes(gzip.compress(content[:1000]) + gzip.compress(content[1000:]) + b"junk")
    refused(path, "GZ_CRC")


def zip_of(path: Path, members: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


def test_zip_with_one_nifti_is_read(tmp_path: Path, good: Path) -> None:
    members = {"a/scan.nii.gz": good.read_bytes(), "a/readme.txt": b"x", "__MACOSX/._scan": b"y"}
    assert np.array_equal(accepted(zip_of(tmp_path / "one.zip", members)).hu, ras(chest()))


def test_zip_with_two_volumes_is_refused(tmp_path: Path, good: Path) -> None:
    refused(
        zip_of(tmp_path / "two.zip", {"a.nii.gz": good.read_bytes(), "b.nii": b"\x5c\x01\0\0"}),
        "NOT_AN_IMAGE",
    )


def test_a07_archive_bomb_by_ratio_total_and_count(tmp_path: Path) -> None:
    refused(zip_of(tmp_path / "ratio.zip", {"a.dcm": bytes(80 * 1024 * 1024)}), "ARCHIVE_BOMB")
    many = zip_of(tmp_path / "many.zip", {f"{i}.dcm": b"x" for i in range(50)})
    refused(many, "ARCHIVE_BOMB", limits=Limits(max_archive_members=49))
    refused(many, "ARCHIVE_BOMB", limits=Limits(max_archive_bytes=49))


def test_a07_nested_archives_by_name_and_by_content(tmp_path: Path) -> None:
    inner = zip_of(tmp_path / "inner.zip", {"a": b"x"}).read_bytes()
    refused(zip_of(tmp_path / "named.zip", {"inner.zip": inner}), "ARCHIVE_BOMB")
    refused(zip_of(tmp_path / "hidden.zip", {"image.dcm": inner}), "ARCHIVE_BOMB")


@pytest.mark.parametrize("name", ["../x.dcm", "a/../../x.dcm", "/etc/x.dcm", "C:\\x.dcm", "a\\..\\..\\x.dcm"])
def test_a08_archive_traversal(tmp_path: Path, name: str) -> None:
    refused(zip_of(tmp_path / "evil.zip", {"ok.dcm": b"x", name: b"x"}), "ARCHIVE_TRAVERSAL")


@pytest.mark.parametrize("kind", [stat.S_IFLNK, stat.S_IFIFO, stat.S_IFCHR])
def test_a08_links_and_devices_in_archives(tmp_path: Path, kind: int) -> None:
    path = tmp_path / "link.zip"
    with zipfile.ZipFile(path, "w") as archive:
        info = zipfile.ZipInfo("link.dcm")
        info.external_attr = (kind | 0o777) << 16
        archive.writestr(info, "/etc/passwd")
    refused(path, "ARCHIVE_TRAVERSAL")


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("second", ["a.dcm", "A.DCM"])
def test_a09_archive_duplicate(tmp_path: Path, second: str) -> None:
    path = tmp_path / "twice.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.dcm", b"1")
        archive.writestr(second, b"2")
    refused(path, "ARCHIVE_DUPLICATE")


def test_damaged_and_encrypted_zips(tmp_path: Path, good: Path) -> None:
    path = zip_of(tmp_path / "x.zip", {"scan.nii.gz": good.read_bytes()}, zipfile.ZIP_STORED)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    refused(path, "ARCHIVE_DAMAGED")
    damaged = bytearray(content)
    damaged[len(content) // 2] ^= 4
    path.write_bytes(bytes(damaged))
    with pytest.raises(ContainerError) as caught:
        open_volume(path)
    assert caught.value.code in ("ARCHIVE_DAMAGED", "GZ_CRC", "GZ_BOMB", "GZ_TRUNCATED")
    locked = bytearray(content)
    locked[6] |= 1
    locked[content.rindex(b"PK\x01\x02") + 8] |= 1
    path.write_bytes(bytes(locked))
    refused(path, "ARCHIVE_DAMAGED")


def test_archive_members_have_our_names_and_verify(tmp_path: Path) -> None:
    path = zip_of(tmp_path / "x.zip", {"Doe^Jane.dcm": b"12345678", "b/": b"", "b/2.dcm": b"abc"})
    with open_archive(path) as members:
        assert [m.name for m in members] == ["member-00000", "member-00001"]
        assert [m.read() for m in members] == [b"12345678", b"abc"]


@pytest.mark.parametrize("version", [1, 2])
def test_a15_dims_huge(tmp_path: Path, version: int) -> None:
    path = save_nifti(tmp_path / "x.nii")
    patched(path, dim=(3, 32767, 32767, 32767, 1, 1, 1, 1))
    refused(path, "DIMS_HUGE")
    if version == 2:
        small = save_nifti(tmp_path / "y.nii.gz")
        refused(small, "DIMS_HUGE", limits=Limits(max_voxels=1000))
        refused(small, "DIMS_HUGE", limits=Limits(max_stored_bytes=1000))


@pytest.mark.parametrize(
    "dims", [(3, -5, 40, 32), (3, 0, 40, 32), (4, 48, 40, 32, 0), (0, 48, 40, 32), (-3, 4, 4, 4)]
)
def test_a16_dims_nonpositive(tmp_path: Path, dims: tuple[int, ...]) -> None:
    path = save_nifti(tmp_path / "x.nii")
    refused(patched(path, dim=(*dims, *[1] * (8 - len(dims)))), "DIMS_NONPOSITIVE")


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
@pytest.mark.parametrize("offset", [1e9, float("nan"), float("inf"), 0.0, 100.0, 352.5, -352.0])
def test_a17_offset_bad(tmp_path: Path, offset: float, suffix: str) -> None:
    refused(patched(save_nifti(tmp_path / f"x{suffix}"), vox_offset=offset), "OFFSET_BAD")


def test_a17_offset_behind_the_end_of_a_plain_file(tmp_path: Path) -> None:
    refused(patched(save_nifti(tmp_path / "x.nii"), vox_offset=1e6), "OFFSET_BAD")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "an empty file"),
        (b"<!DOCTYPE html><html><body>404</body></html>", "an HTML page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n", "a Git LFS pointer"),
        (b"\0\0\0\1Bud1\0\0", "a .DS_Store file"),
        (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "an OLE file"),
        (b"%PDF-1.7", "a PDF"),
        (b'{"error": "quota"}', "a JSON file"),
        (bytes(5000), "a file of zeros"),
        (b"\x93NUMPY\x01\0", "a bare NumPy array"),
        (bytes(range(1, 250)), "an unknown kind of file"),
    ],
)
def test_a18_not_an_image_is_named(tmp_path: Path, content: bytes, words: str) -> None:
    path = tmp_path / "scan.nii.gz"
    path.write_bytes(content)
    assert words in (refused(path, "NOT_AN_IMAGE").got or "")
    path.write_bytes(gzip.compress(content))
    refused(path, "NOT_AN_IMAGE")


def test_a19_not_regular(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo.nii"
    os.mkfifo(fifo)
    refused(fifo, "NOT_REGULAR")
    refused(Path("/dev/zero"), "NOT_REGULAR")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "s"))
        refused(tmp_path / "s", "NOT_REGULAR")


@pytest.mark.parametrize("name", ["nothing.nii", "x" * 300, "a\0b", "dangling"])
def test_an_input_that_is_not_there(tmp_path: Path, name: str) -> None:
    (tmp_path / "dangling").symlink_to(tmp_path / "gone")
    refused(tmp_path / name, "NOT_FOUND")


@pytest.mark.parametrize(
    "name", ["a b.nii.gz", "größe ü.nii.gz", "dots...nii.gz", "[x]*?.nii.gz", "-x.nii.gz", "n\nl"]
)
def test_g11_odd_names_are_only_names(tmp_path: Path, good: Path, name: str) -> None:
    path = good.rename(tmp_path / name)
    accepted(path, *([] if name.endswith(".gz") else ["NAME_NOT_CONTENT"]))


def test_g09_nothing_is_written_beside_the_input(tmp_path: Path, good: Path) -> None:
    before = {p: p.stat().st_mtime_ns for p in tmp_path.iterdir()}
    inspect(good)
    open_volume(good)
    assert {p: p.stat().st_mtime_ns for p in tmp_path.iterdir()} == before


def test_the_fixture_is_what_it_claims(tmp_path: Path) -> None:
    content = save_nifti(tmp_path / "x.nii").read_bytes()
    assert get(content, "srow_x")[0] == AFFINE[0, 0] and get(content, "vox_offset") == (352.0,)
