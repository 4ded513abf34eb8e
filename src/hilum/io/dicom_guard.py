"""DICOM bytes judged before pydicom sees them: lengths, nesting and inflated size are bounded by what is
really there.

pydicom reads what exists and says little about what is missing; a file that lies about a length, nests two
thousand sequences or inflates a thousandfold must be refused here. `guard` walks the element headers once
(no recursion, no allocation from claimed lengths) and `read_elements` hands pydicom only the wanted,
verified elements.

Sources: DICOM PS3.5 7 (data elements), A.4 (encapsulation), A.5 (deflate); PS3.10 7.1 (file meta).
"""

from __future__ import annotations

import struct
import warnings
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO

from pydicom.config import IGNORE
from pydicom.dataset import Dataset
from pydicom.filereader import read_dataset
from pydicom.uid import (
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
)

from hilum.errors import ContainerError, InputRefused, PixelError
from hilum.io.limits import Limits
from hilum.io.sniff import looks_like
from hilum.volume import Finding, Level

UNDEFINED = 0xFFFFFFFF
ITEM, ITEM_END, SEQUENCE_END = 0xFFFEE000, 0xFFFEE00D, 0xFFFEE0DD
PIXEL_DATA = 0x7FE00010
PIXEL_TAGS = (0x7FE00010, 0x7FE00008, 0x7FE00009)
TRANSFER_SYNTAX, GROUP_LENGTH = 0x00020010, 0x00020000
LONG_VRS = frozenset(
    {b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV"}
)
FOREIGN_PREAMBLES = {b"MZ": "a Windows program", b"\x7fELF": "a Linux program", b"#!": "a script"}
FOREIGN_PREAMBLES |= {
    b"PK\x03\x04": "a zip archive",
    b"%PDF": "a PDF",
    b"\xcf\xfa\xed\xfe": "a macOS program",
}


@dataclass(frozen=True)
class Guarded:
    """A DICOM file whose structure holds.

    Args:
        syntax: transfer syntax. implicit, little: how the dataset is encoded.
        body: bytes of the dataset, inflated where the syntax says so.
        spans: top-level tag -> first and last+1 byte of the whole element in `body`, in file order.
        values: the same for the value alone (for undefined length: the items and delimiter).
        notes: what was unusual.
    """

    syntax: UID
    implicit: bool
    little: bool
    body: bytes
    spans: dict[int, tuple[int, int]]
    values: dict[int, tuple[int, int]]
    notes: tuple[Finding, ...]

    def value(self, tag: int) -> bytes | None:
        """Raw bytes of a top-level element, or None."""
        span = self.values.get(tag)
        return None if span is None else self.body[span[0] : span[1]]

    def encapsulated(self, tag: int = PIXEL_DATA) -> bool:
        """True when the element has undefined length: compressed pixel data in fragments."""
        start, _ = self.values[tag]
        return self.body[start - 4 : start] == b"\xff\xff\xff\xff"


def guard(content: bytes, limits: Limits | None = None, where: str = "") -> Guarded:
    """Checks the structure of one DICOM file.

    Args:
        content: the whole file. limits: budgets. where: named in errors.

    Raises:
        ContainerError: `NOT_AN_IMAGE`, `DICOM_CUT`, `LENGTH_OVERRUN`, `SQ_DEPTH`, `DEFLATE_BOMB`.
        PixelError: the file ends inside its pixel data (`PIXELS_SHORT`).
    """
    limits = limits or Limits()
    notes: list[Finding] = []
    start = 0
    if content[128:132] == b"DICM":
        start = 132
        notes.extend(_preamble_notes(content[:128], where))
    elif plausible_start(content):
        notes.append(
            Finding(
                "NO_PREAMBLE",
                Level.NOTE,
                "a DICOM file starts with a preamble and DICM",
                expected="DICM at byte 128",
                got="data elements at byte 0",
                where=where,
            )
        )
    else:
        raise not_an_image(content, where)
    syntax, start = _read_meta(content, start, where)
    if syntax == DeflatedExplicitVRLittleEndian:
        body = _inflate(content[start:], limits, where)
    else:
        body = content[start:]
    implicit = syntax == ImplicitVRLittleEndian
    little = syntax != ExplicitVRBigEndian
    spans, values = _Walk(body, implicit, little, limits, where).run()
    return Guarded(syntax, implicit, little, body, spans, values, tuple(notes))


def read_elements(guarded: Guarded, tags: Iterable[int]) -> Dataset:
    """The wanted top-level elements as a pydicom dataset; everything else stays unparsed.

    Raises:
        ContainerError: `DICOM_CUT` when pydicom cannot read what the walk accepted.
    """
    wanted = set(tags) | {0x00080005}
    body = b"".join(guarded.body[a:b] for tag, (a, b) in guarded.spans.items() if tag in wanted)
    try:
        with quiet():
            return read_dataset(BytesIO(body), guarded.implicit, guarded.little)
    except Exception as error:  # pydicom lets seven kinds of exception out of damaged bytes
        raise _cut("", f"pydicom: {type(error).__name__}") from error


def plain_uid(value: str) -> UID:
    """A UID as it stands, without pydicom's remarks on its form."""
    return UID(value, validation_mode=IGNORE)


@contextmanager
def quiet() -> Iterator[None]:
    """pydicom's warnings stay inside: bad values are judged where they are used. Local to this block."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def not_an_image(content: bytes, where: str = "") -> ContainerError:
    """The refusal of bytes that are no DICOM file, named by what they look like."""
    return ContainerError(
        "NOT_AN_IMAGE",
        "a DICOM file is expected",
        expected="DICM at byte 128",
        got=looks_like(content[:512]),
        path=where or None,
    )


def _preamble_notes(preamble: bytes, where: str) -> Iterable[Finding]:
    for magic, name in FOREIGN_PREAMBLES.items():
        if preamble.startswith(magic):
            yield Finding(
                "POLYGLOT",
                Level.NOTE,
                "the preamble is no other file type",
                expected="zeros or TIFF",
                got=name,
                where=where,
            )


def plausible_start(content: bytes) -> bool:
    """True when the first three elements could be group 2 or 8: ascending tags, lengths that fit and
    are even."""
    if len(content) < 24:
        return False
    at, last = 0, 0
    for _ in range(3):
        if at + 8 > len(content):
            return False
        group, element = struct.unpack_from("<HH", content, at)
        tag = group << 16 | element
        explicit = content[at + 4 : at + 6].isalpha() and content[at + 4 : at + 6].isupper()
        if explicit and content[at + 4 : at + 6] in LONG_VRS:
            return last != 0
        length = (
            struct.unpack_from("<H", content, at + 6)[0]
            if explicit
            else struct.unpack_from("<I", content, at + 4)[0]
        )
        if group not in (2, 8) or tag <= last or length % 2 or length > 1024:
            return False
        at, last = at + 8 + length, tag
    return True


def _read_meta(content: bytes, start: int, where: str) -> tuple[UID, int]:
    """Transfer syntax and start of the dataset. File meta is always explicit little endian (PS3.10 7.1)."""
    at, syntax = start, ""
    while content[at : at + 2] == b"\x02\x00":
        if at + 8 > len(content):
            raise _cut(where, "file ends inside the file meta information")
        element = struct.unpack_from("<H", content, at + 2)[0]
        if content[at + 4 : at + 6] in LONG_VRS:
            if at + 12 > len(content):
                raise _cut(where, "file ends inside the file meta information")
            length, value = struct.unpack_from("<I", content, at + 8)[0], at + 12
        else:
            length, value = struct.unpack_from("<H", content, at + 6)[0], at + 8
        if value + length > len(content):
            raise _overrun(where, 0x00020000 | element, length, len(content) - value, len(content))
        if 0x00020000 | element == TRANSFER_SYNTAX:
            syntax = content[value : value + length].rstrip(b"\0 ").decode("ascii", "replace")
        at = value + length
    if syntax:
        return plain_uid(syntax), at
    if at >= len(content):
        raise _cut(where, "file ends after its preamble")
    # No syntax declared: only little endian is tried, and only when the first tags make sense (row A21).
    if not plausible_start(content[at:]):
        raise _cut(where, "no transfer syntax", rule="a DICOM file names its transfer syntax")
    return (ExplicitVRLittleEndian if content[at + 4 : at + 6].isupper() else ImplicitVRLittleEndian), at


def _inflate(packed: bytes, limits: Limits, where: str) -> bytes:
    """Inflates a deflated dataset, never past its budget (PS3.5 A.5)."""
    ratio_cap = max(limits.archive_ratio_floor_bytes, int(limits.max_archive_ratio * len(packed)))
    cap = min(limits.max_dicom_bytes, ratio_cap)
    engine = zlib.decompressobj(-zlib.MAX_WBITS)
    try:
        body = engine.decompress(packed, cap + 1)
    except (zlib.error, MemoryError) as error:
        raise _cut(where, f"deflate: {error}") from error
    if len(body) > cap:
        raise ContainerError(
            "DEFLATE_BOMB",
            "a deflated dataset stays within its budget",
            expected=f"<= {cap} bytes",
            got=f"more, from {len(packed)} bytes",
            path=where or None,
        )
    if not engine.eof:
        raise _cut(where, "the deflated data stops early")
    return body


class _Walk:
    """One pass over element headers with an explicit stack of open sequences and items."""

    def __init__(self, body: bytes, implicit: bool, little: bool, limits: Limits, where: str) -> None:
        self.body, self.where, self.limits = body, where, limits
        self.implicit = implicit
        order = "<" if little else ">"
        self.tag_of, self.u32, self.u16 = (struct.Struct(order + f).unpack_from for f in ("HH", "I", "H"))
        self.at = self.count = 0
        # Each open container: (end or None for "until its delimiter", is it a sequence, implicit inside).
        self.stack: list[tuple[int | None, bool, bool]] = []
        self.spans: dict[int, tuple[int, int]] = {}
        self.values: dict[int, tuple[int, int]] = {}
        self.top: tuple[int, int, int] | None = None

    def run(self) -> tuple[dict[int, tuple[int, int]], dict[int, tuple[int, int]]]:
        """Top-level spans of whole elements and of their values."""
        size = len(self.body)
        while True:
            self._close_ended()
            if self.at >= size and not self.stack:
                return self.spans, self.values
            if not self.stack and size - self.at < 8 and not any(self.body[self.at :]):
                return self.spans, self.values  # a pad byte after a deflated or odd dataset
            self._element()

    def _close_ended(self) -> None:
        while self.stack and self.stack[-1][0] is not None and self.at >= self.stack[-1][0]:
            if self.at > self.stack[-1][0]:
                raise _cut(
                    self.where, "an element runs past the end of its item", "elements end with their item"
                )
            self._pop()

    def _pop(self) -> None:
        self.stack.pop()
        if not self.stack and self.top is not None:
            tag, start, value = self.top
            self.spans[tag], self.values[tag], self.top = (start, self.at), (value, self.at), None

    def _element(self) -> None:
        body, at = self.body, self.at
        self.count += 1
        if self.count > self.limits.max_dicom_elements:
            raise _cut(
                self.where, f"more than {self.limits.max_dicom_elements} elements", "elements fit the budget"
            )
        if at + 8 > len(body):
            raise _cut(self.where, f"file ends {len(body) - at} bytes into an element header")
        group, element = self.tag_of(body, at)
        tag = group << 16 | element
        in_sequence = bool(self.stack) and self.stack[-1][1]
        if group == 0xFFFE:
            self._delimiter(tag, self.u32(body, at + 4)[0], in_sequence)
            return
        if in_sequence:
            raise _cut(self.where, f"tag {tag:08X} between items", "a sequence holds items")
        implicit = self.stack[-1][2] if self.stack else self.implicit
        vr = body[at + 4 : at + 6]
        if implicit or not (vr.isalpha() and vr.isupper()):
            vr, length, value = b"", self.u32(body, at + 4)[0], at + 8
        elif vr in LONG_VRS:
            if at + 12 > len(body):
                raise _cut(self.where, "file ends inside an element header")
            length, value = self.u32(body, at + 8)[0], at + 12
        else:
            length, value = self.u16(body, at + 6)[0], at + 8
        self._value(tag, vr, length, value)

    def _value(self, tag: int, vr: bytes, length: int, value: int) -> None:
        start, top = self.at, not self.stack
        if length != UNDEFINED and value + length > len(self.body):
            raise _overrun(self.where, tag, length, len(self.body) - value, len(self.body))
        implicit = self.stack[-1][2] if self.stack else self.implicit
        nested = vr == b"SQ" or (length == UNDEFINED) or (not vr and self._starts_with_item(value, length))
        if not nested:
            if top:
                self.spans[tag], self.values[tag] = (start, value + length), (value, value + length)
            self.at = value + length
            return
        if top:
            self.top = (tag, start, value)
        if tag in PIXEL_TAGS and length == UNDEFINED:
            self.at = self._fragments(value)
            self.stack.append((self.at, True, implicit))
            return
        # UN of undefined length is a sequence in implicit VR (PS3.5 6.2.2 note 4).
        self._push(None if length == UNDEFINED else value + length, True, implicit or vr == b"UN")
        self.at = value

    def _starts_with_item(self, value: int, length: int) -> bool:
        return length >= 8 and self.tag_of(self.body, value) == (0xFFFE, 0xE000)

    def _push(self, end: int | None, sequence: bool, implicit: bool) -> None:
        self.stack.append((end, sequence, implicit))
        depth = sum(is_sequence for _, is_sequence, _ in self.stack)
        if depth > self.limits.max_sequence_depth:
            raise ContainerError(
                "SQ_DEPTH",
                "sequences nest within the budget",
                expected=f"<= {self.limits.max_sequence_depth} deep",
                got=f"{depth} or more",
                path=self.where or None,
            )

    def _delimiter(self, tag: int, length: int, in_sequence: bool) -> None:
        self.at += 8
        if tag == ITEM and in_sequence:
            end = None if length == UNDEFINED else self.at + length
            if end is not None and end > len(self.body):
                raise _overrun(self.where, tag, length, len(self.body) - self.at, len(self.body))
            self._push(end, False, self.stack[-1][2])
        elif tag == (SEQUENCE_END if in_sequence else ITEM_END) and self.stack and self.stack[-1][0] is None:
            self._pop()
        else:
            raise _cut(self.where, f"delimiter {tag:08X} where none belongs", "items and delimiters pair up")

    def _fragments(self, at: int) -> int:
        """End of encapsulated pixel data (PS3.5 A.4): items of defined length, then the sequence
        delimiter."""
        while True:
            if at + 8 > len(self.body):
                raise _cut(self.where, "file ends inside compressed pixel data")
            group, element = self.tag_of(self.body, at)
            length = self.u32(self.body, at + 4)[0]
            tag, at = group << 16 | element, at + 8
            if tag == SEQUENCE_END:
                return at
            if tag != ITEM or at + length > len(self.body):
                raise _overrun(self.where, tag, length, len(self.body) - at, len(self.body))
            at += length


def _cut(where: str, got: str, rule: str = "a DICOM file is whole") -> ContainerError:
    return ContainerError("DICOM_CUT", rule, expected="every element complete", got=got, path=where or None)


def _overrun(where: str, tag: int, length: int, left: int, size: int) -> InputRefused:
    """A length that reaches past the end: a lie when no file of this kind could hold it, else a cut file."""
    text = f"({tag >> 16:04X},{tag & 0xFFFF:04X}) claims {length} bytes, {left} follow"
    if length > max(2 * size, 4096):
        return ContainerError(
            "LENGTH_OVERRUN",
            "an element fits in its file",
            expected=f"<= {left} bytes",
            got=text,
            path=where or None,
        )
    if tag == PIXEL_DATA:
        return PixelError(
            "PIXELS_SHORT",
            "pixel data is complete",
            expected=f"{length} bytes",
            got=text,
            path=where or None,
            hint="The file may be cut short; fetch it again.",
        )
    return _cut(where, text)
