"""Stored pixels of CT images: bytes -> numbers -> HU, with what was not scanned kept apart.

Uncompressed data is taken straight from the bytes; compressed data goes through pydicom's decoders, and a
frame must end with its own end marker before any decoder sees it, since decoders fill what is missing.

Supported transfer syntaxes: see `SUPPORTED`. Sources: DICOM PS3.5 8 (pixel encoding), PS3.3 C.7.5.1.1.2
(padding), C.11.1 (modality LUT: HU = stored * slope + intercept).
"""

from __future__ import annotations

import struct
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float32, Integer
from pydicom.encaps import encapsulate, generate_frames
from pydicom.pixels import get_decoder
from pydicom.uid import UID

from hilum.errors import PixelError
from hilum.io.decode_child import CHILD
from hilum.io.dicom_guard import PIXEL_DATA, Guarded, plain_uid
from hilum.io.dicom_header import ImageHeader, PixelForm

SUPPORTED: dict[str, tuple[str, str, bool]] = {
    "1.2.840.10008.1.2": ("Implicit VR Little Endian", "", True),
    "1.2.840.10008.1.2.1": ("Explicit VR Little Endian", "", True),
    "1.2.840.10008.1.2.2": ("Explicit VR Big Endian", "", True),
    "1.2.840.10008.1.2.1.99": ("Deflated Explicit VR Little Endian", "", True),
    "1.2.840.10008.1.2.5": ("RLE Lossless", "pydicom", True),
    "1.2.840.10008.1.2.4.50": ("JPEG Baseline (8 bit)", "pillow", False),
    "1.2.840.10008.1.2.4.51": ("JPEG Extended (12 bit)", "pillow", False),
    "1.2.840.10008.1.2.4.57": ("JPEG Lossless", "python-gdcm", True),
    "1.2.840.10008.1.2.4.70": ("JPEG Lossless SV1", "python-gdcm", True),
    "1.2.840.10008.1.2.4.80": ("JPEG-LS Lossless", "pyjpegls", True),
    "1.2.840.10008.1.2.4.81": ("JPEG-LS Near-Lossless", "pyjpegls", False),
    "1.2.840.10008.1.2.4.90": ("JPEG 2000 Lossless", "pylibjpeg-openjpeg", True),
    "1.2.840.10008.1.2.4.91": ("JPEG 2000", "pylibjpeg-openjpeg", False),
    "1.2.840.10008.1.2.4.201": ("HTJ2K Lossless", "pylibjpeg-openjpeg", True),
    "1.2.840.10008.1.2.4.202": ("HTJ2K Lossless RPCL", "pylibjpeg-openjpeg", True),
    "1.2.840.10008.1.2.4.203": ("HTJ2K", "pylibjpeg-openjpeg", False),
}
"""UID -> name, the package whose decoder reads it ("" for none), and whether it is lossless by definition.

One decoder each, none as a fallback: on damaged bytes pylibjpeg-rle panics and GDCM aborts the process, so
GDCM is left to what nothing else decodes and runs in a process of its own (`decode_child`), and RLE is left
to pydicom itself.
"""

JPEG_EXTENDED = "1.2.840.10008.1.2.4.51"
JPEG_FAMILY = ("1.2.840.10008.1.2.4.",)
JPEG_FRAMES = frozenset({*range(0xC0, 0xD0), 0xF7} - {0xC4, 0xC8, 0xCC})
RLE = "1.2.840.10008.1.2.5"
PLUGINS = {"": "", "pydicom": "pydicom", "python-gdcm": "gdcm", "pillow": "pillow", "pyjpegls": "pyjpegls"}
PLUGINS |= {"pylibjpeg-openjpeg": "pylibjpeg"}
J2K_UIDS = tuple(f"1.2.840.10008.1.2.4.{n}" for n in (90, 91, 201, 202, 203))
NOT_SCANNED_HU = -1024.0
TISSUE_HU = (-900.0, 3071.0)
"""A declared padding value inside this range would erase tissue; it is not believed."""


@dataclass(frozen=True)
class DecodedImage:
    """One image after decoding.

    Args:
        hu: [rows, columns] float32. valid: False where nothing was scanned, or None when all was.
        remarks: codes of what was odd (``PADDING``, ``HIGH_BITS``, ``J2K_SIGN_BITS``), with details.
    """

    hu: Float32[np.ndarray, "R C"]
    valid: Bool[np.ndarray, "R C"] | None
    remarks: tuple[tuple[str, str], ...]


