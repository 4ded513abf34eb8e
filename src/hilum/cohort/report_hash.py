"""Faults of report texts, groups of equal ones, shingles for near duplicates (rows E01, E02, E04, E05)."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Iterable

MOJIBAKE = ("Ã¤", "Ã¶", "Ã¼", "ÃŸ", "Ã„", "Ã–", "Ãœ", "â€", "_x000D_")
UNDECODED = "\ufffd"
CUT_LENGTHS = (255, 256, 511, 512, 1023, 1024, 2047, 2048, 4095, 4096, 8191, 8192, 32766, 32767)
"""Lengths at which fields and cells end; a text of that length that stops inside a sentence was cut."""
LEAST_CHARACTERS = 10
SHINGLE_WORDS = 5
_WORD = re.compile(r"[^\W_]+")


def words_of(text: str) -> list[str]:
    """Words of a text: NFKC, lower case, letters and digits only."""
    return _WORD.findall(unicodedata.normalize("NFKC", text).casefold())


def group_of(text: str) -> str:
    """Equal for texts that differ in case, spaces and punctuation only; "" for a text without words."""
    words = words_of(text)
    return hashlib.sha256(" ".join(words).encode()).hexdigest()[:32] if words else ""


def fault_of(text: str) -> str:
    """``empty``, ``undecodable``, ``mojibake``, ``truncated`` or ""; duplicates: `faults_of`."""
    bare = text.strip()
    if len(bare) < LEAST_CHARACTERS or not words_of(bare):
        return "empty"
    if UNDECODED in bare:
        return "undecodable"
    if any(sign in bare for sign in MOJIBAKE):
        return "mojibake"
    if bare.endswith(("...", "…")) or (len(text) in CUT_LENGTHS and bare[-1] not in ".!?:)]"):
        return "truncated"
    return ""


def faults_of(reports: Iterable[tuple[str, str]]) -> list[str]:
    """The fault of each report; one that equals a report of another study is a ``duplicate``.

    Args:
        reports: study and text of each scan. Several scans of one study share their report by right.
    """
    owner: dict[str, str] = {}
    faults = []
    for study, text in reports:
        fault, group = fault_of(text), group_of(text)
        first = owner.setdefault(group, study)
        faults.append("duplicate" if not fault and first != study else fault)
    return faults


def shingles_of(text: str) -> frozenset[int]:
    """Hashes of every five words in a row."""
    words = words_of(text)
    runs = (" ".join(words[i : i + SHINGLE_WORDS]) for i in range(len(words) - SHINGLE_WORDS + 1))
    return frozenset(
        int.from_bytes(hashlib.blake2b(run.encode(), digest_size=8).digest(), "big") for run in runs
    )
