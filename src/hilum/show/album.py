"""The pictures of a page: grey slices and heat layers as data URIs, no larger than needed."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from PIL import Image

from hilum.read.place import image_at, nearest_voxel, slice_axis_of
from hilum.read.reading import FindingReading
from hilum.show.cuts import (
    LETTERS,
    PLANES,
    WINDOWS,
    CutGrid,
    Plane,
    Point,
    cut_array,
    cut_grid,
    picture_point,
)
from hilum.show.figures import grey_picture, heat_picture, voxel_of
from hilum.types import ProbabilityMap
from hilum.volume import CTVolume

WIDTH_PX = 448
MAX_SLICES = 120
MAX_BYTES = 5_800_000
"""Of pictures before base64, which adds a third: the page stays below 8 MB."""
AERATED = ("lung", "airways")
"""Findings of these organs open in the lung window, all others in the soft-tissue window."""
CENTRE = "centre"
"""Key of the cuts shown when no finding is chosen."""


@dataclass
class Album:
    """Collects what the page shows, one finding's map at a time.

    Args:
        volume: the scan. kept: RAS z indices of the axial slices that are embedded.
    """

    volume: CTVolume
    kept: list[int]
    px_mm: float = 0.0
    grey: dict[str, dict[int, str]] = field(default_factory=dict)
    spots: dict[str, dict[str, Any]] = field(default_factory=dict)
    bytes_used: int = 0

    @classmethod
    def of(cls, volume: CTVolume, points_mm: list[Point]) -> Album:
        """An album of evenly spaced slices and those through `points_mm`."""
        count = volume.shape[2]
        step = -(-count // MAX_SLICES)
        kept = sorted({*range(step // 2, count, step), *(voxel_of(volume, p)[2] for p in points_mm)})
        album = cls(volume, kept)
        widest = max(cut_grid(volume.geometry, plane, 0).width_mm for plane in PLANES)
        album.px_mm = widest / WIDTH_PX
        album._axial_slices()
        album.add_spot(CENTRE, volume.geometry.centre_mm[0])
        return album

    def _axial_slices(self) -> None:
        for window in WINDOWS:
            pictures = {
                k: self._encode(grey_picture(self.volume, "axial", k, window, self.px_mm)) for k in self.kept
            }
            self.grey[window.name] = pictures

    def add_spot(self, key: str, point_mm: Point, window: str = "lung") -> dict[str, Any]:
        """Coronal and sagittal cuts through a point, and where it lies in all three pictures (mm from the
        top left)."""
        voxel = voxel_of(self.volume, point_mm)
        spot: dict[str, Any] = {"k": voxel[2], "window": window, "cross": {}, "cuts": {}, "heat": {}}
        for plane, index in (("axial", voxel[2]), ("coronal", voxel[1]), ("sagittal", voxel[0])):
            cross = picture_point(self.volume.geometry, plane, voxel)  # type: ignore[arg-type]
            spot["cross"][plane] = [round(v, 1) for v in cross]
            if plane != "axial":
                spot["cuts"][plane] = {
                    w.name: self._encode(grey_picture(self.volume, plane, index, w, self.px_mm))  # type: ignore[arg-type]
                    for w in WINDOWS
                }
        self.spots[key] = spot
        return spot

    def add_finding(self, finding: FindingReading, heat: ProbabilityMap) -> None:
        """Cuts and heat layers of a finding that has a place.

        Args:
            heat: its map on the volume's grid (RAS+).
        """
        if finding.where is None:
            return
        point = finding.where.peak_mm_ras
        spot = self.add_spot(finding.slug, point, "lung" if finding.organ in AERATED else "soft")
        # a map that never reaches its threshold is shown from half of its own peak
        threshold = finding.map_threshold
        if not finding.where.above_threshold:
            threshold = max(0.5 * float(heat.max()), 1e-3)
        voxel = voxel_of(self.volume, point)
        axial = {k: self._heat(heat, "axial", k, threshold) for k in self.kept}
        spot["heat"] = {
            "axial": {str(k): uri for k, uri in axial.items() if uri},
            "coronal": self._heat(heat, "coronal", voxel[1], threshold),
            "sagittal": self._heat(heat, "sagittal", voxel[0], threshold),
        }

    def _heat(self, heat: ProbabilityMap, plane: Plane, index: int, threshold: float) -> str | None:
        cut = cut_array(heat, plane, index)
        picture = heat_picture(cut, cut_grid(self.volume.geometry, plane, index), threshold, self.px_mm)
        return None if picture is None else self._encode(picture)

    def _encode(self, picture: Image.Image) -> str:
        buffer = io.BytesIO()
        if picture.mode == "P":
            picture.save(buffer, "PNG", transparency=picture.info["transparency"])
            kind = "png"
        else:
            picture.save(buffer, "WEBP", quality=62, method=2)
            kind = "webp"
        self.bytes_used += len(buffer.getvalue())
        return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"

    def thin(self) -> None:
        """Drop every second slice until the pictures fit; slices through a finding stay."""
        wanted = {spot["k"] for spot in self.spots.values()}
        while self.bytes_used > MAX_BYTES and len(self.kept) > 2 * len(wanted) + 8:
            dropped = {k for i, k in enumerate(self.kept) if i % 2 and k not in wanted}
            for k in dropped:
                layers = [pictures.pop(k) for pictures in self.grey.values()]
                layers += [s["heat"]["axial"].pop(str(k), "") for s in self.spots.values() if s["heat"]]
                self.bytes_used -= sum(len(uri) * 3 // 4 for uri in layers)
            self.kept = [k for k in self.kept if k not in dropped]

    def as_data(self) -> dict[str, Any]:
        """What the page's script reads."""
        return {
            "slices": [self._slice_label(k) for k in self.kept],
            "grey": {name: [pictures[k] for k in self.kept] for name, pictures in self.grey.items()},
            "spots": self.spots,
            "height_mm": self.grid("axial").height_mm,
            "z": {"step_mm": self.volume.spacing_mm[2], "count": self.volume.shape[2]},
        }

    def grid(self, plane: Plane) -> CutGrid:
        """Size of this plane's pictures."""
        return cut_grid(self.volume.geometry, plane, 0)

    def letters(self, plane: Plane) -> tuple[str, str, str, str]:
        """Left, right, top, bottom."""
        return LETTERS[plane]

    def _slice_label(self, k: int) -> dict[str, Any]:
        """RAS index, height, and the number a viewer shows for this slice (when slices of the input are
        axial)."""
        centre = np.array([(self.volume.shape[0] - 1) / 2, (self.volume.shape[1] - 1) / 2, k])
        point = self.volume.geometry.to_mm(centre)[0]
        axis = slice_axis_of(self.volume)
        label: dict[str, Any] = {"k": k, "z": round(float(point[2]), 1)}
        if self.volume.axes.order[2] == axis:
            label["slice"] = nearest_voxel(self.volume.source, point)[axis]
            image = image_at(self.volume, point)
            label["image"] = None if image is None else image.instance_number
        return label
