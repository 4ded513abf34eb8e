"""Texts to numbers of a vocabulary, through a `tokenizer.json`.

The Rust library `tokenizers` does the work; this file decides what it leaves open: padding is ours, so that
a stored padding or truncation of a tokenizer changes nothing; a cut keeps the special tokens at both ends
(last-token pooling reads the final one); words of a report never become special tokens. One text at a time,
so that no pool of threads exists that a fork would break.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from hilum.errors import ReportError, UsageError, WeightsError
from hilum.types import TokenIds, TokenMask

Side = Literal["left", "right"]
"""Where padding stands."""

PAD_NAMES = ("[PAD]", "<pad>", "<|pad|>", "<PAD>", "<|endoftext|>", "<|end_of_text|>", "</s>")
"""How tokenizers that do not name their padding call it, first found."""


class Tokens:
    """A tokenizer.

    Args:
        text: the text of a ``tokenizer.json``; `text` gives it back as it was.
        side: where padding stands; embeddings of `model.text_tower` do not depend on it.

    Raises:
        WeightsError: ``TOKENIZER_FILE``, the text describes no tokenizer.
        UsageError: ``EXTRA_MISSING`` without the extra `text`.
    """

    def __init__(self, text: str, side: Side = "right") -> None:
        self.text, self.side = text, side
        self._tokenizer = _tokenizer(text)
        self.special = int(self._tokenizer.num_special_tokens_to_add(False))
        """Special tokens that every text gets."""
        self.pad_id = _pad_id(self._tokenizer)
        """Stands where the mask is False; no tower reads it."""
        self.size = 1 + max(self._tokenizer.get_vocab(with_added_tokens=True).values(), default=0)
        """Every id is smaller."""
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()

    def __call__(self, texts: Sequence[str], max_tokens: int) -> tuple[TokenIds, TokenMask]:
        """Ids and mask of texts, padded to the longest of them (at least one token wide).

        An empty text is its special tokens; where a tokenizer has none, its row of the mask is False
        throughout, and a text tower gives zeros for it.

        Args:
            max_tokens: of one text, special tokens included. The end of a longer one is cut.

        Raises:
            UsageError: ``CONFIG_VALUE``, no room for a word.
            ReportError: ``TEXT_ENCODING``, a text that is no Unicode.
        """
        if max_tokens <= self.special:
            raise UsageError(
                "CONFIG_VALUE",
                "max_tokens leaves room for a word",
                expected=f"more than {self.special}",
                got=max_tokens,
            )
        rows = [self._encode(text, max_tokens) for text in texts]
        longest = max([1, *map(len, rows)])
        ids = np.full((len(rows), longest), self.pad_id, dtype=np.int64)
        mask = np.zeros(ids.shape, dtype=bool)
        for i, row in enumerate(rows):
            at = slice(longest - len(row), None) if self.side == "left" else slice(len(row))
            ids[i, at], mask[i, at] = row, True
        return ids, mask

    def __reduce__(self) -> tuple[Any, ...]:
        """To another process as the text it was made of: the library's own state forgets a setting."""
        return type(self), (self.text, self.side)

    def length(self, text: str) -> int:
        """Tokens of an uncut text, special ones included."""
        return len(self._encode(text, None))

    def _encode(self, text: str, max_tokens: int | None) -> list[int]:
        """Cut first, special tokens after: they stay whole."""
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise ReportError("TEXT_ENCODING", "a text is Unicode", got=error) from None
        found = self._tokenizer.encode(text, add_special_tokens=False)
        if max_tokens is not None:
            found.truncate(max_tokens - self.special)
        return self._tokenizer.post_process(found).ids


def _tokenizer(text: str) -> Any:
    try:
        library = importlib.import_module("tokenizers")
    except ImportError as error:
        raise UsageError(
            "EXTRA_MISSING",
            "texts need the extra `text`",
            got=str(error),
            hint="pip install 'hilum[text]'",
        ) from error
    try:
        tokenizer = library.Tokenizer.from_str(text)
    except Exception as error:  # the library raises nothing narrower
        raise WeightsError(
            "TOKENIZER_FILE", "a tokenizer is a whole tokenizer.json", got=str(error)[:200]
        ) from None
    # Otherwise "[SEP]" in a report would end it.
    tokenizer.encode_special_tokens = True
    return tokenizer


def _pad_id(tokenizer: Any) -> int:
    """What the tokenizer pads with itself, else the first known name, else 0: a mask hides it anyway."""
    if tokenizer.padding is not None:
        return int(tokenizer.padding["pad_id"])
    found = (tokenizer.token_to_id(name) for name in PAD_NAMES)
    return next((number for number in found if number is not None), 0)
