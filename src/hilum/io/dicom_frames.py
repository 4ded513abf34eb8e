"""Enhanced (multi-frame) CT: every frame as an image of its own, through the functional groups (row C15).

A per-frame group overrides the shared one. A file that leaves geometry or rescale out of its groups is
refused by name. Source: DICOM PS3.3 A.38, C.7.6.16 (functional groups), C.8.15.3 (CT).
"""

from __future__ import annotations

from pydicom.dataset import Dataset

from hilum.errors import SeriesError
from hilum.io.dicom_guard import PIXEL_DATA, Guarded
from hilum.io.dicom_header import (
    ImageHeader,
    Plane,
    common_fields,
    image_type,
    incomplete,
    number,
    numbers,
    read_pixel_form,
    text,
    whole,
)


def read_frames(guarded: Guarded, ds: Dataset, source: int, where: str) -> list[ImageHeader]:
    """The frames of an enhanced CT file, in stored order.

    Raises:
        ContainerError: required attributes or the pixel data are missing (`DICOM_CUT`).
        SeriesError: functional groups are missing or do not match the number of frames (`MULTIFRAME`).
    """
    form = read_pixel_form(ds, where)
    if PIXEL_DATA not in guarded.spans:
        raise incomplete(["PixelData"], where)
    count = whole(ds, "NumberOfFrames") or 0
    per_frame = _items(ds, "PerFrameFunctionalGroupsSequence")
    shared = (_items(ds, "SharedFunctionalGroupsSequence") or [Dataset()])[0]
    if count < 1 or len(per_frame) != count:
        raise _refused(f"{count} frames, {len(per_frame)} per-frame groups", where)
    common = common_fields(ds)
    frames = []
    for index, group in enumerate(per_frame):
        rescale = _group(group, shared, "PixelValueTransformationSequence")
        content = _group(group, shared, "FrameContentSequence")
        kind = image_type(_group(group, shared, "CTImageFrameTypeSequence"), "FrameType")
        frames.append(
            ImageHeader(
                source=source,
                frame=index,
                frames=count,
                number=index + 1,
                acquisition=_phase(content),
                time="",
                image_type=kind or image_type(ds, "ImageType"),
                plane=_plane(group, shared, index, where),
                pixels=form,
                slope=number(rescale, "RescaleSlope"),
                intercept=number(rescale, "RescaleIntercept"),
                rescale_type=text(rescale, "RescaleType").upper(),
                **(common | {"info": _info(common["info"], group, shared)}),
            )
        )
    return frames


def _plane(group: Dataset, shared: Dataset, index: int, where: str) -> Plane:
    measures = _group(group, shared, "PixelMeasuresSequence")
    position = numbers(_group(group, shared, "PlanePositionSequence"), "ImagePositionPatient", 3)
    cosines = numbers(_group(group, shared, "PlaneOrientationSequence"), "ImageOrientationPatient", 6)
    spacing = numbers(measures, "PixelSpacing", 2)
    if position is None or cosines is None or spacing is None:
        raise _refused(f"frame {index + 1} has no position, orientation or pixel spacing", where)
    return Plane(
        position,
        cosines,
        spacing,
        number(measures, "SliceThickness"),
        number(measures, "SpacingBetweenSlices"),
    )


def _info(info: tuple[tuple[str, str], ...], group: Dataset, shared: Dataset) -> tuple[tuple[str, str], ...]:
    """Kernel, tube voltage and thickness live in groups of their own in an enhanced file."""
    found = {
        "kernel": text(_group(group, shared, "CTReconstructionSequence"), "ConvolutionKernel")[:64],
        "kvp": text(_group(group, shared, "CTXRayDetailsSequence"), "KVP")[:64],
        "thickness_mm": text(_group(group, shared, "PixelMeasuresSequence"), "SliceThickness")[:64],
    }
    return tuple({**dict(info), **{k: v for k, v in found.items() if v}}.items())


def _phase(content: Dataset) -> int | None:
    """What tells phases of one file apart: temporal position, else acquisition number."""
    temporal = whole(content, "TemporalPositionIndex")
    return temporal if temporal is not None else whole(content, "FrameAcquisitionNumber")


def _items(ds: Dataset, keyword: str) -> list[Dataset]:
    try:
        return [item for item in ds.get(keyword) or [] if isinstance(item, Dataset)]
    except Exception:  # a sequence that pydicom cannot convert counts as absent
        return []


def _group(group: Dataset, shared: Dataset, keyword: str) -> Dataset:
    return (_items(group, keyword) or _items(shared, keyword) or [Dataset()])[0]


def _refused(got: str, where: str) -> SeriesError:
    return SeriesError(
        "MULTIFRAME",
        "every frame has its geometry in the functional groups",
        expected="plane position, orientation and pixel measures per frame",
        got=got,
        path=where or None,
        hint="Export the series as single-frame CT images.",
    )
