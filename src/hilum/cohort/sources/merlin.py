"""Merlin: `merlin_data/*.nii.gz`, `reports_final.xlsx` and `zero_shot_findings_disease_cls.csv` (1, 0, -1).

Abdominal CT. One column of the workbook holds the whole report; the impression starts at its heading. Labels
are asked of the report: -1 is no answer. Of the 30 diseases those that mean the same as one of the 18
findings share its name; lymphadenopathy there is anywhere in the abdomen and keeps a name of its own.

Source: Blankemeier et al., arXiv 2406.06512; the data set's files.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from hilum.cohort.records import Label, ScanRecord
from hilum.cohort.sources.base import Source, SourceOptions, any_file, stem, volumes
from hilum.io.confine import relative_to
from hilum.io.table import Row, read_table, said, tri_state
from hilum.text.vocabulary import SLUGS

REPORTS, LABELS, METADATA = "reports_final.xlsx", "zero_shot_findings_disease_cls.csv", "metadata.csv"
STUDY = "study id"
PATIENT_COLUMNS = ("patient id", "patient_id", "Patient ID", "mrn")
SPLITS = {"train": "train", "val": "val", "valid": "val", "test": "test"}
ELSEWHERE = frozenset({"lymphadenopathy"})
_HEADING = re.compile(r"(?:^|\s)IMPRESSIONS?\s*:\s*", re.IGNORECASE)


def _detect(root: Path) -> bool:
    return any_file(root, "merlin_data/*.nii.gz") or any_file(root, REPORTS)


def _records(root: Path, options: SourceOptions) -> Iterator[ScanRecord]:
    reports = _by_study(root / REPORTS, (STUDY, "Findings"))
    labels = _by_study(root / LABELS, ())
    metadata = _by_study(root / METADATA, ())
    for path in volumes(root / "merlin_data"):
        name = stem(path)
        report = reports.get(name, {})
        patient = _patient(metadata.get(name, {}))
        yield ScanRecord(
            key=name,
            path=relative_to(root, path),
            patient=f"merlin:{patient or name}",
            study=name,
            split=SPLITS.get(said(report.get("Split")).lower(), ""),
            labels=_labels(labels.get(name, {})),
            text=parted(said(report.get("Findings"))) if report else {},
            notes=() if patient else ("no table names the patient: the study stands for one",),
        )


def parted(text: str) -> dict[str, str]:
    """Findings and impression of a report in one text; all is findings where no heading parts them."""
    body = re.sub(r"^\s*FINDINGS?\s*:\s*", "", text, flags=re.IGNORECASE)
    heading = _HEADING.search(body)
    if heading is None:
        return {"findings": body.strip()}
    return {"findings": body[: heading.start()].strip(), "impression": body[heading.end() :].strip()}


def _labels(row: Row) -> dict[str, Label]:
    named = {re.sub(r"\W+", "_", column.strip().lower()): cell for column, cell in list(row.items())[1:]}
    return {
        name if name in SLUGS and name not in ELSEWHERE else f"merlin/{name}": tri_state(cell)
        for name, cell in named.items()
    }


def _patient(row: Row) -> str:
    return next((said(row[column]) for column in PATIENT_COLUMNS if said(row.get(column))), "")


def _by_study(path: Path, needed: tuple[str, ...]) -> dict[str, Row]:
    """Rows by study: the column of that name, or the first."""
    if not path.is_file():
        return {}
    rows = read_table(path, needed)
    return {stem(said(row.get(STUDY) or next(iter(row.values()), ""))): row for row in rows}


SOURCE = Source("merlin", "Merlin", "HU, by each file's own header", _detect, _records)
