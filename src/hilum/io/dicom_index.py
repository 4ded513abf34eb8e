"""Which CT images lie in a folder or archive: every regular file is looked at, none is trusted by its name.

A DICOMDIR is ignored (row A10), links that leave the folder, pipes and devices are refused (A19), litter
is skipped and named (A18), everything that is not CT is listed once (D12).
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from hilum.errors import ContainerError, InputRefused
from hilum.io.archive import open_archive
from hilum.io.checks import Docket, check_shape, to_finding
from hilum.io.dicom_frames import read_frames
from hilum.io.dicom_guard import Guarded, guard, not_an_image, plain_uid, plausible_start, quiet
from hilum.io.dicom_header import CT_IMAGE, ENHANCED_CT, ImageHeader, header_dataset, read_header, text
from hilum.io.dicom_pixels import SUPPORTED
from hilum.io.limits import Limits
from hilum.volume import Finding, Level

LITTER = frozenset({".ds_store", "thumbs.db", "desktop.ini", "dicomdir", "lockfile", "version"})
HEAD_BYTES = 4096
MEDIA_DIRECTORY = "1.2.840.10008.1.3.10"


@dataclass(frozen=True)
class Source:
    """One file: `name` for errors shown to the user, its size, how to read its first `n` bytes (-1: all)."""

    name: str
    size: int
    read: Callable[[int], bytes]


@dataclass
class Index:
    """What was found.

    Args:
        sources: every file. images: every CT image (frames of an enhanced file count one by one).
        syntaxes, hashes: transfer syntax and sha256 of each source that holds CT images.
        skipped: what was passed over, by what it is.
    """

    sources: list[Source]
    images: list[ImageHeader] = field(default_factory=list)
    syntaxes: dict[int, str] = field(default_factory=dict)
    hashes: dict[int, str] = field(default_factory=dict)
    skipped: Counter[str] = field(default_factory=Counter)
    not_ct: Counter[str] = field(default_factory=Counter)

    def load(self, source: int, limits: Limits) -> Guarded:
        """The file again, for its pixels.

        Raises:
            ContainerError: it is damaged, or not what was indexed (`DICOM_CUT`).
        """
        file = self.sources[source]
        content = read_whole(file, limits)
        if hashlib.sha256(content).hexdigest() != self.hashes[source]:
            raise ContainerError(
                "DICOM_CUT",
                "a file stays as it is while it is read",
                expected="the same bytes",
                got="other bytes than a moment ago",
                path=file.name,
            )
        return guard(content, limits, file.name)


@contextmanager
def open_sources(path: str | Path, docket: Docket, limits: Limits) -> Iterator[list[Source]]:
    """The files below a folder (sorted), inside a zip archive, or the one file itself.

    Raises:
        ContainerError: `NOT_REGULAR`, `ARCHIVE_*`, `NOT_AN_IMAGE` when there is nothing.
    """
    path = Path(path)
    if path.is_dir():
        yield _folder_sources(path, docket, limits)
        return
    _refuse_odd(path)
    if _read(path, 4) == b"PK\x03\x04":
        with open_archive(path, limits) as members:
            yield [
                Source(m.label, m.size, lambda n, m=m: m.read() if n < 0 else m.read()[:n])  # type: ignore[misc]
                for m in members
            ]
        return
    yield [Source(str(path), path.stat().st_size, lambda n: _read(path, n))]


def index_images(sources: list[Source], docket: Docket, limits: Limits) -> Index:
    """Reads every header. Damaged DICOM is refused; what is not DICOM or not CT is counted and noted.

    Raises:
        InputRefused: when the docket's mode stops at a damaged file, or when no CT image is left.
    """
    index = Index(sources)
    alone = len(sources) == 1
    with quiet():
        for number, source in enumerate(sources):
            base = source.name.replace("\\", "/").rsplit("/", 1)[-1]
            if not alone and (base.lower() in LITTER or base.startswith(".")):
                index.skipped[base if base.lower() in LITTER else "hidden file"] += 1
                continue
            try:
                _index_one(index, number, source, docket, limits)
            except InputRefused as error:
                if error.code == "NOT_AN_IMAGE" and not alone:
                    index.skipped[error.got or "unknown bytes"] += 1
                    continue
                if alone or docket.mode != "report-only":
                    raise
                docket.add(to_finding(error))
    _remark(index, docket)
    return index


def _index_one(index: Index, number: int, source: Source, docket: Docket, limits: Limits) -> None:
    head = source.read(HEAD_BYTES)
    if head[128:132] != b"DICM" and source.size > HEAD_BYTES:
        guard_head(head, source.name)
    content = read_whole(source, limits)
    guarded = guard(content, limits, source.name)
    ds = header_dataset(guarded)
    sop_class = text(ds, "SOPClassUID").rstrip("\0")
    if sop_class == CT_IMAGE:
        images = [read_header(guarded, ds, number, source.name)]
    elif sop_class in ENHANCED_CT:
        images = read_frames(guarded, ds, number, source.name)
    else:
        kind = (
            "DICOMDIR" if sop_class == MEDIA_DIRECTORY else plain_uid(sop_class).name[:64] or "no SOP class"
        )
        (index.skipped if kind == "DICOMDIR" else index.not_ct)[kind] += 1
        return
    form = images[0].pixels
    check_shape((form.columns, form.rows, len(images)), limits, source.name)
    name, _, lossless = SUPPORTED.get(str(guarded.syntax), ("", "", True))
    if not lossless:  # true of the syntax, even where the tag forgot to say so
        images = [replace(i, lossy=i.lossy or f"{name} allows for loss") for i in images]
    index.images.extend(images)
    index.syntaxes[number] = str(guarded.syntax)
    index.hashes[number] = hashlib.sha256(content).hexdigest()
    docket.add([_unplaced(n) for n in guarded.notes if n.code not in {f.code for f in docket.findings}])


def guard_head(head: bytes, where: str) -> None:
    """Refuses a large file by its first bytes, so that a disk image is not read to find that out.

    Raises:
        ContainerError: `NOT_AN_IMAGE`.
    """
    if not plausible_start(head):
        raise not_an_image(head, where)


def read_whole(source: Source, limits: Limits) -> bytes:
    """All bytes of a file that fits its budget.

    Raises:
        ContainerError: `DIMS_HUGE`, or `DICOM_CUT` when it cannot be read.
    """
    if source.size > limits.max_dicom_bytes:
        raise ContainerError(
            "DIMS_HUGE",
            "a DICOM file fits the budget",
            expected=f"<= {limits.max_dicom_bytes} bytes",
            got=f"{source.size} bytes",
            path=source.name,
        )
    try:
        return source.read(-1)
    except OSError as error:
        raise ContainerError(
            "DICOM_CUT", "a file can be read", got=error.strerror, path=source.name
        ) from error


def _unplaced(note: Finding) -> Finding:
    """A note without the file name: notes travel into outputs, names of files may be names of people."""
    return Finding(note.code, note.level, note.rule, note.expected, note.got, note.hint)


def _remark(index: Index, docket: Docket) -> None:
    if index.skipped:
        docket.add(
            Finding(
                "NOT_AN_IMAGE",
                Level.NOTE,
                "a folder holds images only",
                got=_listed(index.skipped),
                hint="skipped",
            )
        )
    if index.images:
        if index.not_ct:
            docket.add(
                Finding(
                    "NOT_CT",
                    Level.NOTE,
                    "only CT images are read",
                    expected="CT or Enhanced CT Image Storage",
                    got=_listed(index.not_ct),
                    hint="skipped",
                )
            )
        return
    if index.not_ct:
        raise ContainerError(
            "NOT_CT",
            "there are CT images",
            expected="CT or Enhanced CT Image Storage",
            got=_listed(index.not_ct),
            path=docket.path,
        )
    got = _listed(index.skipped) or ("an empty folder" if not index.sources else "nothing readable")
    raise ContainerError(
        "NOT_AN_IMAGE", "there are DICOM images", expected="CT images", got=got, path=docket.path
    )


def _listed(counts: Counter[str]) -> str:
    shown = [f"{n} x {what}" if n > 1 else what for what, n in counts.most_common(8)]
    return ", ".join(shown + (["..."] if len(counts) > 8 else []))


def _folder_sources(folder: Path, docket: Docket, limits: Limits) -> list[Source]:
    """Regular files below `folder`, sorted by name.

    No link is followed: a target inside is found by itself.
    """
    root = folder.resolve()
    found: list[Source] = []
    for here, folders, names in os.walk(root, followlinks=False):
        folders.sort()
        for name in sorted([*names, *(d for d in folders if (Path(here) / d).is_symlink())]):
            path = Path(here) / name
            if path.is_symlink():
                if not path.resolve().is_relative_to(root):
                    docket.add(_odd(path.name, "a link that leaves the folder"), ContainerError)
                continue
            mode = path.lstat().st_mode
            if not stat.S_ISREG(mode):
                docket.add(_odd(path.name, _kind(mode)), ContainerError)
                continue
            relative = path.relative_to(root).as_posix()
            found.append(Source(relative, path.stat().st_size, lambda n, p=path: _read(p, n)))  # type: ignore[misc]
            if len(found) > limits.max_files:
                raise ContainerError(
                    "ARCHIVE_BOMB",
                    "a folder stays within its budget",
                    expected=f"<= {limits.max_files} files",
                    got="more",
                    path=folder,
                )
    return found


def _refuse_odd(path: Path) -> None:
    try:
        mode = path.stat().st_mode
    except OSError as error:
        raise ContainerError(
            "NOT_FOUND",
            "the input exists and can be read",
            expected="a folder, an archive or a file",
            got=error.strerror,
            path=path,
        ) from error
    if not stat.S_ISREG(mode):
        raise ContainerError("NOT_REGULAR", "inputs are regular files", got=_kind(mode), path=path)


def _odd(name: str, kind: str) -> Finding:
    return Finding(
        "NOT_REGULAR",
        Level.REFUSE,
        "a folder holds regular files",
        "files and folders",
        kind,
        where=name,
        hint="Copy the images into a folder of their own.",
    )


def _kind(mode: int) -> str:
    kinds = {
        stat.S_IFIFO: "a pipe",
        stat.S_IFSOCK: "a socket",
        stat.S_IFCHR: "a device",
        stat.S_IFBLK: "a device",
    }
    return kinds.get(stat.S_IFMT(mode), "no regular file")


def _read(path: Path, count: int) -> bytes:
    # Opened without blocking and checked again: a pipe put there since the listing must not hang us.
    handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    with os.fdopen(handle, "rb") as file:
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            raise ContainerError("NOT_REGULAR", "inputs are regular files", got="something else", path=path)
        return file.read(count)
