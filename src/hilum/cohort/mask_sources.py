"""Where masks come from, one scan at a time: the data set's own regions, or whatever it outlines of findings.

Masks of TotalSegmentator and of a model of ours need more than a cohort knows: `read.mask_sources`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np

from hilum.cohort.masks import read_mask
from hilum.cohort.organ_bits import How, MaskTrace, packed
from hilum.cohort.pipeline import Stored
from hilum.cohort.prep_presets import Codec, Pipeline
from hilum.cohort.records import MaskRef, ScanRecord
from hilum.cohort.store_write import StoreJob
from hilum.errors import ContainerError
from hilum.text.vocabulary import ORGAN_CHANNELS, REGIONS
from hilum.types import MaskVolume
from hilum.volume import CTVolume

LESION = "lesion"
"""The one channel of a store of findings."""

REGION_NAMES = {"trachea and bronchie": "airways", "esophagus": "oesophagus"} | {r: r for r in REGIONS}
"""RadGenome's words for its regions, and ours."""

DRAWN = ("finding/", "covid_lesion", "nodule", "lesion", "gtv")
"""How names of masks of findings begin, in any of the data sets that are read."""


@dataclass(frozen=True)
class MaskJob(StoreJob):
    """A scan whose masks are prepared.

    Args:
        record: of the scan, for its masks. root: of the data set.
    """

    record: ScanRecord = ScanRecord("", "", "")  # noqa: RUF009  frozen
    root: str = ""


@runtime_checkable
class MaskSource(Protocol):
    """Masks of one scan; goes to worker processes."""

    @property
    def channels(self) -> tuple[str, ...]:
        """What the bits stand for."""

    def facts(self) -> dict[str, Any]:
        """For the store: which source it is (JSON types only)."""

    def has(self, record: ScanRecord) -> bool:
        """Whether there is anything of this scan; nothing is opened."""

    def masks(self, volume: CTVolume, job: MaskJob) -> Mapping[str, MaskVolume]:
        """Channels that are known, on `volume.geometry`.

        Raises:
            HilumError: the scan's masks cannot be trusted.
        """


@dataclass(frozen=True)
class MaskPreparation:
    """Masks beside a preset's scans; a `store_write.Maker`.

    Args:
        pipeline: the grid. source: of the masks. how: see `organ_bits`.
    """

    pipeline: Pipeline
    source: MaskSource
    how: How = "nearest"

    @property
    def codec(self) -> Codec:
        """As the scans'."""
        return self.pipeline.codec

    def facts(self) -> dict[str, Any]:
        """For the store."""
        return {
            "name": f"{self.pipeline.name}-masks",
            "values": "bits",
            "axes": self.pipeline.axes,
            "channels": list(self.source.channels),
            "how": self.how,
            "source": self.source.facts(),
            "grid": self.pipeline.facts(),
        }

    def to_store(self, volume: CTVolume, job: StoreJob) -> Stored:
        """Reads, lays on the grid, packs."""
        assert isinstance(job, MaskJob), "a store of masks is made from jobs with masks"
        found = self.source.masks(volume, job)
        if not any(mask.any() for mask in found.values()):
            raise ContainerError(
                "MASK_MISSING", "a scan's masks hold something", expected="; ".join(self.source.channels),
                got="nothing", path=job.path,
            )  # fmt: skip
        bits, grid = packed(found, self.source.channels, volume, self.pipeline, self.how)
        known = tuple(channel for channel in self.source.channels if channel in found)
        return Stored(bits, 1.0, 0.0, MaskTrace(grid, self.facts(), known))


@dataclass(frozen=True)
class OwnRegions:
    """The data set's own: seven channels as phantoms have them, or RadGenome's regions (EXACT §1.4).

    `global` is the union of all nine regions and unknown where one of them is missing.
    """

    @property
    def channels(self) -> tuple[str, ...]:
        """See `MaskSource`."""
        return ORGAN_CHANNELS

    def facts(self) -> dict[str, Any]:
        """See `MaskSource`."""
        return {"kind": "own"}

    def has(self, record: ScanRecord) -> bool:
        """See `MaskSource`."""
        return bool(_named(record.masks, "organ/") or _regions(record.masks))

    def masks(self, volume: CTVolume, job: MaskJob) -> dict[str, MaskVolume]:
        """See `MaskSource`."""
        record = job.record
        organs = _named(record.masks, "organ/")
        if organs:
            chosen = {name: ref for name, ref in organs.items() if name in ORGAN_CHANNELS}
            return {name: read_mask(ref, record, job.root, volume) for name, ref in chosen.items()}
        refs = _regions(record.masks)
        found: dict[str, MaskVolume] = {}
        whole = np.zeros(volume.shape, dtype=bool)
        for region, ref in refs.items():
            mask = read_mask(ref, record, job.root, volume)
            whole |= mask
            if region in ORGAN_CHANNELS:
                found[region] = mask
        if set(refs) == set(REGIONS):
            found["global"] = whole
        return found


@dataclass(frozen=True)
class OwnFindings:
    """Everything that the data set outlines of findings, in one mask (EXACT §2.2, 2.3)."""

    @property
    def channels(self) -> tuple[str, ...]:
        """See `MaskSource`."""
        return (LESION,)

    def facts(self) -> dict[str, Any]:
        """See `MaskSource`."""
        return {"kind": "findings"}

    def has(self, record: ScanRecord) -> bool:
        """See `MaskSource`."""
        return bool(_drawn(record.masks))

    def masks(self, volume: CTVolume, job: MaskJob) -> dict[str, MaskVolume]:
        """See `MaskSource`."""
        union = np.zeros(volume.shape, dtype=bool)
        for ref in _drawn(job.record.masks):
            union |= read_mask(ref, job.record, job.root, volume)
        return {LESION: union}


def mask_jobs(rows: Iterable[tuple[StoreJob, ScanRecord]], source: MaskSource, root: Path) -> list[MaskJob]:
    """Jobs of the scans that have masks; the others teach findings alone."""
    return [
        MaskJob(job.key, job.path, job.answers, job.mode, job.sha256, record, str(root))
        for job, record in rows
        if source.has(record)
    ]


def _named(refs: Iterable[MaskRef], prefix: str) -> dict[str, MaskRef]:
    return {ref.name.removeprefix(prefix): ref for ref in refs if ref.name.startswith(prefix)}


def _regions(refs: Iterable[MaskRef]) -> dict[str, MaskRef]:
    named = _named(refs, "region/")
    return {REGION_NAMES[name]: ref for name, ref in named.items() if name in REGION_NAMES}


def _drawn(refs: Iterable[MaskRef]) -> list[MaskRef]:
    return [ref for ref in refs if ref.name.lower().startswith(DRAWN)]
