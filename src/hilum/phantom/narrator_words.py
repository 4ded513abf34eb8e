"""The phrase books (data: `narrator_en.toml`, `narrator_de.toml`) and how a template becomes a sentence."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.resources import files
from string import Formatter
from typing import Any

import numpy as np

from hilum.errors import UsageError

LANGUAGES = ("en", "de")
OPTIONAL = ("ref", "prior")
"""Fields that may stay empty."""


@cache
def load_book(language: str) -> dict[str, Any]:
    """The phrase book of a language, as the TOML file holds it. Treat it as read-only.

    Raises:
        UsageError: unknown language (`OPTION_UNKNOWN`).
    """
    if language not in LANGUAGES:
        raise UsageError(
            "OPTION_UNKNOWN", "the narrator knows two languages", expected=LANGUAGES, got=language
        )
    return tomllib.loads(files("hilum.phantom").joinpath(f"narrator_{language}.toml").read_text("utf-8"))


@cache
def fields_of(template: str) -> frozenset[str]:
    """Names of the fields of a template."""
    return frozenset(name for _, name, _, _ in Formatter().parse(template) if name)


class Words:
    """Draws phrases of one language from one random stream.

    Args:
        language: ``en`` or ``de``. rng: every choice comes from it.
    """

    def __init__(self, language: str, rng: np.random.Generator) -> None:
        self.language, self.rng, self.book = language, rng, load_book(language)

    def chance(self, share: float) -> bool:
        """True with probability `share`."""
        return bool(self.rng.random() < share)

    def pick(self, phrases: Sequence[str]) -> str:
        """One of the phrases."""
        return phrases[int(self.rng.integers(len(phrases)))]

    def choose(self, templates: Sequence[str], known: Mapping[str, str]) -> str | None:
        """One of the templates whose fields are all known, or None."""
        able = [t for t in templates if all(known.get(f) or f in OPTIONAL for f in fields_of(t))]
        return self.pick(able) if able else None

    def fill(self, template: str, known: Mapping[str, str]) -> str:
        """The finished sentence: fields in place, spaces, commas and the first letter put right."""
        text = template.format_map({f: known.get(f, "") for f in fields_of(template)})
        text = re.sub(r"\s+([.,;:])", r"\1", re.sub(r"\s{2,}", " ", text)).strip()
        if self.book["article_an"]:
            # "an 8 mm", "an 11 mm", "an 18 mm", "an 80 mm", "an enlarged"
            text = re.sub(r"\b([Aa]) (?=8|(?:11|18)(?!\d)|[aeiou])", r"\1n ", text)
        return text[:1].upper() + text[1:]

    def number(self, value: float, digits: int = 0) -> str:
        """A number as the language writes it; no trailing ``.0``."""
        text = f"{value:.{digits}f}"
        text = text.rstrip("0").rstrip(".") if digits else text
        return text.replace(".", self.book["decimal"])

    def size(self, size_mm: float) -> tuple[str, float]:
        """A length as reports give it (half mm when small, mm, sometimes cm), and the mm that were said."""
        if size_mm >= 10 and self.chance(0.2):
            said_cm = round(size_mm / 10, 1)
            return f"{self.number(said_cm, 1)} cm", round(said_cm * 10, 1)
        said_mm = round(size_mm * 2) / 2 if size_mm < 10 else float(round(size_mm))
        return f"{self.number(max(said_mm, 0.5), 1)} mm", max(said_mm, 0.5)

    def place(self, style: str, side: str, lobes: Sequence[str]) -> tuple[str, str, tuple[str, ...]]:
        """Where, in words, and what was said by it.

        Args:
            style: ``lobe``, ``lung``, ``side`` or ``none``. side: ``right``, ``left``, ``both`` or ``""``.
            lobes: names of `vocabulary.LOBES`.

        Returns:
            The phrase with its preposition (may be empty), the side said, the lobes said.
        """
        table = self.book["place"]
        sides = {lobe.split()[0] for lobe in lobes}
        side = side or (sides.pop() if len(sides) == 1 else "both" if sides else "")
        if style == "lobe" and 1 <= len(lobes) <= 2:
            phrase = self.book["and"].join(self.pick(table["lobe"][lobe]) for lobe in lobes)
            return phrase, side, tuple(lobes)
        if style == "none" or not side:
            return "", "", ()
        return self.pick(table["side" if style == "side" else "lung"][side]), side, ()
