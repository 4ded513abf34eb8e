"""Is this scan of a cohort to be trusted? The checks of `io/`, once per scan, with what the manifest keeps.

Runs in worker processes: nothing here imports torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hilum.cohort.fingerprint import fingerprint
from hilum.cohort.records import ScanRecord
from hilum.errors import ContainerError, HilumError, RunError
from hilum.io.confine import confined
from hilum.io.limits import Limits, Mode
from hilum.io.open import open_volume
from hilum.volume import CTVolume


@dataclass(frozen=True)
class Judgement:
    """What reading a scan gave.

    Args:
        sha256: of the file, or of the sorted hashes of a series' files. kind: ``nifti``, ``dicom``, ...
        shape, spacing_mm, affine_ras: the grid on axes nearest RAS+ (affine: first three rows).
        axcodes: axes as stored.
        study_uid, series_uid, frame_uid, sop_uids: DICOM only.
        findings: codes of what was found, with level: ``HU_RANGE:note``.
        hu_p01, hu_p50, hu_p99: percentiles of the values in HU.
        print_top, print_base: see `fingerprint`; empty where the volume has none.
    """

    sha256: str
    kind: str
    shape: tuple[int, int, int]
    spacing_mm: tuple[float, float, float]
    affine_ras: tuple[float, ...]
    axcodes: str
    study_uid: str = ""
    series_uid: str = ""
    frame_uid: str = ""
    sop_uids: tuple[str, ...] = ()
    findings: tuple[str, ...] = ()
    hu_p01: float = 0.0
    hu_p50: float = 0.0
    hu_p99: float = 0.0
    print_top: bytes = b""
    print_base: bytes = b""


@dataclass(frozen=True)
class Refusal:
    """One scan that was refused.

    Args:
        key, path: of its record. code: of the catalogue. reason: rule, expected and got, without the path.
        hint: what the user can do.
    """

    key: str
    path: str
    code: str
    reason: str
    hint: str = ""

    @classmethod
    def of(cls, record: ScanRecord, error: HilumError) -> Refusal:
        """From the error that reading raised."""
        parts = [error.rule]
        parts += [f"expected {error.expected}"] if error.expected is not None else []
        parts += [f"got {error.got}"] if error.got is not None else []
        return cls(record.key, record.path, error.code, "; ".join(parts), error.hint or "")

    def as_dict(self) -> dict[str, str]:
        """For `--json`."""
        return {
            "key": self.key,
            "path": self.path,
            "code": self.code,
            "reason": self.reason,
            "hint": self.hint,
        }


def open_record(
    record: ScanRecord, root: str | Path, *, mode: Mode = "repair", limits: Limits | None = None
) -> CTVolume:
    """The scan of a record as HU on RAS+ axes: the one way from a record to a volume.

    Args:
        record: of a source or a manifest. root: of the data set. mode, limits: see `open_volume`.

    Raises:
        ReportError: `PATH_ESCAPE`. InputRefused: rows A to D. RunError: `MEMORY_PLAN`.
    """
    path = confined(root, record.path)
    return open_volume(path, mode=mode, answers=record.answers, limits=limits or Limits())


def judge(
    record: ScanRecord, root: str | Path, *, mode: Mode = "repair", limits: Limits | None = None
) -> Judgement | Refusal:
    """Reads the scan and keeps what the manifest needs. Never raises for a bad scan.

    Args:
        record, root, mode, limits: as for `open_record`.
    """
    if record.broken:
        error = ContainerError(
            "SCAN_KNOWN_BROKEN", "a scan known to be broken is left out", got=record.broken
        )
        return Refusal.of(record, error)
    try:
        return of_volume(open_record(record, root, mode=mode, limits=limits))
    except HilumError as error:
        return Refusal.of(record, error)
    except Exception as error:
        internal = RunError("INTERNAL", "an error has a code", got=f"{type(error).__name__}: {error}"[:300])
        return Refusal.of(record, internal)


def of_volume(volume: CTVolume) -> Judgement:
    """What the manifest keeps of a volume."""
    known, grid = volume.provenance, volume.geometry
    low, middle, high = np.percentile(volume.hu[::4, ::4, ::2], (1, 50, 99))
    top, base = fingerprint(volume)
    return Judgement(
        sha256=known.sha256,
        kind=known.kind,
        shape=grid.shape,
        spacing_mm=grid.spacing_mm,
        affine_ras=tuple(float(v) for v in grid.affine_ras[:3].ravel()),
        axcodes=volume.source.axcodes,
        study_uid=known.study_uid or "",
        series_uid=known.series_uid or "",
        frame_uid=grid.frame_uid or "",
        sop_uids=tuple(s.sop_uid for s in known.slices),
        findings=tuple(dict.fromkeys(f"{f.code}:{f.level.name.lower()}" for f in known.findings)),
        hu_p01=float(low),
        hu_p50=float(middle),
        hu_p99=float(high),
        print_top=top,
        print_base=base,
    )


def judgement_to_json(judged: Judgement) -> dict[str, Any]:
    """JSON-ready; bytes as hex."""
    told = dict(vars(judged))
    return told | {name: told[name].hex() for name in ("print_top", "print_base")}


def judgement_from_json(told: dict[str, Any]) -> Judgement:
    """The inverse of `judgement_to_json`.

    Raises:
        KeyError, TypeError, ValueError: it is not that.
    """
    held = dict(told)
    for name in ("print_top", "print_base"):
        held[name] = bytes.fromhex(held[name])
    for name in ("shape", "spacing_mm", "affine_ras", "sop_uids", "findings"):
        held[name] = tuple(held[name])
    return Judgement(**held)
