"""How much an input may ask of this machine, and what the user answered to what a file cannot tell.

Every budget is checked against what a header *says*, before anything is allocated or inflated.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

MIB = 1024 * 1024
GIB = 1024 * MIB

Mode = Literal["refuse", "repair", "report-only"]
"""refuse: a repair stops too. repair: unique, lossless fixes are made. report-only: what decodes is read."""


@dataclass(frozen=True)
class Limits:
    """Budgets of one reading.

    Args:
        max_voxels: voxels of one volume (2**30: 1024 x 1024 x 1024, 4 GiB of float32 HU).
        max_stored_bytes: bytes of the voxel data as stored, all frames.
        max_header_bytes: bytes of one image header with its extensions.
        max_files: files looked at in one folder.
        max_archive_members: members of one archive.
        max_archive_bytes: bytes of all members together, inflated.
        max_archive_ratio: inflated / packed bytes of an archive or gzip, judged above the floor.
        archive_ratio_floor_bytes: what inflates to less than this is harmless at any ratio.
        max_sequence_depth: nesting of DICOM sequences.
        max_dicom_elements: elements in one DICOM file, nested ones included.
        max_dicom_bytes: bytes of one DICOM file, and of one inflated Deflated dataset.
    """

    max_voxels: int = 2**30
    max_stored_bytes: int = 8 * GIB
    max_header_bytes: int = 16 * MIB
    max_files: int = 50_000
    max_archive_members: int = 20_000
    max_archive_bytes: int = 8 * GIB
    max_archive_ratio: float = 200.0
    archive_ratio_floor_bytes: int = 64 * MIB
    max_sequence_depth: int = 32
    max_dicom_elements: int = 2_000_000
    max_dicom_bytes: int = 4 * GIB


@dataclass(frozen=True)
class Placement:
    """What a data set's own table says of a file whose header cannot be believed.

    Args:
        affine_ras: first three rows of the affine, row by row, voxel index -> mm RAS+; None: the header's.
        slope, intercept: stored value -> HU.
        shape: voxels along the stored axes that the table expects; None: not said.
        source: what said so, for the finding.
    """

    affine_ras: tuple[float, ...] | None = None
    slope: float = 1.0
    intercept: float = 0.0
    shape: tuple[int, int, int] | None = None
    source: str = "a table"


@dataclass(frozen=True)
class Answers:
    """What the user answered where a file leaves a choice (policy ASK). None or False: not answered.

    Args:
        affine: ``sform`` or ``qform`` when they disagree or one is unusable (`--affine`).
        assume: orientation letters of the stored axes, e.g. ``RAS``, or ``rad-chestct`` (`--assume`).
        frame: which frame of a 4-D file (`--frame`, from 0).
        rectify: resample a sheared or tilted grid onto straight axes (`--rectify`).
        split: read the longest run of slices without a gap (`--split`).
        fill: how many missing slices in a row may be interpolated (`--fill`).
        regrid: resample irregular slices at their true positions (`--regrid`).
        rescale: slope and intercept where a DICOM series has none (`--rescale s,i`).
        series: DICOM series UID or number (`--series`).
        allow_mip: read a maximum or minimum intensity projection all the same (`--allow-mip`).
        accept_fov: the field of view is right although it is implausible for a chest (`--accept-fov`).
        placement: what a data set's table says in place of a NIfTI header; given by a cohort's source only.
    """

    affine: Literal["sform", "qform"] | None = None
    assume: str | None = None
    frame: int | None = None
    rectify: bool = False
    split: bool = False
    fill: int = 0
    regrid: bool = False
    rescale: tuple[float, float] | None = None
    series: str | int | None = None
    allow_mip: bool = False
    accept_fov: bool = False
    placement: Placement | None = None
