"""RAD-ChestCT: `trn*.npz`, `val*.npz`, `tst*.npz` and tables of 84 abnormalities times 52 locations.

Volumes are int16 HU clipped to [-1000, 1000], 0.8 mm, axes superior to inferior, anterior to posterior, right
to left; they say none of it themselves. No report is public, and no patient's key: where no table names the
patient, the scan stands for one.

Source: Draelos et al., Medical Image Analysis 67 (2021); doi 10.5281/zenodo.6406114. Of CT-RATE's 18
findings 16
have a counterpart: there is no mosaic attenuation, and one calcification for arteries and coronaries.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from hilum.cohort.records import Label, ScanRecord
from hilum.cohort.sources.base import Calcification, Source, SourceOptions, stem, volumes
from hilum.io.confine import relative_to
from hilum.io.limits import Answers
from hilum.io.table import Row, read_table, said, tri_state
from hilum.text.vocabulary import INDEX, SLUGS

NAME = re.compile(r"(trn|val|tst)[A-Za-z]?\d+")
SPLITS = {"trn": "train", "val": "val", "tst": "test"}
LABEL_TABLES = "img{}_Abnormality_and_Location_Labels.csv"
TABLE_OF = {"trn": "train", "val": "valid", "tst": "test"}
METADATA = "CT_Scan_Metadata_Complete_35747.csv"
PATIENT_COLUMNS = ("MRN_DEID", "PatientID_DEID", "Patient_DEID")

ABNORMALITIES: Mapping[str, tuple[str, ...]] = {
    "medical_material": (
        "catheter_or_port", "chest_tube", "clip", "gi_tube", "hardware", "pacemaker_or_defib", "stent",
        "tracheal_tube",
    ),
    "cardiomegaly": ("cardiomegaly",),
    "pericardial_effusion": ("pericardial_effusion",),
    "hiatal_hernia": ("hernia",),
    "lymphadenopathy": ("lymphadenopathy",),
    "emphysema": ("emphysema",),
    "atelectasis": ("atelectasis",),
    "lung_nodule": ("nodule", "nodulegr1cm"),
    "lung_opacity": ("opacity",),
    "fibrotic_sequela": ("fibrosis",),
    "pleural_effusion": ("pleural_effusion",),
    "peribronchial_thickening": ("bronchial_wall_thickening",),
    "consolidation": ("consolidation",),
    "bronchiectasis": ("bronchiectasis",),
    "septal_thickening": ("septal_thickening",),
}  # fmt: skip
"""Finding -> abnormalities of the data set, joined by OR over all locations; calcification is apart."""
CALCIFICATION = "calcification"
ARTERIAL, CORONARY = "arterial_wall_calcification", "coronary_calcification"
DROPPED = (INDEX[CORONARY], INDEX["mosaic_attenuation"])
SLUGS_16 = tuple(slug for i, slug in enumerate(SLUGS) if i not in DROPPED)
"""The 16, in CT-RATE's order; `arterial_wall_calcification` stands for calcification."""


def scores_16(scores_18: np.ndarray, rule: Calcification = "either") -> np.ndarray:
    """Scores of 18 findings -> of the 16 that RAD-ChestCT labels.

    Args:
        scores_18: [..., 18] in CT-RATE's order. rule: ``either`` scores calcification with the larger of
            arterial and coronary (CT-CLIP, RadFinder), ``arterial`` with the arterial alone (EXACT).

    Returns:
        [..., 16] in the order of `SLUGS_16`.
    """
    scores = np.array(scores_18, copy=True)
    if rule == "either":
        pair = scores[..., [INDEX[ARTERIAL], INDEX[CORONARY]]]
        scores[..., INDEX[ARTERIAL]] = pair.max(axis=-1)
    return np.delete(scores, DROPPED, axis=-1)


def labels_18(labels_16: np.ndarray) -> list[Label]:
    """Labels of the 16 -> of the 18, None for the two that are not labelled.

    Args:
        labels_16: [16] of 0 and 1 in the order of `SLUGS_16`.
    """
    known = dict(zip(SLUGS_16, np.asarray(labels_16).tolist(), strict=True))
    return [None if slug not in known else int(known[slug]) for slug in SLUGS]


def _detect(root: Path) -> bool:
    found = volumes(root, "*.npz") or volumes(root, "*/*.npz")
    return any(NAME.fullmatch(stem(path)) for path in found)


def _records(root: Path, options: SourceOptions) -> Iterator[ScanRecord]:
    found = [p for p in volumes(root, "*.npz") + volumes(root, "*/*.npz") if NAME.fullmatch(stem(p))]
    labels = {split: _labels(root, split, options.calcification) for split in SPLITS}
    patients = _patients(root)
    for path in found:
        name = stem(path)
        prefix = name[:3]
        key = patients.get(name, "")
        yield ScanRecord(
            key=name,
            path=relative_to(root, path),
            patient=f"rad-chestct:{key or name}",
            study=name,
            split=SPLITS[prefix],
            labels=labels[prefix].get(name, {}),
            answers=Answers(assume="rad-chestct"),
            notes=() if key else ("the data set names no patient: the scan stands for one",),
        )


def _patients(root: Path) -> dict[str, str]:
    """Scan -> patient, where a metadata table has such a column."""
    path = next(iter(root.glob(f"**/{METADATA}")), None)
    if path is None:
        return {}
    rows = read_table(path, ("NoteAcc_DEID",))
    column = next((c for c in PATIENT_COLUMNS if rows and c in rows[0]), None)
    return {stem(r["NoteAcc_DEID"]): said(r[column]) for r in rows} if column else {}


def _labels(root: Path, prefix: str, rule: Calcification) -> dict[str, dict[str, Label]]:
    path = next(iter(root.glob("**/" + LABEL_TABLES.format(TABLE_OF[prefix]))), None)
    if path is None:
        return {}
    rows = read_table(path, ("NoteAcc_DEID",))
    return {stem(row["NoteAcc_DEID"]): findings_of(row, rule) for row in rows}


def findings_of(row: Row, rule: Calcification = "arterial") -> dict[str, Label]:
    """A row of 84 x 52 columns ``abnormality*location`` as the 18, and calcification as the data set says it.

    Args:
        row: of the label table. rule: with ``arterial`` calcification is the arterial one, the coronary
            unknown. With ``either`` its absence says that both are absent, its presence not which is there.
    """
    held: dict[str, list[Label]] = {}
    for column, cell in row.items():
        abnormality, star, _ = column.partition("*")
        if star:
            held.setdefault(abnormality, []).append(tri_state(cell))
    labels: dict[str, Label] = {
        slug: _any([v for name in names for v in held.get(name, ())]) for slug, names in ABNORMALITIES.items()
    }
    calcified = _any(held.get(CALCIFICATION, []))
    labels["calcification"] = calcified
    labels["mosaic_attenuation"] = None
    if rule == "arterial":
        labels |= {ARTERIAL: calcified, CORONARY: None}
    else:
        both: Label = 0 if calcified == 0 else None
        labels |= {ARTERIAL: both, CORONARY: both}
    return labels


def _any(values: list[Label]) -> Label:
    """OR of tri-state values: one present makes present, all absent make absent, anything else is unknown."""
    if any(v == 1 for v in values):
        return 1
    return 0 if values and all(v == 0 for v in values) else None


SOURCE = Source(
    "rad-chestct",
    "RAD-ChestCT",
    "HU clipped to [-1000, 1000]; place and 0.8 mm from the paper",
    _detect,
    _records,
)
