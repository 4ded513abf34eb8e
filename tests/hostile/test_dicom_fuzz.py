"""Damaged DICOM bytes: a volume or one of our refusals, never anything else, and never a hang."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import numpy as np
import pytest
from fixtures_dicom import enhanced, files, good
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hilum.errors import InputRefused
from hilum.io.dicom_series import read_series
from hilum.io.dicom_write import SYNTAX_UIDS
from hilum.io.limits import Answers, Limits

EXAMPLES = int(os.environ.get("HILUM_FUZZ_EXAMPLES", "250"))
LIMITS = Limits(max_voxels=2**22, archive_ratio_floor_bytes=2**22)
KINDS = [*SYNTAX_UIDS, "enhanced"]


@pytest.fixture(scope="module")
def seeds(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One small valid series per syntax, and an enhanced file."""
    root = tmp_path_factory.mktemp("seeds")
    for syntax in SYNTAX_UIDS:
        good(root / syntax, syntax=syntax, shape=(32, 32, 4), spacing=(9.0, 9.0, 40.0))
    (root / "enhanced").mkdir()
    enhanced(root / "enhanced" / "multi.dcm")
    return {kind: root / kind for kind in KINDS}


mutations = st.lists(
    st.tuples(
        st.sampled_from(["flip", "byte", "ones", "cut", "insert", "delete", "repeat", "swap"]),
        st.floats(0, 1),
        st.integers(0, 255),
        st.integers(1, 64),
    ),
    min_size=1,
    max_size=6,
)


def mutate(content: bytes, changes: list[tuple[str, float, int, int]], header_only: bool) -> bytes:
    data = bytearray(content)
    for kind, where, value, length in changes:
        span = min(len(data), 1600) if header_only else len(data)
        at = min(int(where * span), max(len(data) - 1, 0))
        if kind == "flip":
            data[at : at + 1] = bytes([data[at] ^ (1 << value % 8)]) if data else b""
        elif kind == "byte":
            data[at : at + 1] = bytes([value])
        elif kind == "ones":
            data[at : at + min(length, 8)] = b"\xff" * min(length, 8)
        elif kind == "cut":
            del data[at if not header_only else max(at, len(data) - length) :]
        elif kind == "insert":
            data[at:at] = bytes([value]) * length
        elif kind == "delete":
            del data[at : at + length]
        elif kind == "repeat":
            data[at:at] = data[at : at + length]
        else:
            data[at : at + 2] = data[at : at + 2][::-1]
    return bytes(data)


@settings(
    max_examples=EXAMPLES,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(
    kind=st.sampled_from(KINDS),
    changes=mutations,
    header_only=st.booleans(),
    victim=st.integers(0, 3),
    mode=st.sampled_from(["repair", "refuse", "report-only"]),
)
def test_damaged_bytes(
    seeds: dict[str, Path], kind: str, changes: list, header_only: bool, victim: int, mode: str
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        for number, path in enumerate(files(seeds[kind])):
            content = path.read_bytes()
            if number == victim % len(files(seeds[kind])):
                content = mutate(content, changes, header_only)
            (Path(folder) / path.name).write_bytes(content)
        try:
            volume = read_series(folder, mode=mode, answers=Answers(accept_fov=True), limits=LIMITS)
        except InputRefused as refusal:
            assert refusal.code.isupper() and refusal.exit_code == 3
            return
        assert np.isfinite(volume.hu).all()
        assert np.isfinite(volume.geometry.affine_ras).all()
