"""A CT volume written as a conformant DICOM CT Image series, one file per slice.

Sources: DICOM PS3.3 A.3 (CT Image IOD), C.7.6.2 (Image Plane), C.8.2.1 (CT Image), C.7.5.1.1.2 (Pixel
Padding); PS3.5 B.2 (UIDs under 2.25). Unique identifiers follow from a seed, so equal calls give equal
bytes. File names come from our own numbering, never from data.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.filewriter import dcmwrite
from pydicom.uid import (
    UID,
    CTImageStorage,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLSLossless,
    RLELossless,
)
from pydicom.valuerep import format_number_as_ds

from hilum.errors import OutputError, UsageError
from hilum.geometry import Geometry
from hilum.io.atomic import atomic_folder
from hilum.types import VolumeHU
from hilum.volume import SliceRef

TransferSyntax = Literal["explicit", "implicit", "bigendian", "deflated", "rle", "jpegls", "j2k"]
SYNTAX_UIDS = {
    "explicit": ExplicitVRLittleEndian,
    "implicit": ImplicitVRLittleEndian,
    "bigendian": ExplicitVRBigEndian,
    "deflated": DeflatedExplicitVRLittleEndian,
    "rle": RLELossless,
    "jpegls": JPEGLSLossless,
    "j2k": JPEG2000Lossless,
}
"""All lossless: what is written is what is read."""

IMPLEMENTATION_UID = "2.25." + str(int(hashlib.sha256(b"hilum dicom writer 1").hexdigest()[:32], 16))


@dataclass(frozen=True)
class SeriesHeader:
    """Everything about a written series that is not voxels or geometry.

    Args:
        seed: every UID that is not given follows from it; equal seeds give equal UIDs.
        patient_id: a synthetic key, never a person. Also written as PatientName.
        study_uid, series_uid, frame_uid: given identifiers; None derives them (frame: from the
            geometry, else the seed).
        series_number, acquisition_number: shown by viewers.
        description: SeriesDescription. kernel: ConvolutionKernel. kvp: tube voltage, kV.
        thickness_mm: SliceThickness; None means the slice spacing (it may differ: overlapping
            reconstruction).
        contrast: ContrastBolusAgent, empty for none. patient_position: ``HFS``, ``FFS``, ``HFP``, ...
        manufacturer: ``Manufacturer``. sex: ``F``, ``M`` or ``O``. age_years: None leaves it empty.
        image_type: ImageType values. numbering: which end of the stack is image 1.
        slope, intercept: stored value -> HU. signed: PixelRepresentation; None picks unsigned when all values
            fit.
        padding_hu: HU that stands for "not scanned"; written as PixelPaddingValue.
        window_hu: display window, centre and width.
    """

    seed: str = "hilum"
    patient_id: str = "SYNTHETIC"
    study_uid: str | None = None
    series_uid: str | None = None
    frame_uid: str | None = None
    series_number: int = 1
    acquisition_number: int = 1
    description: str = "synthetic chest CT"
    kernel: str = "STANDARD"
    kvp: float = 120.0
    thickness_mm: float | None = None
    contrast: str = ""
    patient_position: str = "HFS"
    manufacturer: str = "Hilum phantom"
    sex: Literal["F", "M", "O"] = "O"
    age_years: int | None = None
    image_type: tuple[str, ...] = ("ORIGINAL", "PRIMARY", "AXIAL")
    numbering: Literal["top", "bottom"] = "top"
    slope: float = 1.0
    intercept: float = -1024.0
    signed: bool | None = None
    padding_hu: float | None = None
    window_hu: tuple[float, float] = (-600.0, 1500.0)


def uid_from(seed: str) -> str:
    """A valid UID that follows from `seed` (PS3.5 B.2: 2.25. and a 128-bit number)."""
    return "2.25." + str(int(hashlib.sha256(seed.encode()).hexdigest()[:32], 16))


def write_ct_series(
    folder: str | Path,
    hu: VolumeHU,
    geometry: Geometry,
    *,
    header: SeriesHeader | None = None,
    transfer_syntax: TransferSyntax = "explicit",
) -> list[SliceRef]:
    """Write one DICOM file per slice into a new folder, all or nothing.

    Args:
        folder: must not exist or must be empty. Files are called ``IM00001.dcm`` by instance number.
        hu: float32 HU on source axes [columns, rows, slices].
        geometry: grid of `hu`; columns and rows at right angles, the slice axis may be sheared (gantry tilt).
        header: what else is written.
        transfer_syntax: one of the keys of `SYNTAX_UIDS`; all are lossless.

    Returns:
        One `SliceRef` per slice, in the order of the array's slice axis.

    Raises:
        OutputError: the folder holds something (`OUTPUT_EXISTS`).
        UsageError: shapes differ, rows and columns not at right angles, or HU that do not fit in 16 bits.
    """
    header = header or SeriesHeader()
    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise OutputError(
            "OUTPUT_EXISTS",
            "a series is written into a new folder",
            expected="no folder, or an empty one",
            path=folder,
        )
    if hu.shape != geometry.shape:
        raise UsageError("GRID_MISMATCH", "HU lie on their grid", expected=geometry.shape, got=hu.shape)
    stored = _stored_values(hu, header)
    common = _common_dataset(header, geometry, stored)
    numbers = _instance_numbers(geometry, header.numbering)
    refs: list[SliceRef] = []
    folder.parent.mkdir(parents=True, exist_ok=True)
    with atomic_folder(folder, overwrite=True) as temp:
        for index, number in enumerate(numbers):
            ds = _slice_dataset(common, header, geometry, index, number)
            _put_pixels(ds, stored[:, :, index], transfer_syntax)
            _save(ds, temp / f"IM{number:05d}.dcm", SYNTAX_UIDS[transfer_syntax])
            refs.append(SliceRef(str(ds.SOPInstanceUID), number, slice_centre_mm(geometry, index)))
    return refs


def slice_centre_mm(geometry: Geometry, index: int) -> tuple[float, float, float]:
    """Centre of slice `index` of the third axis, mm RAS+."""
    middle = [(geometry.shape[0] - 1) / 2, (geometry.shape[1] - 1) / 2, index]
    x, y, z = geometry.to_mm(np.array([middle], dtype=np.float64))[0]
    return float(x), float(y), float(z)


def _stored_values(hu: np.ndarray, header: SeriesHeader) -> np.ndarray:
    """HU -> int16 or uint16 stored values, rounded to the nearest."""
    stored = np.rint((hu.astype(np.float64) - header.intercept) / header.slope)
    low, high = float(stored.min()), float(stored.max())
    if header.padding_hu is not None:
        low = min(low, _stored_padding(header))
    signed = low < 0 if header.signed is None else header.signed
    dtype = np.int16 if signed else np.uint16
    limits = np.iinfo(dtype)
    if not (np.isfinite(low) and limits.min <= low and high <= limits.max):
        raise UsageError(
            "HU_RANGE",
            "stored values fit in 16 bits",
            expected=f"{limits.min}..{limits.max}",
            got=f"{low:g}..{high:g}",
            hint="Clip the HU, or choose another intercept or `signed`.",
        )
    return stored.astype(dtype)


def _stored_padding(header: SeriesHeader) -> int:
    return round(((header.padding_hu or 0.0) - header.intercept) / header.slope)


def _instance_numbers(geometry: Geometry, numbering: str) -> list[int]:
    """Instance number of each slice of the third axis; "top" is the superior end (last end, when level)."""
    count = geometry.shape[2]
    grows_up = geometry.affine_ras[2, 2] > 0
    ascending = list(range(1, count + 1))
    return ascending if grows_up == (numbering == "bottom") else ascending[::-1]


def _common_dataset(header: SeriesHeader, geometry: Geometry, stored: np.ndarray) -> Dataset:
    """The attributes that all slices share, pixel description included."""
    ds = Dataset()
    _put_identity(ds, header, geometry)
    _put_acquisition(ds, header, geometry)
    signed = stored.dtype == np.int16
    ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
    ds.Rows, ds.Columns = geometry.shape[1], geometry.shape[0]
    ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 16, 16, 15, int(signed)
    ds.RescaleIntercept, ds.RescaleSlope, ds.RescaleType = _ds(header.intercept), _ds(header.slope), "HU"
    ds.WindowCenter, ds.WindowWidth = _ds(header.window_hu[0]), _ds(header.window_hu[1])
    if header.padding_hu is not None:
        ds.add_new(0x00280120, "SS" if signed else "US", _stored_padding(header))
    return ds


def _put_identity(ds: Dataset, header: SeriesHeader, geometry: Geometry) -> None:
    """Patient, study, series and equipment modules."""
    ds.SOPClassUID = CTImageStorage
    ds.PatientName = ds.PatientID = header.patient_id
    ds.PatientBirthDate = ""
    ds.PatientSex = header.sex
    ds.PatientAge = "" if header.age_years is None else f"{header.age_years:03d}Y"
    ds.StudyDate = ds.StudyTime = ds.AccessionNumber = ds.ReferringPhysicianName = ""
    ds.StudyID = "1"
    ds.StudyInstanceUID = header.study_uid or uid_from(f"{header.seed}/study")
    ds.SeriesInstanceUID = header.series_uid or uid_from(f"{header.seed}/series/{header.series_number}")
    ds.FrameOfReferenceUID = header.frame_uid or geometry.frame_uid or uid_from(f"{header.seed}/frame")
    ds.PositionReferenceIndicator = ""
    ds.Modality, ds.SeriesNumber, ds.SeriesDescription = "CT", header.series_number, header.description
    ds.BodyPartExamined, ds.PatientPosition = "CHEST", header.patient_position
    ds.Manufacturer, ds.ManufacturerModelName = header.manufacturer, "simulation"
    ds.SoftwareVersions = "1"


def _put_acquisition(ds: Dataset, header: SeriesHeader, geometry: Geometry) -> None:
    """Image plane and CT acquisition, the part that does not change from slice to slice."""
    affine = geometry.affine_lps
    along_row, along_column, step = affine[:3, 0], affine[:3, 1], affine[:3, 2]
    column_mm, row_mm, _ = geometry.spacing_mm
    rows, columns = along_row / column_mm, along_column / row_mm
    if abs(float(rows @ columns)) > 1e-4:
        raise UsageError(
            "AFFINE_SHEAR",
            "rows and columns are at right angles",
            expected="dot < 1e-4",
            got=f"{rows @ columns:.2g}",
        )
    normal = np.cross(rows, columns)
    spacing_mm = abs(float(step @ normal))
    ds.ImageType = list(header.image_type)
    ds.AcquisitionNumber = header.acquisition_number
    ds.KVP, ds.ConvolutionKernel = _ds(header.kvp), header.kernel
    ds.SliceThickness = _ds(spacing_mm if header.thickness_mm is None else header.thickness_mm)
    ds.PixelSpacing = [_ds(row_mm), _ds(column_mm)]
    ds.ImageOrientationPatient = [_ds(v) for v in (*rows, *columns)]
    tilt = float(np.degrees(np.arctan2(np.linalg.norm(step - normal * (step @ normal)), spacing_mm)))
    ds.GantryDetectorTilt = _ds(round(tilt, 6))
    if header.contrast:
        ds.ContrastBolusAgent = header.contrast


def _slice_dataset(
    common: Dataset, header: SeriesHeader, geometry: Geometry, index: int, number: int
) -> FileDataset:
    """One slice without its pixels."""
    meta = FileMetaDataset()
    meta.FileMetaInformationVersion = b"\x00\x01"
    meta.MediaStorageSOPClassUID = CTImageStorage
    meta.ImplementationClassUID = UID(IMPLEMENTATION_UID)
    meta.ImplementationVersionName = "HILUM_1"
    ds = FileDataset("", Dataset(), file_meta=meta, preamble=b"\x00" * 128)
    ds.update(common)
    position = geometry.affine_lps @ np.array([0.0, 0.0, index, 1.0])
    ds.ImagePositionPatient = [_ds(v) for v in position[:3]]
    ds.SliceLocation = _ds(float(position[2]))
    ds.InstanceNumber = number
    ds.SOPInstanceUID = uid_from(f"{ds.SeriesInstanceUID}/{header.seed}/{header.acquisition_number}/{index}")
    meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID
    return ds


def _put_pixels(ds: FileDataset, plane: np.ndarray, transfer_syntax: str) -> None:
    """Pixel data of one slice ([columns, rows]), compressed where the syntax asks for it."""
    pixels = np.ascontiguousarray(plane.T)
    uid = SYNTAX_UIDS[transfer_syntax]
    ds.file_meta.TransferSyntaxUID = uid
    if uid.is_compressed and uid != DeflatedExplicitVRLittleEndian:
        try:
            ds.compress(uid, pixels, generate_instance_uid=False)
        except RuntimeError as error:  # OpenJPEG encodes nothing below 32 x 32
            raise UsageError(
                "CODEC_FAILED", f"slices can be encoded as {transfer_syntax}", got=f"{pixels.shape}: {error}"
            ) from error
        return
    big = uid == ExplicitVRBigEndian
    raw = pixels.astype(pixels.dtype.newbyteorder(">" if big else "<")).tobytes()
    ds.add_new(0x7FE00010, "OW", raw)


def _save(ds: FileDataset, path: Path, uid: str) -> None:
    big = uid == ExplicitVRBigEndian
    implicit = uid == ImplicitVRLittleEndian
    dcmwrite(path, ds, implicit_vr=implicit, little_endian=not big, enforce_file_format=True)


def _ds(value: float) -> str:
    """A number as a decimal string of at most 16 characters (PS3.5 6.2, VR DS)."""
    return format_number_as_ds(float(value) + 0.0)
