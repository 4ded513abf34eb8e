"""Splits by patient: a person's scans are always together, and equal seeds give equal splits.

A split that a data set gives is kept. Where none is given, a hash of the patient's key decides: adding or
removing other patients never moves anybody.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Mapping

from hilum.cohort.records import ScanRecord
from hilum.errors import ReportError, UsageError

NAMES = ("train", "val", "test")
DEFAULT_SHARES = {"train": 0.8, "val": 0.1, "test": 0.1}


def parse_shares(told: str) -> dict[str, float]:
    """``train=0.8,val=0.1,test=0.1`` -> shares that sum to 1.

    Raises:
        UsageError: `OPTION_UNKNOWN`.
    """
    shares: dict[str, float] = {}
    try:
        for part in told.split(","):
            name, _, value = part.partition("=")
            shares[name.strip()] = float(value)
    except ValueError as error:
        raise _bad(told) from error
    positive = all(v > 0 for v in shares.values())
    if not set(shares) <= set(NAMES) or not positive or abs(sum(shares.values()) - 1.0) > 1e-6:
        raise _bad(told)
    return shares


def split_of(patient: str, shares: Mapping[str, float], seed: int = 0) -> str:
    """The split of a patient: a uniform number from the key's hash, cut at the shares in their order.

    Args:
        patient: key with name space. shares: sum to 1. seed: another seed, another split.
    """
    digest = hashlib.sha256(f"hilum split\0{seed}\0{patient}".encode()).digest()
    at = int.from_bytes(digest[:8], "big") / 2**64
    edge = 0.0
    for name, share in shares.items():
        edge += share
        if at < edge:
            return name
    return list(shares)[-1]


def assign(
    records: Iterable[ScanRecord], shares: Mapping[str, float] | None = None, seed: int = 0
) -> dict[str, str]:
    """Split of every record, by key.

    Args:
        records: of one cohort. shares: for patients without a given split; None leaves them without ("").
        seed: of the hash.

    Raises:
        ReportError: a patient stands in two given splits (`PATIENT_LEAK`).
    """
    held = list(records)
    given: dict[str, set[str]] = defaultdict(set)
    for record in held:
        if record.split:
            given[record.patient].add(record.split)
    torn = {patient: names for patient, names in given.items() if len(names) > 1}
    if torn:
        patient, names = sorted(torn.items())[0]
        raise ReportError(
            "PATIENT_LEAK", "a patient is in one split only", expected="one split",
            got=f"{patient} in {' and '.join(sorted(names))}; {len(torn)} such patients",
            hint="Correct the data set's split, or leave it out (--split ignore).",
        )  # fmt: skip
    chosen = {}
    for record in held:
        kept = given.get(record.patient)
        if kept:
            chosen[record.key] = next(iter(kept))
        else:
            chosen[record.key] = "" if shares is None else split_of(record.patient, shares, seed)
    return chosen


def _bad(told: str) -> UsageError:
    return UsageError(
        "OPTION_UNKNOWN", "shares of train, val and test are positive and sum to 1",
        expected="train=0.8,val=0.1,test=0.1", got=told,
    )  # fmt: skip
