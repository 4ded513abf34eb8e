"""What a language model that writes reports is asked, and the tokens of it.

    >>> report_prompt("Write the report.", [0] * 17 + [1])[:60]
    '<image>\\nWrite the report. Known frontend model predictions (d'

Source: EXACT §2.4, the prompt of EXACT-CHAT word by word; the 42 requests (`report_requests.toml`) are our
own. The names of the findings are CT-RATE's in either language, as frontend predictions have them.
"""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from functools import cache
from importlib.resources import files
from typing import Literal, NamedTuple

from hilum.errors import UsageError
from hilum.text.tokens import Tokens
from hilum.text.vocabulary import FINDINGS

IMAGE = "<image>"
END_OF_PROMPT = "<report_generation>"
IMAGE_ID = -200
"""Stands for all image tokens in a row of ids; no vocabulary has it."""


@cache
def report_requests(language: Literal["en", "de"]) -> tuple[str, ...]:
    """The 42 requests of a language."""
    return tuple(tomllib.loads((files("hilum.text") / "report_requests.toml").read_text("utf-8"))[language])


def disease_string(present: Sequence[int]) -> str:
    """``Medical material=0; ...; Interlobular septal thickening=0.``: 18 predictions of 0 or 1.

    Raises:
        UsageError: `CONFIG_VALUE`, other numbers than 18 of 0 and 1.
    """
    if len(present) != len(FINDINGS) or not set(present) <= {0, 1}:
        raise UsageError("CONFIG_VALUE", "a prompt has 18 predictions", expected="0 or 1", got=list(present))
    said = (f"{finding.name}={int(value)}" for finding, value in zip(FINDINGS, present, strict=True))
    return "Known frontend model predictions (disease-wise): " + "; ".join(said) + "."


def report_prompt(request: str, present: Sequence[int]) -> str:
    """The prompt of EXACT-CHAT."""
    return f"{IMAGE}\n{request} {disease_string(present)}{END_OF_PROMPT}"


class Asked(NamedTuple):
    """Ids of a prompt and, behind it, of a report with its end. counted: which ids the loss counts."""

    ids: list[int]
    counted: list[bool]


class ReportTokens(Tokens):
    """A tokenizer of a language model that writes.

    Args:
        text: of a ``tokenizer.json``. template: around the prompt, as the model was tuned; `{prompt}` once.
            Its own words may be special tokens; those of prompt and report never are.
        end: the token that ends a report.

    Raises:
        WeightsError, UsageError: as of `Tokens`; `CONFIG_VALUE` for a template without `{prompt}` or an
            unknown `end`.
    """

    def __init__(self, text: str, template: str = "{prompt}", end: str = "</s>") -> None:
        super().__init__(text)
        end_id = self._tokenizer.token_to_id(end)
        if end_id is None or template.count("{prompt}") != 1:
            raise UsageError(
                "CONFIG_VALUE", "a template has {prompt} once, and a tokenizer the token that ends a report",
                expected="{prompt} and " + end, got=template,
            )  # fmt: skip
        self.template, self.end, self.end_id = template, end, int(end_id)

    def ask(self, prompt: str, report: str | None = None, max_tokens: int | None = None) -> Asked:
        """Ids of a prompt with one `IMAGE_ID`, and of the report that answers it. A longer report is cut, and
        has no end then."""
        before, after = self.template.split("{prompt}")
        head, tail = prompt.split(IMAGE)
        ids = [*self._marks(before), *self._words(head), IMAGE_ID, *self._words(tail), *self._marks(after)]
        answer = [] if report is None else [*self._words(report), self.end_id]
        answer = answer if max_tokens is None else answer[: max(0, max_tokens - len(ids))]
        return Asked(ids + answer, [False] * len(ids) + [True] * len(answer))

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids, up to the end."""
        kept = list(ids)[: list(ids).index(self.end_id)] if self.end_id in ids else list(ids)
        return str(self._tokenizer.decode(kept, skip_special_tokens=True)).strip()

    def __reduce__(self) -> tuple[type[ReportTokens], tuple[str, str, str]]:
        """As of `Tokens`."""
        return type(self), (self.text, self.template, self.end)

    def _words(self, text: str) -> list[int]:
        return list(self._tokenizer.encode(text, add_special_tokens=False).ids)

    def _marks(self, text: str) -> list[int]:
        """With special tokens known by name."""
        self._tokenizer.encode_special_tokens = False
        try:
            return self._words(text)
        finally:
            self._tokenizer.encode_special_tokens = True
