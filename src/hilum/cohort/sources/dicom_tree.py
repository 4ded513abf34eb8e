"""Any tree of DICOM files: one scan per CT series, found by headers.

The patient's key is a keyed hash of PatientID; a series without one is its study's own patient, and says so.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from hilum.cohort.records import MaskRef, ScanRecord
from hilum.cohort.sources.base import Source, SourceOptions, hashed_patient
from hilum.io.dicom_list import RTSTRUCT, SEGMENTATION, DicomFile, DicomSeries, ct_series, list_files
from hilum.io.limits import Answers

LOOKED_AT = 200


def _detect(root: Path) -> bool:
    """Whether one of the first files below is DICOM."""
    if not root.is_dir():
        return False
    for count, path in enumerate(root.rglob("*")):
        if count >= LOOKED_AT:
            return False
        if path.is_file() and not path.is_symlink():
            with path.open("rb") as file:
                if file.read(132)[128:] == b"DICM":
                    return True
    return False


def _records(root: Path, options: SourceOptions) -> Iterator[ScanRecord]:
    yield from (record for record, _ in series_records(list_files(root), options))


def series_records(
    listing: tuple[list[DicomFile], list[str]], options: SourceOptions
) -> Iterator[tuple[ScanRecord, DicomFile | None]]:
    """The scans of a tree, each with one of its files; RTSTRUCT and SEG become masks of what they refer to.

    Args:
        listing: of `list_files`. options: `secret` is used.
    """
    files, damaged = listing
    for one in ct_series(files):
        yield _record(one, _masks_of(one, files), options), one.first
    # A folder of nothing but damaged files would vanish: it is a scan that will be refused.
    held = {str(PurePosixPath(f.path).parent) for f in files}
    for folder in sorted({str(PurePosixPath(p).parent) for p in damaged} - held):
        key = "damaged-" + hashlib.sha256(folder.encode()).hexdigest()[:12]
        yield ScanRecord(key, folder, f"dicom-damaged:{key}", notes=("every file is damaged",)), None


def _record(series: DicomSeries, masks: tuple[MaskRef, ...], options: SourceOptions) -> ScanRecord:
    first = series.first
    notes = [] if first.patient_id.strip() else ["no PatientID: the study stands for the patient"]
    patient = (
        hashed_patient(first.patient_id, options.secret)
        if first.patient_id.strip()
        else f"dicom-study:{hashlib.sha256(first.study_uid.encode()).hexdigest()[:20]}"
    )
    return ScanRecord(
        key="series-" + hashlib.sha256(first.series_uid.encode()).hexdigest()[:16],
        path=series.folder,
        patient=patient,
        study=first.study_uid,
        series=first.series_uid,
        masks=masks,
        answers=Answers(series=first.series_uid),
        broken="" if series.patients == 1 else f"one series names {series.patients} patients",
        notes=tuple(notes),
    )


def _masks_of(series: DicomSeries, files: list[DicomFile]) -> tuple[MaskRef, ...]:
    uid = series.first.series_uid
    return tuple(mask for f in files if uid in f.refers_to for mask in contours_of(f))


def contours_of(file: DicomFile) -> Iterator[MaskRef]:
    """One mask per region of an RTSTRUCT; one for all of a segmentation."""
    if file.sop_class == RTSTRUCT:
        yield from (
            MaskRef(name or f"region {number}", file.path, "rtstruct", number) for number, name in file.rois
        )
    elif file.sop_class == SEGMENTATION:
        yield MaskRef(PurePosixPath(file.path).stem, file.path, "seg")


SOURCE = Source(
    "dicom", "a tree of DICOM files", "HU, by slope and intercept of every slice", _detect, _records
)
