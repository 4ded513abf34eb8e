"""A checkpoint on disk: a folder of safetensors under a sealed list of them.

    CHECKPOINTS/000012-step-4000/checkpoint.json   step, recipe, ranks, tensors, files; its own hash
    CHECKPOINTS/000012-step-4000/*.safetensors     a file per rank that had something to write
    CHECKPOINTS/.hilum-0123456789abcdef.tmp        what a killed writer left; the next save removes it

The first number counts saves: a run that went back to an older checkpoint saves newer ones at smaller steps.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from hilum.cohort.store import sealed, unsealed
from hilum.errors import WeightsError
from hilum.io.atomic import atomic_write
from hilum.io.hashing import sha256_of

FORMAT = 1
MANIFEST, SUFFIX = "checkpoint.json", ".safetensors"
_NAME = re.compile(r"(\d{6,})-step-(\d+)")


@dataclass(frozen=True)
class Manifest:
    """What a checkpoint says about itself.

    Args:
        step: the next one of the run. identity: JSON of the recipe. world: ranks that wrote it.
        tensors: name -> [dtype, size of every axis], whole, however it is sharded.
        files: name -> [bytes, sha256].
    """

    step: int
    identity: str
    world: int
    tensors: Mapping[str, list]
    files: Mapping[str, list]


def standing(folder: Path) -> list[Path]:
    """The checkpoints of a folder, the last saved first; whether they are whole is not looked at."""
    found = [path for path in folder.glob("*-step-*") if _NAME.fullmatch(path.name) and path.is_dir()]
    return sorted(found, key=_serial, reverse=True)


def next_name(folder: Path, step: int) -> str:
    """The folder of the next save; never one that was there before."""
    last = max(map(_serial, standing(folder)), default=0)
    return f"{last + 1:06d}-step-{step}"


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """The last file of a checkpoint."""
    with atomic_write(folder / MANIFEST) as file:
        file.write(sealed({"format": FORMAT, **asdict(manifest)}))


def read_manifest(folder: Path) -> Manifest:
    """The manifest, when it is what was written and every file that it names has its size.

    Raises:
        WeightsError: `CHECKPOINT_PARTIAL`, `FORMAT_NEWER`.
    """
    path = folder / MANIFEST
    try:
        text = path.read_bytes()
        version = int(json.loads(text)["format"])
    except OSError as error:
        raise partial(path, error.strerror or "a file that cannot be read") from error
    except (ValueError, KeyError, TypeError) as error:
        raise partial(path, "no manifest") from error
    if version > FORMAT:
        raise WeightsError(
            "FORMAT_NEWER",
            "a checkpoint is not newer than Hilum",
            expected=f"<= {FORMAT}",
            got=version,
            path=path,
        )
    facts = unsealed(text)
    if facts is None:
        raise partial(path, "other bytes")
    del facts["format"]
    manifest = Manifest(**facts)
    _all_there(folder, manifest)
    return manifest


def file_facts(folder: Path, part: slice = slice(None)) -> dict[str, list]:
    """Bytes and sha256 of a checkpoint's files, or of a part of them in the order of their names."""
    paths = sorted(folder.glob(f"*{SUFFIX}"))[part]
    return {path.name: [path.stat().st_size, sha256_of(path)] for path in paths}


def check_files(folder: Path, manifest: Manifest, found: Mapping[str, list]) -> None:
    """Every file is, byte for byte, what was written.

    Raises:
        WeightsError: `CHECKPOINT_PARTIAL` naming the first that is not.
    """
    for name in sorted(manifest.files.keys() | found.keys()):
        if found.get(name) != manifest.files.get(name):
            raise partial(folder / name, "other bytes")


def check_identity(folder: Path, manifest: Manifest, identity: str) -> None:
    """A run goes on with the recipe that it began with.

    Raises:
        WeightsError: `RESUME_CHANGED` naming the keys that differ.
    """
    before, now = _leaves(manifest.identity), _leaves(identity)
    keys = sorted(key for key in before.keys() | now.keys() if before.get(key) != now.get(key))
    if keys:
        raise WeightsError(
            "RESUME_CHANGED",
            "a run resumes with its own recipe",
            expected=", ".join(f"{key} = {before.get(key, 'nothing')}" for key in keys[:5]),
            got=", ".join(f"{key} = {now.get(key, 'nothing')}" for key in keys[:5]),
            path=folder,
            hint="Use the recipe that the run began with, or another output.",
        )


def remove(paths: Iterable[Path]) -> None:
    """Checkpoints that are no longer wanted; one that is only half removed never has a checkpoint's name."""
    for path in paths:
        aside = path.with_name(f".hilum-{path.name}.tmp")
        shutil.rmtree(aside, ignore_errors=True)
        path.rename(aside)
        shutil.rmtree(aside, ignore_errors=True)


def remove_leftovers(folder: Path) -> None:
    """What killed writers and removers left."""
    for path in folder.glob(".hilum-*.tmp"):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def partial(path: Path, got: str) -> WeightsError:
    """A checkpoint, or a file of it, is not what was written."""
    return WeightsError(
        "CHECKPOINT_PARTIAL",
        "a checkpoint verifies before it is resumed",
        expected="the bytes that were written",
        got=got,
        path=path,
    )


def _all_there(folder: Path, manifest: Manifest) -> None:
    sizes = {path.name: path.stat().st_size for path in folder.glob(f"*{SUFFIX}")}
    for name, (size, _) in sorted(manifest.files.items()):
        if name not in sizes:
            raise partial(folder / name, "no such file")
        if sizes[name] != size:
            raise partial(folder / name, f"{sizes[name]} of {size} bytes")
    if extra := sorted(sizes.keys() - manifest.files.keys()):
        raise partial(folder / extra[0], "a file that the manifest does not name")


def _serial(path: Path) -> int:
    return int(path.name.partition("-")[0])


def _leaves(identity: str) -> dict[str, str]:
    """Key of every value of a JSON text -> the value as JSON; a text that is no JSON is one value."""
    try:
        value = json.loads(identity)
    except ValueError:
        value = identity
    found: dict[str, str] = {}
    _collect(value, "", found)
    return found


def _collect(value: Any, key: str, found: dict[str, str]) -> None:
    if isinstance(value, dict) and value:
        for name, part in value.items():
            _collect(part, f"{key}.{name}" if key else str(name), found)
    else:
        found[key or "recipe"] = json.dumps(value, sort_keys=True)
