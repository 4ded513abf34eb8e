"""The one JSON object with answers in what a model said, prose around it or not.

Rules, so that equal replies are read equally: what stands before the last ``</think>`` is not the reply; the
first object with the key ``answers`` counts; a second one that says something else makes the reply void.
NaN, keys twice and deep nesting are not JSON here.
"""

from __future__ import annotations

import json
from typing import Any

MAX_CHARS = 1 << 20
MAX_STARTS = 64
"""Braces that are tried as the start of an object: text full of them costs a bounded time."""
MAX_DIGITS = 40


class NoReply(Exception):
    """Why a text holds no reply; the words are ours, never the model's."""


def answers_in(text: str) -> list[Any]:
    """The list under ``answers``.

    Raises:
        NoReply: there is no such object, or there are two that differ.
    """
    if len(text) > MAX_CHARS:
        raise NoReply(f"{len(text)} characters, more than {MAX_CHARS}")
    found: list[list[Any]] = []
    why = "no JSON object with answers"
    start, tries = text.rfind("</think>") + 1, 0
    while (start := text.find("{", start)) >= 0 and tries < MAX_STARTS:
        tries += 1
        try:
            value, end = _DECODER.raw_decode(text, start)
        except NoReply as error:
            raise error from None
        except (ValueError, RecursionError):
            start += 1
            continue
        if "answers" in value:
            found.append(_listed(value["answers"]))
        start = end
    if not found:
        raise NoReply(why)
    if any(other != found[0] for other in found[1:]):
        raise NoReply("two objects with answers that differ")
    return found[0]


def _listed(answers: Any) -> list[Any]:
    """Answers as a list; by their ids is the same: ``{"x": {"answer": ..., "quote": ...}}``."""
    if isinstance(answers, dict):
        return [{**(a if isinstance(a, dict) else {"answer": a}), "id": name} for name, a in answers.items()]
    if not isinstance(answers, list):
        raise NoReply("answers is not a list")
    return answers


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        raise NoReply("a key stands twice in one object")
    return value


def _constant(name: str) -> Any:
    raise NoReply(f"{name} is not JSON")


def _whole(digits: str) -> int:
    # Python refuses to convert some thousand digits with an error of its own, and nothing here is that large.
    if len(digits) > MAX_DIGITS:
        raise NoReply("a number of more than 40 digits")
    return int(digits)


_DECODER = json.JSONDecoder(object_pairs_hook=_object, parse_constant=_constant, parse_int=_whole)
