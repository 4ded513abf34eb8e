"""The labeller's words: rule files (data) -> one index of patterns, met word by word in one pass.

A rule file lists phrases in a small pattern language (its head explains it). Each becomes a regular
expression that is tried only where a word begins with the same letters, so that a text costs one look-up per
word and not one search per phrase. Phrases that begin with `*` (German compounds) are searched for inside
words instead.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from typing import Any, Literal

from hilum.errors import RunError
from hilum.text.vocabulary import SLUGS

Language = Literal["en", "de"]
LANGUAGES: tuple[Language, ...] = ("en", "de")

WORD = re.compile(r"[^\W_]+")
BETWEEN = r"[\s\-‐‑–/]+"
"""What a space of a phrase stands for."""
LISTED = r"[\s\-‐‑–/,]+"
"""The same in a gap that may hold commas."""
REST = r"[^\W_]*"
KEY_LETTERS = 4


@dataclass(frozen=True)
class Meaning:
    """What a phrase says.

    Args:
        kind: `term` (names a finding), `placed` (names it where a place of `at` is near), `denied_only` (a
            wider word that counts where it is denied), `unless` (takes
            a `placed` word of its sentence away), `not` (looks like the finding and is none), `normal`
            (denies it in other words), else the table: `cue`, `place`, `side`, `lobe`.
        name: slug of the finding, or the key in the table.
    """

    kind: str
    name: str


@dataclass(frozen=True)
class Hit:
    """A phrase in a text: characters `start` to `end`, and what it says."""

    start: int
    end: int
    meaning: Meaning


@dataclass(frozen=True)
class Policy:
    """How one finding's statements are taken.

    Args:
        at: places one of which a `placed` word needs. bars: places where its words name something else.
        hedged: what a doubtful statement counts as.
    """

    at: frozenset[str] = frozenset()
    bars: frozenset[str] = frozenset()
    hedged: Literal["present", "unknown"] = "present"


@dataclass(frozen=True)
class Lexicon:
    """The rules of one language.

    Args:
        markers: common words by which the language is told. keyed: first letters -> patterns.
        inner: patterns inside words. policies: by slug.
    """

    language: Language
    markers: frozenset[str]
    keyed: Mapping[str, tuple[tuple[re.Pattern[str], Meaning], ...]]
    inner: tuple[tuple[re.Pattern[str], Meaning], ...]
    policies: Mapping[str, Policy]

    def hits(self, text: str) -> Iterator[Hit]:
        """Every phrase of a lower-case text, by its first word; of equal meanings at one place the
        longest."""
        for word in WORD.finditer(text):
            start, letters = word.start(), word.group()[:KEY_LETTERS]
            found: dict[Meaning, int] = {}
            for length in range(1, len(letters) + 1):
                for pattern, meaning in self.keyed.get(letters[:length], ()):
                    match = pattern.match(text, start)
                    if match is not None and match.end() > found.get(meaning, 0):
                        found[meaning] = match.end()
            for meaning, end in found.items():
                yield Hit(start, end, meaning)
        for pattern, meaning in self.inner:
            for match in pattern.finditer(text):
                yield Hit(match.start(), match.end(), meaning)


@dataclass
class _Builder:
    keyed: dict[str, list[tuple[re.Pattern[str], Meaning]]] = field(default_factory=dict)
    inner: list[tuple[re.Pattern[str], Meaning]] = field(default_factory=list)

    def add(self, phrase: str, meaning: Meaning) -> None:
        """One phrase, under the letters that each of its beginnings starts with."""
        if phrase.startswith("*"):
            self.inner.append((re.compile(r"(?<=[^\W_])" + _regex(phrase[1:])), meaning))
            return
        for beginning in _beginnings(phrase):
            letters = re.match(r"[a-zäöüß]*", beginning)
            key = letters.group()[:KEY_LETTERS] if letters else ""
            after = beginning[len(key) : len(key) + 1]
            key = key[:-1] if after == "?" else key
            if not key:
                raise RunError(
                    "CONFIG_VALUE", "a phrase begins with a letter", expected="letters", got=phrase
                )
            self.keyed.setdefault(key, []).append((re.compile(_regex(beginning)), meaning))


def _beginnings(phrase: str) -> Iterator[str]:
    """The phrase with the choice at its start, if any, made in every way."""
    if phrase[1:2] == "?":
        yield from (phrase[0] + phrase[2:], phrase[2:])
        return
    if not phrase.startswith("("):
        yield phrase
        return
    depth, cuts, at = 0, [1], 0
    for at, letter in enumerate(phrase):
        depth += (letter == "(") - (letter == ")")
        if letter == "|" and depth == 1:
            cuts.append(at + 1)
        if depth == 0:
            break
    rest = phrase[at + 1 :]
    for start, end in zip(cuts, [*(c - 1 for c in cuts[1:]), at], strict=True):
        yield from _beginnings(phrase[start:end] + rest.removeprefix("?"))
    if rest.startswith("?"):
        yield from _beginnings(rest[1:].strip())


def _regex(phrase: str) -> str:
    """The regular expression of a phrase that does not begin with a choice.

    A space inside a choice is one of the phrase's spaces too, so choices may hold whole phrases.
    """
    out = re.sub(r"\((?!\?)", "(?:", phrase).replace("*", REST)
    out = re.sub(r" ?~~([0-9]) ?", lambda m: _gap(LISTED, "", m.group(1)), out)
    out = re.sub(r" ?~([0-9]) ?", lambda m: _gap(BETWEEN, ",", m.group(1)), out)
    return out.replace(" ?", f"(?:{BETWEEN})?").replace(" ", BETWEEN) + r"(?![^\W_])"


def _gap(between: str, bar: str, words: str) -> str:
    return rf"(?:{between}[^\s{bar};.:()]+){{0,{words}}}?{between}"


def _phrases(table: Mapping[str, Any], rule: str) -> Iterator[tuple[str, str]]:
    for name, phrases in table.items():
        if not isinstance(phrases, list):
            raise RunError(
                "CONFIG_VALUE", "a rule is a list of phrases", expected="a list", got=f"{rule}.{name}"
            )
        yield from ((name, phrase) for phrase in phrases)


@cache
def load_lexicon(language: Language) -> Lexicon:
    """The rules of a language; read and compiled once per process.

    Raises:
        RunError: a rule file that is not one (`CONFIG_VALUE`).
    """
    book = tomllib.loads((files("hilum.text") / f"rules_{language}.toml").read_text(encoding="utf-8"))
    builder, policies = _Builder(), {}
    for table, kind in (("cues", "cue"), ("places", "place"), ("sides", "side"), ("lobes", "lobe")):
        for name, phrase in _phrases(book[table], table):
            builder.add(phrase, Meaning(kind, name))
    for slug, rules in book["finding"].items():
        if slug not in SLUGS:
            raise RunError("CONFIG_VALUE", "rules are about the 18 findings", expected=SLUGS, got=slug)
        for kind in ("terms", "placed", "denied_only", "unless", "not", "normal"):
            for phrase in rules.get(kind, []):
                builder.add(phrase, Meaning("term" if kind == "terms" else kind, slug))
        policies[slug] = Policy(
            frozenset(rules.get("at", ())), frozenset(rules.get("bars", ())), rules.get("hedged", "present")
        )
    keyed = {key: tuple(patterns) for key, patterns in builder.keyed.items()}
    return Lexicon(language, frozenset(book["markers"]), keyed, tuple(builder.inner), policies)
