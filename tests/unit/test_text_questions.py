"""The bank of questions: what ships, what is refused, what the hash is of."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from hilum.errors import UsageError
from hilum.text.questions import load_bank
from hilum.text.vocabulary import SLUGS

SMALL = """
name: small
version: 2
attributes:
  side: {ask: "Where is the {name}?", choices: [right, left]}
  size_mm: {ask: "Size of the {name} in mm.", low_mm: 1, high_mm: 100}
questions:
  - {id: stone, name: gallstone, ask: Is there a gallstone?, attributes: [size_mm]}
  - {id: mass, name: mass, ask: Is there a mass?, attributes: [side, size_mm]}
"""


def bank_of(tmp_path: Path, text: str | bytes):
    path = tmp_path / "bank.yaml"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return load_bank(path)


def refusal(tmp_path: Path, text: str | bytes) -> UsageError:
    with pytest.raises(UsageError) as caught:
        bank_of(tmp_path, text)
    assert "bank.yaml" in str(caught.value)
    return caught.value


def test_the_bank_that_ships_asks_about_the_18_findings() -> None:
    bank = load_bank()
    assert tuple(q.id for q in bank.questions) == SLUGS
    assert len({i.id for i in bank.items}) == len(bank.items) and "{" not in "".join(
        i.ask for i in bank.items
    )
    kinds = {i.id.partition(".")[2]: i.kind for i in bank.items}
    assert kinds["side"] == "choice" and kinds["lobe"] == "several" and kinds["size_mm"] == "size_mm"


def test_parts_are_put_in_full(tmp_path: Path) -> None:
    bank = bank_of(tmp_path, SMALL)
    assert [i.id for i in bank.items] == ["stone", "stone.size_mm", "mass", "mass.side", "mass.size_mm"]
    assert bank.items[3].ask == "Where is the mass?" and bank.items[3].of == "mass"


def test_the_hash_is_of_the_content(tmp_path: Path) -> None:
    first = bank_of(tmp_path, SMALL).sha256
    assert (
        bank_of(tmp_path, "# a comment\n" + SMALL.replace("[right, left]", "[ right,\n left ]")).sha256
        == first
    )
    assert bank_of(tmp_path, SMALL.replace("a gallstone?", "any gallstone?")).sha256 != first
    assert bank_of(tmp_path, SMALL.replace("version: 2", "version: 3")).sha256 != first


def test_requests_are_bounded_and_keep_a_finding_together(tmp_path: Path) -> None:
    bank = bank_of(tmp_path, SMALL.replace("version: 2", "version: 2\nper_call: 3"))
    assert [[i.id for i in call] for call in bank.calls] == [
        ["stone", "stone.size_mm"],
        ["mass", "mass.side", "mass.size_mm"],
    ]
    assert len(bank_of(tmp_path, SMALL).calls) == 1


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (b"\xff\xfe\x00", "not UTF-8"),
        ("", "0 documents"),
        ("- a\n", "mapping"),
        ("just words", "mapping"),
        ("name: [\n", "not YAML"),
        ("name: a\x00", "not YAML"),
        ("name: a\nname: b\n", "twice"),
        ("name: a\n---\nname: b\n", "documents"),
        ("name: &x a\nversion: *x\n", "anchor"),
        ("a: &a [x, x]\nb: &b [*a, *a]\nc: [*b, *b]\n", "anchor"),
        ("name: !!python/object/apply:os.system [ls]\n", "a tag"),
        ("name: !!str a\n", "a tag"),
        ("<<: {name: a}\nversion: 1\n", "merge"),
        ("? [a, b]\n: c\n", "key that is not text"),
        ("a: " + "[" * 20 + "]" * 20, "nested"),
        ("a: " + "[" * 100_000, "nested"),
        ("a: [" + "x, " * 60_000 + "]", "parts"),
        ("a: " + "x" * (1 << 20), "bytes"),
    ],
)  # fmt: skip
def test_more_than_plain_yaml_is_refused(tmp_path: Path, text: str | bytes, words: str) -> None:
    error = refusal(tmp_path, text)
    assert error.code == "BANK_FILE" and words in str(error)


@pytest.mark.parametrize(
    ("old", "new", "code", "words"),
    [
        ("version: 2", "versoin: 2", "CONFIG_KEY", "version"),
        ("ask: Is there a mass?", "aks: Is there a mass?", "CONFIG_KEY", "ask"),
        ("choices: [right, left]", "choises: [right, left]", "CONFIG_KEY", "choices"),
        ("version: 2", "version: two", "BANK_VALUE", "version"),
        ("version: 2", "version: 0", "BANK_VALUE", "version"),
        ("version: 2", "version: 2\nper_call: 0", "BANK_VALUE", "per_call"),
        ("id: mass", "id: stone", "BANK_VALUE", "twice"),
        ("id: mass", "id: Mass.x", "BANK_VALUE", "id"),
        ("[side, size_mm]", "[side, colour]", "BANK_VALUE", "mass"),
        ("[side, size_mm]", "[side, side]", "BANK_VALUE", "mass"),
        ("[right, left]", "[right, right]", "BANK_VALUE", "differ"),
        ("[right, left]", "[right, unknown]", "BANK_VALUE", "unknown"),
        ("[right, left]", "[yes, left]", "BANK_VALUE", "yes"),
        ("[right, left]", "[]", "BANK_VALUE", "choices"),
        ("choices: [right, left]", "several: true", "BANK_VALUE", "choices"),
        ("low_mm: 1, ", "", "BANK_VALUE", "low_mm"),
        ("low_mm: 1", "low_mm: 200", "BANK_VALUE", "low_mm"),
        ("low_mm: 1", "low_mm: nan", "BANK_VALUE", "low_mm"),
        ("the {name}?", "the {name.__class__}?", "BANK_VALUE", "placeholder"),
        ("the {name}?", "the {}?", "BANK_VALUE", "placeholder"),
        ("name: mass", 'name: "{name}"', "BANK_VALUE", "name"),
    ],
)  # fmt: skip
def test_what_has_no_meaning_is_refused(tmp_path: Path, old: str, new: str, code: str, words: str) -> None:
    assert old in SMALL
    error = refusal(tmp_path, SMALL.replace(old, new))
    assert error.code == code and re.search(words, str(error))


def test_no_questions_and_no_file_are_refused(tmp_path: Path) -> None:
    assert refusal(tmp_path, SMALL.split("questions:")[0]).code == "BANK_VALUE"
    assert refusal(tmp_path, SMALL.split("questions:")[0] + "questions: []").code == "BANK_VALUE"
    (tmp_path / "folder").mkdir()
    for path in (tmp_path / "gone.yaml", tmp_path / "folder"):
        with pytest.raises(UsageError) as caught:
            load_bank(path)
        assert caught.value.code == "BANK_FILE"
