"""What is said of scans: reports, sentences with a place, labels. A JSON line per scan, beside its features.

The other half of what a space of scans and texts is trained on; the scans' half is `io.feature_cache`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from hilum.errors import ReportError
from hilum.io.atomic import atomic_write

SAMPLES = "samples.jsonl"

Language = Literal["en", "de", ""]
Millimetres = Annotated[float, Field(allow_inf_nan=False)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Report(_Strict):
    """A whole report in one wording; "" for a language that is not known."""

    text: str = Field(min_length=1)
    language: Language = ""


class PlacedText(_Strict):
    """A sentence that has a height in its scan, mm RAS+ along Z, without the numbers that gave it away."""

    text: str = Field(min_length=1)
    z_mm: Millimetres
    language: Language = ""


class JointSample(_Strict):
    """One scan.

    Attributes:
        key: of its features. patient: of the person. split: ``train``, ``val``, ``test`` or "".
        scan: sha256 of the scan that the features are of; "" does not ask.
        labels: finding -> 1 or 0; what is not there is unknown. reports: wordings of the same content.
    """

    key: str = Field(min_length=1)
    patient: str = Field(min_length=1)
    split: str = ""
    scan: str = ""
    labels: dict[str, Literal[0, 1]] = {}
    reports: tuple[Report, ...] = ()
    snippets: tuple[PlacedText, ...] = ()


def write_samples(path: Path, samples: Iterable[JointSample]) -> None:
    """Sorted by key; equal samples are equal bytes.

    Raises:
        OutputError: `OUTPUT_UNWRITABLE`.
    """
    with atomic_write(path) as file:
        for sample in sorted(samples, key=lambda s: s.key):
            file.write(sample.model_dump_json().encode() + b"\n")


def read_samples(path: Path) -> list[JointSample]:
    """All of a file.

    Raises:
        ReportError: `SAMPLES_DAMAGED` for what is no such file, or a scan twice.
    """
    samples: list[JointSample] = []
    try:
        with path.open(encoding="utf-8") as file:
            for line in file:
                samples.append(JointSample.model_validate_json(line))
    except (OSError, UnicodeDecodeError) as error:
        raise ReportError(
            "SAMPLES_DAMAGED", "samples are a file of JSON lines", got=error, path=path
        ) from None
    except ValidationError as error:
        first = error.errors()[0]
        got = f"line {len(samples) + 1}: {'.'.join(map(str, first['loc']))} {first['msg']}"
        raise ReportError("SAMPLES_DAMAGED", "a line is a sample", got=got, path=path) from None
    twice = [key for key, count in Counter(sample.key for sample in samples).items() if count > 1]
    if twice:
        raise ReportError("SAMPLES_DAMAGED", "a scan has one line", got=twice[:5], path=path)
    return samples
