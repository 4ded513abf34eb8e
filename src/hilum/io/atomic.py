"""Write beside, flush, rename: no half file ever stands under a final name, whatever kills the process.

A temporary name starts with `.hilum-` and ends with `.tmp`; a leftover is harmless.
Replacing a folder takes two renames: a kill between them leaves the old one whole, beside, under such a name.
"""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from hilum.errors import OutputError


@contextmanager
def atomic_write(path: str | Path) -> Iterator[BinaryIO]:
    """A binary file that appears under `path` only when it is complete and on disk.

    Args:
        path: final name; its folder must exist. An existing file is replaced in one step.

    Yields:
        A writable, seekable binary file. On an exception it is removed and `path` is untouched.

    Raises:
        OutputError: `path` cannot be written there (`OUTPUT_UNWRITABLE`) or is a folder (`OUTPUT_EXISTS`).
    """
    final = Path(path)
    if final.is_dir():
        raise OutputError("OUTPUT_EXISTS", "the output is a file", got="a folder", path=final)
    beside = _beside(final)
    try:
        file = beside.open("xb+")
    except OSError as error:
        raise _unwritable(final, error) from error
    try:
        with file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        beside.replace(final)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise
    _sync_folder(final.parent)


@contextmanager
def atomic_folder(path: str | Path, overwrite: bool = False) -> Iterator[Path]:
    """A folder that appears under `path` only when everything in it is complete and on disk.

    Args:
        path: final name; its parent must exist.
        overwrite: replace an existing folder; otherwise that is refused before any work.

    Yields:
        A temporary folder beside `path` to write into. On an exception it is removed and `path` is untouched.

    Raises:
        OutputError: `path` exists and not `overwrite` (`OUTPUT_EXISTS`), or the place cannot be
            written (`OUTPUT_UNWRITABLE`).
    """
    final = Path(path)
    refuse_existing(final, overwrite)
    beside = _beside(final)
    try:
        beside.mkdir()
    except OSError as error:
        raise _unwritable(final, error) from error
    try:
        yield beside
        _sync_tree(beside)
        refuse_existing(final, overwrite)
        _swap(beside, final)
    except BaseException:
        shutil.rmtree(beside, ignore_errors=True)
        raise
    _sync_folder(final.parent)


def _beside(final: Path) -> Path:
    # Not derived from the final name: that may already be as long as the file system allows.
    return final.parent / f".hilum-{secrets.token_hex(8)}.tmp"


def refuse_existing(final: Path, overwrite: bool) -> None:
    """Before any work: a final name is free, or names a folder that may be replaced.

    Raises:
        OutputError: `OUTPUT_EXISTS`.
    """
    if not os.path.lexists(final):
        return
    if overwrite and final.is_dir() and not final.is_symlink():
        return
    raise OutputError(
        "OUTPUT_EXISTS",
        "results never replace other files unasked",
        expected="a name that is free",
        got="a folder" if final.is_dir() else "a file",
        path=final,
        hint="Choose another output, or allow overwriting (--overwrite replaces a folder).",
    )


def _swap(beside: Path, final: Path) -> None:
    """Rename `beside` to `final`; an older folder steps aside first and comes back if the rename fails."""
    if not final.exists():
        beside.rename(final)
        return
    old = _beside(final)
    final.rename(old)
    try:
        beside.rename(final)
    except BaseException:
        old.rename(final)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _sync_tree(folder: Path) -> None:
    for root, _, names in os.walk(folder):
        for name in names:
            item = Path(root) / name
            if item.is_file() and not item.is_symlink():
                with item.open("rb") as file:
                    os.fsync(file.fileno())
        _sync_folder(Path(root))


def _sync_folder(folder: Path) -> None:
    # Some file systems refuse fsync on a folder; the rename itself is still atomic there.
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(handle)
    except OSError:
        pass
    finally:
        os.close(handle)


def _unwritable(final: Path, error: OSError) -> OutputError:
    return OutputError(
        "OUTPUT_UNWRITABLE",
        "the output folder exists and can be written",
        expected=f"a writable folder {final.parent}",
        got=error.strerror or type(error).__name__,
        path=final,
        hint="Create the folder, or choose another output.",
    )
