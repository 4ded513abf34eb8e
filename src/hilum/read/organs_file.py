"""`--organs FILE`: masks of the user's own instead of the model's.

Understood: a label map in TotalSegmentator's numbering, a folder of masks with TotalSegmentator's names, and
a label map with a table of names beside it (`organs.json`, or the `reading.json` of an earlier reading).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from edt import edt

from hilum.errors import ContainerError, HeaderError, SeriesError
from hilum.geometry import Geometry, axis_map
from hilum.io.hashing import sha256_of, sha256_of_parts
from hilum.io.label_files import read_labels, read_names
from hilum.read.organ_masks import OrganMasks, OrganSource
from hilum.read.sampling import sample_nearest
from hilum.read.totalsegmentator import CHANNEL_OF, LOBE_NAMES, NAME_OF
from hilum.text.vocabulary import ORGAN_CHANNELS
from hilum.types import MaskVolume
from hilum.volume import CTVolume

PLEURA_MM = 6.0
"""Half thickness of the shell along the lung surface that stands for the pleura."""


@dataclass
class _Collected:
    """Masks by structure name on the model grid, and what was not understood."""

    masks: dict[str, MaskVolume]
    rest: MaskVolume
    unknown: list[str]


def read_organs(path: str | Path, volume: CTVolume, model: OrganMasks) -> OrganMasks:
    """Organ masks from `path` on the grid of `model`; what the file lacks comes from the model or is
    derived, and is noted.

    Args:
        volume: the scan the masks belong to. model: the model's own masks.

    Raises:
        ContainerError, HeaderError: a file cannot be read, or holds none of the organs (`ORGANS_EMPTY`).
        SeriesError: the masks lie in another field of view than the scan (`FRAME_OF_REFERENCE`).
    """
    source = Path(path)
    if not source.exists():
        raise ContainerError(
            "NOT_FOUND", "the organ file exists", expected="a NIfTI file or a folder of them", path=source
        )
    if source.is_dir():
        found, sha256 = _from_folder(source, volume, model.grid)
    else:
        found, sha256 = _from_label_map(source, volume, model.grid), sha256_of(source)
    if not any(CHANNEL_OF.get(name) for name in found.masks):
        raise HeaderError(
            "ORGANS_EMPTY",
            "the organ file holds organs of the chest",
            expected="lung lobes, heart, trachea, esophagus … in TotalSegmentator's numbers or names",
            got=", ".join(found.unknown[:8]) or "no label that is known",
            path=source,
        )
    return _channels(found, model, sha256)


def require_same_field(masks: Geometry, volume: CTVolume, path: Path) -> None:
    """C14: masks may be coarser or finer, or on other axes, but their box of the patient is the scan's.

    Raises:
        SeriesError: corners more than 1.5 voxels (of the coarser grid) apart, or a different frame of
        reference.
    """
    scan = volume.geometry
    if None not in (masks.frame_uid, scan.frame_uid) and masks.frame_uid != scan.frame_uid:
        raise SeriesError(
            "FRAME_OF_REFERENCE",
            "masks and scan share a frame",
            expected=scan.frame_uid,
            got=masks.frame_uid,
            path=path,
        )
    straight = axis_map(masks).geometry(masks)
    tolerance_mm = 1.5 * max(*straight.spacing_mm, *scan.spacing_mm)
    apart_mm = float(np.linalg.norm(_box(straight) - _box(scan), axis=1).max())
    if apart_mm > tolerance_mm:
        raise SeriesError(
            "FRAME_OF_REFERENCE",
            "masks lie in the field of view of the scan",
            expected=f"corners within {tolerance_mm:.1f} mm",
            got=f"{apart_mm:.1f} mm apart",
            path=path,
            hint="Give masks made from this very scan (any orientation or resolution, same field of view).",
        )


def _box(grid: Geometry) -> np.ndarray:
    corners = np.array(list(itertools.product((0.0, 1.0), repeat=3)))
    return grid.to_mm(corners * np.array(grid.shape) - 0.5)


def _from_label_map(path: Path, volume: CTVolume, grid: Geometry) -> _Collected:
    labels, geometry = read_labels(path)
    require_same_field(geometry, volume, path)
    names = read_names(path) or NAME_OF
    near = sample_nearest(labels, geometry, grid, 0.0)
    present = [int(v) for v in np.unique(near) if v]
    masks = {names[v]: near == v for v in present if v in names}
    return _Collected(masks, near > 0, [str(v) for v in present if v not in names])


def _from_folder(folder: Path, volume: CTVolume, grid: Geometry) -> tuple[_Collected, str]:
    masks: dict[str, MaskVolume] = {}
    unknown, hashes, known = [], [], {*NAME_OF.values(), *CHANNEL_OF}
    for name, path in _mask_files(folder):
        if name not in known:
            unknown.append(name)
        if name in CHANNEL_OF:
            values, geometry = read_labels(path)
            require_same_field(geometry, volume, path)
            masks[name] = sample_nearest(values, geometry, grid, 0.0) > 0
            hashes.append(sha256_of(path))
    rest = np.zeros(grid.shape, dtype=bool)
    for mask in masks.values():
        rest |= mask
    return _Collected(masks, rest, unknown), sha256_of_parts(hashes)


def _mask_files(folder: Path) -> Iterator[tuple[str, Path]]:
    for path in sorted(folder.iterdir()):
        name = path.name.removesuffix(".gz")
        if name.endswith(".nii") and path.is_file() and not name.startswith("."):
            yield name.removesuffix(".nii"), path


def _channels(found: _Collected, model: OrganMasks, sha256: str) -> OrganMasks:
    masks, source = dict(model.masks), dict(model.source)
    notes = [f"unknown labels of the organ file: {', '.join(found.unknown[:20])}"] if found.unknown else []
    for channel in ORGAN_CHANNELS:
        parts = [mask for name, mask in found.masks.items() if CHANNEL_OF.get(name) == channel]
        if parts and any(part.any() for part in parts):
            masks[channel] = np.logical_or.reduce(parts)
            source[channel] = "file"
    derived = _derive(found, model, masks, source)
    notes += derived
    kept = [c for c in ORGAN_CHANNELS if source[c] == "model"]
    if kept:
        notes.append(f"not in the organ file, taken from the model: {', '.join(kept)}")
    lobes = {LOBE_NAMES[name]: mask for name, mask in found.masks.items() if name in LOBE_NAMES}
    return OrganMasks(model.grid, masks, source, lobes, sha256, tuple(notes))


def _derive(
    found: _Collected, model: OrganMasks, masks: dict[str, MaskVolume], source: dict[str, OrganSource]
) -> list[str]:
    """Channels a segmentation rarely has whole: pleura, bronchi, mediastinum, global. Says what was done."""
    notes = []
    if source["pleura"] == "model" and source["lung"] == "file":
        masks["pleura"], source["pleura"] = lung_shell(masks["lung"], model.grid), "derived"
        notes.append(f"pleura: shell of {PLEURA_MM:.0f} mm on either side of the lung surface")
    if source["airways"] == "file" and "airways" not in found.masks:
        masks["airways"], source["airways"] = masks["airways"] | model.masks["airways"], "derived"
        notes.append("airways: trachea of the file and bronchi of the model")
    if source["mediastinum"] == "file" and "mediastinum" not in found.masks:
        masks["mediastinum"] = masks["mediastinum"] | (model.masks["mediastinum"] & ~masks["heart"])
        source["mediastinum"] = "derived"
        notes.append("mediastinum: great vessels of the file and the rest from the model")
    masks["global"], source["global"] = model.masks["global"] | found.rest, "derived"
    return notes


def lung_shell(lung: MaskVolume, grid: Geometry) -> MaskVolume:
    """Voxels within `PLEURA_MM` of the lung surface, on either side."""
    spacing = grid.spacing_mm
    outside = edt(np.ascontiguousarray(~lung), anisotropy=spacing)
    inside = edt(np.ascontiguousarray(lung), anisotropy=spacing)
    return (np.where(lung, inside, outside) <= PLEURA_MM + max(spacing) / 2) & (lung.any())
