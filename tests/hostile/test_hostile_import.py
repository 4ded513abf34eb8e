"""`hilum import` on checkpoints that are damaged, claim too much, or hold code (rows F01 to F03)."""

import argparse
import io
import json
import os
import pickle
import struct
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import pytest
import torch

from hilum.convert import pickle_child
from hilum.convert.foreign import open_foreign
from hilum.convert.run import import_encoder
from hilum.errors import WeightsError


class Code:
    """Writes a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


class Claim:
    """A tensor of 2 ** 40 numbers over a storage that is said to hold them."""


class Claiming(pickle.Pickler):
    def persistent_id(self, thing):
        return ("storage", torch.FloatStorage, "0", "cpu", 2**40) if isinstance(thing, Claim) else None


class Rebuilt:
    def __reduce__(self):
        return torch._utils._rebuild_tensor_v2, (Claim(), 0, (2**40,), (1,), False, {})


@pytest.fixture(autouse=True)
def nothing_is_left(tmp_path_factory, monkeypatch):
    folder = tmp_path_factory.mktemp("temporary")
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    yield
    assert list(folder.iterdir()) == []


def archive(path: Path, members: dict[str, bytes], kind: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", kind) as file:
        for name, data in members.items():
            file.writestr(f"archive/{name}", data)
    return path


def saved(path: Path, content) -> Path:
    torch.save(content, path)
    return path


def refused(path: Path, code: str, words: str = "") -> None:
    before = sorted(p.name for p in path.parent.iterdir())
    with pytest.raises(WeightsError, match=rf"{code}.*{words}"):
        import_encoder("flexict", path, path.parent / "out", kind="3d")
    assert sorted(p.name for p in path.parent.iterdir()) == before


def read_here(path: Path):
    """What the process does, without its limits, which could not be taken back."""
    return pickle_child.collect(pickle_child.load(str(path)), path.stat().st_size)


def test_code_in_a_pickle_does_not_run(tmp_path):
    source = saved(
        tmp_path / "a.pth", {"teacher": {"backbone.cls_token": torch.zeros(2)}, "x": Code(tmp_path / "ran")}
    )
    refused(source, "WEIGHTS_PICKLE", "nothing that runs; got .*mkdir")
    assert not (tmp_path / "ran").exists()


def test_damage_is_refused_before_anything_is_unpickled(tmp_path, monkeypatch):
    monkeypatch.setattr(subprocess, "run", None)
    whole = saved(
        tmp_path / "whole.pth", {"teacher": {"backbone.cls_token": torch.ones(1, 1, 600)}}
    ).read_bytes()
    source = tmp_path / "a.pth"
    for cut in (0, 3, 30, len(whole) // 2, len(whole) - 1):
        source.write_bytes(whole[:cut])
        refused(source, "WEIGHTS_TRUNCATED")
    at = whole.index(struct.pack("<f", 1.0) * 8)
    source.write_bytes(whole[:at] + b"\x01" + whole[at + 1 :])
    refused(source, "WEIGHTS_TRUNCATED", "checksums")


def test_frames_that_are_no_checkpoint_are_refused_before_anything_is_unpickled(tmp_path, monkeypatch):
    monkeypatch.setattr(subprocess, "run", None)
    bomb = archive(tmp_path / "bomb.pth", {"data.pkl": b"0" * 10_000_000}, zipfile.ZIP_DEFLATED)
    refused(bomb, "WEIGHTS_HEADER", "no larger than itself")
    refused(
        archive(tmp_path / "two.pth", {"data.pkl": b"", "b/data.pkl": b""}), "WEIGHTS_HEADER", "2 of them"
    )
    refused(archive(tmp_path / "none.pth", {"data": b""}), "WEIGHTS_HEADER", "0 of them")
    script = archive(tmp_path / "script.pth", {"data.pkl": b"", "code/__torch__.py": b"import os"})
    refused(script, "WEIGHTS_PICKLE", "no code")
    bare = tmp_path / "bare.pkl"
    bare.write_bytes(pickle.dumps(Code(tmp_path / "ran"), protocol=2))
    refused(bare, "WEIGHTS_PICKLE", "a bare pickle")
    for name, data in (("a.txt", b"weights"), ("b.json", b"{}"), ("c.png", b"\x89PNG\r\n\x1a\n" + b"0" * 40)):
        (tmp_path / name).write_bytes(data)
        refused(tmp_path / name, "WEIGHTS_TRUNCATED", "start with")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("content", "code", "words"),
    [
        (torch.nn.Linear(2, 2), "WEIGHTS_PICKLE", "Linear"),
        ({"args": argparse.Namespace(lr=1)}, "WEIGHTS_PICKLE", "Namespace"),
        ({"a": [torch.zeros(2)]}, "WEIGHTS_PICKLE", "a list at a"),
        ({1: torch.zeros(2)}, "WEIGHTS_PICKLE", "a key of type int"),
        ({"a": {"b": torch.zeros(2)}, "a.b": torch.zeros(2)}, "WEIGHTS_KEYS", "a.b twice"),
        ({"a": torch.zeros(2, 2).to_sparse()}, "WEIGHTS_KEYS", "sparse"),
        ({"a": torch.zeros(2, dtype=torch.complex64)}, "WEIGHTS_KEYS", "complex"),
        ({"a": torch.zeros(1).expand(2**40)}, "WEIGHTS_HEADER", f"{2**42} bytes of 4 stored"),
        ({str(n): (n, torch.zeros(1)) for n in range(2)}, "WEIGHTS_PICKLE", "a tuple at 0"),
    ],
)
def test_what_is_no_plain_tensor_is_refused(tmp_path, content, code, words):
    with pytest.raises(pickle_child.Refused, match=words) as caught:
        read_here(saved(tmp_path / "a.pth", content))
    assert caught.value.code == code


def test_tensors_of_one_storage_do_not_multiply(tmp_path):
    many = torch.zeros(100_000)
    source = saved(tmp_path / "a.pth", {str(n): many for n in range(1000)})
    with pytest.raises(pickle_child.Refused, match="in an archive of") as caught:
        read_here(source)
    assert caught.value.code == "WEIGHTS_HEADER"


def test_containers_nest_a_little(tmp_path):
    content = torch.zeros(2)
    for _ in range(pickle_child.DEPTH):
        content = {"a": content}
    assert list(read_here(saved(tmp_path / "a.pth", content))[0]) == [".".join("a" * pickle_child.DEPTH)]
    with pytest.raises(pickle_child.Refused, match="in each other"):
        read_here(saved(tmp_path / "a.pth", {"a": content}))


def test_a_tensor_that_claims_more_than_is_stored_is_refused(tmp_path):
    pickled = io.BytesIO()
    Claiming(pickled, protocol=2).dump({"a": Rebuilt()})
    members = {"data.pkl": pickled.getvalue(), "byteorder": b"little", "data/0": b"0" * 64, "version": b"3\n"}
    source = archive(tmp_path / "a.pth", members)
    with pytest.raises(pickle_child.Refused) as caught:
        read_here(source)
    assert caught.value.code in ("WEIGHTS_TRUNCATED", "WEIGHTS_HEADER")


PROBE = """
import resource, socket, subprocess, sys
sys.path.insert(0, sys.argv[1])
import pickle_child
pickle_child.confine(1000)
pickle_child.bar_the_doors()
def refused(call):
    try:
        call()
    except pickle_child.Refused:
        return True
    return False
