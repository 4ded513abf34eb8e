"""Where voxels are: shape + affine + frame of reference, and the way to RAS+ axes and back.

Sources: NIfTI-1 standard (affines are RAS+); DICOM PS3.3 C.7.6.2 (patient coordinates are LPS+).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from hilum.errors import HeaderError
from hilum.types import AffineLps, AffineRas, MaskVolume, PointsMm, SliceHeights, SpacingMm

LPS_FROM_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
"""Same point, other letters: x and y change sign. Its own inverse."""

ArrayT = TypeVar("ArrayT", bound=np.ndarray)


@dataclass(frozen=True, eq=False)
class Geometry:
    """A voxel grid in patient space.

    Args:
        shape: voxels along each array axis.
        affine_ras: voxel index (centre of voxel) -> patient mm, RAS+.
        frame_uid: DICOM Frame of Reference UID; None where the format has none.

    Raises:
        HeaderError: affine not finite (`AFFINE_NAN`), singular (`AFFINE_SINGULAR`), or empty shape
            (`DIMS_NONPOSITIVE`).
    """

    shape: tuple[int, int, int]
    affine_ras: AffineRas
    frame_uid: str | None = None

    def __post_init__(self) -> None:
        affine = np.array(self.affine_ras, dtype=np.float64)
        if not np.isfinite(affine).all():
            raise HeaderError(
                "AFFINE_NAN", "the affine must be finite", expected="16 numbers", got=affine.tolist()
            )
        if min(self.shape) < 1:
            raise HeaderError("DIMS_NONPOSITIVE", "every axis has voxels", expected=">= 1", got=self.shape)
        if abs(np.linalg.det(affine[:3, :3])) < 1e-9:
            raise HeaderError(
                "AFFINE_SINGULAR",
                "the affine must be invertible",
                expected="det != 0",
                got=affine[:3, :3].tolist(),
            )
        affine.setflags(write=False)
        object.__setattr__(self, "affine_ras", affine)
        object.__setattr__(self, "shape", tuple(int(n) for n in self.shape))

    @classmethod
    def from_lps(
        cls, shape: tuple[int, int, int], affine_lps: AffineLps, frame_uid: str | None = None
    ) -> Geometry:
        """The same grid from a DICOM/ITK affine."""
        return cls(shape, LPS_FROM_RAS @ np.asarray(affine_lps, dtype=np.float64), frame_uid)

    @property
    def affine_lps(self) -> AffineLps:
        """Voxel index -> patient mm, LPS+."""
        return LPS_FROM_RAS @ self.affine_ras

    @property
    def spacing_mm(self) -> SpacingMm:
        """Distance between voxel centres along each array axis, mm. Never slice thickness."""
        x, y, z = np.linalg.norm(self.affine_ras[:3, :3], axis=0)
        return float(x), float(y), float(z)

    @property
    def extent_mm(self) -> SpacingMm:
        """Field of view along each array axis, mm (voxels times spacing)."""
        x, y, z = (n * s for n, s in zip(self.shape, self.spacing_mm, strict=True))
        return x, y, z

    @property
    def voxel_ml(self) -> float:
        """Volume of a voxel in ml."""
        return float(abs(np.linalg.det(self.affine_ras[:3, :3]))) / 1000.0

    @property
    def axcodes(self) -> str:
        """Closest anatomical letters of the array axes, e.g. ``LPS``: each axis grows towards its letter."""
        axes = axis_map(self)
        letters = ["RL", "AP", "SI"]
        codes = [""] * 3
        for ras, (source, flip) in enumerate(zip(axes.order, axes.flips, strict=True)):
            codes[source] = letters[ras][int(flip)]
        return "".join(codes)

    @property
    def centre_mm(self) -> PointsMm:
        """Centre of the field of view, mm RAS+, shape (1, 3)."""
        return self.to_mm((np.asarray(self.shape, dtype=np.float64)[None] - 1) / 2)

    def to_mm(self, index_vox: np.ndarray) -> PointsMm:
        """Voxel indices (N, 3) -> mm RAS+ (N, 3)."""
        index = np.asarray(index_vox, dtype=np.float64).reshape(-1, 3)
        return index @ self.affine_ras[:3, :3].T + self.affine_ras[:3, 3]

    def to_vox(self, point_mm: np.ndarray) -> PointsMm:
        """mm RAS+ (N, 3) -> continuous voxel indices (N, 3)."""
        inverse = np.linalg.inv(self.affine_ras)
        point = np.asarray(point_mm, dtype=np.float64).reshape(-1, 3)
        return point @ inverse[:3, :3].T + inverse[:3, 3]

    def heights_mm(self, slices: Iterable[float]) -> SliceHeights:
        """z of the middles of slices along the third axis, mm RAS+.

        Args:
            slices: indices, also between two or beyond the grid.
        """
        middle = [(n - 1) / 2 for n in self.shape[:2]]
        return self.to_mm(np.array([(*middle, k) for k in slices]))[:, 2]

    def corners_mm(self) -> PointsMm:
        """The eight corner voxel centres, mm RAS+, shape (8, 3)."""
        last = np.asarray(self.shape, dtype=np.float64) - 1
        return self.to_mm(np.array(list(itertools.product((0, 1), repeat=3))) * last)

    def same_grid(self, other: Geometry, tolerance_mm: float = 0.01) -> bool:
        """True when shape, every corner (within `tolerance_mm`) and frame agree. Unknown frames agree with
        none but unknown."""
        return (
            self.shape == other.shape
            and self.frame_uid == other.frame_uid
            and bool(np.abs(self.corners_mm() - other.corners_mm()).max() <= tolerance_mm)
        )

    def covers(self, grid: Geometry) -> MaskVolume:
        """Voxels of `grid` whose centre lies in this field of view, voxel edges included."""
        row_of = np.linalg.inv(self.affine_ras) @ grid.affine_ras
        i, j, k = np.ogrid[tuple(slice(n) for n in grid.shape)]
        mask = np.ones(grid.shape, dtype=bool)
        for row, size in zip(row_of, self.shape, strict=False):
            at_vox = row[0] * i + row[1] * j + row[2] * k + row[3]
            mask &= (at_vox >= -0.5) & (at_vox <= size - 0.5)
        return mask

    def __repr__(self) -> str:
        size = "×".join(str(n) for n in self.shape)
        spacing = "×".join(f"{s:.2f}" for s in self.spacing_mm)
        return f"Geometry({size} · {spacing} mm · {self.axcodes})"


@dataclass(frozen=True)
class AxisMap:
    """How an array's axes become the nearest RAS+ ones: a permutation and flips, never an interpolation.

    Args:
        order: order[i] is the source axis that becomes RAS axis i.
        flips: flips[i] says whether it is reversed on the way.
        source_shape: voxels of the source array.
    """

    order: tuple[int, int, int]
    flips: tuple[bool, bool, bool]
    source_shape: tuple[int, int, int]

    def apply(self, array: ArrayT) -> ArrayT:
        """Source axes -> RAS+ axes (a view). Leading axes beyond the last three are kept."""
        lead = array.ndim - 3
        moved = array.transpose([*range(lead), *(lead + a for a in self.order)])
        return moved[(..., *(slice(None, None, -1) if f else slice(None) for f in self.flips))]  # type: ignore[return-value]

    def undo(self, array: ArrayT) -> ArrayT:
        """RAS+ axes -> source axes (a view)."""
        lead = array.ndim - 3
        unflipped = array[(..., *(slice(None, None, -1) if f else slice(None) for f in self.flips))]
        inverse = [self.order.index(a) for a in range(3)]
        return unflipped.transpose([*range(lead), *(lead + a for a in inverse)])  # type: ignore[return-value]

    def geometry(self, source: Geometry) -> Geometry:
        """The geometry of `apply(array)`."""
        matrix = np.zeros((4, 4))
        matrix[3, 3] = 1.0
        for ras, (axis, flip) in enumerate(zip(self.order, self.flips, strict=True)):
            matrix[axis, ras] = -1.0 if flip else 1.0
            matrix[axis, 3] = source.shape[axis] - 1 if flip else 0.0
        a, b, c = self.order
        shape = (source.shape[a], source.shape[b], source.shape[c])
        return Geometry(shape, source.affine_ras @ matrix, source.frame_uid)


def axis_map(geometry: Geometry) -> AxisMap:
    """The permutation and flips that bring the array closest to RAS+ (largest sum of absolute cosines)."""
    cosines = geometry.affine_ras[:3, :3] / np.linalg.norm(geometry.affine_ras[:3, :3], axis=0)
    orders: Iterator[tuple[int, ...]] = itertools.permutations(range(3))
    best = max(orders, key=lambda order: sum(abs(cosines[ras, axis]) for ras, axis in enumerate(order)))
    flips = tuple(bool(cosines[ras, axis] < 0) for ras, axis in enumerate(best))
    return AxisMap((best[0], best[1], best[2]), (flips[0], flips[1], flips[2]), geometry.shape)
