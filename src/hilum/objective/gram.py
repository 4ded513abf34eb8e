"""Gram anchoring: which patches of a scan look alike stays as an earlier checkpoint saw it.

Source: Siméoni et al., DINOv3, 2025, §4.2-4.3; in FlexiCT the teacher is a frozen earlier checkpoint that
sees the scan at higher resolution, and its patch features are resized to the student's grid (spec §2: bicubic
for slices, trilinear for volumes).

A volume of 8000 patches has 64 million similarities: rows of them are made in chunks.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch.nn import functional as F

from hilum.errors import RunError, UsageError
from hilum.objective.gather import mean_over_ranks
from hilum.objective.parts import sum_in_chunks
from hilum.objective.precision import full, without_autocast
from hilum.tensors import AnchorFeatures, PatchTokens, Scalar, TeacherFeatures

MODES = {2: "bicubic", 3: "trilinear"}


def resize_features(features: PatchTokens, grid: Sequence[int], to: Sequence[int]) -> TeacherFeatures:
    """Patch features on another grid, float32.

    Args:
        features: patches in the order of the grid's axes, the last one fastest. grid, to: patches per axis.

    Raises:
        UsageError: ``CONFIG_VALUE``, grids of another rank than 2 or 3.
        RunError: ``MODEL_OUTPUT``, another number of patches than `grid` has.
    """
    if len(grid) != len(to) or len(grid) not in MODES:
        raise UsageError(
            "CONFIG_VALUE",
            "features are resized on slices or volumes",
            expected="2 or 3 axes",
            got=(grid, to),
        )
    if features.shape[1] != math.prod(grid):
        raise RunError(
            "MODEL_OUTPUT",
            "a teacher gives a feature for every patch of its grid",
            expected=f"{math.prod(grid)} for {tuple(grid)}",
            got=features.shape[1],
        )
    if tuple(grid) == tuple(to):
        return full(features)
    with without_autocast(features):
        maps = full(features).transpose(1, 2).unflatten(2, tuple(grid))
        resized = F.interpolate(maps, size=tuple(to), mode=MODES[len(to)], align_corners=False)
        return resized.flatten(2).transpose(1, 2)


def gram_loss(student: PatchTokens, teacher: AnchorFeatures, *, chunk: int | None = 1024) -> Scalar:
    """Mean squared difference of cosine similarities over all pairs of patches of a scan, mean over the scans
    of all ranks. No gradient reaches the teacher.

    Args:
        student, teacher: features of the same patches, of any width and length. chunk: patches whose
            similarities to all others exist at a time; None for all.

    Raises:
        RunError: ``MODEL_OUTPUT``, features of other scans or patches (see `resize_features`).
    """
    if student.shape[:2] != teacher.shape[:2]:
        raise RunError(
            "MODEL_OUTPUT",
            "student and teacher have features of the same patches",
            expected=tuple(student.shape[:2]),
            got=tuple(teacher.shape[:2]),
        )
    with without_autocast(student):
        student = F.normalize(full(student), dim=-1)
        teacher = F.normalize(full(teacher.detach()), dim=-1)

        def squares(rows: torch.Tensor, anchors: torch.Tensor) -> torch.Tensor:
            own = torch.einsum("nbw,bmw->bnm", rows, student)
            return (own - torch.einsum("nbw,bmw->bnm", anchors, teacher)).square().sum()

        by_patch = (student.transpose(0, 1), teacher.transpose(0, 1))
        total = sum_in_chunks(squares, by_patch, chunk)
        return mean_over_ranks(total / student.shape[1] ** 2, len(student))
