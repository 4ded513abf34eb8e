"""Bytes of one input, read once: hashed as stored, inflated if gzip, counted, and verified to the very end.

nibabel and ITK stop reading at the last voxel, before the gzip trailer, so a flipped bit goes unseen. A
`ByteStream` reads through the trailer: CRC-32 and length are checked (RFC 1952).
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from zlib_ng import zlib_ng

from hilum.errors import ContainerError
from hilum.io.archive import BinaryStream, Member
from hilum.io.limits import Limits

GZIP_MAGIC = b"\x1f\x8b"
BLOCK_BYTES = 256 * 1024
INFLATE_ERROR: type[Exception] = zlib_ng.error  # type: ignore[assignment]  # its stub names an instance


@dataclass(frozen=True)
class Source:
    """Where bytes come from: a file, or a member of an archive.

    Args:
        at: a path or a `Member`.
        shown: name for messages.
        size: bytes as stored (compressed if compressed).
    """

    at: Path | Member
    shown: str
    size: int

    @classmethod
    def of(cls, at: str | Path | Member) -> Source:
        """The source for a path or member.

        Raises:
            ContainerError: `NOT_REGULAR` (FIFO, device, socket, folder), `NOT_FOUND` (missing or unreadable).
        """
        if isinstance(at, Member):
            return cls(at, at.label, at.size)
        path = Path(at)
        check_regular(path)
        return cls(path, str(path), path.stat().st_size)

    @property
    def lower_name(self) -> str:
        """File name in lower case, for its suffix only."""
        return (self.at.label if isinstance(self.at, Member) else self.at.name).lower()

    @contextmanager
    def open(self) -> Iterator[BinaryStream]:
        """A binary stream from the first byte."""
        if isinstance(self.at, Member):
            with self.at.open() as stream:
                yield stream
        else:
            with self.at.open("rb", buffering=0) as file:
                yield file

    def head(self, count: int = 4096) -> bytes:
        """The first bytes as stored."""
        with self.open() as stream:
            return stream.read(count) or b""


def check_regular(path: Path) -> None:
    """A file is a regular file: opening a FIFO would hang, a device would never end.

    Raises:
        ContainerError: `NOT_REGULAR` or `NOT_AN_IMAGE` (it cannot be looked at).
    """
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise ContainerError(
            "NOT_FOUND", "the input exists and can be read", got=reason, path=path
        ) from error
    if not stat.S_ISREG(mode):
        kinds = {stat.S_IFIFO: "a FIFO", stat.S_IFSOCK: "a socket", stat.S_IFDIR: "a folder"}
        got = kinds.get(stat.S_IFMT(mode), "a device")
        raise ContainerError(
            "NOT_REGULAR", "an input is a regular file", expected="a regular file", got=got, path=path
        )
    if not os.access(path, os.R_OK):
        raise ContainerError("NOT_FOUND", "the input exists and can be read", got="no permission", path=path)


class ByteStream:
    """Reads one source from start to end; gzip is recognised by its magic bytes, never by name.

    Args:
        file: a binary stream at its first byte, or behind `before` and `head` when those were already read.
        shown: name for messages.
        before: bytes already read that are hashed and are not data (a text header in front of the data).
        head: bytes already read that belong to the data.
        gzipped: None to find out from the magic bytes; True or False where a header says it.
    """

    def __init__(
        self,
        file: BinaryStream,
        shown: str,
        before: bytes = b"",
        head: bytes = b"",
        gzipped: bool | None = None,
    ) -> None:
        self._file, self._shown = file, shown
        self._digest = hashlib.sha256(before + head)
        self._ready = memoryview(b"")
        self._inflater = None
        self._ended = False
        self.count = 0
        first = head or self._stored(BLOCK_BYTES)
        self.gzipped = first.startswith(GZIP_MAGIC) if gzipped is None else gzipped
        if self.gzipped:
            self._inflater = zlib_ng.decompressobj(wbits=31)
            self._packed = first
        else:
            self._ready = memoryview(first)

    def read(self, count: int) -> bytes:
        """Up to `count` bytes; fewer only at the end.

        Raises:
            ContainerError: `GZ_CRC` when the gzip stream is damaged.
        """
        parts: list[memoryview] = []
        missing = count
        while missing:
            if not self._ready and not self._more(missing):
                break
            parts.append(self._ready[:missing])
            self._ready = self._ready[missing:]
            missing -= len(parts[-1])
        self.count += count - missing
        # joined once: a slab of a scan is many megabytes
        return b"".join(parts)

    def skip(self, count: int) -> int:
        """Reads `count` bytes away, in blocks; returns how many there were."""
        left = count
        while left > 0 and (block := self.read(min(left, BLOCK_BYTES))):
            left -= len(block)
        return count - left

    def finish(self, allow_trailing: bool = False) -> int:
        """Goes to the end of the source, so that CRC and length are verified.

        Args:
            allow_trailing: plain bytes after the data are hashed and counted instead of refused (never for
                gzip).

        Returns:
            How many bytes followed the data.

        Raises:
            ContainerError: `GZ_BOMB` (gzip holds more than its header says), `GZ_NO_TRAILER`, `GZ_CRC`,
                `TRAILING_BYTES`.
        """
        trailing = len(self.read(1))
        if trailing and self.gzipped:
            raise ContainerError(
                "GZ_BOMB",
                "a gzip holds what its image header announces and no more",
                expected=f"{self.count - 1} bytes",
                got="more",
                path=self._shown,
            )
        if self.gzipped and not self._closed:
            raise ContainerError(
                "GZ_NO_TRAILER",
                "a gzip ends with its checksum",
                expected="8 bytes of CRC-32 and length",
                got="the end of the file",
                path=self._shown,
                hint="The file was cut; copy or download it again.",
            )
        if trailing:
            while block := self.read(BLOCK_BYTES):
                trailing += len(block)
            if not allow_trailing:
                raise ContainerError(
                    "TRAILING_BYTES",
                    "a file ends where its header says",
                    expected=f"{self.count - trailing} bytes",
                    got=f"{self.count} bytes",
                    path=self._shown,
                )
        return trailing

    @property
    def sha256(self) -> str:
        """Hex sha256 of the stored bytes read so far; of the whole file after `finish`."""
        return self._digest.hexdigest()

    @property
    def _closed(self) -> bool:
        return self._inflater is not None and self._inflater.eof and not self._packed

    def _stored(self, count: int) -> bytes:
        block = self._file.read(count) or b""
        self._digest.update(block)
        return block

    def _more(self, wanted: int) -> bool:
        """Puts at least one byte into the empty `_ready`; False at the end."""
        while not self._ready and not self._ended:
            self._ready = memoryview(self._inflated(wanted) if self._inflater else self._plain(wanted))
        return not self._ended

    def _plain(self, wanted: int) -> bytes:
        block = self._stored(max(wanted, BLOCK_BYTES))
        self._ended = not block
        return block

    def _inflated(self, wanted: int) -> bytes:
        """The next bytes, perhaps none yet."""
        assert self._inflater is not None
        self._packed = self._packed or self._stored(BLOCK_BYTES)
        if not self._packed:
            self._ended = True
            return b""
        if self._inflater.eof:
            self._next_member()
            return b""
        try:
            # Bounded: one call never inflates to more than was asked for, whatever the ratio.
            block = self._inflater.decompress(self._packed, max(wanted, BLOCK_BYTES))
        except INFLATE_ERROR as error:
            raise self._damaged(str(error)) from error
        self._packed = self._inflater.unconsumed_tail or self._inflater.unused_data
        return block

    def _next_member(self) -> None:
        """A gzip may be several, one after the other (bgzip); zeros after the last are padding (RFC 1952,
        gzip(1))."""
        rest = self._packed.lstrip(b"\0")
        if not rest:
            self._packed = b""
            return
        if not rest.startswith(GZIP_MAGIC[: len(rest)]):
            raise self._damaged("bytes after the end of the gzip stream")
        self._packed, self._inflater = rest, zlib_ng.decompressobj(wbits=31)

    def _damaged(self, detail: str) -> ContainerError:
        return ContainerError(
            "GZ_CRC",
            "a gzip verifies against its own checksum",
            expected="intact data",
            got=detail.removeprefix("Error ").strip(),
            path=self._shown,
            hint="The file was damaged in storage or transfer; copy or download it again.",
        )


@contextmanager
def open_stream(source: Source) -> Iterator[ByteStream]:
    """A `ByteStream` over `source`."""
    with ExitStack() as stack:
        yield ByteStream(stack.enter_context(source.open()), source.shown)


def check_inflation(announced: int, stored: int, limits: Limits, shown: str) -> None:
    """Bytes that a header announces fit the budget and can come out of that many stored bytes; before
    inflating.

    Raises:
        ContainerError: `DIMS_HUGE` (over the byte budget) or `GZ_BOMB` (ratio).
    """
    if announced > limits.max_stored_bytes:
        raise ContainerError(
            "DIMS_HUGE",
            "voxel data fit the byte budget",
            expected=f"<= {limits.max_stored_bytes} bytes",
            got=f"{announced} bytes",
            path=shown,
        )
    ratio = announced / max(stored, 1)
    if announced > limits.archive_ratio_floor_bytes and ratio > limits.max_archive_ratio:
        raise ContainerError(
            "GZ_BOMB",
            "a compressed volume stays within its ratio",
            expected=f"<= {limits.max_archive_ratio:.0f} to 1",
            got=f"{announced} bytes announced in {stored} stored, {ratio:.0f} to 1",
            path=shown,
        )
