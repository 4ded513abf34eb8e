"""The last steps that every file format shares: shear, field of view, values, padding, RAS+ axes."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float32

from hilum.errors import HeaderError
from hilum.geometry import Geometry, axis_map
from hilum.io.affine import FREE_SHEAR, ROUNDING_SHEAR, check_shear, shear_of, straightened
from hilum.io.checks import Docket, check_fov, check_shape
from hilum.io.limits import Answers, Limits
from hilum.io.values import MODEL_RANGE_HU, fill_nonfinite, judge_values, scanned_mask
from hilum.types import VolumeHU
from hilum.volume import CTVolume, Provenance

OUTSIDE_HU = MODEL_RANGE_HU[0]


def settle_geometry(geometry: Geometry, docket: Docket, answers: Answers) -> Geometry:
    """Shear and field of view, before any voxel is read; returns the grid with rounding removed.

    Raises:
        HeaderError: `AFFINE_SHEAR`, `FOV_IMPLAUSIBLE`, when the docket's mode stops at them.
    """
    docket.geometry = geometry
    docket.add(check_shear(geometry.affine_ras, answers), HeaderError)
    if FREE_SHEAR < shear_of(geometry.affine_ras) < ROUNDING_SHEAR:
        affine = straightened(geometry.affine_ras, geometry.shape)
        geometry = Geometry(geometry.shape, affine, geometry.frame_uid)
        docket.geometry = geometry
        docket.will("straighten axes that rounding bent (nearest rotation, no resampling)")
    docket.add(check_fov(geometry, answers), HeaderError)
    return geometry


def build_volume(
    hu: VolumeHU, geometry: Geometry, kind: str, sha256: str, docket: Docket, answers: Answers, limits: Limits
) -> CTVolume:
    """Judges the values and brings array and grid to RAS+ axes.

    Args:
        hu: float32 on stored axes; changed in place where a repair is due.
        geometry: what `settle_geometry` returned.
        kind, sha256: for the provenance.
        docket, answers, limits: of this reading.

    Raises:
        HeaderError: `VOXEL_NAN`, `NOT_HU`, `HU_DOUBLE_RESCALE`, when the docket's mode stops at them.
    """
    axes = axis_map(geometry)
    docket.add(judge_values(axes.apply(hu)), HeaderError)
    mask = scanned_mask(hu)
    filled = 0 if mask is None else fill_nonfinite(hu)
    if filled:
        docket.will(f"fill {filled} NaN or infinite voxels with {OUTSIDE_HU:.0f} HU")
    if shear_of(geometry.affine_ras) >= ROUNDING_SHEAR and answers.rectify:
        hu, geometry = rectify(hu, geometry, limits)
        mask = scanned_mask(hu)
        docket.geometry = geometry
        docket.will(f"resample onto straight axes, {'x'.join(map(str, geometry.shape))} voxels (trilinear)")
    if geometry.axcodes != "RAS":
        docket.will(f"reorder stored axes {geometry.axcodes} to RAS (flips and swaps, no interpolation)")
    if any(f.code == "HU_RANGE" for f in docket.findings):
        docket.will(
            f"keep raw values; models see them clipped to {OUTSIDE_HU:.0f}..{MODEL_RANGE_HU[1]:.0f} HU"
        )
    provenance = Provenance(kind, sha256, findings=tuple(docket.findings))
    return CTVolume.from_source(hu, geometry, provenance, mask)


def rectify(
    hu: VolumeHU, geometry: Geometry, limits: Limits
) -> tuple[Float32[np.ndarray, "U V W"], Geometry]:
    """A sheared volume resampled (trilinear) onto straight axes that enclose it; outside is -1024 HU.

    The first axis keeps its direction, the plane of the first two too (they are the image plane of a tilted
    gantry); the third becomes their normal. Spacing along it is the true distance between planes.
    """
    # Not at the top: it takes a second to import and few inputs need it.
    from scipy import ndimage

    first, second, third = geometry.affine_ras[:3, :3].T
    x = first / np.linalg.norm(first)
    y = second - (second @ x) * x
    y /= np.linalg.norm(y)
    normal = np.cross(x, y) * np.sign(np.cross(x, y) @ third)
    steps = np.array([np.linalg.norm(first), abs(second @ y), abs(third @ normal)])
    matrix = np.column_stack([x, y, normal])
    corners = geometry.corners_mm() @ matrix
    low = corners.min(axis=0)
    counts = np.floor((corners.max(axis=0) - low) / steps + 1.0 + 1e-6).astype(int)
    shape = (int(counts[0]), int(counts[1]), int(counts[2]))
    check_shape(shape, limits)
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = matrix * steps, matrix @ low
    straight = Geometry(shape, affine, geometry.frame_uid)
    to_source = np.linalg.inv(geometry.affine_ras) @ affine
    # grid-constant fades over one voxel at the rim; plain constant would drop a whole face that rounding puts
    # at index -1e-15.
    moved = ndimage.affine_transform(
        hu,
        to_source[:3, :3],
        to_source[:3, 3],
        output_shape=shape,
        order=1,
        mode="grid-constant",
        cval=OUTSIDE_HU,
        prefilter=False,
    )
    return np.asarray(moved, dtype=np.float32), straight
