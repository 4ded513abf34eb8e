"""Questions about diseases as sentences: paraphrases that say it is there, and as many that say it is not.

Source: RadFinder §1.5b (three of each, one drawn per scan and question) and §1.8 (`t3`, and `mean7`: the mean
of seven pairs). The paraphrases are ours, in English and German; its question files are not copied.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from hilum.errors import UsageError
from hilum.text.vocabulary import FINDINGS

Pair = tuple[str, str]

PARAPHRASES: Mapping[str, tuple[Pair, ...]] = MappingProxyType(
    {
        "en": (
            ("There is {name}.", "There is no {name}."),
            ("Findings consistent with {name}.", "No evidence of {name}."),
            ("{name} is present.", "{name} is not present."),
        ),
        "de": (
            ("Nachweis: {name}.", "Kein Nachweis: {name}."),
            ("{name} ist vorhanden.", "{name} ist nicht vorhanden."),
            ("Befund vereinbar mit: {name}.", "Kein Anhalt für: {name}."),
        ),
    }
)
"""Pairs per language, that training draws from."""

ENSEMBLES: Mapping[str, tuple[Pair, ...]] = MappingProxyType(
    {
        "t3": (("There is {name}.", "There is no {name}."),),
        "mean7": (
            ("There is {name}.", "There is no {name}."),
            ("{name}.", "No {name}."),
            ("{name} is present.", "{name} is not present."),
            ("{name} is seen.", "{name} is not seen."),
            ("Findings consistent with {name}.", "Findings not consistent with {name}."),
            ("Evidence of {name}.", "No evidence of {name}."),
            ("The scan shows {name}.", "The scan does not show {name}."),
        ),
    }
)
"""Pairs that a zero-shot answer is the mean of."""

Sentence = Annotated[str, Field(min_length=1, max_length=2000)]


class Asked(BaseModel):
    """One question.

    Attributes:
        name: of its label. present, absent: as many of each. group: of questions that share a weight.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(min_length=1)
    present: tuple[Sentence, ...] = Field(min_length=1)
    absent: tuple[Sentence, ...] = Field(min_length=1)
    group: str = "ctrate"

    @model_validator(mode="after")
    def _paired(self) -> Asked:
        if len(self.present) != len(self.absent):
            raise ValueError("as many sentences that say it is there as that say it is not")
        return self


@dataclass(frozen=True)
class PromptBank:
    """Questions, all with as many paraphrases.

    Raises:
        UsageError: `CONFIG_VALUE` for questions with more of them than others, or one twice.
    """

    questions: tuple[Asked, ...]

    def __post_init__(self) -> None:
        counts = sorted({len(q.present) for q in self.questions})
        names = [q.name for q in self.questions]
        if len(counts) != 1 or len(set(names)) < len(names):
            raise UsageError(
                "CONFIG_VALUE", "questions have as many paraphrases, each question once",
                expected="one number", got=f"{counts}, {len(names) - len(set(names))} twice",
            )  # fmt: skip

    @property
    def variants(self) -> int:
        """Paraphrases of each question."""
        return len(self.questions[0].present)

    def texts(self) -> list[str]:
        """All, in the order question, there or not, variant."""
        return [text for q in self.questions for text in (*q.present, *q.absent)]


def own_bank() -> PromptBank:
    """The 18 findings in every wording of `PARAPHRASES`."""
    questions = []
    for finding in FINDINGS:
        names = {"en": _inside(finding.name), "de": finding.name_de}
        pairs = [_said(pair, names[tongue]) for tongue, some in PARAPHRASES.items() for pair in some]
        present, absent = zip(*pairs, strict=True)
        questions.append(Asked(name=finding.slug, present=present, absent=absent))
    return PromptBank(tuple(questions))


def load_bank(path: Path | None) -> PromptBank:
    """A bank of the user's: TOML with `[[question]]` tables; None gives `own_bank`.

    Raises:
        UsageError: `CONFIG_FILE`, `CONFIG_VALUE`.
    """
    if path is None:
        return own_bank()
    try:
        data: dict[str, Any] = tomllib.loads(path.read_text(encoding="utf-8"))
        return PromptBank(tuple(Asked.model_validate(q) for q in data["question"]))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError, KeyError, TypeError) as error:
        raise UsageError(
            "CONFIG_FILE", "a bank of prompts is TOML with [[question]] tables", got=repr(error), path=path
        ) from None
    except ValidationError as error:
        first = error.errors()[0]
        got = f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
        raise UsageError("CONFIG_VALUE", "a question has its sentences", got=got, path=path) from None


def ensemble_pairs(name: str, what: str) -> list[Pair]:
    """Sentences of an ensemble about anything that can be said in a few words.

    Args:
        name: ``t3`` or ``mean7``. what: e.g. "pleural effusion".

    Raises:
        UsageError: `OPTION_UNKNOWN`.
    """
    if name not in ENSEMBLES:
        raise UsageError(
            "OPTION_UNKNOWN", "an ensemble of prompts is known", expected=" | ".join(ENSEMBLES), got=name
        )
    return [_said(pair, what) for pair in ENSEMBLES[name]]


def _said(pair: Pair, name: str) -> Pair:
    there, not_there = (_upper(text.replace("{name}", name)) for text in pair)
    return there, not_there


def _upper(text: str) -> str:
    return text[:1].upper() + text[1:]


def _inside(name: str) -> str:
    """A name within a sentence: "Pleural effusion" -> "pleural effusion"."""
    return name[:1].lower() + name[1:]
