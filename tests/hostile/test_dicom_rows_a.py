"""Rows A of the catalogue that concern DICOM: bytes, containers, names."""

from __future__ import annotations

import os
import struct
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pydicom
import pytest
from dicom_cases import Case, judge
from fixtures_dicom import chest, edit, element, files, good, nested, patch, setting, split_meta, stored

from hilum.errors import ContainerError, InputRefused, PixelError
from hilum.io.dicom_guard import guard
from hilum.io.dicom_series import read_series
from hilum.io.dicom_write import SYNTAX_UIDS
from hilum.io.limits import Limits
from hilum.volume import CTVolume, Level


def same_as_good(volume: CTVolume) -> None:
    assert np.array_equal(volume.hu, chest())


def _dicomdir(folder: Path) -> None:
    good(folder)
    (folder / "INDEX.dcm").write_bytes(files(folder)[0].read_bytes())

    def change(ds: pydicom.FileDataset) -> None:
        ds.SOPClassUID = ds.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.1.3.10"
        record = pydicom.Dataset()
        record.ReferencedFileID = ["..", "..", "etc", "passwd"]
        ds.DirectoryRecordSequence = pydicom.Sequence([record])

    edit(folder / "INDEX.dcm", change)
    (folder / "DICOMDIR").write_bytes((folder / "INDEX.dcm").read_bytes())


def _bomb(folder: Path) -> None:
    good(folder, syntax="deflated")
    meta, _ = split_meta(files(folder)[0].read_bytes())
    engine = zlib.compressobj(9, zlib.DEFLATED, -15)
    zeros = bytes(1 << 20)
    packed = b"".join(engine.compress(zeros) for _ in range(80)) + engine.flush()
    assert len(packed) < 100_000
    files(folder)[0].write_bytes(meta + packed)


def _insert(folder: Path, extra: bytes) -> None:
    good(folder)

    def change(content: bytes) -> bytes:
        meta, body = split_meta(content)
        return meta + extra + body

    patch(files(folder)[3], change)


def _cut(folder: Path, at: int) -> None:
    good(folder)
    patch(files(folder)[5], lambda content: content[:at])


def _cut_before_pixels(folder: Path) -> None:
    """The file ends exactly between two elements: nothing but the missing attributes tells."""
    good(folder)
    patch(files(folder)[5], lambda content: content[: content.index(b"\xe0\x7f\x10\x00OW")])


def _claims_4_gib(folder: Path) -> None:
    good(folder)
    extra = element(0x00091001, b"OB", b"0123456789abcdef", 0xFFFFFFF0)
    patch(files(folder)[5], lambda content: content + extra)


def _longer(folder: Path) -> None:
    good(folder)
    edit(files(folder)[5], lambda ds: setattr(ds, "PixelData", ds.PixelData + bytes(64)))


def _huge(folder: Path) -> None:
    good(folder)
    edit(files(folder), setting(Rows=65535, Columns=65535))


def _polyglot(folder: Path, start: bytes) -> None:
    good(folder)
    patch(files(folder)[0], lambda content: start + content[len(start) :])


def _no_preamble(folder: Path) -> None:
    good(folder)
    for path in files(folder):
        patch(path, lambda content: content[132:])


def _no_meta_implicit(folder: Path) -> None:
    good(folder, syntax="implicit")
    for path in files(folder):
        patch(path, lambda content: split_meta(content)[1])


def _fifo(folder: Path) -> None:
    good(folder)
    os.mkfifo(folder / "IM99999.dcm")


def _link_out(folder: Path) -> None:
    good(folder)
    outside = folder.parent / "elsewhere.dcm"
    outside.write_bytes(files(folder)[0].read_bytes())
    (folder / "IM99999.dcm").symlink_to(outside)


def _litter(folder: Path) -> None:
    good(folder)
    (folder / ".DS_Store").write_bytes(b"\0\0\0\1Bud1")
    (folder / "Thumbs.db").write_bytes(b"\xd0\xcf\x11\xe0" * 40)
    (folder / "error.dcm").write_text("<!DOCTYPE html><html><body>404</body></html>")
    (folder / "pointer.dcm").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    (folder / "empty.dcm").write_bytes(b"")


def _only_html(folder: Path) -> None:
    folder.mkdir()
    (folder / "IM1.dcm").write_text("<!DOCTYPE html><html></html>")


CASES = [
    Case("A10 dicomdir", "NOT_AN_IMAGE", Level.NOTE, _dicomdir, again=same_as_good),
    Case("A11 bomb", "DEFLATE_BOMB", Level.REFUSE, _bomb),
    Case("A12 depth", "SQ_DEPTH", Level.REFUSE, lambda f: _insert(f, nested(2000))),
    Case("A12 depth 33", "SQ_DEPTH", Level.REFUSE, lambda f: _insert(f, nested(33))),
    Case("A13 in meta", "DICOM_CUT", Level.REFUSE, lambda f: _cut(f, 200)),
    Case("A13 in header", "DICOM_CUT", Level.REFUSE, lambda f: _cut(f, 700)),
    Case("A13 between elements", "DICOM_CUT", Level.REFUSE, _cut_before_pixels),
    Case("A14 4 GiB", "LENGTH_OVERRUN", Level.REFUSE, _claims_4_gib),
    Case("A14 too long", "LENGTH_OVERRUN", Level.REFUSE, _longer, kind=PixelError),
    Case("A15 65535", "DIMS_HUGE", Level.REFUSE, _huge),
    Case("A18 litter", "NOT_AN_IMAGE", Level.NOTE, _litter, again=same_as_good),
    Case("A18 nothing else", "NOT_AN_IMAGE", Level.REFUSE, _only_html),
    Case("A19 fifo", "NOT_REGULAR", Level.REFUSE, _fifo),
    Case("A19 link out", "NOT_REGULAR", Level.REFUSE, _link_out),
    Case("A20 MZ", "POLYGLOT", Level.NOTE, lambda f: _polyglot(f, b"MZ\x90"), again=same_as_good),
    Case("A20 ELF", "POLYGLOT", Level.NOTE, lambda f: _polyglot(f, b"\x7fELF"), again=same_as_good),
    Case("A21 no preamble", "NO_PREAMBLE", Level.NOTE, _no_preamble, again=same_as_good),
    Case("A21 no meta", "NO_PREAMBLE", Level.NOTE, _no_meta_implicit, again=same_as_good),
]


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
def test_row(case: Case, tmp_path: Path) -> None:
    judge(case, tmp_path / "series")


