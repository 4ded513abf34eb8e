"""Is this affine the place of the voxels? Finite, invertible, not sheared; and what to do about the rest
(rows B01-B05)."""

from __future__ import annotations

import itertools

import numpy as np

from hilum.errors import HeaderError, UsageError
from hilum.geometry import Geometry
from hilum.io.limits import Answers
from hilum.types import AffineRas
from hilum.volume import Finding, Level

FREE_SHEAR = 1e-5
"""Cosine between two axes that float32 storage explains by itself."""
ROUNDING_SHEAR = 1e-3
"""Cosine up to which the nearest rotation is meant; beyond it the grid is truly sheared."""


def usable(affine: AffineRas) -> str | None:
    """None when the affine is finite and invertible, else the catalogue code that it breaks."""
    if not np.isfinite(affine).all():
        return "AFFINE_NAN"
    lengths = np.linalg.norm(affine[:3, :3], axis=0)
    if lengths.min() < 1e-6 or abs(np.linalg.det(affine[:3, :3] / lengths)) < 1e-3:
        return "AFFINE_SINGULAR"
    return None


def corner_distance_mm(first: AffineRas, second: AffineRas, shape: tuple[int, int, int]) -> float:
    """Largest distance in mm between the corners of one grid under two affines."""
    corners = np.array(list(itertools.product(*((0, n - 1) for n in shape))), dtype=np.float64)
    moved = corners @ (first - second)[:3, :3].T + (first - second)[:3, 3]
    return float(np.linalg.norm(moved, axis=1).max())


def shear_of(affine: AffineRas) -> float:
    """Largest absolute cosine between two array axes; 0 for a rotation with spacings."""
    unit = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    return float(np.abs(unit.T @ unit - np.eye(3)).max())


def straightened(affine: AffineRas, shape: tuple[int, int, int]) -> AffineRas:
    """The same spacings on the nearest orthogonal axes (polar decomposition), centre of the volume kept in
    place."""
    lengths = np.linalg.norm(affine[:3, :3], axis=0)
    left, _, right = np.linalg.svd(affine[:3, :3] / lengths)
    centre = (np.asarray(shape, dtype=np.float64) - 1) / 2
    result = np.eye(4)
    result[:3, :3] = (left @ right) * lengths
    result[:3, 3] = affine[:3, :3] @ centre + affine[:3, 3] - result[:3, :3] @ centre
    return result


def check_shear(affine: AffineRas, answers: Answers) -> Finding | None:
    """B04: rounding is repaired by the nearest rotation; a real shear needs `--rectify`."""
    shear = shear_of(affine)
    if shear <= FREE_SHEAR:
        return None
    rounding = shear < ROUNDING_SHEAR
    level = Level.REPAIR if rounding else Level.NOTE if answers.rectify else Level.ASK
    hint = "nearest rotation taken" if rounding else "resampled onto straight axes" if answers.rectify else ""
    return Finding(
        "AFFINE_SHEAR",
        level,
        "the three axes of the grid stand at right angles",
        expected=f"cosine < {ROUNDING_SHEAR:g} between axes",
        got=f"{shear:.3g}",
        hint=hint or "Allow resampling onto straight axes with --rectify.",
    )


def axes_from_letters(letters: str) -> tuple[tuple[int, int], ...]:
    """Orientation letters -> for each array axis the RAS axis it runs along, and its sign.

    Raises:
        UsageError: `ANSWER_INVALID` when it is not one of the 48, e.g. ``RAS``, ``LPS``, ``SAL``.
    """
    known = {"R": (0, 1), "L": (0, -1), "A": (1, 1), "P": (1, -1), "S": (2, 1), "I": (2, -1)}
    upper = letters.upper()
    if len(upper) != 3 or any(c not in known for c in upper) or len({known[c][0] for c in upper}) != 3:
        raise UsageError(
            "ANSWER_INVALID",
            "an orientation is three letters, one of R/L, one of A/P, one of S/I",
            expected="for example RAS or LPS: each array axis grows towards its letter",
            got=letters,
        )
    return tuple(known[c] for c in upper)


def affine_from_letters(
    letters: str, spacing_mm: tuple[float, float, float], shape: tuple[int, int, int]
) -> AffineRas:
    """An affine for a file that holds no place: axes along `letters`, centre of the volume at 0 mm.

    Raises:
        UsageError: see `axes_from_letters`.
    """
    affine = np.zeros((4, 4))
    affine[3, 3] = 1.0
    for axis, (ras, sign) in enumerate(axes_from_letters(letters)):
        affine[ras, axis] = sign * spacing_mm[axis]
    affine[:3, 3] = -affine[:3, :3] @ ((np.asarray(shape, dtype=np.float64) - 1) / 2)
    return affine


def geometry_of(affine: AffineRas, shape: tuple[int, int, int], where: str) -> Geometry:
    """The grid.

    Raises:
        HeaderError: `AFFINE_NAN` or `AFFINE_SINGULAR`, naming the file.
    """
    code = usable(affine)
    if code is not None:
        rule = "the affine is finite" if code == "AFFINE_NAN" else "the affine can be inverted"
        raise HeaderError(
            code, rule, expected="a rotation with spacings", got=affine[:3].tolist(), path=where
        )
    return Geometry(shape, affine)
