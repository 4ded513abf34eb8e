"""sha256 of what was read: of a file, of a stream, of a series independent of file names."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import BinaryIO

CHUNK_BYTES = 1024 * 1024


def sha256_of(source: str | Path | BinaryIO) -> str:
    """Hex sha256 of a file, or of the rest of a binary stream.

    Raises:
        OSError: the file cannot be read.
    """
    if isinstance(source, str | Path):
        with Path(source).open("rb") as file:
            return sha256_of(file)
    digest = hashlib.sha256()
    while block := source.read(CHUNK_BYTES):
        digest.update(block)
    return digest.hexdigest()


def sha256_of_parts(hashes: Iterable[str]) -> str:
    """One hash of many files: sha256 over their sorted hex hashes. File names and order do not matter."""
    joined = "\n".join(sorted(hashes))
    return hashlib.sha256(joined.encode("ascii")).hexdigest()