@pytest.mark.parametrize("syntax", SYNTAX_UIDS)
def test_good_twin_has_nothing_to_say(syntax: str, tmp_path: Path) -> None:
    good(tmp_path / "series", syntax=syntax)
    volume = read_series(tmp_path / "series", mode="refuse")
    assert volume.provenance.findings == ()
    assert np.array_equal(volume.hu, chest())


def test_depth_of_32_is_allowed(tmp_path: Path) -> None:
    _insert(tmp_path / "series", nested(32))
    same_as_good(read_series(tmp_path / "series"))


def test_every_cut_is_refused(tmp_path: Path) -> None:
    """A slice cut anywhere at all never passes for a slice."""
    good(tmp_path / "series")
    path = files(tmp_path / "series")[5]
    whole = path.read_bytes()
    body_end = len(whole)
    for at in [*range(0, 1200, 37), body_end - 2000, body_end - 3, body_end - 2, body_end - 1]:
        path.write_bytes(whole[:at])
        with pytest.raises(InputRefused):
            read_series(tmp_path / "series")


def test_link_inside_is_no_second_image(tmp_path: Path) -> None:
    good(tmp_path / "series")
    (tmp_path / "series" / "again.dcm").symlink_to(files(tmp_path / "series")[0])
    assert read_series(tmp_path / "series", mode="refuse").provenance.findings == ()


def test_bomb_stays_small() -> None:
    """The cap is on what comes out, so the whole is never inflated."""
    engine = zlib.compressobj(9, zlib.DEFLATED, -15)
    packed = engine.compress(bytes(4 << 20)) + engine.flush()
    meta = bytes(128) + b"DICM" + element(0x00020010, b"UI", b"1.2.840.10008.1.2.1.99\0")
    limits = Limits(archive_ratio_floor_bytes=1 << 20)
    with pytest.raises(ContainerError) as caught:
        guard(meta + packed, limits)
    assert caught.value.code == "DEFLATE_BOMB"


def test_uid_is_never_a_name(tmp_path: Path) -> None:
    """A22: an identifier that is a path is no identifier."""
    good(tmp_path / "series")
    edit(files(tmp_path / "series")[0], setting(SOPInstanceUID="../../x"))
    with pytest.raises(ContainerError) as caught:
        read_series(tmp_path / "series")
    assert caught.value.code == "DICOM_CUT"
    assert "SOPInstanceUID" in str(caught.value)


def test_written_names_and_preamble_are_ours(tmp_path: Path) -> None:
    good(tmp_path / "series", patient_id="../../CANARY^PHI")
    names = [p.name for p in sorted((tmp_path / "series").iterdir())]
    assert names == [f"IM{n:05d}.dcm" for n in range(1, 17)]
    assert all(p.read_bytes()[:128] == bytes(128) for p in files(tmp_path / "series"))


def test_zip_reads_like_its_folder(tmp_path: Path) -> None:
    good(tmp_path / "series")
    with zipfile.ZipFile(tmp_path / "series.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for path in reversed(files(tmp_path / "series")):
            archive.write(path, f"a/b/{path.name}")
        archive.writestr("DICOMDIR", b"x" * 200)
    folder, packed = read_series(tmp_path / "series"), read_series(tmp_path / "series.zip")
    assert np.array_equal(folder.hu, packed.hu)
    assert folder.provenance.sha256 == packed.provenance.sha256
    assert folder.geometry.same_grid(packed.geometry)


def test_nothing_is_written_into_the_input(tmp_path: Path) -> None:
    good(tmp_path / "series")
    before = sorted(p.name for p in tmp_path.rglob("*"))
    read_series(tmp_path / "series")
    assert sorted(p.name for p in tmp_path.rglob("*")) == before


def test_no_personal_text_leaves(tmp_path: Path) -> None:
    """G08: names, descriptions and file names stay behind, also in every finding."""
    folder = tmp_path / "series"
    good(folder, patient_id="CANARY^PHI", description="CANARY^PHI", contrast="CANARY^PHI")
    for path in files(folder):
        path.rename(folder / f"CANARY^PHI {path.name}")
    patch(files(folder)[0], lambda content: b"MZ" + content[2:])
    volume = read_series(folder)
    said = [str(volume.provenance), repr(volume), *(str(f.as_dict()) for f in volume.provenance.findings)]
    assert volume.provenance.findings
    assert not any("CANARY" in text for text in said)


def test_stored_array_round_trip(tmp_path: Path) -> None:
    good(tmp_path / "series")
    volume = read_series(tmp_path / "series")
    assert np.array_equal(volume.to_source(volume.hu), stored(chest()))
    assert struct.unpack_from("<I", files(tmp_path / "series")[0].read_bytes(), 140)[0] > 0
