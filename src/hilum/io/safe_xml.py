"""XML without surprises: no document types, no entities, bounded size and depth.

The parser of the standard library (expat) expands entities that a document declares; refusing the declaration
refuses every such attack (a billion laughs, quadratic blow-up, external entities) at its first line.
"""

from __future__ import annotations

import xml.parsers.expat
from dataclasses import dataclass, field
from typing import NoReturn

from hilum.errors import ContainerError

MAX_BYTES, MAX_DEPTH, MAX_ELEMENTS = 512 * 1024 * 1024, 64, 20_000_000


@dataclass
class Element:
    """One element.

    Args:
        name: without its namespace. attributes: as written, names without prefix. text: of its own, joined.
        children: in order.
    """

    name: str
    attributes: dict[str, str] = field(default_factory=dict)
    text: str = ""
    children: list[Element] = field(default_factory=list)

    def all(self, name: str) -> list[Element]:
        """Children of that name, in order."""
        return [child for child in self.children if child.name == name]

    def find(self, path: str) -> Element | None:
        """The first descendant along ``a/b/c``, or None."""
        here: Element | None = self
        for name in path.split("/"):
            here = next((c for c in here.children if c.name == name), None) if here else None
        return here

    def word(self, path: str) -> str:
        """The stripped text of the first descendant along ``a/b/c``, or ""."""
        found = self.find(path)
        return found.text.strip() if found else ""


def parse_xml(content: bytes, where: str) -> Element:
    """The root of a document.

    Args:
        content: its bytes. where: named in errors.

    Raises:
        ContainerError: `XML_DANGEROUS` (a document type, too large or deep), `NOT_AN_IMAGE` when it is no
        XML.
    """
    if len(content) > MAX_BYTES:
        raise _dangerous(f"{len(content)} bytes", f"<= {MAX_BYTES} bytes", where)
    builder = _Builder(where)
    parser = xml.parsers.expat.ParserCreate()
    parser.buffer_text = True
    parser.SetParamEntityParsing(xml.parsers.expat.XML_PARAM_ENTITY_PARSING_NEVER)
    parser.StartDoctypeDeclHandler = builder.doctype
    parser.EntityDeclHandler = builder.doctype
    parser.StartElementHandler = builder.start
    parser.EndElementHandler = builder.end
    parser.CharacterDataHandler = builder.characters
    try:
        parser.Parse(content, True)
    except xml.parsers.expat.ExpatError as error:
        raise ContainerError(
            "XML_DANGEROUS", "an XML file is well formed", got=str(error), path=where
        ) from error
    return builder.root.children[0]


class _Builder:
    def __init__(self, where: str) -> None:
        self.where, self.root, self.count = where, Element(""), 0
        self.open = [self.root]
        self.texts: list[list[str]] = [[]]

    def doctype(self, *_: object) -> NoReturn:
        raise _dangerous("a document type or entity", "elements and text only", self.where)

    def start(self, name: str, attributes: dict[str, str]) -> None:
        self.count += 1
        if len(self.open) > MAX_DEPTH or self.count > MAX_ELEMENTS:
            raise _dangerous(
                f"depth {len(self.open)}, {self.count} elements", f"depth <= {MAX_DEPTH}", self.where
            )
        plain = {key.rpartition(":")[2]: value for key, value in attributes.items()}
        element = Element(name.rpartition(":")[2], plain)
        self.open[-1].children.append(element)
        self.open.append(element)
        self.texts.append([])

    def end(self, _: str) -> None:
        self.open.pop().text = "".join(self.texts.pop())

    def characters(self, text: str) -> None:
        self.texts[-1].append(text)


def _dangerous(got: str, expected: str, where: str) -> ContainerError:
    return ContainerError(
        "XML_DANGEROUS", "an XML file is plain and within its budget", expected=expected, got=got, path=where
    )