def check_form(header: ImageHeader, syntax: str, where: str = "") -> None:
    """Everything about the pixels that must hold before they are touched.

    Raises:
        PixelError: `EXOTIC_SYNTAX`, `CODEC_MISSING`, `MONOCHROME1`, `NOT_CT`, `HIGH_BITS`.
    """
    form = header.pixels
    if syntax not in SUPPORTED:
        raise PixelError(
            "EXOTIC_SYNTAX",
            "the transfer syntax is a supported one",
            expected=", ".join(sorted(name for name, _, _ in SUPPORTED.values())),
            got=plain_uid(syntax).name[:80],
            path=where or None,
            hint="Convert the series to Explicit VR Little Endian.",
        )
    name, package, _ = SUPPORTED[syntax]
    if package and plugin_of(syntax) not in get_decoder(plain_uid(syntax)).available_plugins:
        raise PixelError(
            "CODEC_MISSING",
            f"a decoder for {name} is installed",
            expected=package,
            got="none",
            path=where or None,
            hint=f"pip install {package}",
        )
    if (
        syntax == JPEG_EXTENDED
        and form.stored > 8
        and "pylibjpeg" not in get_decoder(plain_uid(syntax)).available_plugins
    ):
        raise PixelError(
            "CODEC_MISSING",
            "a decoder for 12-bit JPEG is installed",
            expected="pylibjpeg-libjpeg (GPL)",
            got="none",
            path=where or None,
            hint="pip install pylibjpeg-libjpeg",
        )
    if form.photometric == "MONOCHROME1":
        raise PixelError(
            "MONOCHROME1",
            "CT grey values grow with density",
            expected="MONOCHROME2",
            got="MONOCHROME1",
            path=where or None,
        )
    if form.photometric != "MONOCHROME2" or form.samples != 1:
        raise PixelError(
            "NOT_CT",
            "a CT image has one grey value per pixel",
            expected="MONOCHROME2, 1 sample",
            got=f"{form.photometric[:32]}, {form.samples} samples",
            path=where or None,
        )
    fits = form.allocated in (8, 16, 32) and 1 <= form.stored <= form.high_bit + 1 <= form.allocated
    if not fits:
        raise PixelError(
            "HIGH_BITS",
            "stored bits lie inside the allocated ones",
            expected="1 <= stored <= high bit + 1 <= allocated, one of 8, 16, 32",
            got=f"stored {form.stored}, high bit {form.high_bit}, allocated {form.allocated}",
            path=where or None,
        )


@dataclass(frozen=True)
class Stored:
    """Stored values of one image, [rows, columns]; `dirty` when bits outside the stored ones were set."""

    values: Integer[np.ndarray, "R C"]
    dirty: bool


def decode_frames(guarded: Guarded, headers: Sequence[ImageHeader], where: str = "") -> list[Stored]:
    """Stored values of the wanted frames of one file, sign and unused bits resolved.

    Args:
        guarded: the file. headers: the frames of it that are wanted; `check_form` has passed for each.

    Raises:
        PixelError: the data does not hold rows x columns x frames (`PIXELS_SHORT`), or cannot be decoded.
        ContainerError: more data than that (`LENGTH_OVERRUN`).
    """
    form, frames = headers[0].pixels, headers[0].frames
    if not guarded.encapsulated():
        planes = _native(guarded, form, frames, where)
        return [_meaningful_bits(planes[h.frame], form) for h in headers]
    if guarded.syntax in (
        "1.2.840.10008.1.2",
        "1.2.840.10008.1.2.1",
        "1.2.840.10008.1.2.2",
        "1.2.840.10008.1.2.1.99",
    ):
        raise PixelError(
            "EXOTIC_SYNTAX",
            "compressed data comes with a compressed transfer syntax",
            expected="data of defined length",
            got=guarded.syntax.name,
            path=where or None,
        )
    parts = _split(guarded, frames, where)
    return [_decompress(parts[h.frame], guarded.syntax, h.pixels, where) for h in headers]


def to_hu(image: Stored, form: PixelForm, slope: float, intercept: float) -> DecodedImage:
    """Stored values -> HU in float32; declared padding becomes invalid, -1024 HU.

    Padding is found among stored values, before the rescale (row D06).
    """
    stored = image.values
    hu = stored.astype(np.float32) * np.float32(slope) + np.float32(intercept)
    remarks = (
        [("HIGH_BITS", f"bits set outside the {form.stored} stored ones, dropped")] if image.dirty else []
    )
    outside = _declared_padding(stored, form, slope, intercept, remarks)
    if outside is None or not outside.any():
        return DecodedImage(hu, None, tuple(remarks))
    hu[outside] = NOT_SCANNED_HU
    return DecodedImage(hu, ~outside, tuple(remarks))


