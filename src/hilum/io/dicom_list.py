"""Which DICOM series lie below a folder, by their headers alone; pixels are not decoded.

Every file goes through the same guard as a reading does. Names of files and folders mean nothing.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from pydicom.datadict import tag_for_keyword
from pydicom.dataset import Dataset

from hilum.errors import HilumError
from hilum.io.checks import Docket
from hilum.io.dicom_guard import guard, quiet, read_elements
from hilum.io.dicom_header import CT_IMAGE, ENHANCED_CT, text, uid, whole
from hilum.io.dicom_index import HEAD_BYTES, LITTER, guard_head, open_sources, read_whole
from hilum.io.limits import Limits

RTSTRUCT, SEGMENTATION = "1.2.840.10008.5.1.4.1.1.481.3", "1.2.840.10008.5.1.4.1.1.66.4"
KEYWORDS = (
    "SOPClassUID", "SOPInstanceUID", "PatientID", "StudyInstanceUID", "SeriesInstanceUID", "SeriesNumber",
    "ReferencedFrameOfReferenceSequence", "ReferencedSeriesSequence", "StructureSetROISequence",
)  # fmt: skip
TAGS = tuple(tag_for_keyword(k) or 0 for k in KEYWORDS)


@dataclass(frozen=True)
class DicomFile:
    """One file.

    Args:
        path: below the root. sop_class, sop_uid, study_uid, series_uid: "" where the file has none.
        patient_id: as stored; an identifier that must not travel further. series_number: as shown by viewers.
        refers_to: series that an RTSTRUCT or segmentation was drawn on. rois: number and name of its
        contours.
    """

    path: str
    sop_class: str
    sop_uid: str
    study_uid: str
    series_uid: str
    patient_id: str
    series_number: int | None
    refers_to: tuple[str, ...] = ()
    rois: tuple[tuple[int, str], ...] = ()


@dataclass(frozen=True)
class DicomSeries:
    """One CT series.

    Args:
        folder: the deepest folder below the root that holds all of it ("." for the root).
        first: one of its files. count: of files. patients: how many PatientIDs it names.
    """

    folder: str
    first: DicomFile
    count: int
    patients: int


def list_files(root: str | Path, limits: Limits | None = None) -> tuple[list[DicomFile], list[str]]:
    """Every DICOM file below `root`, and the files that start like DICOM and are damaged.

    Raises:
        ContainerError: the folder cannot be read, or holds more files than the budget.
    """
    limits = limits or Limits()
    found, damaged = [], []
    with open_sources(root, Docket("report-only", str(root)), limits) as sources, quiet():
        for source in sources:
            base = PurePosixPath(source.name).name.lower()
            if base in LITTER or base.startswith("."):
                continue
            try:
                head = source.read(HEAD_BYTES)
                if head[128:132] != b"DICM":
                    guard_head(head, source.name)
                guarded = guard(read_whole(source, limits), limits, source.name)
                found.append(_described(read_elements(guarded, TAGS), source.name))
            except HilumError as error:
                if error.code != "NOT_AN_IMAGE":
                    damaged.append(source.name)
    return found, damaged


def ct_series(files: list[DicomFile]) -> list[DicomSeries]:
    """The CT series among files, by folder and series UID."""
    held: dict[str, list[DicomFile]] = {}
    for file in files:
        if file.sop_class == CT_IMAGE or file.sop_class in ENHANCED_CT:
            held.setdefault(file.series_uid, []).append(file)
    series = [
        DicomSeries(
            _common([f.path for f in group]), group[0], len(group), len({f.patient_id for f in group})
        )
        for group in held.values()
    ]
    return sorted(series, key=lambda s: (s.folder, s.first.series_uid))


def _common(paths: list[str]) -> str:
    return os.path.commonpath([str(PurePosixPath(p).parent) for p in paths]) or "."


def _described(ds: Dataset, path: str) -> DicomFile:
    return DicomFile(
        path=path,
        sop_class=text(ds, "SOPClassUID").rstrip("\0"),
        sop_uid=uid(ds, "SOPInstanceUID") or "",
        study_uid=uid(ds, "StudyInstanceUID") or "",
        series_uid=uid(ds, "SeriesInstanceUID") or "",
        patient_id=text(ds, "PatientID"),
        series_number=whole(ds, "SeriesNumber"),
        refers_to=tuple(dict.fromkeys(_referred(ds))),
        rois=tuple(
            (whole(roi, "ROINumber") or 0, text(roi, "ROIName"))
            for roi in ds.get("StructureSetROISequence", None) or ()
        ),
    )


def _referred(ds: Dataset) -> Iterator[str]:
    """Series UIDs in an RTSTRUCT's (PS3.3 C.8.8.5) or a segmentation's references."""
    for frame in ds.get("ReferencedFrameOfReferenceSequence", None) or ():
        for study in frame.get("RTReferencedStudySequence", None) or ():
            for series in study.get("RTReferencedSeriesSequence", None) or ():
                yield uid(series, "SeriesInstanceUID") or ""
    for series in ds.get("ReferencedSeriesSequence", None) or ():
        yield uid(series, "SeriesInstanceUID") or ""
