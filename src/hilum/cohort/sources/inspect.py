"""INSPECT: `full/CTPA/*.nii.gz` and dated tables: study_mapping, splits, impressions and labels (TSV).

CT of the pulmonary arteries; of each report the impression is public. Label cells are True, False or
Censored;
what is censored is unknown. A few volumes have four axes or no orientation: reading refuses them by code.

Source: Huang et al., arXiv 2311.10798; the data set's files.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from hilum.cohort.records import ScanRecord
from hilum.cohort.sources.base import Source, SourceOptions, any_file, newest, stem, volumes
from hilum.io.confine import relative_to
from hilum.io.table import Row, read_table, said, tri_state

SPLITS = {"train": "train", "valid": "val", "val": "val", "test": "test"}
KEYS = frozenset({"impression_id", "person_id", "image_id", "split"})
PATIENT_COLUMNS = ("person_id", "patient_id")


def _base(root: Path) -> Path:
    return root / "full" if (root / "full").is_dir() else root


def _detect(root: Path) -> bool:
    return any_file(_base(root), "CTPA/*.nii.gz") and any_file(_base(root), "study_mapping_*.tsv")


def _records(root: Path, options: SourceOptions) -> Iterator[ScanRecord]:
    base = _base(root)
    mapping = {stem(r["image_id"]): r for r in _rows(base, "study_mapping", ("impression_id", "image_id"))}
    splits = _by_impression(base, "splits", ("split",))
    texts = _by_impression(base, "impressions", ("impressions",))
    labels = _by_impression(base, "labels", ())
    for path in volumes(base / "CTPA"):
        name = stem(path)
        mapped = mapping.get(name, {})
        study = said(mapped.get("impression_id"))
        held = labels.get(study, {})
        patient = next((said(r[c]) for c in PATIENT_COLUMNS for r in (mapped, held) if said(r.get(c))), "")
        text = said(texts.get(study, {}).get("impressions"))
        yield ScanRecord(
            key=name,
            path=relative_to(root, path),
            patient=f"inspect:{patient or name}",
            study=study,
            split=SPLITS.get(said(splits.get(study, {}).get("split")).lower(), ""),
            labels={f"inspect/{c}": tri_state(v) for c, v in held.items() if c not in KEYS},
            text={"impression": re.sub(r"^\s*IMPRESSIONS?\s*:\s*", "", text, flags=re.IGNORECASE)}
            if study in texts
            else {},
            broken="" if mapped else "study_mapping does not name it",
            notes=() if patient else ("no table names the patient: the image stands for one",),
        )


def _rows(base: Path, name: str, needed: tuple[str, ...]) -> list[Row]:
    """Rows of the newest table of that name; none where it is not there."""
    path = newest(base, f"{name}_*.tsv")
    return [] if path is None else read_table(path, needed)


def _by_impression(base: Path, name: str, needed: tuple[str, ...]) -> dict[str, Row]:
    return {said(row["impression_id"]): row for row in _rows(base, name, ("impression_id", *needed))}


SOURCE = Source("inspect", "INSPECT", "HU, by each file's own header", _detect, _records)
