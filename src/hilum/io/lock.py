"""One writer per output (row G05): a lock of the operating system, and beside it the writer's name.

The lock goes with the process that holds it, also when that is killed; the name is for people only.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from hilum.errors import OutputError
from hilum.io.atomic import atomic_write

LOCK, OWNER = ".hilum.lock", ".hilum.owner"


def own_name() -> str:
    """This process as ``pid@host``."""
    return f"{os.getpid()}@{socket.gethostname()}"


@contextmanager
def output_lock(folder: str | Path, wait_s: float = 0.0) -> Iterator[None]:
    """Holds `folder` for this process.

    Args:
        folder: it exists. wait_s: how long to wait for another writer; 0 does not.

    Raises:
        OutputError: another process holds it (`OUTPUT_LOCKED`, with its pid and host), or the folder cannot
            be written (`OUTPUT_UNWRITABLE`).
    """
    where = Path(folder)
    lock = FileLock(where / LOCK)
    try:
        lock.acquire(timeout=wait_s)
    except Timeout as error:
        raise OutputError(
            "OUTPUT_LOCKED",
            "one run writes to an output at a time",
            expected="no other writer",
            got=f"held by {owner_of(where)}",
            path=where,
            hint="Wait for it (--wait SECONDS), or choose another output.",
        ) from error
    except OSError as error:
        raise OutputError(
            "OUTPUT_UNWRITABLE", "the output can be written", got=error.strerror, path=where
        ) from error
    try:
        with atomic_write(where / OWNER) as file:
            file.write(own_name().encode("utf-8"))
        yield
    finally:
        (where / OWNER).unlink(missing_ok=True)
        lock.release()


def owner_of(folder: str | Path) -> str:
    """The name of the last writer of `folder`, ``pid@host``; "another process" when it is not known."""
    try:
        return (Path(folder) / OWNER).read_text(encoding="utf-8")[:200]
    except OSError:
        return "another process"
