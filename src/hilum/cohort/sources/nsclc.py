"""NSCLC-Radiomics: `LUNG1-001/<study>/<series>/*.dcm`, with an RTSTRUCT (and a SEG) per patient.

PatientIDs are the data set's public names and are kept as they are.

Source: Aerts et al., Nature Communications 5 (2014); doi 10.7937/K9/TCIA.2015.PF0M9REI.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from hilum.cohort.records import MaskRef, ScanRecord
from hilum.cohort.sources.base import Source, SourceOptions, any_file
from hilum.cohort.sources.dicom_tree import contours_of, series_records
from hilum.io.dicom_list import RTSTRUCT, DicomFile, list_files


def _detect(root: Path) -> bool:
    return any_file(root, "LUNG1-???", "*/LUNG1-???")


def _records(root: Path, options: SourceOptions) -> Iterator[ScanRecord]:
    listing = list_files(root)
    for record, first in series_records(listing, options):
        if first is None:
            yield record
            continue
        masks = record.masks or _of_study(first, listing[0])
        yield replace(record, patient=f"nsclc-radiomics:{first.patient_id.strip()}", masks=masks)


def _of_study(first: DicomFile, files: list[DicomFile]) -> tuple[MaskRef, ...]:
    """Contours that name no series but lie in the study."""
    drawn = [
        f for f in files if f.sop_class == RTSTRUCT and f.study_uid == first.study_uid and not f.refers_to
    ]
    return tuple(mask for f in drawn for mask in contours_of(f))


SOURCE = Source(
    "nsclc-radiomics", "NSCLC-Radiomics", "HU, by slope and intercept of every slice", _detect, _records
)
