"""Tokens: padding on either side, cuts that keep the special tokens, texts that try to be special."""

from __future__ import annotations

import copy
import json
import sys
from typing import Any

import numpy as np
import pytest
import tokenizers

from hilum.errors import ReportError, UsageError, WeightsError
from hilum.text.tokens import Tokens

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "no", "small", "effusion", "nodule", "left", "[", "]", "SEP"]


def tokenizer_json(
    words: list[str] = WORDS,
    special: tuple[str, ...] = ("[PAD]", "[CLS]", "[SEP]"),
    template: str = "[CLS] $A [SEP]",
) -> str:
    """A tokenizer of whole words, in the file format of the library."""
    numbers = {word: i for i, word in enumerate(words)}
    model = tokenizers.models.WordLevel(numbers, unk_token="[UNK]")
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer.add_special_tokens(list(special))
    if template:
        used = [(word, numbers[word]) for word in template.split() if word in numbers]
        tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
            single=template, special_tokens=used
        )
    return tokenizer.to_str()


def test_texts_are_padded_on_either_side_and_masked() -> None:
    texts = ["no effusion", "small left nodule"]
    ids, mask = Tokens(tokenizer_json())(texts, 16)
    assert ids.tolist() == [[2, 4, 6, 3, 0], [2, 5, 8, 7, 3]]
    assert mask.tolist() == [[True] * 4 + [False], [True] * 5]
    assert (ids.dtype, mask.dtype) == (np.int64, np.bool_)
    left, left_mask = Tokens(tokenizer_json(), "left")(texts, 16)
    assert left.tolist() == [[0, 2, 4, 6, 3], [2, 5, 8, 7, 3]]
    assert left_mask.tolist() == [[False] + [True] * 4, [True] * 5]


@pytest.mark.parametrize("template", ["[CLS] $A [SEP]", "$A [SEP]"])
@pytest.mark.parametrize("side", ["left", "right"])
def test_a_cut_keeps_the_last_special_token(template: str, side: Any) -> None:
    tokens = Tokens(tokenizer_json(template=template), side)
    ids, mask = tokens(["no small effusion left nodule", "no"], 4)
    seen = [row[on].tolist() for row, on in zip(ids, mask, strict=True)]
    assert [row[-1] for row in seen] == [3, 3]
    assert len(seen[0]) == 4
    assert seen[0][len(seen[0]) - 4 + (tokens.special - 1)] == 4
    assert tokens.length("no small effusion left nodule") == 5 + tokens.special


def test_a_cut_is_the_library_s_own() -> None:
    text = "no small effusion left nodule no no no"
    plain = tokenizers.Tokenizer.from_str(tokenizer_json())
    for room in range(3, 12):
        plain.enable_truncation(room)
        assert Tokens(tokenizer_json())([text], room)[0][0].tolist() == plain.encode(text).ids


def test_stored_padding_and_truncation_change_nothing_but_the_pad_id() -> None:
    plain = tokenizers.Tokenizer.from_str(tokenizer_json())
    plain.enable_padding(pad_id=7, pad_token="nodule", length=9)
    plain.enable_truncation(3)
    tokens = Tokens(plain.to_str())
    ids, mask = tokens(["small left effusion", "no"], 16)
    assert ids.tolist() == [[2, 5, 8, 6, 3], [2, 4, 3, 7, 7]]
    assert mask.sum(axis=1).tolist() == [5, 3]


def test_words_of_a_report_never_become_special_tokens() -> None:
    ids, _ = Tokens(tokenizer_json())(["no [SEP] [CLS]"], 32)
    assert ids[0].tolist() == [2, 4, 9, 11, 10, 9, 1, 10, 3]


def test_an_empty_text_is_its_special_tokens_or_nothing() -> None:
    ids, mask = Tokens(tokenizer_json())(["", "no"], 16)
    assert ids[0].tolist() == [2, 3, 0] and mask[0].tolist() == [True, True, False]
    bare = Tokens(tokenizer_json(template=""))
    assert bare.special == 0
    ids, mask = bare(["", ""], 16)
    assert ids.tolist() == [[0], [0]] and not mask.any()
    assert bare([], 16)[0].shape == (0, 1)


@pytest.mark.parametrize(
    ("special", "expected"),
    [(("<pad>", "[CLS]"), "<pad>"), (("<|endoftext|>", "[CLS]"), "<|endoftext|>"), ((), None)],
)
def test_the_pad_id_is_the_tokenizer_s_own(special: tuple[str, ...], expected: str | None) -> None:
    words = ["[UNK]", "[CLS]", "no", "<pad>" if "<pad>" in special else "x", "<|endoftext|>"]
    words = words if expected == "<|endoftext|>" else words[:4]
    tokens = Tokens(tokenizer_json(words, special, ""))
    assert tokens.pad_id == (0 if expected is None else words.index(expected))


def test_every_id_is_below_the_size() -> None:
    tokens = Tokens(tokenizer_json())
    assert tokens.size == len(WORDS)
    assert tokens([" ".join(WORDS)], 99)[0].max() < tokens.size


def test_tokens_cross_to_another_process_whole() -> None:
    tokens = Tokens(tokenizer_json(), "left")
    other = copy.deepcopy(tokens)
    assert (other.text, other.side) == (tokens.text, "left")
    np.testing.assert_array_equal(other(["no [SEP]"], 16)[0], tokens(["no [SEP]"], 16)[0])


@pytest.mark.parametrize("room", [2, 0, -1])
def test_no_room_for_a_word_is_refused(room: int) -> None:
    with pytest.raises(UsageError, match="CONFIG_VALUE") as caught:
        Tokens(tokenizer_json())(["no"], room)
    assert caught.value.expected == "more than 2"


@pytest.mark.parametrize("text", ["", "{", "[]", json.dumps({"model": {"type": "WordLevel"}})])
def test_what_is_no_tokenizer_is_refused(text: str) -> None:
    with pytest.raises(WeightsError, match="TOKENIZER_FILE"):
        Tokens(text)


def test_half_a_character_is_refused() -> None:
    with pytest.raises(ReportError, match="TEXT_ENCODING"):
        Tokens(tokenizer_json())(["no \ud800"], 16)


def test_a_missing_extra_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    text = tokenizer_json()
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(UsageError, match=r"hilum\[text\]") as caught:
        Tokens(text)
    assert caught.value.code == "EXTRA_MISSING"
