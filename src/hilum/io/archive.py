"""The one door for archives: zip, read as streams. Nothing is ever extracted to a name that an archive chose.

The central directory is judged before any member is opened (rows A07-A09); a stream then gives at most the
size that its entry declares, and reading to its end verifies the CRC.
"""

from __future__ import annotations

import io
import stat
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TypeAlias, cast

from hilum.errors import ContainerError
from hilum.io.limits import Limits

BinaryStream: TypeAlias = io.RawIOBase | io.BufferedIOBase
"""An open binary file or member."""

NESTED_MAGIC = (b"PK\x03\x04", b"7z\xbc\xaf\x27\x1c", b"Rar!", b"BZh", b"\xfd7zXZ\x00", b"\x28\xb5\x2f\xfd")
NESTED_SUFFIXES = (
    ".zip",
    ".tar",
    ".tgz",
    ".7z",
    ".rar",
    ".bz2",
    ".xz",
    ".zst",
    ".tbz2",
    ".txz",
    ".cbz",
    ".jar",
)
STORED_OR_DEFLATED = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
LITTER = ("__MACOSX/", ".DS_Store", "Thumbs.db", "desktop.ini")


@dataclass(frozen=True)
class Member:
    """One file inside an archive.

    Args:
        name: `member-00012`, our own name by position; the archive's is data and may hold a patient's name.
        label: the archive's own name. For showing to the user only, never a path.
        size: inflated bytes that its entry declares; a stream never gives more.
    """

    name: str
    label: str
    size: int
    _zip: zipfile.ZipFile
    _info: zipfile.ZipInfo

    @contextmanager
    def open(self) -> Iterator[BinaryStream]:
        """A seekable binary stream of the content.

        Raises:
            ContainerError: the content is damaged (`ARCHIVE_DAMAGED`), encrypted, or itself an archive.
        """
        try:
            with self._zip.open(self._info) as stream:
                head = stream.read(8)
                _refuse_nested(head, self.label)
                stream.seek(0)
                yield cast("io.BufferedIOBase", stream)
        except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
            raise _damaged(self.label, str(error)) from error

    def read(self) -> bytes:
        """The whole content, CRC verified.

        Raises:
            ContainerError: see `open`; also when it is shorter than declared.
        """
        with self.open() as stream:
            content = stream.read(self.size + 1)
        if len(content) != self.size:
            raise _damaged(self.label, f"{len(content)} bytes where {self.size} are declared")
        return content


@contextmanager
def open_archive(path: str | Path, limits: Limits | None = None) -> Iterator[list[Member]]:
    """The members of a zip archive, in the order of its directory, without folders and desktop litter.

    Args:
        path: the archive.
        limits: caps on members, inflated bytes and ratio.

    Yields:
        Members to be opened inside this context.

    Raises:
        ContainerError: `ARCHIVE_BOMB`, `ARCHIVE_TRAVERSAL`, `ARCHIVE_DUPLICATE`, `ARCHIVE_DAMAGED`.
    """
    limits = limits or Limits()
    try:
        archive = zipfile.ZipFile(path)
    except (zipfile.BadZipFile, NotImplementedError, ValueError, UnicodeDecodeError) as error:
        raise _damaged(str(path), str(error)) from error
    with archive:
        infos = archive.infolist()
        _check_size(infos, Path(path), limits)
        _check_names(infos, path)
        files = [i for i in infos if not i.is_dir() and not _is_litter(i.filename)]
        for info in files:
            _check_member(info, path)
        yield [Member(f"member-{k:05d}", i.filename, i.file_size, archive, i) for k, i in enumerate(files)]


def _check_size(infos: list[zipfile.ZipInfo], path: Path, limits: Limits) -> None:
    total, packed = sum(i.file_size for i in infos), max(path.stat().st_size, 1)
    ratio = total / packed
    if len(infos) > limits.max_archive_members:
        expected, got = f"<= {limits.max_archive_members} members", f"{len(infos)} members"
    elif total > limits.max_archive_bytes:
        expected, got = f"<= {limits.max_archive_bytes} bytes inflated", f"{total} bytes"
    elif total > limits.archive_ratio_floor_bytes and ratio > limits.max_archive_ratio:
        expected, got = (
            f"ratio <= {limits.max_archive_ratio:.0f}",
            f"{total} bytes of {packed}: {ratio:.0f}",
        )
    else:
        return
    raise ContainerError(
        "ARCHIVE_BOMB", "an archive stays within its budget", expected=expected, got=got, path=path
    )


def _check_names(infos: list[zipfile.ZipInfo], path: str | Path) -> None:
    seen: dict[str, str] = {}
    for info in infos:
        # zipfile cuts a name at NUL and rewrites separators; the name before that is the one to judge.
        raw = info.orig_filename.replace("\\", "/")
        parts = PurePosixPath(raw).parts
        drive = bool(parts) and len(parts[0]) >= 2 and parts[0][1] == ":"
        kind = stat.S_IFMT(info.external_attr >> 16)
        odd_kind = kind not in (0, stat.S_IFREG, stat.S_IFDIR)
        if raw.startswith("/") or ".." in parts or drive or "\0" in raw or odd_kind:
            raise ContainerError(
                "ARCHIVE_TRAVERSAL",
                "members are plain files below the archive's own root",
                expected="relative names of regular files",
                got="a link or device" if odd_kind else repr(raw[:200]),
                path=path,
            )
        key = raw.rstrip("/").casefold()
        if key in seen:
            raise ContainerError(
                "ARCHIVE_DUPLICATE",
                "every member has its own name, also where case does not count",
                expected="distinct names",
                got=f"{seen[key][:200]!r} and {raw[:200]!r}",
                path=path,
            )
        seen[key] = raw


def _check_member(info: zipfile.ZipInfo, path: str | Path) -> None:
    if info.flag_bits & 0x1:
        raise _damaged(str(path), "an encrypted member", rule="members are not encrypted")
    if info.compress_type not in STORED_OR_DEFLATED:
        raise _damaged(
            str(path), f"compression method {info.compress_type}", rule="members are stored or deflated"
        )
    if info.filename.lower().endswith(NESTED_SUFFIXES):
        raise _nested(info.filename)


def _refuse_nested(head: bytes, label: str) -> None:
    if head.startswith(NESTED_MAGIC):
        raise _nested(label)


def _nested(label: str) -> ContainerError:
    return ContainerError(
        "ARCHIVE_BOMB",
        "an archive holds no archives",
        expected="image files",
        got=f"nested archive {label[:200]!r}",
        hint="Unpack the outer archive first.",
    )


def _is_litter(name: str) -> bool:
    return name.startswith(LITTER[0]) or PurePosixPath(name).name in LITTER[1:]


def _damaged(label: str, got: str, rule: str = "an archive is whole") -> ContainerError:
    return ContainerError("ARCHIVE_DAMAGED", rule, expected="a zip that verifies", got=got, path=label)
