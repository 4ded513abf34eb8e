"""JPEG Lossless goes through GDCM, which can abort on damaged bytes: only its own process may die."""

from __future__ import annotations

import os
import random
import signal
from pathlib import Path

import numpy as np
import pydicom
import pytest
from fixtures_dicom import files, good
from test_dicom_rows_d import recode

from hilum.errors import HilumError
from hilum.io import decode_child
from hilum.io.decode_child import ChildFailed, DecodeChild
from hilum.io.dicom_series import read_series


@pytest.fixture(scope="module")
def lossless(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("lossless") / "s"
    good(folder)
    recode(folder, "JPEGLosslessProcess14_1")
    return folder


def test_damaged_frames_never_take_the_reader_down(lossless: Path) -> None:
    path = files(lossless)[3]
    whole = path.read_bytes()
    start = whole.find(b"\xff\xd8")
    chance = random.Random(7)
    try:
        for _ in range(40):
            damaged = bytearray(whole)
            for _ in range(chance.randint(1, 8)):
                # the JPEG headers are where a decoder goes wrong worst
                at = start + chance.randrange(2, 60 if chance.random() < 0.5 else len(whole) - start)
                damaged[at] = chance.randrange(256)
            path.write_bytes(bytes(damaged))
            try:
                volume = read_series(lossless)
            except HilumError:
                continue
            assert np.isfinite(volume.hu).all()
    finally:
        path.write_bytes(whole)
    assert read_series(lossless).shape


def test_a_killed_child_is_replaced(lossless: Path) -> None:
    before = read_series(lossless)
    process = decode_child.CHILD._process
    assert process is not None
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert np.array_equal(read_series(lossless).hu, before.hu)


def test_a_stalled_child_is_refused_in_time(lossless: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decode_child, "FRAME_TIMEOUT_S", 0.0)
    child = DecodeChild()
    dataset = pydicom.dcmread(files(lossless)[0])
    with pytest.raises(ChildFailed, match="died or stalled"):
        child.decode(dataset.PixelData, str(dataset.file_meta.TransferSyntaxUID), "gdcm", {})
    child.close()
