"""Paths that data name stay below their root (row E09)."""

from __future__ import annotations

import re
from pathlib import Path, PurePosixPath

from hilum.errors import ReportError

_URL = re.compile(r"^[A-Za-z][A-Za-z0-9+.-]*:")


def confined(root: str | Path, relative: str) -> Path:
    """The file or folder `relative` below `root`, links followed.

    Args:
        root: an existing folder. relative: as data name it, with ``/``; ``.`` is the root.

    Raises:
        ReportError: `PATH_ESCAPE` for an absolute path, a URL or drive, ``..``, or a link that leaves `root`.
    """
    named = relative.replace("\\", "/")
    parts = PurePosixPath(named).parts
    if not named or named.startswith("/") or _URL.match(named) or ".." in parts or "\0" in named:
        raise _escape(root, relative, "a relative path without ..")
    top = Path(root).resolve()
    found = Path(root).joinpath(*parts)
    if not found.resolve().is_relative_to(top):
        raise _escape(root, relative, "a path that no link leads out of the root")
    return found


def relative_to(root: str | Path, path: str | Path) -> str:
    """`path` as a name below `root`, with ``/``.

    Raises:
        ReportError: `PATH_ESCAPE`, it is not below.
    """
    try:
        return Path(path).relative_to(root).as_posix()
    except ValueError as error:
        raise _escape(root, str(path), "a path below the root") from error


def _escape(root: str | Path, given: str, expected: str) -> ReportError:
    return ReportError(
        "PATH_ESCAPE",
        "a path stays below its root",
        expected=expected,
        got=repr(given[:200]),
        path=root,
        hint="Copy the file below the root, or name the folder above as the root.",
    )
