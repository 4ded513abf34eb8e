"""A cohort as what a space of scans and texts is trained on: its windows in caches, what is said of it beside
them.

A report that points at images of its own DICOM series teaches where its sentences belong: our miner finds the
numbers, the images' positions give millimetres (`text.snippet_places`). Other cohorts bring such sentences in
a file, or have none.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from hilum.cohort.joint_samples import SAMPLES, JointSample, PlacedText, Report, write_samples
from hilum.cohort.judge import Refusal
from hilum.cohort.manifest import Manifest, ScanRow
from hilum.errors import InputRefused, ReportError
from hilum.io.confine import confined
from hilum.io.dicom_place import read_study
from hilum.read.window_cache import WindowCache
from hilum.text.snippet_places import resolve
from hilum.text.snippets import mine

Progress = Callable[[str], None]
"""Called with the key of every scan that is done."""


@dataclass(frozen=True)
class KeptWindows:
    """What a run read, found there already, and could not read.

    Args:
        folders: by thickness of a depth, mm. lost: references to images that could not be placed.
    """

    folders: Mapping[float, Path]
    samples: tuple[JointSample, ...]
    added: int
    refused: tuple[Refusal, ...]
    lost: int


def keep_windows(
    windows: WindowCache, cohort: Manifest, given: Mapping[str, Sequence[PlacedText]] | None = None,
    progress: Progress = lambda key: None,
) -> KeptWindows:  # fmt: skip
    """Every scan of a cohort that the caches do not have yet; samples of all that they have then.

    Args:
        given: placed sentences by key, besides those that reports of DICOM series point at.

    Raises:
        OutputError: `OUTPUT_UNWRITABLE`. WeightsError: a cache is damaged.
    """
    samples, refused, added, lost = list[JointSample](), list[Refusal](), 0, 0
    for row in cohort.rows():
        record = row.record
        try:
            added += windows.put(record.key, row.judged.sha256, lambda row=row: cohort.open(row))  # type: ignore[misc]
            placed, missed = _placed(row, cohort)
        except InputRefused as error:
            refused.append(Refusal.of(record, error))
        else:
            lost += missed
            more = (given or {}).get(record.key, ())
            samples.append(_sample(row, [*placed, *more]))
        progress(record.key)
    folders = {mm: cache.folder for mm, cache in windows.caches.items()}
    for folder in folders.values():
        write_samples(folder / SAMPLES, samples)
    return KeptWindows(folders, tuple(samples), added, tuple(refused), lost)


def read_placed(path: Path) -> dict[str, list[PlacedText]]:
    """JSON lines with `key`, `text`, `z_mm` (RAS+) and perhaps `language` -> by key.

    Raises:
        ReportError: `SAMPLES_DAMAGED`.
    """
    found: dict[str, list[PlacedText]] = {}
    try:
        for line in path.read_text(encoding="utf-8").splitlines():
            told = json.loads(line)
            found.setdefault(str(told.pop("key")), []).append(PlacedText.model_validate(told))
    except (OSError, ValueError, KeyError, AttributeError, TypeError, ValidationError) as error:
        raise ReportError(
            "SAMPLES_DAMAGED", "a line is a placed sentence", expected="key, text, z_mm",
            got=f"{type(error).__name__}, after {sum(map(len, found.values()))} lines", path=path,
        ) from None  # fmt: skip
    return found


def _sample(row: ScanRow, placed: Sequence[PlacedText]) -> JointSample:
    record = row.record
    report = record.report()
    return JointSample(
        key=record.key, patient=record.patient, split=row.split, scan=row.judged.sha256,
        labels={name: 1 if value else 0 for name, value in record.labels.items() if value is not None},
        reports=(Report(text=report),) if report else (), snippets=tuple(placed),
    )  # fmt: skip


def _placed(row: ScanRow, cohort: Manifest) -> tuple[list[PlacedText], int]:
    """Sentences of a report that point at images of its series, and how many references were lost."""
    report = row.record.report()
    if row.judged.kind != "dicom" or cohort.root is None or not (found := mine(report)):
        return [], 0
    study, placed, lost = read_study(confined(cohort.root, row.record.path)), list[PlacedText](), 0
    for snippet in found:
        if snippet.prior or not snippet.text:
            continue
        heights = [r.place.z_mm for r in resolve(snippet, study) if r.place is not None]
        if heights:
            # of a range, its middle
            placed.append(PlacedText(text=snippet.text, z_mm=round(sum(heights) / len(heights), 3)))
        else:
            lost += 1
    return placed, lost
