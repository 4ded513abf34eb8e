"""What can truly be said of each lesion: side, lobes, size, and the image that shows it best."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import cc3d
import numpy as np

from hilum.geometry import Geometry
from hilum.phantom.make import Phantom
from hilum.phantom.plan import Degree
from hilum.phantom.scene import LesionTruth
from hilum.types import MaskVolume
from hilum.volume import SliceRef


@dataclass(frozen=True)
class LesionFact:
    """One finding as the scan shows it. Lengths in mm, places in RAS+ mm.

    Args:
        slug: finding. degree: how bad. side: ``right``, ``left``, ``both`` or ``""``. lobes: of `LOBES`.
        size_mm: longest diameter of the largest piece. count: pieces. attributes: as inserted.
        volume_ml: on the scan's grid. centroid_mm: of all voxels. box_mm: low and high corner of all voxels.
        slice_index: index along the third axis of the largest section of the largest piece.
        slice_range: first and last index of that piece. z_mm: height of that section's centre.
        instance: number of that slice. instances: of the piece's first and last slice, ascending.
    """

    slug: str
    degree: Degree
    side: str
    lobes: tuple[str, ...]
    size_mm: float
    count: int
    volume_ml: float
    centroid_mm: tuple[float, float, float]
    box_mm: tuple[tuple[float, float, float], tuple[float, float, float]]
    slice_index: int
    slice_range: tuple[int, int]
    z_mm: float
    instance: int
    instances: tuple[int, int]
    attributes: dict[str, str | float] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return asdict(self)


def lesion_mask(phantom: Phantom, truth: LesionTruth) -> MaskVolume:
    """The lesion on the scan's grid. One smaller than a voxel marks the voxels that hold it."""
    mask = phantom.scan.mask(f"lesion/{truth.slug}").cpu().numpy()
    if mask.any():
        return mask
    mask = np.zeros(phantom.scan.geometry.shape, dtype=bool)
    where_mm = phantom.scene.grid.to_mm(truth.mask.nonzero().cpu().numpy())
    index = np.rint(phantom.scan.geometry.to_vox(where_mm)).astype(int)
    inside = ((index >= 0) & (index < np.array(mask.shape))).all(axis=1)
    mask[tuple(index[inside].T)] = True
    return mask


def numbers_from_top(geometry: Geometry) -> list[int]:
    """Instance number of every slice when a series is numbered from the head down, by array index."""
    count = geometry.shape[2]
    upward = geometry.affine_ras[2, 2] > 0
    return list(range(count, 0, -1)) if upward else list(range(1, count + 1))


def numbers_of_slices(geometry: Geometry, slices: Sequence[SliceRef] | None) -> list[int]:
    """Instance number of every slice of `geometry`, by array index.

    Args:
        geometry: of the scan; slices lie along its third axis.
        slices: of the written series, in any order; None counts from the head down.
    """
    if not slices:
        return numbers_from_top(geometry)
    normal = np.cross(geometry.affine_ras[:3, 0], geometry.affine_ras[:3, 1])
    normal /= np.linalg.norm(normal)
    heights = np.array([np.dot(s.position_mm, normal) for s in slices])
    numbers = [s.instance_number or i + 1 for i, s in enumerate(slices)]
    planes = geometry.to_mm(np.array([[0, 0, k] for k in range(geometry.shape[2])])) @ normal
    return [numbers[int(np.abs(heights - plane).argmin())] for plane in planes]


def lesion_facts(phantom: Phantom, slices: Sequence[SliceRef] | None = None) -> dict[str, LesionFact]:
    """Facts of every lesion in the scanned part, by slug."""
    numbers = numbers_of_slices(phantom.scan.geometry, slices)
    return {
        t.slug: fact_of(t, lesion_mask(phantom, t), phantom.scan.geometry, numbers) for t in phantom.lesions
    }


def fact_of(truth: LesionTruth, mask: MaskVolume, geometry: Geometry, numbers: Sequence[int]) -> LesionFact:
    """Facts of one lesion.

    Args:
        truth: as inserted. mask: its voxels on `geometry`, at least one.
        numbers: instance number by slice index.
    """
    low, high = _box(mask)
    crop = mask[tuple(slice(a, b + 1) for a, b in zip(low, high, strict=True))]
    piece = cc3d.largest_k(crop, k=1, connectivity=26) > 0
    sections = piece.sum(axis=(0, 1))
    in_crop = int(sections.argmax())
    held = np.flatnonzero(sections)
    best, first, last = (int(low[2]) + int(k) for k in (in_crop, held[0], held[-1]))
    centre = np.append(np.argwhere(piece[:, :, in_crop]).mean(axis=0), in_crop) + low
    ends = sorted((numbers[first], numbers[last]))
    corners = geometry.to_mm(np.array(list(itertools.product(*zip(low, high, strict=True)))))
    return LesionFact(
        slug=truth.slug,
        degree=truth.degree,
        side=truth.side,
        lobes=tuple(truth.lobes),
        size_mm=round(float(truth.size_mm), 1),
        count=int(truth.count),
        volume_ml=round(float(crop.sum()) * geometry.voxel_ml, 3),
        centroid_mm=_point(geometry.to_mm((_centroid(crop) + low)[None])[0]),
        box_mm=(_point(corners.min(axis=0)), _point(corners.max(axis=0))),
        slice_index=best,
        slice_range=(first, last),
        z_mm=round(float(geometry.to_mm(centre[None])[0, 2]), 2),
        instance=int(numbers[best]),
        instances=(int(ends[0]), int(ends[1])),
        attributes=dict(truth.attributes),
    )


def _box(mask: MaskVolume) -> tuple[np.ndarray, np.ndarray]:
    """First and last index along each axis; a list of voxels would not fit for a whole lung."""
    spans = [np.flatnonzero(mask.any(axis=tuple(a for a in range(3) if a != axis))) for axis in range(3)]
    return np.array([s[0] for s in spans]), np.array([s[-1] for s in spans])


def _centroid(mask: MaskVolume) -> np.ndarray:
    """Mean index along each axis."""
    sums = [mask.sum(axis=tuple(a for a in range(3) if a != axis)) for axis in range(3)]
    return np.array([float((s * np.arange(len(s))).sum()) / float(s.sum()) for s in sums])


def _point(values: np.ndarray) -> tuple[float, float, float]:
    x, y, z = (round(float(v), 2) for v in values)
    return x, y, z
