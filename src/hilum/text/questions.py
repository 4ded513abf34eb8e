"""A bank of questions about a report: what is asked, which answers there are. YAML, versioned, hashed.

    >>> bank = load_bank()
    >>> bank.questions[9].id, [a.id for a in bank.questions[9].parts][:2]
    ('lung_nodule', ['lung_nodule.side', 'lung_nodule.lobe'])

A question about a finding is answered yes or no; its parts (side, lobe, size, ...) by one of their choices,
by several, or by a size in mm. Source: the idea of RATE, as RadFinder (arXiv 2603.02026) uses it; questions
are our own.
"""

from __future__ import annotations

import difflib
import hashlib
import json
from functools import cached_property
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from hilum.errors import UsageError
from hilum.io.plain_yaml import MAX_BYTES, NotPlain, plain_yaml

BUNDLED = "questions_chest_ct.yaml"
MAX_QUESTIONS = 2000
RESERVED = frozenset({"unknown", "yes", "no"})

Slug = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,63}$")]
Sentence = Annotated[str, Field(min_length=3, max_length=1000)]
Choice = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9 _-]{0,63}$")]
Kind = Literal["yes_no", "choice", "several", "size_mm"]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Attribute(_Strict):
    """What can be said about a finding, for every finding that names it.

    Args:
        ask: the question; ``{name}`` stands for the finding. choices: the answers there are.
        several: more than one choice may hold. low_mm, high_mm: bounds of a size in mm, instead of choices.
    """

    ask: Sentence
    choices: tuple[Choice, ...] = ()
    several: bool = False
    low_mm: float | None = Field(None, ge=0, allow_inf_nan=False)
    high_mm: float | None = Field(None, gt=0, allow_inf_nan=False)

    @field_validator("ask")
    @classmethod
    def _only_the_name(cls, ask: str) -> str:
        if "{" in ask.replace("{name}", "") or "}" in ask.replace("{name}", ""):
            raise ValueError("the only placeholder is {name}")
        return ask

    @model_validator(mode="after")
    def _choices_or_a_size(self) -> Attribute:
        sized = self.low_mm is not None and self.high_mm is not None and self.low_mm < self.high_mm
        if sized == bool(self.choices) or (not sized and (self.low_mm, self.high_mm) != (None, None)):
            raise ValueError("choices, or low_mm below high_mm")
        if self.several and not self.choices:
            raise ValueError("several needs choices")
        if len(set(self.choices)) < len(self.choices) or RESERVED & set(self.choices):
            raise ValueError("choices differ and none is yes, no or unknown")
        return self

    @property
    def kind(self) -> Kind:
        """How it is answered."""
        return "size_mm" if not self.choices else "several" if self.several else "choice"


class Question(_Strict):
    """One finding.

    Args:
        id: its key in every answer. name: as it is called inside the questions about it.
        ask: what is answered yes or no. attributes: names of the bank's attributes that are asked too.
    """

    id: Slug
    name: Annotated[str, Field(pattern=r"^[^{}\n]{1,100}$")]
    ask: Sentence
    attributes: tuple[Slug, ...] = ()


class Item(BaseModel):
    """One question as it is put: a finding, or a part of one.

    Args:
        id: ``lung_nodule`` or ``lung_nodule.side``. ask: in full. kind: how it is answered.
        choices: of `choice` and `several`. low_mm, high_mm: of `size_mm`. of: the finding it is a part of.
        parts: of a finding.
    """

    model_config = ConfigDict(frozen=True)

    id: str
    ask: str
    kind: Kind = "yes_no"
    choices: tuple[str, ...] = ("yes", "no")
    low_mm: float = 0.0
    high_mm: float = 0.0
    of: str | None = None
    parts: tuple[Item, ...] = ()


