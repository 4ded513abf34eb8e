"""Any mask of a manifest as voxels of its scan: label maps, channels, RTSTRUCT, and LIDC's readings.

A mask is laid only over the grid that it was drawn on (row C14): a file has the scan's shape and place,
contours name its frame of reference or its images. Nothing is resampled.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
from pydicom.datadict import tag_for_keyword

from hilum.cohort.records import MaskRef, ScanRecord
from hilum.errors import ContainerError, SeriesError
from hilum.io.confine import confined
from hilum.io.dicom_guard import guard, quiet, read_elements
from hilum.io.dicom_header import numbers, uid, whole
from hilum.io.label_files import read_labels
from hilum.io.limits import Limits
from hilum.io.outline import fill
from hilum.io.safe_xml import Element, parse_xml
from hilum.types import MaskVolume
from hilum.volume import CTVolume

SAME_PLACE_MM = 0.1
OFF_SLICE = 0.25
"""How far a contour may lie from the middle of its slice, in slices."""
CONSENSUS = 0.5
"""Share of the readers of LIDC who must have outlined a voxel."""


def read_mask(mask: MaskRef, record: ScanRecord, root: str | Path, volume: CTVolume) -> MaskVolume:
    """One mask on `volume.geometry`.

    Args:
        mask: of the record. record: of the scan. root: of the data set. volume: the scan, opened.

    Raises:
        ReportError: `PATH_ESCAPE`. SeriesError: it lies on another grid (`GRID_MISMATCH`) or in another frame
            (`FRAME_OF_REFERENCE`).
        ContainerError: the file is damaged, or of a kind that is not read (`MASK_MISSING`).
    """
    path = confined(root, mask.path)
    if mask.kind in ("binary", "labels", "channel"):
        stored = _from_file(mask, path, record, volume)
    elif mask.kind == "rtstruct":
        stored = _from_rtstruct(mask, path, volume)
    elif mask.kind in ("lidc-xml", "pylidc"):
        stored = _from_readings(mask, path, volume)
    else:
        raise ContainerError(
            "MASK_MISSING", "a mask is of a kind that is read", expected="NIfTI, RTSTRUCT, LIDC",
            got=mask.kind, path=path,
        )  # fmt: skip
    return np.ascontiguousarray(volume.axes.apply(stored))


def _from_file(mask: MaskRef, path: Path, record: ScanRecord, volume: CTVolume) -> MaskVolume:
    values, grid = read_labels(path, channel=mask.index if mask.kind == "channel" else None)
    # Where the data set's own description places the scan, its masks' headers are wrong in the same way.
    placed = record.answers.placement is not None
    if grid.shape != volume.source.shape or not (
        placed or np.abs(grid.corners_mm() - volume.source.corners_mm()).max() <= SAME_PLACE_MM
    ):
        raise SeriesError(
            "GRID_MISMATCH", "a mask lies on the grid of its scan", expected=repr(volume.source),
            got=repr(grid), path=path,
        )  # fmt: skip
    if mask.kind == "labels" and mask.index >= 0:
        return values == mask.index
    return values > 0


def _from_rtstruct(mask: MaskRef, path: Path, volume: CTVolume) -> MaskVolume:
    """Contours of one region (PS3.3 C.8.8.6), LPS mm, filled slice by slice; one inside another is a hole."""
    content = path.read_bytes()
    tags = [
        tag_for_keyword(k) or 0
        for k in ("ROIContourSequence", "StructureSetROISequence", "ReferencedFrameOfReferenceSequence")
    ]
    with quiet():
        ds = read_elements(guard(content, Limits(), path.name), tags)
        regions = {whole(r, "ROINumber"): r for r in ds.get("StructureSetROISequence", None) or ()}
        region = regions.get(mask.index)
        frame = None if region is None else uid(region, "ReferencedFrameOfReferenceUID")
        if frame and volume.geometry.frame_uid and frame != volume.geometry.frame_uid:
            raise SeriesError(
                "FRAME_OF_REFERENCE", "contours share the scan's frame of reference",
                expected=volume.geometry.frame_uid, got=frame, path=path,
            )  # fmt: skip
        found = np.zeros(volume.source.shape, dtype=bool)
        for drawn in ds.get("ROIContourSequence", None) or ():
            if whole(drawn, "ReferencedROINumber") == mask.index:
                for contour in drawn.get("ContourSequence", None) or ():
                    count = whole(contour, "NumberOfContourPoints") or 0
                    points = numbers(contour, "ContourData", 3 * count)
                    if points is not None and count >= 3:
                        _add(found, np.array(points).reshape(-1, 3), volume, path)
    return found


def _add(found: MaskVolume, points_lps: np.ndarray, volume: CTVolume, path: Path) -> None:
    """One planar contour, joined by XOR so that inner ones are holes."""
    index = volume.source.to_vox(points_lps * np.array([-1.0, -1.0, 1.0]))
    axis = int(np.ptp(index, axis=0).argmin())
    at = float(index[:, axis].mean())
    slice_number = round(at)
    if abs(at - slice_number) > OFF_SLICE or np.ptp(index[:, axis]) > OFF_SLICE:
        raise SeriesError(
            "GRID_MISMATCH", "a contour lies in a slice of its scan", expected="a whole slice",
            got=f"slice {at:.2f}", path=path,
        )  # fmt: skip
    if 0 <= slice_number < found.shape[axis]:
        plane = [a for a in range(3) if a != axis]
        shape = (found.shape[plane[0]], found.shape[plane[1]])
        view = np.moveaxis(found, axis, 0)[slice_number]
        view ^= fill(np.ascontiguousarray(index[:, plane]), shape)


Contour = tuple[int, bool, list[tuple[int, int]]]
"""Slice, whether it encloses the nodule (and not a hole), and border points: column, row."""


def _from_readings(mask: MaskRef, path: Path, volume: CTVolume) -> MaskVolume:
    """Voxels that half the readers outlined. A border point is the first one outside the nodule."""
    try:
        readers = list(_xml_readers(path, volume) if mask.kind == "lidc-xml" else _base_readers(path, volume))
    except (sqlite3.Error, ValueError, OSError) as error:
        raise ContainerError(
            "MASK_MISSING", "LIDC's readings can be read", got=str(error)[:200], path=path
        ) from error
    votes = np.zeros(volume.source.shape, dtype=np.uint8)
    for contours in readers:
        one = np.zeros(votes.shape, dtype=bool)
        for number, encloses, border in contours:
            drawn = fill(np.array(border, dtype=np.float64), one.shape[:2])
            for column, row in border:
                if 0 <= column < one.shape[0] and 0 <= row < one.shape[1]:
                    drawn[column, row] = not encloses
            one[:, :, number] = one[:, :, number] | drawn if encloses else one[:, :, number] & ~drawn
        votes += one
    return votes >= max(1.0, CONSENSUS * len(readers))


def _xml_readers(path: Path, volume: CTVolume) -> Iterator[list[Contour]]:
    slices = {s.sop_uid: number for number, s in enumerate(volume.provenance.slices)}
    for session in parse_xml(path.read_bytes(), path.name).all("readingSession"):
        rois = [roi for nodule in session.all("unblindedReadNodule") for roi in nodule.all("roi")]
        held = [(roi, slices.get(roi.word("imageSOP_UID")), _border(roi)) for roi in rois]
        if any(number is None for _, number, _ in held):
            raise SeriesError(
                "FRAME_OF_REFERENCE", "a reading names images of its scan", got="an image of another series",
                path=path,
            )  # fmt: skip
        # Those that enclose first, then their holes; a single point marks a nodule below 3 mm.
        drawn = [
            (n, r.word("inclusion").upper() != "FALSE", b) for r, n, b in held if n is not None and len(b) > 2
        ]
        yield sorted(drawn, key=lambda contour: not contour[1])


def _border(roi: Element) -> list[tuple[int, int]]:
    return [(int(e.word("xCoord")), int(e.word("yCoord"))) for e in roi.all("edgeMap")]


def _base_readers(path: Path, volume: CTVolume) -> Iterator[list[Contour]]:
    """The database does not say who read: annotations are dealt to four readers so that none has two that
    overlap, as four people marked the scan."""
    heights = [s.position_mm[2] for s in volume.provenance.slices]
    with closing(sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro&immutable=1", uri=True)) as base:
        rows = base.execute(
            "SELECT c.annotation_id, c.inclusion, c.image_z_position, c.coords FROM contours c "
            "JOIN annotations a ON c.annotation_id = a.id JOIN scans s ON a.scan_id = s.id "
            "WHERE s.series_instance_uid = ? ORDER BY c.annotation_id, c.inclusion DESC",
            (volume.provenance.series_uid,),
        ).fetchall()
    held: dict[int, list[Contour]] = {}
    for annotation, inclusion, z_mm, coords in rows:
        border = [(int(x), int(y)) for x, y in (line.split(",") for line in str(coords).split())]
        number = int(np.abs(np.array(heights) - float(z_mm)).argmin())
        held.setdefault(int(annotation), []).append((number, bool(inclusion), border))
    yield from _dealt(list(held.values()))


def _dealt(annotations: list[list[Contour]]) -> list[list[Contour]]:
    readers: list[tuple[list[Contour], set[tuple[int, int, int]]]] = [([], set()) for _ in range(4)]
    for contours in annotations:
        cells = {(n, x // 4, y // 4) for n, _, border in contours for x, y in border}
        free = next((r for r in readers if not r[1] & cells), readers[0])
        free[0].extend(contours)
        free[1].update(cells)
    return [contours for contours, _ in readers]
