"""What one stored CT image says about itself: the few attributes a volume needs, typed, finite, and nothing
personal.

Sources: DICOM PS3.3 C.7.6.2 (Image Plane), C.7.6.3 (Image Pixel), C.8.2.1 (CT Image), C.8.15.3 (Enhanced
CT).
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any

from pydicom.datadict import tag_for_keyword
from pydicom.dataset import Dataset

from hilum.errors import ContainerError, SeriesError
from hilum.io.dicom_guard import PIXEL_DATA, Guarded, read_elements

CT_IMAGE = "1.2.840.10008.5.1.4.1.1.2"
ENHANCED_CT = ("1.2.840.10008.5.1.4.1.1.2.1", "1.2.840.10008.5.1.4.1.1.2.2")
"""Enhanced CT, and its legacy-converted twin."""

KEYWORDS = [
    "SOPClassUID",
    "SOPInstanceUID",
    "StudyInstanceUID",
    "SeriesInstanceUID",
    "FrameOfReferenceUID",
    "Modality",
    "SeriesNumber",
    "InstanceNumber",
    "AcquisitionNumber",
    "AcquisitionTime",
    "ContentTime",
    "ImageType",
    "Rows",
    "Columns",
    "PixelSpacing",
    "NumberOfFrames",
    "ImagePositionPatient",
    "ImageOrientationPatient",
    "SliceThickness",
    "SpacingBetweenSlices",
    "RescaleSlope",
    "RescaleIntercept",
    "RescaleType",
    "BitsAllocated",
    "BitsStored",
    "HighBit",
    "PixelRepresentation",
    "SamplesPerPixel",
    "PhotometricInterpretation",
    "PixelPaddingValue",
    "PixelPaddingRangeLimit",
    "ConvolutionKernel",
    "ContrastBolusAgent",
    "PatientPosition",
    "KVP",
    "Manufacturer",
    "LossyImageCompression",
    "LossyImageCompressionRatio",
    "LossyImageCompressionMethod",
    "BurnedInAnnotation",
    "SharedFunctionalGroupsSequence",
    "PerFrameFunctionalGroupsSequence",
]
TAGS = tuple(tag_for_keyword(k) or 0 for k in KEYWORDS)
REQUIRED = [
    "SOPInstanceUID",
    "SeriesInstanceUID",
    "Rows",
    "Columns",
    "BitsAllocated",
    "BitsStored",
    "HighBit",
    "PixelRepresentation",
    "PhotometricInterpretation",
]
UID_FORM = re.compile(r"[0-9][0-9.]{0,63}")


@dataclass(frozen=True)
class PixelForm:
    """How stored values are laid out (PS3.3 C.7.6.3).

    Args:
        rows, columns: matrix. allocated, stored, high_bit: bits. signed: two's complement.
        samples: values per pixel. photometric: ``MONOCHROME2`` for CT.
        padding, padding_limit: stored values that stand for "not scanned", None where not declared.
    """

    rows: int
    columns: int
    allocated: int
    stored: int
    high_bit: int
    signed: bool
    samples: int = 1
    photometric: str = "MONOCHROME2"
    padding: int | None = None
    padding_limit: int | None = None


@dataclass(frozen=True)
class Plane:
    """Where one image lies, DICOM patient coordinates (LPS, mm), None where the file does not say.

    Args:
        position: centre of the first pixel. orientation: cosines along a row, then along a column.
        spacing: between rows, between columns. thickness, declared_step: SliceThickness,
            SpacingBetweenSlices.
    """

    position: tuple[float, ...] | None
    orientation: tuple[float, ...] | None
    spacing: tuple[float, ...] | None
    thickness: float | None = None
    declared_step: float | None = None


@dataclass(frozen=True)
class ImageHeader:
    """One stored image: a single-frame file, or one frame of an enhanced file.

    Args:
        source: index of the file in its `FileList`. frame: frame within the file, from 0. frames: in
            the file.
        sop_uid, series_uid, study_uid, frame_uid: identifiers. series_number, number, acquisition: as shown
            by viewers (`number` of a frame is its place in the file, from 1).
        time: acquisition or content time, only to tell phases apart. image_type: ImageType values.
        plane, pixels: geometry and layout. slope, intercept: None where the file has none;
            rescale_type: unit.
        info: kernel, contrast, patient_position, thickness_mm, kvp, manufacturer, where present.
        lossy: "", or method and ratio. burned_in: BurnedInAnnotation is YES.
    """

    source: int
    frame: int
    frames: int
    sop_uid: str
    series_uid: str
    study_uid: str | None
    frame_uid: str | None
    series_number: int | None
    number: int | None
    acquisition: int | None
    time: str
    image_type: tuple[str, ...]
    plane: Plane
    pixels: PixelForm
    slope: float | None
    intercept: float | None
    rescale_type: str
    info: tuple[tuple[str, str], ...]
    lossy: str
    burned_in: bool

    @property
    def label(self) -> str:
        """How findings name the image: its number, or the end of its UID. Never a file name."""
        return f"image {self.number}" if self.number is not None else f"image …{self.sop_uid[-8:]}"


def text(ds: Dataset, keyword: str) -> str:
    """A text value, "" when absent or unreadable; several values are joined by a backslash."""
    try:
        value = ds.get(keyword)
    except Exception:  # a value that pydicom cannot convert is no value
        return ""
    if value is None:
        return ""
    if isinstance(value, str | bytes | int | float):
        return str(value).strip()
    try:
        return "\\".join(str(v) for v in value).strip()
    except TypeError:
        return str(value).strip()


def numbers(ds: Dataset, keyword: str, count: int) -> tuple[float, ...] | None:
    """`count` finite numbers, or None when absent, of another length or not numbers."""
    parts = [p for p in text(ds, keyword).split("\\") if p]
    if len(parts) != count:
        return None
    try:
        values = tuple(float(p) for p in parts)
    except ValueError:
        return None
    return values if all(math.isfinite(v) for v in values) else None


def number(ds: Dataset, keyword: str) -> float | None:
    """One finite number, or None."""
    values = numbers(ds, keyword, 1)
    return None if values is None else values[0]


def whole(ds: Dataset, keyword: str) -> int | None:
    """One whole number, or None."""
    value = number(ds, keyword)
    return None if value is None or value != int(value) else int(value)


def uid(ds: Dataset, keyword: str) -> str | None:
    """A UID of legal form (PS3.5 9.1), or None: nothing else may travel into names or outputs."""
    value = text(ds, keyword).rstrip("\0")
    return value if UID_FORM.fullmatch(value) else None


def header_dataset(guarded: Guarded) -> Dataset:
    """The attributes above as a pydicom dataset, nothing else."""
    return read_elements(guarded, TAGS)


def read_pixel_form(ds: Dataset, where: str) -> PixelForm:
    """Layout of the stored values.

    Raises:
        ContainerError: a required attribute is missing (`DICOM_CUT`).
    """
    numeric = ("Rows", "Columns", "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation")
    values = {k: whole(ds, k) for k in numeric}
    missing = [k for k in REQUIRED if values.get(k) is None and not text(ds, k)]
    missing += [k for k in ("SOPInstanceUID", "SeriesInstanceUID") if k not in missing and uid(ds, k) is None]
    missing += [k for k, v in values.items() if v is None and k not in missing]
    if missing:
        raise incomplete(missing, where)
    rows, columns, allocated, stored, high, signed = (values[k] or 0 for k in numeric)
    return PixelForm(
        rows,
        columns,
        allocated,
        stored,
        high,
        bool(signed),
        samples=whole(ds, "SamplesPerPixel") or 1,
        photometric=text(ds, "PhotometricInterpretation"),
        padding=_stored_value(ds, "PixelPaddingValue", allocated, bool(signed)),
        padding_limit=_stored_value(ds, "PixelPaddingRangeLimit", allocated, bool(signed)),
    )


def read_plane(ds: Dataset) -> Plane:
    """Image plane attributes; what is absent or not finite is None and judged with the series."""
    return Plane(
        numbers(ds, "ImagePositionPatient", 3),
        numbers(ds, "ImageOrientationPatient", 6),
        numbers(ds, "PixelSpacing", 2),
        number(ds, "SliceThickness"),
        number(ds, "SpacingBetweenSlices"),
    )


def read_header(guarded: Guarded, ds: Dataset, source: int, where: str) -> ImageHeader:
    """One single-frame CT image.

    Raises:
        ContainerError: required attributes or the pixel data are missing (`DICOM_CUT`).
        SeriesError: several frames outside the enhanced classes (`MULTIFRAME`).
    """
    form = read_pixel_form(ds, where)
    if PIXEL_DATA not in guarded.spans:
        raise incomplete(["PixelData"], where)
    if (whole(ds, "NumberOfFrames") or 1) != 1:
        raise SeriesError(
            "MULTIFRAME",
            "several frames come with per-frame geometry",
            expected="Enhanced CT Image Storage",
            got=f"CT Image Storage with {text(ds, 'NumberOfFrames')} frames",
            path=where or None,
        )
    return ImageHeader(
        source=source,
        frame=0,
        frames=1,
        number=whole(ds, "InstanceNumber"),
        acquisition=whole(ds, "AcquisitionNumber"),
        time=text(ds, "AcquisitionTime") or text(ds, "ContentTime"),
        image_type=image_type(ds, "ImageType"),
        plane=read_plane(ds),
        pixels=form,
        slope=number(ds, "RescaleSlope"),
        intercept=number(ds, "RescaleIntercept"),
        rescale_type=text(ds, "RescaleType").upper(),
        **common_fields(ds),
    )


def common_fields(ds: Dataset) -> dict[str, Any]:
    """Identity and remarks that single frames and enhanced files share."""
    lossy = ""
    if text(ds, "LossyImageCompression") == "01":
        ratio, method = text(ds, "LossyImageCompressionRatio"), text(ds, "LossyImageCompressionMethod")
        lossy = f"method {method or 'unknown'}, ratio {ratio or 'unknown'}"
    return {
        "sop_uid": uid(ds, "SOPInstanceUID") or "",
        "series_uid": uid(ds, "SeriesInstanceUID") or "",
        "study_uid": uid(ds, "StudyInstanceUID"),
        "frame_uid": uid(ds, "FrameOfReferenceUID"),
        "series_number": whole(ds, "SeriesNumber"),
        "info": read_info(ds),
        "lossy": lossy,
        "burned_in": text(ds, "BurnedInAnnotation").upper() == "YES",
    }


def read_info(ds: Dataset) -> tuple[tuple[str, str], ...]:
    """What a score should be read beside.

    SeriesDescription and every name stay behind: free text may be personal.
    """
    keys = {
        "kernel": "ConvolutionKernel",
        "contrast": "ContrastBolusAgent",
        "patient_position": "PatientPosition",
        "thickness_mm": "SliceThickness",
        "kvp": "KVP",
        "manufacturer": "Manufacturer",
    }
    values = {key: text(ds, keyword)[:64] for key, keyword in keys.items()}
    if values["contrast"]:
        values["contrast"] = "yes"  # the agent is free text; that there was one is what matters
    return tuple((k, v) for k, v in values.items() if v)


def image_type(ds: Dataset, keyword: str) -> tuple[str, ...]:
    """ImageType or FrameType values, upper case."""
    return tuple(v.strip().upper() for v in text(ds, keyword).split("\\") if v.strip())


def incomplete(missing: list[str], where: str) -> ContainerError:
    """The refusal of a slice that lacks what every CT image has (row A13)."""
    return ContainerError(
        "DICOM_CUT",
        "every CT image has its required attributes",
        expected=", ".join(missing),
        got="absent or unreadable",
        path=where or None,
        hint="The file may be cut short; fetch it again.",
    )


def _stored_value(ds: Dataset, keyword: str, allocated: int, signed: bool) -> int | None:
    """A padding attribute as a stored value.

    Its VR is often the wrong one of US and SS, so only the bits count.
    """
    try:
        value = ds.get(keyword)
    except Exception:
        return None
    if isinstance(value, bytes):
        value = int.from_bytes(value[:2], "little") if len(value) >= 2 else None
    if not isinstance(value, int) or not 0 < allocated <= 32:
        return None
    value &= (1 << allocated) - 1
    return value - (1 << allocated) if signed and value >> (allocated - 1) else value
