"""Answers of a language model, kept on disk: asked once, whatever was killed, and by how many runs at a time.

One file per answer, named by the hash of all that it depends on, written beside and renamed. A damaged file
counts as none. A question that another process is asking is claimed by a file lock, which ends with its
process. What is kept is for the caller to say; `hilum.text.structure` keeps values of its bank and places in
the report, no report text and nothing that a model wrote.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from hilum.errors import OutputError
from hilum.io.atomic import atomic_write
from hilum.io.fetch import cache_folder

FORMAT = 1
MAX_ENTRY_BYTES = 4 << 20


def answer_key(**parts: Any) -> str:
    """The hash of everything an answer depends on: report, bank, model, prompt, parameters."""
    return hashlib.sha256(_canonical({"format": FORMAT, **parts})).hexdigest()


def default_folder() -> Path:
    """``answers`` in Hilum's cache folder."""
    return cache_folder() / "answers"


class Claim:
    """The right to ask one question; released at the end of a ``with`` block or with the process."""

    def __init__(self, lock: FileLock | None, path: Path) -> None:
        self._lock, self._path = lock, path

    def __enter__(self) -> Claim:
        return self

    def __exit__(self, *problem: object) -> None:
        if self._lock is not None:
            # The name goes while the lock is held. Who waited for it finds the answer; if there is none, two
            # may ask the same question, and both get their answer.
            with suppress(OSError):
                self._path.unlink()
            self._lock.release()


class AnswerCache:
    """A folder of answers.

    Args:
        folder: made when it is not there, readable by its owner only.

    Attributes:
        damaged: entries that could not be used, so far.

    Raises:
        OutputError: the folder cannot be made (`OUTPUT_UNWRITABLE`).
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.damaged = 0
        try:
            self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._claims.mkdir(exist_ok=True)
        except OSError as error:
            raise self._unwritable(error) from error

    def get(self, key: str) -> dict[str, Any] | None:
        """The answer under a key; None when there is none that can be trusted."""
        path = self._path(key)
        try:
            with path.open("rb") as file:
                content = file.read(MAX_ENTRY_BYTES + 1)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise self._unwritable(error) from error
        payload = _verified(content, key)
        self.damaged += payload is None
        return payload

    def put(self, key: str, payload: Mapping[str, Any]) -> None:
        """Keeps an answer.

        Raises:
            OutputError: it cannot be written (`OUTPUT_UNWRITABLE`).
        """
        path = self._path(key)
        entry = {"format": FORMAT, "key": key, "sha256": _digest(payload), "payload": payload}
        try:
            path.parent.mkdir(exist_ok=True)
            with atomic_write(path) as file:
                file.write(_canonical(entry) + b"\n")
        except OSError as error:
            raise self._unwritable(error) from error

    def claim(self, key: str) -> Claim | None:
        """The right to ask what belongs to a key; None while another holds it."""
        path = self._claims / key
        lock = FileLock(path)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            return None
        except (OSError, NotImplementedError):
            # A file system without locks: the worst is a question asked twice.
            return Claim(None, path)
        return Claim(lock, path)

    @property
    def _claims(self) -> Path:
        return self.folder / "claims"

    def _path(self, key: str) -> Path:
        return self.folder / key[:2] / f"{key}.json"

    def _unwritable(self, error: OSError) -> OutputError:
        return OutputError(
            "OUTPUT_UNWRITABLE", "the cache is a folder that can be read and written",
            got=error.strerror or type(error).__name__, path=self.folder, hint="Choose another with --cache.",
        )  # fmt: skip


def _verified(content: bytes, key: str) -> dict[str, Any] | None:
    if len(content) > MAX_ENTRY_BYTES:
        return None
    try:
        entry = json.loads(content)
        whole = (
            entry["format"] == FORMAT and entry["key"] == key and entry["sha256"] == _digest(entry["payload"])
        )
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    return entry["payload"] if whole and isinstance(entry["payload"], dict) else None


def _digest(payload: object) -> str:
    return hashlib.sha256(_canonical(payload)).hexdigest()


def _canonical(value: object) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()
