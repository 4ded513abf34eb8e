"""The phantom cohort, as `hilum phantom` writes it: one folder per phantom with `truth.json`. SYNTHETIC.

Two phantoms of one seed share their anatomy, whatever their spacing: they are one patient.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hilum.cohort.records import MaskRef, ScanRecord
from hilum.cohort.sources.base import Source, SourceOptions, any_file
from hilum.text.vocabulary import SLUGS

FORMAT = 1
"""Of truth.json; the same as `hilum.phantom.write.FORMAT`, which would load torch."""


def _detect(root: Path) -> bool:
    return any_file(root, "synthetic-*/truth.json")


def _records(root: Path, options: SourceOptions) -> Iterator[ScanRecord]:
    for folder in sorted(p.parent for p in root.glob("*/truth.json")):
        truth = _truth(folder)
        if truth is None:
            yield ScanRecord(folder.name, f"{folder.name}/ct.nii.gz", f"phantom:{folder.name}",
                             broken="truth.json is not of this version")  # fmt: skip
            continue
        reports = truth["reports"]
        report: dict[str, str] = reports.get("en") or next(iter(reports.values()), {})
        yield ScanRecord(
            key=str(truth["key"]),
            path=f"{folder.name}/{truth['image']['path']}",
            patient=f"phantom:{truth['plan']['seed']}",
            study=str(truth["key"]),
            series=str(truth["image"]["series_number"]),
            labels={slug: truth["labels"].get(slug) for slug in SLUGS},
            text={name: report[name] for name in ("findings", "impression") if name in report},
            masks=tuple(_masks(folder.name, truth)),
            notes=("SYNTHETIC",),
        )


def _truth(folder: Path) -> dict[str, Any] | None:
    try:
        truth = json.loads((folder / "truth.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    known = isinstance(truth, dict) and truth.get("synthetic") is True and truth.get("format") == FORMAT
    return truth if known else None


def _masks(folder: str, truth: dict[str, Any]) -> Iterator[MaskRef]:
    organs = truth["organs"]
    for value, name in organs["labels"].items():
        yield MaskRef(f"region/{name}", f"{folder}/{organs['path']}", "labels", int(value))
    for channel, path in organs["channels"].items():
        yield MaskRef(f"organ/{channel}", f"{folder}/{path}")
    for lesion in truth["lesions"]:
        yield MaskRef(f"finding/{lesion['slug']}", f"{folder}/{lesion['path']}")


SOURCE = Source("phantom", "Hilum's phantoms", "HU, as written", _detect, _records)
