"""What a file is, by its first bytes. Names are never believed."""

from __future__ import annotations

from typing import Literal

from hilum.io.streams import GZIP_MAGIC, ByteStream, Source

Kind = Literal["nifti", "nrrd", "zip", "dicom", ""]

HEAD_BYTES = 4096
SIGNS = (
    (b"version https://git-lfs", "a Git LFS pointer, not the file itself"),
    (b"%PDF", "a PDF"),
    (b"\x89PNG", "a PNG picture"),
    (b"\xff\xd8\xff", "a JPEG picture"),
    (b"GIF8", "a GIF picture"),
    (b"BM", "a BMP picture"),
    (b"II*\0", "a TIFF picture"),
    (b"MM\0*", "a TIFF picture"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive; only zip is read"),
    (b"Rar!", "a RAR archive; only zip is read"),
    (b"BZh", "a bzip2 file"),
    (b"\xfd7zXZ\0", "an xz file"),
    (b"\x28\xb5\x2f\xfd", "a zstd file"),
    (b"\x89HDF", "an HDF5 file"),
    (b"\x93NUMPY", "a bare NumPy array without a place; NPZ with an affine is read"),
    (b"\0\0\0\1Bud1", "a .DS_Store file"),
    (b"\xd0\xcf\x11\xe0", "an OLE file (Thumbs.db or an old Office document)"),
    (b"\x7fELF", "a program"),
    (b"MZ", "a program"),
    (b"ObjectType", "a MetaImage header, which is not read"),
    (b"NDims", "a MetaImage header, which is not read"),
)


def kind_of(source: Source) -> tuple[Kind, bytes]:
    """The container and the first bytes, inflated when they are gzip.

    Returns:
        ``nifti`` (also Analyze, which its reader refuses), ``nrrd``, ``zip``, ``dicom`` (with its preamble)
        or ``""`` when it is none of them for certain.

    Raises:
        ContainerError: `NOT_REGULAR`, `NOT_FOUND`; `GZ_CRC` when the start of a gzip is damaged.
    """
    head = source.head(HEAD_BYTES)
    if head.startswith(GZIP_MAGIC):
        with source.open() as file:
            head = ByteStream(file, source.shown).read(HEAD_BYTES)
    # A DICOM preamble may hold anything, so its magic comes first.
    if head[128:132] == b"DICM":
        return "dicom", head
    if head.startswith(b"NRRD000"):
        return "nrrd", head
    if head.startswith((b"PK\x03\x04", b"PK\x05\x06", b"PK\x07\x08")):
        return "zip", head
    size = {int.from_bytes(head[:4], "little"), int.from_bytes(head[:4], "big")}
    if len(head) >= 4 and size & {348, 540}:
        return "nifti", head
    return "", head


def looks_like(head: bytes) -> str:
    """In words, what a file that is no image looks like."""
    if not head:
        return "an empty file"
    if not head.strip(b"\0"):
        return "a file of zeros"
    for sign, words in SIGNS:
        if head.startswith(sign):
            return words
    if head[257:262] == b"ustar":
        return "a tar archive; only zip is read"
    start = head[:512].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if start.startswith((b"<!doctype html", b"<html", b"<head", b"<body")):
        return "an HTML page, perhaps an error page in place of a download"
    if start.startswith((b"<?xml", b"<")):
        return "an XML file"
    if start.startswith((b"{", b"[")):
        return "a JSON file"
    if all(32 <= byte < 127 or byte in b"\t\r\n" for byte in head[:512]):
        return "a text file"
    return "an unknown kind of file"