sys.stdout.write(repr([
    refused(lambda: socket.create_connection(("127.0.0.1", 9))),
    refused(lambda: subprocess.run(["true"])),
    refused(lambda: open(sys.argv[2], "w")),
    refused(lambda: __import__("os").open(sys.argv[2], 0o101)),
    refused(lambda: __import__("os").system("true")),
    not refused(lambda: open(__file__ if "__file__" in globals() else sys.executable, "rb").close()),
    resource.getrlimit(resource.RLIMIT_FSIZE)[0] < 2**25,
    resource.getrlimit(resource.RLIMIT_CPU)[0] == 300,
]))
"""


def test_the_process_is_shut_in(tmp_path):
    folder = str(Path(pickle_child.__file__).parent)
    command = [sys.executable, "-I", "-c", PROBE, folder, str(tmp_path / "written")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.stdout == repr([True] * 8), done.stderr[-2000:]
    assert not (tmp_path / "written").exists()


@pytest.mark.parametrize(
    ("answer", "words"), [(b"", "exit -9"), (b"[", "exit -9"), (None, "no answer in time")]
)
def test_a_process_that_dies_or_stalls_is_a_refusal(tmp_path, monkeypatch, answer, words):
    def run(command, **options):
        if answer is None:
            raise subprocess.TimeoutExpired(command, 1)
        return subprocess.CompletedProcess(command, -9, answer, b"")

    monkeypatch.setattr(subprocess, "run", run)
    refused(saved(tmp_path / "a.pth", {"a": torch.zeros(2)}), "WEIGHTS_TRUNCATED", words)


def test_what_is_not_there_is_said(tmp_path):
    refused(tmp_path / "nothing.pth", "NOT_FOUND", "No such file")
    empty = tmp_path / "empty"
    empty.mkdir()
    refused(empty, "NOT_FOUND", "a folder holds safetensors")
    saved(empty / "pytorch_model.bin", {})
    refused(empty, "NOT_FOUND", r"pytorch_model\.bin.*name the file itself")


def safetensors(path: Path, header: dict, body: bytes, length: int | None = None) -> Path:
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + body)
    return path


def test_safetensors_that_claim_more_than_they_hold_are_refused(tmp_path):
    huge = {"backbone.cls_token": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]}}
    refused(safetensors(tmp_path / "a.safetensors", huge, b"0" * 8), "WEIGHTS_TRUNCATED")
    fine = {"backbone.cls_token": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}
    refused(safetensors(tmp_path / "b.safetensors", fine, b"0" * 8, length=2**60), "WEIGHTS_TRUNCATED")
    refused(safetensors(tmp_path / "c.safetensors", fine, b"0" * 4), "WEIGHTS_TRUNCATED")
    twice = {**fine, "b": {"dtype": "F32", "shape": [2], "data_offsets": [4, 12]}}
    refused(safetensors(tmp_path / "d.safetensors", twice, b"0" * 12), "WEIGHTS_TRUNCATED")
    with open_foreign(safetensors(tmp_path / "e.safetensors", fine, b"\0" * 8)) as foreign:
        assert foreign.get("backbone.cls_token").tolist() == [0.0, 0.0]


@pytest.mark.parametrize("part", ["../a.safetensors", "/etc/passwd", "not-there.safetensors", "..", 7])
def test_an_index_stays_in_its_folder(tmp_path, part):
    fine = {"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}
    safetensors(tmp_path / "a.safetensors", fine, b"\0" * 8)
    folder = tmp_path / "hub"
    folder.mkdir()
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": part}}))
    refused(folder, "WEIGHTS_HEADER", "files beside it")


def test_a_tensor_in_two_parts_is_refused(tmp_path):
    folder = tmp_path / "hub"
    folder.mkdir()
    fine = {"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}
    for name in ("1.safetensors", "2.safetensors"):
        safetensors(folder / name, fine, b"\0" * 8)
    index = {"weight_map": {"a": "1.safetensors", "b": "2.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    refused(folder, "WEIGHTS_KEYS", "in one part")
