"""A small part of YAML: mappings, lists and text. No anchors, tags, merges, second documents or keys twice.

Every scalar is text: whether ``no`` is a word or a truth value is for the schema behind this to say, not for
a dialect of YAML. The events come from ruamel.yaml; nothing here makes an object of a name in the file.
"""

from __future__ import annotations

from typing import Any

MAX_BYTES = 1 << 20
MAX_DEPTH = 8
MAX_NODES = 50_000


class NotPlain(Exception):
    """What is not plain about a text; the words are fit to show, and hold at most a key of it."""


def plain_yaml(content: bytes) -> Any:
    """Nested dict, list and str of a YAML text.

    Raises:
        NotPlain: it is too big or too deep, not UTF-8, not YAML, or more than the part that is read.
    """
    if len(content) > MAX_BYTES:
        raise NotPlain(f"{len(content)} bytes, more than {MAX_BYTES}")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise NotPlain(f"byte {error.start} is not UTF-8") from None
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    # An error of the library can hold lines of the file: its place is enough. Far too deep a text ends its
    # recursion before our own count of depth does.
    try:
        return _Builder().build(YAML(typ="safe", pure=True).parse(text))
    except YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f"line {mark.line + 1}" if mark is not None else "its signs"
        raise NotPlain(f"not YAML at {place}") from None
    except RecursionError:
        raise NotPlain("nested too deeply") from None


class _Builder:
    """Puts events together. A mapping waits for a key, then for its value."""

    def __init__(self) -> None:
        self.stack: list[dict[str, Any] | list[Any]] = []
        self.keys: list[str | None] = []
        self.root: list[Any] = []
        self.nodes = 0

    def build(self, events: Any) -> Any:
        for event in events:
            self._take(event, type(event).__name__)
        if len(self.root) != 1:
            raise NotPlain(f"{len(self.root)} documents instead of one")
        return self.root[0]

    def _take(self, event: Any, kind: str) -> None:
        if kind == "AliasEvent" or getattr(event, "anchor", None) is not None:
            raise NotPlain(f"an anchor or alias at line {event.start_mark.line + 1}")
        if getattr(event, "tag", None) is not None:
            raise NotPlain(f"a tag at line {event.start_mark.line + 1}")
        self.nodes += 1
        if self.nodes > MAX_NODES:
            raise NotPlain(f"more than {MAX_NODES} parts")
        if kind == "ScalarEvent":
            self._put(event.value)
        elif kind in ("MappingStartEvent", "SequenceStartEvent"):
            self._open({} if kind == "MappingStartEvent" else [])
        elif kind in ("MappingEndEvent", "SequenceEndEvent"):
            self.stack.pop()
            self.keys.pop()

    def _open(self, node: dict[str, Any] | list[Any]) -> None:
        self._put(node)
        self.stack.append(node)
        self.keys.append(None)
        if len(self.stack) > MAX_DEPTH:
            raise NotPlain(f"nested more than {MAX_DEPTH} deep")

    def _put(self, value: Any) -> None:
        if not self.stack:
            self.root.append(value)
            return
        top = self.stack[-1]
        if isinstance(top, list):
            top.append(value)
        elif self.keys[-1] is None:
            self._key(top, value)
        else:
            top[self.keys[-1]] = value
            self.keys[-1] = None

    def _key(self, top: dict[str, Any], value: Any) -> None:
        if not isinstance(value, str):
            raise NotPlain("a key that is not text")
        if value == "<<":
            raise NotPlain("a merge")
        if value in top:
            raise NotPlain(f"the key {value[:60]!r} twice")
        self.keys[-1] = value
