"""Where maps come from: a model that reads the scan, or NIfTI files that anybody wrote, one per finding.

A folder of maps holds ``<key of the scan>/<slug>.nii.gz`` or, as ``hilum read --out`` leaves it,
``<key>/maps/<slug>.nii.gz``. A map may lie on any grid: it is brought to the scan's by its affine.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from scipy.ndimage import affine_transform

from hilum.cohort.records import ScanRecord
from hilum.cohort.resample import resample
from hilum.errors import ContainerError, SeriesError
from hilum.geometry import Geometry, axis_map
from hilum.io.confine import confined
from hilum.io.label_files import read_map
from hilum.read.contract import Reader
from hilum.text.vocabulary import INDEX
from hilum.types import GridMap, ProbabilityMap
from hilum.volume import CTVolume

Join = Literal["sum", "max"]

PARALLEL = 1e-4
"""Largest difference of direction cosines of grids that are resampled axis by axis."""


@dataclass(frozen=True, eq=False)
class ScanMaps:
    """Organ-masked maps of one scan on one grid.

    Args:
        grid: of the maps, axes nearest RAS+. of: slug -> map of 0 and more, or None where there is none.
    """

    grid: Geometry
    of: Callable[[str], GridMap | None]

    def joined(self, slugs: Sequence[str], how: Join = "sum") -> GridMap:
        """The maps of several findings as one; those without a map are left out, of none it is empty.

        Args:
            slugs: findings. how: as published (EXACT §2.2) their sum, else the largest.
        """
        whole = np.zeros(self.grid.shape, dtype=np.float32)
        for slug in slugs:
            heat = self.of(slug)
            if heat is not None:
                whole = whole + heat if how == "sum" else np.maximum(whole, heat)
        return whole


MapSource = Callable[[ScanRecord, CTVolume], ScanMaps]
"""Record and scan -> its maps."""


def maps_of_model(model: Reader) -> MapSource:
    """A model's maps, on its own grid."""

    def read(record: ScanRecord, volume: CTVolume) -> ScanMaps:
        output = model.run(volume)
        return ScanMaps(output.grid, lambda slug: output.maps[INDEX[slug]])

    return read


def maps_of_folder(root: Path) -> MapSource:
    """Maps that any model wrote.

    Args:
        root: folder of folders, see the module.
    """

    def read(record: ScanRecord, volume: CTVolume) -> ScanMaps:
        folder = confined(root, record.key)
        folder = folder / "maps" if (folder / "maps").is_dir() else folder
        files = {p.name.removesuffix(".gz").removesuffix(".nii"): p for p in sorted(folder.glob("*.nii*"))}
        known = {slug: path for slug, path in files.items() if slug in INDEX}
        if not known:
            raise ContainerError(
                "NOT_FOUND", "a scan's folder of maps has a map per finding", expected="lung_nodule.nii.gz",
                got=", ".join(files)[:200] or "no map", path=folder,
            )  # fmt: skip
        _, grid = _ras(next(iter(known.values())))
        return ScanMaps(grid, lambda slug: _of_file(known.get(slug), grid))

    return read


def _ras(path: Path) -> tuple[GridMap, Geometry]:
    values, stored = read_map(path)
    axes = axis_map(stored)
    return np.ascontiguousarray(axes.apply(values)), axes.geometry(stored)


def _of_file(path: Path | None, grid: Geometry) -> GridMap | None:
    if path is None:
        return None
    values, own = _ras(path)
    if not own.same_grid(grid):
        raise SeriesError(
            "GRID_MISMATCH",
            "all maps of a scan lie on one grid",
            expected=repr(grid),
            got=repr(own),
            path=path,
        )
    return values


def on_grid(heat: GridMap, grid: Geometry, target: Geometry) -> ProbabilityMap:
    """A map -> linear interpolation at the voxels of `target`, 0 outside; through affines alone.

    Args:
        heat: on `grid`. grid, target: axes may point anywhere.
    """
    if heat.shape == target.shape and np.allclose(grid.affine_ras, target.affine_ras, atol=1e-6):
        return np.ascontiguousarray(heat, dtype=np.float32)
    if np.abs(_cosines(grid) - _cosines(target)).max() <= PARALLEL:
        held = torch.from_numpy(np.ascontiguousarray(heat, dtype=np.float32))
        return resample(held, grid, target, outside="zero").numpy()
    matrix = np.linalg.inv(grid.affine_ras) @ target.affine_ras
    out = np.empty(target.shape, dtype=np.float32)
    return affine_transform(
        heat, matrix[:3, :3], matrix[:3, 3], target.shape, out, order=1, mode="grid-constant"
    )


def _cosines(grid: Geometry) -> np.ndarray:
    return grid.affine_ras[:3, :3] / np.array(grid.spacing_mm)


PUBLISHED_SHAPE = (128, 128, 64)
"""X, Y, Z of the grid of EXACT's published figures: the whole field of view, squashed (EXACT §1.3)."""


def published_grid(scan: Geometry) -> Geometry:
    """The published grid over a scan's field of view, voxel edges on voxel edges."""
    step = np.array(scan.shape) / np.array(PUBLISHED_SHAPE)
    affine = scan.affine_ras.copy()
    affine[:3, :3] = scan.affine_ras[:3, :3] * step[None]
    affine[:3, 3] = scan.to_mm((step - 1) / 2)[0]
    return Geometry(PUBLISHED_SHAPE, affine, scan.frame_uid)


def nearest(mask: np.ndarray, shape: tuple[int, int, int]) -> np.ndarray:
    """A mask at the voxel centres of a grid of `shape` over the same field, nearest voxel."""
    index = [
        np.minimum(((np.arange(n) + 0.5) * size / n).astype(np.int64), size - 1)
        for n, size in zip(shape, mask.shape, strict=True)
    ]
    return mask[np.ix_(*index)]
