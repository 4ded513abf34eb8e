"""Organ masks of a whole cohort for training: TotalSegmentator's, or those of a model of ours."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from hilum.cohort.mask_sources import MaskJob
from hilum.cohort.records import MaskRef, ScanRecord
from hilum.errors import ContainerError
from hilum.io.confine import confined
from hilum.io.label_files import read_labels
from hilum.read.organ_masks import OrganMasks
from hilum.read.organs_file import read_organs
from hilum.read.sampling import sample_nearest
from hilum.read.scan_model import ScanModel
from hilum.read.totalsegmentator import NAME_OF
from hilum.text.vocabulary import ORGAN_CHANNELS
from hilum.types import MaskVolume
from hilum.volume import CTVolume

SUFFIXES = (".nii.gz", ".nii", "")
"""A label map, or a folder of masks."""


SPINE = "vertebrae_"


@dataclass(frozen=True)
class TotalSegmentatorMasks:
    """TotalSegmentator's label maps or folders.

    Lung, heart and oesophagus are its own; pleura is the shell along the lung's surface and `global` all of
    its structures together, where vertebrae are among them: a few organs are not the body. It has no bronchi
    and no mediastinum as EXACT means them: those channels are unknown, unless a folder brings masks of those
    names.

    Args:
        folder: with KEY.nii.gz or KEY/ per scan; None takes what the data set itself has.
    """

    folder: str | None = None

    @property
    def channels(self) -> tuple[str, ...]:
        """See `MaskSource`."""
        return ORGAN_CHANNELS

    def facts(self) -> dict[str, Any]:
        """See `MaskSource`."""
        return {"kind": "totalsegmentator", "own": self.folder is None}

    def has(self, record: ScanRecord) -> bool:
        """See `MaskSource`."""
        return self._path(record, Path()) is not None

    def masks(self, volume: CTVolume, job: MaskJob) -> dict[str, MaskVolume]:
        """See `MaskSource`."""
        path = self._path(job.record, Path(job.root))
        if path is None:
            raise ContainerError("MASK_MISSING", "the scan has organ masks", got=job.key)
        nothing = np.zeros((len(ORGAN_CHANNELS), *volume.shape), dtype=np.float32)
        masks = read_organs(path, volume, OrganMasks.of_model(volume.geometry, nothing))
        whole = {name for name, source in masks.source.items() if source == "file"}
        # what was derived from masks of a model that is not there is only a part
        known = whole | {"pleura"} if "lung" in whole else whole
        found = {name: masks.masks[name] for name in known}
        union = _whole(path, volume)
        return found if union is None else found | {"global": union}

    def _path(self, record: ScanRecord, root: Path) -> Path | None:
        if self.folder is None:
            own = _total(record)
            return None if own is None else confined(root, own.path)
        places = (confined(self.folder, f"{record.key}{suffix}") for suffix in SUFFIXES)
        return next((place for place in places if place.exists()), None)


@dataclass(frozen=True)
class ModelMasks:
    """What a model of ours says of every scan: the shipped one, or any folder that `hilum read` takes."""

    model: str = "phantom-small"

    @property
    def channels(self) -> tuple[str, ...]:
        """See `MaskSource`."""
        return ORGAN_CHANNELS

    def facts(self) -> dict[str, Any]:
        """See `MaskSource`."""
        loaded = _loaded(self.model)
        return {"kind": "model", "name": loaded.name, "sha256": loaded.sha256}

    def has(self, record: ScanRecord) -> bool:
        """See `MaskSource`."""
        return True

    def masks(self, volume: CTVolume, job: MaskJob) -> dict[str, MaskVolume]:
        """See `MaskSource`."""
        output = _loaded(self.model).run(volume)
        return {
            name: output.outline_trace.invert(np.ascontiguousarray(output.outlines[i], np.float32)) > 0.5
            for i, name in enumerate(ORGAN_CHANNELS)
        }


def _whole(path: Path, volume: CTVolume) -> MaskVolume | None:
    """Every structure of a label map or a folder together; None without a vertebra."""
    if not path.is_dir():
        labels, grid = read_labels(path)
        spine = [number for number, name in NAME_OF.items() if name.startswith(SPINE)]
        whole = np.isin(labels, spine).any()
        return sample_nearest(labels, grid, volume.geometry, 0.0) > 0 if whole else None
    files = [file for file in sorted(path.glob("*.nii*")) if not file.name.startswith(".")]
    if not any(file.name.startswith(SPINE) for file in files):
        return None
    union = np.zeros(volume.shape, dtype=bool)
    for file in files:
        labels, grid = read_labels(file)
        union |= sample_nearest(labels, grid, volume.geometry, 0.0) > 0
    return union


def _total(record: ScanRecord) -> MaskRef | None:
    return next((ref for ref in record.masks if ref.name == "totalsegmentator"), None)


@cache
def _loaded(name: str) -> ScanModel:
    return ScanModel.load(name)
