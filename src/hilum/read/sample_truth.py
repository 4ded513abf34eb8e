"""The masks that come with public scans, put on the scan's RAS+ grid: label maps, LIDC-IDRI's contours."""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path

import nrrd
import numpy as np
from jaxtyping import Bool
from PIL import Image, ImageDraw

from hilum.errors import HeaderError
from hilum.geometry import Geometry, axis_map
from hilum.io.label_files import read_labels
from hilum.read.sampling import sample_nearest
from hilum.types import MaskVolume

_CONTOURS = """
SELECT a.id, c.inclusion, c.image_z_position, c.coords
FROM scans s JOIN annotations a ON a.scan_id = s.id JOIN contours c ON c.annotation_id = a.id
WHERE s.patient_id = ? ORDER BY a.id, c.id
"""


def label_masks(path: Path, labels: Mapping[str, tuple[int, ...]], grid: Geometry) -> dict[str, MaskVolume]:
    """Masks of a label map (NIfTI or NRRD), nearest neighbour on `grid`.

    Args:
        path: the label map. labels: mask name -> label values. grid: RAS+ grid of the scan.

    Raises:
        HeaderError: an NRRD in another space than left-posterior-superior (`NRRD_HEADER`).
    """
    values, source = _read_labels(path)
    axes = axis_map(source)
    values, found = axes.apply(values), axes.geometry(source)
    if not Geometry(grid.shape, grid.affine_ras).same_grid(found):
        values = sample_nearest(values, found, grid, fill=0.0)
    return {name: np.isin(values, chosen) for name, chosen in labels.items()}


def contour_mask(database: Path, patient: str, grid: Geometry, share: float = 0.5) -> MaskVolume:
    """Voxels that at least `share` of the readers drew as nodule.

    Args:
        database: sqlite file of LIDC-IDRI's annotations, opened read-only.
        patient: e.g. ``LIDC-IDRI-0001``.
        grid: axial RAS+ grid with as many columns and rows as the DICOM frame.
        share: of the readers, 0..1.

    Contour points are (column, row) of the DICOM frame, which grow to the patient's left and back; RAS+ axes
    grow the other way. The points are the first pixels outside the nodule (LIDC-IDRI's reading protocol), so
    they are not filled.
    """
    with closing(
        sqlite3.connect(f"{database.resolve().as_uri()}?mode=ro&immutable=1", uri=True)
    ) as connection:
        rows = connection.execute(_CONTOURS, (patient,)).fetchall()
    readers = sorted({row[0] for row in rows})
    votes = np.zeros(grid.shape, dtype=np.uint8)
    for reader in readers:
        drawn = np.zeros(grid.shape, dtype=bool)
        # Holes are drawn after what they are holes of.
        for _, included, z_mm, text in sorted((r for r in rows if r[0] == reader), key=lambda r: -r[1]):
            k = round((z_mm - grid.affine_ras[2, 3]) / grid.affine_ras[2, 2])
            if 0 <= k < grid.shape[2]:
                drawn[:, :, k][_filled(text, grid)] = bool(included)
        votes += drawn
    return votes >= max(1.0, share * len(readers))


def _filled(text: str, grid: Geometry) -> Bool[np.ndarray, "X Y"]:
    points = [(int(x), int(y)) for x, y in (line.split(",") for line in text.split())]
    frame = Image.new("1", grid.shape[:2])
    pen = ImageDraw.Draw(frame)
    if len(points) < 3:
        pen.point(points, fill=1)
    else:
        pen.polygon(points, fill=1, outline=0)
    return np.asarray(frame, dtype=bool).T[::-1, ::-1]


def _read_labels(path: Path) -> tuple[np.ndarray, Geometry]:
    if path.name.endswith(".nrrd"):
        values, header = nrrd.read(str(path))
        space = str(header.get("space"))
        if space not in ("left-posterior-superior", "LPS"):
            raise HeaderError(
                "NRRD_HEADER",
                "the masks' space is known",
                expected="left-posterior-superior",
                got=space,
                path=path,
            )
        affine = np.eye(4)
        affine[:3, :3] = np.asarray(header["space directions"], dtype=np.float64).T
        affine[:3, 3] = np.asarray(header["space origin"], dtype=np.float64)
        return values, Geometry.from_lps(_three(values), affine)
    return read_labels(path)


def _three(values: np.ndarray) -> tuple[int, int, int]:
    x, y, z = values.shape
    return x, y, z
