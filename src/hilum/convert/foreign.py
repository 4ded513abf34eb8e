"""A checkpoint of somebody else's as named tensors, whatever it is stored in.

Safetensors are read as they are. A torch archive is a pickle: its frame is judged here, then a process of its
own turns it into safetensors (`convert.pickle_child`), and the tensors come from there. What a file is, its
first bytes say.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from safetensors import SafetensorError, safe_open

from hilum.convert import pickle_child
from hilum.errors import WeightsError
from hilum.io.hashing import sha256_of

Form = Literal["torch archive", "safetensors"]
ARCHIVE_MAGIC = b"PK\x03\x04"
PICKLE_BYTES, MEMBERS = 64 * 2**20, 200_000
"""A pickle holds names and shapes, no numbers: 2 MB for a thousand tensors."""

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
INDEX_BYTES = 16 * 2**20
STILL_S = 120.0
"""Seconds a reader may take, and another for every 4 MiB."""


class Facts(NamedTuple):
    """Of one tensor: type as safetensors name it (``F32``, ``BF16``), and shape."""

    kind: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Foreign:
    """Somebody's checkpoint, open.

    Args:
        path: as given. form: what it is stored in. sha256: of the file, or of its parts together.
        table: every tensor by its own name. plain: other values, as text.
    """

    path: Path
    form: Form
    sha256: str
    table: Mapping[str, Facts]
    plain: Mapping[str, str | None]
    _files: Mapping[str, Any]

    def get(self, name: str) -> torch.Tensor:
        """One tensor, as stored."""
        return self._files[name].get_tensor(name)


@contextmanager
def open_foreign(path: Path, *, arrays: bool = False, skip: Sequence[str] = ()) -> Iterator[Foreign]:
    """A torch archive, a safetensors file, or a folder with `model.safetensors`, whole or in parts.

    Args:
        path: of it. arrays: an archive's NumPy arrays of numbers are tensors too. skip: names at the top of
            an archive that are left out unseen.

    Yields:
        The checkpoint; its tensors can be had while it is open.

    Raises:
        WeightsError: `NOT_FOUND`; `WEIGHTS_PICKLE` for a pickle that holds more than tensors;
            `WEIGHTS_TRUNCATED`, `WEIGHTS_HEADER` for files that are not whole or claim more than they hold;
            `WEIGHTS_KEYS` for a name twice.
    """
    with ExitStack() as stack:
        if path.is_dir():
            yield _from_parts(path, _parts(path), stack)
        elif _head(path).startswith(ARCHIVE_MAGIC):
            _judge_archive(path)
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="hilum-import-")))
            plain = _convert(path, folder / SINGLE, {"arrays": arrays, "skip": list(skip)})
            files = _opened([folder / SINGLE], stack)
            yield Foreign(path, "torch archive", sha256_of(path), _table(files), plain, files)
        else:
            _judge_safetensors(path)
            yield _from_parts(path, [path], stack)


def _from_parts(path: Path, parts: list[Path], stack: ExitStack) -> Foreign:
    files = _opened(parts, stack)
    digest = sha256_of(parts[0]) if len(parts) == 1 else "+".join(sha256_of(part) for part in parts)
    return Foreign(path, "safetensors", digest, _table(files), {}, files)


def _head(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(16)
    except OSError as error:
        raise WeightsError(
            "NOT_FOUND", "the checkpoint is there and can be read", got=error.strerror, path=path
        ) from None


def _judge_safetensors(path: Path) -> None:
    """Whether a file can be one; the library judges the rest."""
    head, size = _head(path), path.stat().st_size
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") <= size - 8:
        return
    if head[:1] == b"\x80":
        raise WeightsError(
            "WEIGHTS_PICKLE",
            "a checkpoint is a torch archive or safetensors",
            got="a bare pickle",
            path=path,
            hint="Torch has written archives since 1.6: load and save it once where it comes from.",
        )
    raise WeightsError(
        "WEIGHTS_TRUNCATED",
        "a checkpoint is a whole torch archive or safetensors file",
        got=f"{size} bytes that start with {head[:8]!r}",
        path=path,
    )


def _parts(folder: Path) -> list[Path]:
    """Files of a folder as Hugging Face lays them out."""
    if (folder / SINGLE).is_file():
        return [folder / SINGLE]
    index = folder / INDEX
    if not index.is_file():
        raise WeightsError(
            "NOT_FOUND",
            "a folder holds safetensors",
            expected=f"{SINGLE} or {INDEX}",
            got=", ".join(sorted(p.name for p in folder.iterdir())[:8]) or "nothing",
            path=folder,
            hint="Of a torch archive, name the file itself.",
        )
    try:
        with index.open("rb") as file:
            names = sorted(set(json.loads(file.read(INDEX_BYTES))["weight_map"].values()))
        if not names or any(Path(name).name != name or not (folder / name).is_file() for name in names):
            raise ValueError(f"parts {names[:5]}")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise WeightsError(
            "WEIGHTS_HEADER", "an index names files beside it", got=str(error)[:200], path=index
        ) from None
    return [folder / name for name in names]


def _opened(parts: list[Path], stack: ExitStack) -> dict[str, Any]:
    """The open file of every tensor."""
    files: dict[str, Any] = {}
    for part in parts:
        try:
            file = stack.enter_context(safe_open(part, framework="pt"))
            names = list(file.keys())
        except (SafetensorError, OSError, ValueError) as error:
            raise WeightsError(
                "WEIGHTS_TRUNCATED", "weights are a whole safetensors file", got=error, path=part
            ) from None
        if twice := sorted(set(names) & set(files)):
            raise WeightsError("WEIGHTS_KEYS", "a tensor is in one part", got=twice[:5], path=part)
        files.update(dict.fromkeys(names, file))
    return files


def _table(files: Mapping[str, Any]) -> dict[str, Facts]:
    found = {}
    for name, file in files.items():
        part = file.get_slice(name)
        found[name] = Facts(part.get_dtype(), tuple(part.get_shape()))
    return found


def _judge_archive(path: Path) -> None:
    """The frame of a torch archive, before anything reads it: whole, stored, one pickle, no code."""
    try:
        with zipfile.ZipFile(path) as archive:
            _judge_members(path, archive.infolist())
            damaged = archive.testzip()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError, EOFError) as error:
        raise WeightsError("WEIGHTS_TRUNCATED", "a torch archive is whole", got=error, path=path) from None
    if damaged is not None:
        raise WeightsError(
            "WEIGHTS_TRUNCATED", "a torch archive verifies against its own checksums", got=damaged, path=path
        )


def _judge_members(path: Path, members: list[zipfile.ZipInfo]) -> None:
    names = [member.filename for member in members]
    if code := [name for name in names if "/code/" in name or name.endswith("/constants.pkl")]:
        raise WeightsError("WEIGHTS_PICKLE", "a checkpoint holds no code", got=code[0], path=path)
    pickles = [member.file_size for member in members if member.filename.endswith("/data.pkl")]
    whole = sum(member.file_size for member in members) <= path.stat().st_size
    stored = all(m.compress_type == zipfile.ZIP_STORED and not m.flag_bits & 1 for m in members)
    once = len(set(names)) == len(names) <= MEMBERS
    if not (whole and stored and once and len(pickles) == 1 and pickles[0] <= PICKLE_BYTES):
        raise WeightsError(
            "WEIGHTS_HEADER",
            "a torch archive holds one small pickle and stored tensors, no larger than itself",
            got=f"{len(names)} members, {len(pickles)} of them data.pkl",
            path=path,
        )


def _convert(source: Path, target: Path, options: Mapping[str, Any]) -> dict[str, str | None]:
    """`convert.pickle_child` in a process of its own; the archive's plain values."""
    command = [sys.executable, "-I", str(pickle_child.__file__), str(source.resolve()), str(target)]
    command.append(json.dumps(dict(options)))
    kept = ("PATH", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "SYSTEMROOT", "TMPDIR", "TEMP")
    env = {name: os.environ[name] for name in kept if name in os.environ}
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            cwd=target.parent,
            env={**env, "OMP_NUM_THREADS": "1"},
            timeout=STILL_S + source.stat().st_size / (4 * 2**20),
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise _lost(source, "no answer in time") from None
    try:
        answer = json.loads(done.stdout)
    except ValueError:
        last = done.stderr.decode(errors="replace").strip().splitlines()[-1:]
        raise _lost(source, f"exit {done.returncode} {' '.join(last)[:200]}".strip()) from None
    if "code" in answer:
        raise WeightsError(
            answer["code"],
            {
                "WEIGHTS_PICKLE": "a checkpoint holds tensors and plain values, and nothing that runs",
                "WEIGHTS_HEADER": "a tensor is as large as what is stored for it",
            }.get(answer["code"], "a torch archive is whole and holds plain tensors"),
            got=answer["got"],
            path=source,
        )
    return dict(answer["plain"])


def _lost(source: Path, got: str) -> WeightsError:
    return WeightsError(
        "WEIGHTS_TRUNCATED",
        "the process that reads a torch archive lives until it is read",
        got=got,
        path=source,
    )
