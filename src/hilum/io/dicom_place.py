"""Series and image number -> stored image -> place in millimetres -> depth in any grid of the same frame.

"Series 4, image 38" is SeriesNumber (0020,0011) and InstanceNumber (0020,0013). They only name an image;
where it lies comes from ImagePositionPatient and ImageOrientationPatient, and nothing is ever sorted by
number. Numbers that name two images are refused, not guessed.

Sources: DICOM PS3.3 C.7.3.1 (series number), C.7.6.1 (instance number), C.7.6.2 (image plane), C.7.4.1 (frame
of reference).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from hilum.errors import SeriesError
from hilum.geometry import Geometry
from hilum.io.checks import Docket
from hilum.io.dicom_header import ImageHeader
from hilum.io.dicom_index import index_images, open_sources
from hilum.io.dicom_stack import MIN_SLICES, SCOUT_ANGLE_RAD, angle_rad, axes_of, placed
from hilum.io.limits import Limits
from hilum.volume import Finding

SAMPLES = 33
"""Points along each side of an image that are looked up in a target; odd, so that its centre is one."""


@dataclass(frozen=True, eq=False)
class ImagePlace:
    """One stored image and where it lies.

    Args:
        study_uid, series_uid, sop_uid: identifiers. series_number, number: as viewers show them.
        frame: frame within an enhanced file, from 1; None for a file of one image.
        acquisition: acquisition number, where there is one.
        plane: its grid, shape [columns, rows, 1], mm RAS+, third axis along the normal.
    """

    study_uid: str | None
    series_uid: str
    series_number: int | None
    sop_uid: str
    number: int
    frame: int | None
    acquisition: int | None
    plane: Geometry

    @property
    def centre_mm(self) -> tuple[float, float, float]:
        """Centre of the image, mm RAS+."""
        x, y, z = (float(v) for v in self.plane.centre_mm[0])
        return x, y, z

    @property
    def z_mm(self) -> float:
        """Height of its centre, mm RAS+ (towards the head)."""
        return self.centre_mm[2]


@dataclass(frozen=True)
class Depth:
    """Where an image lies along one axis of a target grid, in voxel indices of that axis.

    Args:
        axis: of the target: the one nearest to the image's normal. index: nearest slice.
        exact_vox: place of the image's middle, where it is inside the target.
        low_vox, high_vox: lowest and highest place of the image inside the target; they differ where the
            planes are not parallel, and what the report means lies somewhere between them.
    """

    axis: int
    index: int
    exact_vox: float
    low_vox: float
    high_vox: float


@dataclass
class Study:
    """The CT images of one study, by series.

    Args:
        images: headers of every image, in any order. path: named in errors.
        findings: what reading them found.
    """

    images: Sequence[ImageHeader]
    path: str = ""
    findings: tuple[Finding, ...] = ()
    series: dict[str, list[ImageHeader]] = field(init=False)

    def __post_init__(self) -> None:
        studies = {i.study_uid for i in self.images}
        if len(studies) > 1:
            raise self._ambiguous(
                "images of one study", f"images of {len(studies)} studies", "a folder with one study"
            )
        self.series = {}
        for image in self.images:
            self.series.setdefault(image.series_uid, []).append(image)

    def find(self, series: int | None, image: int, *, total: int | None = None) -> ImagePlace:
        """The image that a report names.

        Args:
            series: SeriesNumber; None when the report names none: then one series alone may have that image.
            image: InstanceNumber. total: N of "image n of N", which must be the number of images.

        Raises:
            SeriesError: no such series or image (`IMAGE_UNKNOWN`); the numbers name several
                (`IMAGE_AMBIGUOUS`); a localizer (`LOCALIZER`); no position or orientation (`NO_GEOMETRY`).
        """
        members = self._members(series, image)
        named = f"series {members[0].series_number}, image {image}"
        if total is not None and len(_distinct(members)) != total:
            got = f"{len(_distinct(members))} images where the report counts {total}"
            raise self._ambiguous(named, got, "the instance number instead of a place in a list")
        found = [i for i in members if i.number == image]
        if len(_distinct(found)) > 1 or len({(i.plane.position, i.plane.orientation) for i in found}) > 1:
            phases = sorted({i.acquisition for i in found if i.acquisition is not None})
            told = f" of acquisitions {', '.join(map(str, phases))}" if len(phases) > 1 else ""
            raise self._ambiguous(
                named, f"{len(found)} images with that number{told}", "the SOP instance UID"
            )
        self._check_place(found[0], members, named)
        return _place(found[0], image)

    def _members(self, series: int | None, image: int) -> list[ImageHeader]:
        """The images of the one series that is meant; scouts are left out where there is anything else."""
        named = [m for m in self.series.values() if series is None or m[0].series_number == series]
        slices = [[i for i in members if "LOCALIZER" not in i.image_type] for members in named]
        with_number = [m for m in slices if any(i.number == image for i in m)]
        if series is not None and len([m for m in slices if m]) > 1:
            uids = ", ".join(f"…{m[0].series_uid[-8:]}" for m in slices if m)
            raise self._ambiguous(f"one series with number {series}", uids, "the series instance UID")
        if len(with_number) == 1:
            return with_number[0]
        if len(with_number) > 1:
            numbers = ", ".join(sorted(str(m[0].series_number) for m in with_number))
            raise self._ambiguous(
                f"one series with an image {image}", f"series {numbers}", "the series number"
            )
        scouts = [i for members in named for i in members if i.number == image]
        if scouts:
            raise SeriesError(
                "LOCALIZER", "a report points at a slice", expected="a slice", path=self.path or None,
                got=f"image {image} of series {scouts[0].series_number}, a localizer",
            )  # fmt: skip
        raise self._unknown(series, image, named)

    def _check_place(self, found: ImageHeader, members: Sequence[ImageHeader], named: str) -> None:
        """The image has a plane, and looks the way its series does."""
        if not placed(found):
            raise SeriesError(
                "NO_GEOMETRY", "an image that is pointed at has a place", path=self.path or None, got=named,
                expected="ImagePositionPatient, ImageOrientationPatient, PixelSpacing",
            )  # fmt: skip
        turned = [i for i in members if placed(i) and angle_rad(i, found) > SCOUT_ANGLE_RAD]
        if len(members) - len(turned) < MIN_SLICES <= len(turned):
            degrees = np.degrees(angle_rad(turned[0], found))
            raise SeriesError(
                "LOCALIZER", "a report points at a slice", expected="the orientation of its series",
                got=f"{named}, turned by {degrees:.0f} degrees", path=self.path or None,
            )  # fmt: skip

    def _unknown(self, series: int | None, image: int, named: Sequence[Sequence[ImageHeader]]) -> SeriesError:
        if named and series is not None:
            numbers = sorted({i.number for i in named[0] if i.number is not None})
            got = f"images {numbers[0]} to {numbers[-1]}" if numbers else "images without numbers"
        else:
            counts = Counter(m[0].series_number for m in self.series.values())
            got = "series " + ", ".join(sorted((str(n) for n in counts), key=lambda n: (len(n), n)))
        wanted = f"image {image}" if series is None else f"series {series}, image {image}"
        return SeriesError(
            "IMAGE_UNKNOWN", "a report points at an image of its own study", expected=wanted, got=got,
            path=self.path or None, hint="It may lie in an earlier study or in a series that was not sent.",
        )  # fmt: skip

    def _ambiguous(self, expected: str, got: str, better: str) -> SeriesError:
        return SeriesError(
            "IMAGE_AMBIGUOUS", "series and image number name one image", expected=expected, got=got,
            path=self.path or None, hint=f"Point at it by {better}.",
        )  # fmt: skip


def read_study(path: str | Path, *, limits: Limits | None = None) -> Study:
    """The CT images below a folder or in a zip archive, undecoded. Damaged files are noted.

    Raises:
        ContainerError: nothing there that can be read (`NOT_AN_IMAGE`, `NOT_CT`, `NOT_FOUND`, ...).
        SeriesError: images of several studies (`IMAGE_AMBIGUOUS`).
    """
    limits = limits or Limits()
    docket = Docket(mode="report-only", path=str(path), error=SeriesError, kind="dicom")
    with open_sources(path, docket, limits) as sources:
        index = index_images(sources, docket, limits)
    return Study(index.images, str(path), tuple(docket.findings))


def depth_in(place: ImagePlace, target: Geometry, *, same_frame: bool = False) -> Depth:
    """Depth of an image in another grid, through world coordinates.

    Args:
        place: of `Study.find`. target: any grid, e.g. `volume.geometry`.
        same_frame: the caller knows that both share a frame of reference although `target` does not say (a
            NIfTI made from the same study).

    Raises:
        SeriesError: other or unknown frame of reference (`FRAME_OF_REFERENCE`), or no part of the image lies
            in the target (`IMAGE_OUTSIDE`).
    """
    ours, theirs = place.plane.frame_uid, target.frame_uid
    told = ours is not None and theirs is not None
    if (told and ours != theirs) or not (told or same_frame):
        raise SeriesError(
            "FRAME_OF_REFERENCE", "image and volume share a frame of reference",
            expected=ours or "a frame UID", got=theirs or "none",
            hint="Say same_frame=True only for a volume made from this very study.",
        )  # fmt: skip
    cosines = target.affine_ras[:3, :3] / np.linalg.norm(target.affine_ras[:3, :3], axis=0)
    reciprocal = np.linalg.inv(cosines)
    normals = reciprocal / np.linalg.norm(reciprocal, axis=1, keepdims=True)
    axis = int(np.abs(normals @ place.plane.affine_ras[:3, 2]).argmax())
    columns, rows, _ = place.plane.shape
    i, j = np.meshgrid(np.linspace(0, columns - 1, SAMPLES), np.linspace(0, rows - 1, SAMPLES), indexing="ij")
    points = np.stack([i.ravel(), j.ravel(), np.zeros(i.size)], axis=1)
    at_vox = target.to_vox(place.plane.to_mm(points))
    inside = ((at_vox >= -0.5) & (at_vox <= np.array(target.shape) - 0.5)).all(axis=1)
    if not inside.any():
        middle = at_vox[len(at_vox) // 2]
        raise SeriesError(
            "IMAGE_OUTSIDE", "the image lies inside the volume", expected=f"voxels 0 to {target.shape}",
            got=f"its middle at voxel {', '.join(f'{v:.1f}' for v in middle)}",
            hint="The volume may show another part of the body.",
        )  # fmt: skip
    depths = at_vox[inside, axis]
    exact = float(np.median(depths))
    index = int(np.clip(np.rint(exact), 0, target.shape[axis] - 1))
    return Depth(axis, index, exact, float(depths.min()), float(depths.max()))


def _distinct(images: Iterable[ImageHeader]) -> set[tuple[str, int]]:
    """Stored images; the same file twice is one."""
    return {(i.sop_uid, i.frame) for i in images}


def _place(image: ImageHeader, number: int) -> ImagePlace:
    """The plane of an image as a grid of one slice (PS3.3 C.7.6.2.1.1)."""
    row, column, normal = axes_of(image)
    between_rows, between_columns = (image.plane.spacing or (1.0, 1.0))[:2]
    affine = np.eye(4)
    affine[:3, 0], affine[:3, 1], affine[:3, 2] = row * between_columns, column * between_rows, normal
    affine[:3, 3] = image.plane.position or (0.0, 0.0, 0.0)
    shape = (image.pixels.columns, image.pixels.rows, 1)
    return ImagePlace(
        image.study_uid, image.series_uid, image.series_number, image.sop_uid, number,
        image.frame + 1 if image.frames > 1 else None, image.acquisition,
        Geometry.from_lps(shape, affine, image.frame_uid),
    )  # fmt: skip
