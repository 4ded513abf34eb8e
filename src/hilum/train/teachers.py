"""Frozen teachers for distillation: models that somebody has trained, with a feature per patch.

A student is shown prepared values on its own axes; a teacher was trained on its own preparation of HU. Both
are affine in HU within the student's clip, so a teacher gets HU back from the slope and intercept of each
scan (`cohort.store.ScanRow`), turned to its axes and resized to its voxels. Its features come back on the
student's axes. What a teacher needs and a student's values do not hold is refused when it is made.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from torch.nn import functional as F

from hilum.errors import InputRefused, UsageError
from hilum.io.affine import axes_from_letters
from hilum.tensors import AnchorSummary, PatchTokens

AFFINE = ("zscore-scan", "hu", "thousandth", "unit")
"""Values of a preparation that are HU times a number plus another, the same all over a scan."""


class HuScale(NamedTuple):
    """How prepared values became of HU: ``value = HU · slope + intercept``, one number per scan (B,)."""

    slope: torch.Tensor
    intercept: torch.Tensor


@dataclass(frozen=True)
class Shown:
    """What a student was shown, without its masks and distortions.

    Args:
        images: prepared values (B, 1, X, Y, Z), or slices (B, 1, X, Y), on the student's axes.
        spacing_mm: of a voxel along each axis. scale: the way back to HU; None where no teacher needs it.
    """

    images: torch.Tensor
    spacing_mm: tuple[float, ...]
    scale: HuScale | None = None

    def hu(self) -> torch.Tensor:
        """HU of every voxel, within the student's clip; float32.

        Raises:
            InputRefused: `MODEL_INPUT` without `scale`.
        """
        if self.scale is None:
            raise InputRefused(
                "MODEL_INPUT",
                "a teacher that reads HU is told how values became of HU",
                expected="scale: slope and intercept of each scan",
                got="None",
            )
        shape = (-1, *[1] * (self.images.dim() - 1))
        slope, intercept = (x.to(self.images.device).float().reshape(shape) for x in self.scale)
        return (self.images.float() - intercept) / slope


class Features(NamedTuple):
    """What a teacher says, on the student's axes.

    Args:
        summary: of each picture (B, D), or None. patches: (B, N, D), the last axis of the grid fastest.
        grid: patches per axis.
    """

    summary: AnchorSummary | None
    patches: PatchTokens
    grid: tuple[int, ...]


@runtime_checkable
class Teacher(Protocol):
    """A frozen model with a feature map.

    Attributes:
        name: for people. sha256: of its weights, hex. width: of a patch feature.
        summary_width: of its summary; None for a model without one.
    """

    name: str
    sha256: str
    width: int
    summary_width: int | None

    def features(self, shown: Shown) -> Features:
        """Features of a batch, without a gradient."""
        ...


class Turn(NamedTuple):
    """From a student's axes to a teacher's.

    Args:
        order: the student's axis for each of the teacher's. flipped: the teacher's axes that run the other
            way.
    """

    order: tuple[int, ...]
    flipped: tuple[int, ...]

    def there(self, images: torch.Tensor) -> torch.Tensor:
        """(B, C, *student's axes) -> (B, C, *teacher's axes)."""
        turned = images.permute(0, 1, *(2 + axis for axis in self.order))
        return turned.flip([2 + axis for axis in self.flipped]) if self.flipped else turned

    def back(self, patches: torch.Tensor, grid: Sequence[int]) -> tuple[torch.Tensor, tuple[int, ...]]:
        """Patches (B, N, D) on a grid of the teacher's axes -> the same on the student's, and the grid."""
        maps = patches.unflatten(1, tuple(grid))
        maps = maps.flip([1 + axis for axis in self.flipped]) if self.flipped else maps
        inverse = [self.order.index(axis) for axis in range(len(self.order))]
        maps = maps.permute(0, *(1 + axis for axis in inverse), len(self.order) + 1)
        return maps.flatten(1, -2), tuple(maps.shape[1:-1])


def turn_between(student: str, teacher: str) -> Turn:
    """From axes that grow towards the letters of `student` to those of `teacher`, such as LPS to RAS.

    Raises:
        UsageError: `ANSWER_INVALID` for letters that do not name the three directions.
    """
    own, wanted = axes_from_letters(student), axes_from_letters(teacher)
    order = tuple([axis for axis, _ in own].index(axis) for axis, _ in wanted)
    flipped = tuple(i for i, at in enumerate(order) if wanted[i][1] != own[at][1])
    return Turn(order, flipped)


def resized(images: torch.Tensor, to: Sequence[int]) -> torch.Tensor:
    """Pictures with other numbers of voxels over the same field: means of voxels where they shrink along all
    axes, else linear."""
    if tuple(images.shape[2:]) == tuple(to):
        return images
    if all(n >= m for n, m in zip(images.shape[2:], to, strict=True)):
        return F.interpolate(images, size=tuple(to), mode="area")
    mode = "bilinear" if len(to) == 2 else "trilinear"
    return F.interpolate(images, size=tuple(to), mode=mode, align_corners=False)


def check_hu(student: Mapping[str, Any], clip_hu: Sequence[float] | None, name: str) -> None:
    """A student's values lead back to HU, and its preparation has cut none that a teacher reads.

    Args:
        student: facts of the student's pipeline. clip_hu: what the teacher reads; None is everything.
        name: of the teacher.

    Raises:
        UsageError: `CONFIG_VALUE`.
    """
    own = student["clip_hu"]
    if student["values"] not in AFFINE:
        raise UsageError(
            "CONFIG_VALUE",
            f"a student's values lead back to the HU that its teacher {name} reads",
            expected=" | ".join(AFFINE),
            got=student["values"],
        )
    if own is not None and (clip_hu is None or clip_hu[0] < own[0] or clip_hu[1] > own[1]):
        raise UsageError(
            "CONFIG_VALUE",
            f"the student's preparation keeps what its teacher {name} reads",
            expected=f"clip_hu at least {list(clip_hu) if clip_hu else 'null'}",
            got=own,
        )
