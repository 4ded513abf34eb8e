"""The error tree. Every error that leaves Hilum is one of these.

HilumError                     code, rule, expected, got, path, hint
├── UsageError                 the call is wrong                               exit 2
│   └── OutputError            the output folder cannot be used as asked       exit 2
├── InputRefused               the input cannot be trusted                     exit 3
│   ├── ContainerError         bytes, archives, files           (rows A)
│   ├── HeaderError            NIfTI, NRRD, NPZ header, values  (rows B)
│   ├── SeriesError            DICOM series geometry            (rows C)
│   ├── PixelError             DICOM pixels                     (rows D)
│   ├── ReportError            reports, labels, manifests       (rows E)
│   │   └── LeakError          two cohorts share a scan; .rows  (row E03)
│   └── WeightsError           weights and configuration        (rows F)
└── RunError                   something failed while running   (rows G)       exit 5
    └── RunStopped             a run was asked to stop and can go on           exit 4

A message is built from its parts and always reads: rule, expected, got, file, what to do next.
Codes are stable; prose is not. The table of codes is `hilum.catalogue`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


class HilumError(Exception):
    """Base of every error of Hilum.

    Args:
        code: stable code of the catalogue, e.g. ``GZ_TRUNCATED``.
        rule: what must hold, in words.
        expected: what was expected (with its unit).
        got: what was found (with its unit).
        path: the file or folder concerned, if any.
        hint: what the user can do next.
    """

    exit_code = 5

    def __init__(
        self,
        code: str,
        rule: str,
        *,
        expected: object = None,
        got: object = None,
        path: str | Path | None = None,
        hint: str | None = None,
    ) -> None:
        self.code, self.rule, self.hint = code, rule, hint
        self.expected = None if expected is None else str(expected)
        self.got = None if got is None else str(got)
        self.path = None if path is None else str(path)
        super().__init__(self.message)

    def __reduce__(self) -> tuple[Any, ...]:
        """Errors cross from a worker process to its parent whole."""
        return _rebuild, (type(self), self.as_dict())

    @property
    def message(self) -> str:
        """One line: code, rule, expected, got, file, next step."""
        parts = [f"[{self.code}] {self.rule}"]
        if self.expected is not None:
            parts.append(f"expected {self.expected}")
        if self.got is not None:
            parts.append(f"got {self.got}")
        text = "; ".join(parts)
        if self.path is not None:
            text += f" (file: {self.path})"
        return f"{text}. {self.hint}" if self.hint else f"{text}."

    def as_dict(self) -> dict[str, str | None]:
        """The parts, for `--json`."""
        return {
            "code": self.code,
            "rule": self.rule,
            "expected": self.expected,
            "got": self.got,
            "path": self.path,
            "hint": self.hint,
        }


def _rebuild(kind: type[HilumError], parts: dict[str, Any]) -> HilumError:
    return kind(**parts)


class UsageError(HilumError):
    """The call is wrong: an unknown option, recipe key or value."""

    exit_code = 2


class OutputError(UsageError):
    """The output folder exists, is locked, or cannot be written."""


class InputRefused(HilumError):
    """The input cannot be trusted; nothing was written."""

    exit_code = 3


class ContainerError(InputRefused):
    """Bytes and containers (catalogue rows A)."""


class HeaderError(InputRefused):
    """Image header and values (catalogue rows B)."""


class SeriesError(InputRefused):
    """DICOM series geometry (catalogue rows C)."""


class PixelError(InputRefused):
    """DICOM pixels (catalogue rows D)."""


class ReportError(InputRefused):
    """Reports, labels and manifests (catalogue rows E)."""


class LeakError(ReportError):
    """Two cohorts that must be apart share a patient or a scan (row E03).

    Args:
        code, rule: see `HilumError`; so are the other parts.
        rows: one dict per leak, see `hilum.cohort.audit.Leak.as_dict`; they do not cross to another process.
    """

    def __init__(self, code: str, rule: str, *, rows: Sequence[Mapping[str, Any]] = (), **parts: Any) -> None:
        super().__init__(code, rule, **parts)
        self.rows = tuple(rows)


class WeightsError(InputRefused):
    """Weights and configuration (catalogue rows F)."""


class RunError(HilumError):
    """Something failed while running (catalogue rows G)."""


class RunStopped(RunError):
    """A run was asked to stop, saved what it had, and can go on."""

    exit_code = 4