class Bank(_Strict):
    """A bank as its file says it; `items` are the questions in full.

    Args:
        name, version: for people; `sha256` is what answers are kept under.
        per_call: most questions in one request; a finding and its parts stay together.
    """

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$")]
    version: int = Field(ge=1)
    per_call: int = Field(80, ge=1, le=500)
    attributes: dict[Slug, Attribute] = {}
    asked: tuple[Question, ...] = Field(alias="questions", min_length=1, max_length=MAX_QUESTIONS)

    @model_validator(mode="after")
    def _fits_together(self) -> Bank:
        ids = [q.id for q in self.asked]
        twice = sorted({i for i in ids if ids.count(i) > 1})
        if twice:
            raise ValueError(f"question {twice[0]} stands twice")
        for question in self.asked:
            unknown = [a for a in question.attributes if a not in self.attributes]
            if unknown or len(set(question.attributes)) < len(question.attributes):
                raise ValueError(f"question {question.id} names known attributes, each once")
        return self

    @cached_property
    def questions(self) -> tuple[Item, ...]:
        """The findings in the file's order, each with its parts."""
        return tuple(self._item(q) for q in self.asked)

    @cached_property
    def items(self) -> tuple[Item, ...]:
        """Findings and parts in one row: finding, its parts, next finding."""
        return tuple(item for q in self.questions for item in (q, *q.parts))

    @cached_property
    def calls(self) -> tuple[tuple[Item, ...], ...]:
        """The items of each request."""
        calls: list[list[Item]] = [[]]
        for question in self.questions:
            block = [question, *question.parts]
            if calls[-1] and len(calls[-1]) + len(block) > self.per_call:
                calls.append([])
            calls[-1] += block
        return tuple(tuple(call) for call in calls)

    @cached_property
    def sha256(self) -> str:
        """Of what the bank says; comments and layout of the file do not count."""
        said = json.dumps(self.model_dump(mode="json", by_alias=True), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(said.encode()).hexdigest()

    def _item(self, question: Question) -> Item:
        parts = []
        for name in question.attributes:
            said = self.attributes[name]
            parts.append(
                Item(
                    id=f"{question.id}.{name}",
                    ask=said.ask.replace("{name}", question.name),
                    kind=said.kind,
                    choices=said.choices,
                    low_mm=said.low_mm or 0.0,
                    high_mm=said.high_mm or 0.0,
                    of=question.id,
                )
            )
        return Item(id=question.id, ask=question.ask, parts=tuple(parts))


def load_bank(path: str | Path | None = None) -> Bank:
    """A bank from a YAML file; None is the one for chest CT that ships.

    Raises:
        UsageError: `BANK_FILE` (cannot be read, or is more than plain YAML), `CONFIG_KEY` (an unknown key),
            `BANK_VALUE` (a value or a combination that has no meaning).
    """
    shown = path or BUNDLED
    try:
        data = plain_yaml(_content(path))
    except (OSError, NotPlain) as error:
        got = error.strerror if isinstance(error, OSError) else str(error)
        raise UsageError(
            "BANK_FILE", "a question bank is a small, plain YAML file", got=got, path=shown
        ) from None
    if not isinstance(data, dict):
        raise UsageError(
            "BANK_FILE", "a question bank is a YAML mapping", expected="name, version, questions",
            got=type(data).__name__, path=shown,
        )  # fmt: skip
    try:
        return Bank.model_validate(data)
    except ValidationError as error:
        raise _explain(error, shown) from None


def _content(path: str | Path | None) -> bytes:
    if path is None:
        return files("hilum.text").joinpath(BUNDLED).read_bytes()
    with Path(path).open("rb") as file:
        return file.read(MAX_BYTES + 1)


def _explain(error: ValidationError, path: str | Path) -> UsageError:
    errors: list[Any] = list(error.errors(include_url=False))
    # A mistyped key is both unknown and missing under its right name; only the first of these helps.
    first = next((e for e in errors if e["type"] == "extra_forbidden"), errors[0])
    where = ".".join(str(part) for part in first["loc"]) or "the bank"
    if first["type"] != "extra_forbidden":
        return UsageError(
            "BANK_VALUE", f"{where}: {first['msg']}", got=repr(first.get("input"))[:200], path=path
        )
    depth = len(first["loc"])
    kind: type[BaseModel] = Bank if depth == 1 else Attribute if first["loc"][0] == "attributes" else Question
    known = [field.alias or name for name, field in kind.model_fields.items()]
    near = difflib.get_close_matches(str(first["loc"][-1]), known, n=1)
    hint = f"Did you mean {near[0]}?" if near else f"Known keys: {', '.join(known)}."
    return UsageError(
        "CONFIG_KEY", "a question bank has only known keys", expected="a known key", got=where, path=path,
        hint=hint,
    )  # fmt: skip
