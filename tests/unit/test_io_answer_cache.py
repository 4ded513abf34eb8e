"""The cache of answers: what is kept comes back, what is damaged does not, one asks at a time."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from hilum.errors import OutputError
from hilum.io.answer_cache import AnswerCache, answer_key

KEY = answer_key(report="a", model="m")
ANSWER = {"answers": {"x": ["yes", 0, 3]}, "dropped": {}}


def entry(cache: AnswerCache) -> Path:
    return next(p for p in cache.folder.rglob("*.json"))


def test_what_is_kept_comes_back_also_to_another(tmp_path: Path) -> None:
    cache = AnswerCache(tmp_path / "a" / "b")
    assert cache.get(KEY) is None
    cache.put(KEY, ANSWER)
    assert cache.get(KEY) == ANSWER and AnswerCache(tmp_path / "a" / "b").get(KEY) == ANSWER
    assert cache.damaged == 0 and cache.folder.stat().st_mode & 0o077 == 0


def test_the_key_is_of_everything() -> None:
    keys = {answer_key(report=r, model=m, seed=s) for r in "ab" for m in "ab" for s in (0, 1)}
    assert len(keys) == 8 and all(len(k) == 64 for k in keys)
    assert answer_key(a=1, b=2) == answer_key(b=2, a=1)


def test_every_flipped_byte_and_every_cut_is_noticed(tmp_path: Path) -> None:
    cache = AnswerCache(tmp_path)
    cache.put(KEY, ANSWER)
    path = entry(cache)
    whole = path.read_bytes().rstrip(b"\n")
    for place in range(len(whole)):
        for wrong in (whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :], whole[:place]):
            path.write_bytes(wrong)
            assert cache.get(KEY) is None, (place, wrong)
    assert cache.damaged == 2 * len(whole)
    cache.put(KEY, ANSWER)
    assert cache.get(KEY) == ANSWER


@pytest.mark.parametrize(
    "content", [b"", b"null", b"[]", b"[" * 100_000, b'{"format": 1}', b"\xff", b" " * (5 << 20)]
)
def test_what_is_no_entry_is_none(tmp_path: Path, content: bytes) -> None:
    cache = AnswerCache(tmp_path)
    cache.put(KEY, ANSWER)
    entry(cache).write_bytes(content)
    assert cache.get(KEY) is None and cache.damaged == 1


def test_an_entry_under_another_name_is_none(tmp_path: Path) -> None:
    cache = AnswerCache(tmp_path)
    cache.put(KEY, ANSWER)
    other = answer_key(report="b")
    target = tmp_path / other[:2] / f"{other}.json"
    target.parent.mkdir(exist_ok=True)
    entry(cache).rename(target)
    assert cache.get(other) is None


def test_one_claims_at_a_time(tmp_path: Path) -> None:
    first, second = AnswerCache(tmp_path), AnswerCache(tmp_path)
    claim = first.claim(KEY)
    assert claim is not None and second.claim(KEY) is None
    assert second.claim(answer_key(report="b")) is not None
    with claim:
        assert second.claim(KEY) is None
    again = second.claim(KEY)
    assert again is not None
    with again:
        pass
    assert not list((tmp_path / "claims").glob(KEY))


def test_a_claim_ends_with_its_process(tmp_path: Path) -> None:
    code = (
        "import sys, os\nfrom hilum.io.answer_cache import AnswerCache\n"
        "claim = AnswerCache(sys.argv[1]).claim(sys.argv[2])\nassert claim is not None\n"
        "sys.stdout.write('claimed'); sys.stdout.flush(); sys.stdin.read()"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path), KEY], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdout is not None and process.stdout.read(7) == b"claimed"
    cache = AnswerCache(tmp_path)
    assert cache.claim(KEY) is None
    process.kill()
    process.communicate(timeout=30)
    assert cache.claim(KEY) is not None


def test_a_folder_that_cannot_be_one_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    for folder in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(OutputError) as caught:
            AnswerCache(folder)
        assert caught.value.code == "OUTPUT_UNWRITABLE"


def test_a_place_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    cache = AnswerCache(tmp_path)
    (tmp_path / KEY[:2]).write_text("in the way")
    with pytest.raises(OutputError) as caught:
        cache.put(KEY, ANSWER)
    assert caught.value.code == "OUTPUT_UNWRITABLE"


def test_an_answer_is_json(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON"):
        AnswerCache(tmp_path).put(KEY, {"a": float("nan")})
    assert json.loads(b"1") == 1 and not list(tmp_path.rglob("*.json"))