def j2k_mismatch(guarded: Guarded, header: ImageHeader) -> str:
    """How the JPEG 2000 codestream disagrees with the header on sign or bits (row D07), or ""."""
    if guarded.syntax not in J2K_UIDS or not guarded.encapsulated():
        return ""
    value = guarded.value(PIXEL_DATA) or b""
    at = value.find(b"\xff\x4f\xff\x51")
    if at < 0 or at + 43 > len(value):
        return ""
    depth = value[at + 42]
    signed, bits = bool(depth & 0x80), (depth & 0x7F) + 1
    if (signed, bits) == (header.pixels.signed, header.pixels.stored):
        return ""
    kinds = {True: "signed", False: "unsigned"}
    form = header.pixels
    return f"codestream {bits} bit {kinds[signed]}, header {form.stored} bit {kinds[form.signed]}"


def _native(guarded: Guarded, form: PixelForm, frames: int, where: str) -> np.ndarray:
    """Uncompressed pixels as [frames, rows, columns]; the length must be exactly right, one pad byte
    apart."""
    raw = guarded.value(PIXEL_DATA) or b""
    wanted = form.rows * form.columns * frames * form.allocated // 8
    if len(raw) < wanted:
        raise short(f"{wanted} bytes", f"{len(raw)} bytes", where)
    if len(raw) > wanted + wanted % 2:
        raise PixelError(
            "LENGTH_OVERRUN",
            "pixel data is rows x columns x frames x bytes long",
            expected=f"{wanted} bytes",
            got=f"{len(raw)} bytes",
            path=where or None,
        )
    kind = ("<" if guarded.little else ">") + ("i" if form.signed else "u") + str(form.allocated // 8)
    return np.frombuffer(raw, dtype=kind, count=wanted // (form.allocated // 8)).reshape(
        frames, form.rows, form.columns
    )


def _meaningful_bits(values: np.ndarray, form: PixelForm) -> Stored:
    """Native-endian values of the stored bits only: overlay bits above or below them are dropped (row
    D11)."""
    native = values.astype(values.dtype.newbyteorder("="))
    if form.stored == form.allocated:
        return Stored(native, False)
    below = form.high_bit + 1 - form.stored
    above = form.allocated - 1 - form.high_bit
    # Left to the top, then right again: an arithmetic shift on signed types restores the sign.
    clean = (native << above) >> (above + below)
    return Stored(clean, not np.array_equal(clean << below, native))


def _split(guarded: Guarded, frames: int, where: str) -> list[bytes]:
    """Compressed frames of a file, each whole."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            parts = list(generate_frames(guarded.value(PIXEL_DATA) or b"", number_of_frames=frames))
    except Exception as error:
        raise short(f"{frames} compressed frames", f"{type(error).__name__}: {error}"[:160], where) from error
    if len(parts) != frames:
        raise short(f"{frames} compressed frames", f"{len(parts)}", where)
    if guarded.syntax.startswith(JPEG_FAMILY):
        for part in parts:
            if not part.rstrip(b"\0").endswith(b"\xff\xd9"):
                raise short("a frame that ends with its end marker FFD9", "a frame that stops early", where)
    elif guarded.syntax == RLE:
        for part in parts:
            _check_rle(part, where)
    return parts


def _check_rle(part: bytes, where: str) -> None:
    """The RLE header names segments that lie inside the frame (PS3.5 G.5)."""
    count = struct.unpack_from("<I", part)[0] if len(part) >= 64 else 0
    offsets = struct.unpack_from("<15I", part, 4)[:count] if 1 <= count <= 15 else ()
    if not offsets or list(offsets) != sorted(set(offsets)) or offsets[0] != 64 or offsets[-1] >= len(part):
        raise short("1 to 15 RLE segments inside the frame", f"{count} segments in {len(part)} bytes", where)


def _decompress(part: bytes, syntax: UID, form: PixelForm, where: str) -> Stored:
    _check_codestream(part, syntax, form, where)
    try:
        array = _decode(part, syntax, form)
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # a Rust decoder panics with an exception of its own, no Exception
        text = " ".join(str(error).split())[:200]
        raise short(
            f"{SUPPORTED[syntax][0]} that decodes", f"{type(error).__name__}: {text}", where
        ) from error
    if array.shape != (form.rows, form.columns):
        raise short(f"{form.rows} x {form.columns} pixels", f"{array.shape}", where)
    return (
        _meaningful_bits(array, form) if array.dtype.itemsize * 8 == form.allocated else Stored(array, False)
    )


def _decode(part: bytes, syntax: UID, form: PixelForm) -> np.ndarray:
    """One frame through its decoder; GDCM's aborts reach only its own process."""
    plugin = plugin_of(syntax)
    if plugin == "gdcm":
        return CHILD.decode(part, str(syntax), plugin, _options(form))
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a decoder that has to guess has not decoded
        array, _ = get_decoder(syntax).as_array(
            encapsulate([part]), raw=True, index=0, decoding_plugin=plugin, **_options(form)
        )
    return array


def _options(form: PixelForm) -> dict[str, Any]:
    """One frame of this layout, in pydicom's words."""
    return {
        "rows": form.rows,
        "columns": form.columns,
        "samples_per_pixel": 1,
        "photometric_interpretation": "MONOCHROME2",
        "bits_allocated": form.allocated,
        "bits_stored": form.stored,
        "pixel_representation": int(form.signed),
        "number_of_frames": 1,
        "pixel_keyword": "PixelData",
    }


def plugin_of(syntax: str) -> str:
    """The pydicom plugin that decodes a supported syntax; 12-bit JPEG only has its GPL one."""
    plugin = PLUGINS[SUPPORTED[syntax][1]]
    if syntax == JPEG_EXTENDED and "pylibjpeg" in get_decoder(plain_uid(syntax)).available_plugins:
        return "pylibjpeg"
    return plugin


def _check_codestream(part: bytes, syntax: UID, form: PixelForm, where: str) -> None:
    """The codestream's own size is that of the header: a decoder allocates what the codestream says."""
    if not syntax.startswith(JPEG_FAMILY):
        return
    size = _j2k_size(part) if syntax in J2K_UIDS else _jpeg_size(part)
    if size != (form.rows, form.columns):
        got = "no frame header" if size is None else f"{size[0]} x {size[1]}"
        raise short(f"a codestream of {form.rows} x {form.columns} pixels", got, where)


def _j2k_size(part: bytes) -> tuple[int, int] | None:
    """Rows and columns of a JPEG 2000 codestream (SIZ marker); None when absent or cut into absurd tiles."""
    at = part.find(b"\xff\x4f\xff\x51")
    if at < 0 or at + 40 > len(part):
        return None
    right, bottom, left, top, tile_width, tile_height, tile_left, tile_top = struct.unpack_from(
        ">8I", part, at + 8
    )
    if not tile_width or not tile_height or left >= right or top >= bottom:
        return None
    across = (right - tile_left + tile_width - 1) // tile_width
    down = (bottom - tile_top + tile_height - 1) // tile_height
    return (bottom - top, right - left) if 0 < across * down <= 4096 else None


def _jpeg_size(part: bytes) -> tuple[int, int] | None:
    """Rows and columns of a JPEG or JPEG-LS frame (SOF marker); None when there is none before the scan."""
    at = 2
    while at + 9 <= len(part) and part[at] == 0xFF:
        marker = part[at + 1]
        if marker == 0xFF:
            at += 1
            continue
        length = int.from_bytes(part[at + 2 : at + 4], "big")
        if marker in JPEG_FRAMES:
            rows, columns = struct.unpack_from(">HH", part, at + 5)
            return rows, columns
        if marker == 0xDA:
            return None
        at += 2 + length
    return None


def _declared_padding(
    stored: np.ndarray, form: PixelForm, slope: float, intercept: float, remarks: list[tuple[str, str]]
) -> np.ndarray | None:
    """Where a declared padding value or range stands; None when there is none or it would erase tissue."""
    if form.padding is None:
        return None
    limit = form.padding if form.padding_limit is None else form.padding_limit
    low, high = sorted((form.padding, limit))
    if low < high and high * slope + intercept > TISSUE_HU[0]:
        low = high = form.padding
    value = form.padding * slope + intercept
    if TISSUE_HU[0] < value <= TISSUE_HU[1]:
        remarks.append(("PADDING", f"declared {value:g} HU lies in tissue and was not believed"))
        return None
    outside = (stored >= low) & (stored <= high)
    if outside.any():
        remarks.append(("PADDING", f"declared, {low * slope + intercept:g} HU"))
    return outside


def short(expected: str, got: str, where: str = "") -> PixelError:
    """The refusal of pixel data that is not all there (row D09)."""
    return PixelError(
        "PIXELS_SHORT",
        "pixel data is complete",
        expected=expected,
        got=got,
        path=where or None,
        hint="The file may be cut short; fetch it again.",
    )
