"""Distillation: what a student says of a scan, through an adaptor per teacher, is what the teacher says.

Source: Ranzinger et al., AM-RADIO, CVPR 2024 (an adaptor per teacher, cosine distance of summaries, patch
features on a common grid); PHI-S, ICLR 2025 (squared error of standardised patch features,
`objective.phi_s`). Beyond FlexiCT's paper, which says agglomerative and has one teacher at a time.

What differs: AM-RADIO interpolates one side's features to the other's grid. Here both sides are averaged to
the coarser grid of the two along each axis, so that no feature is made up between two others. The adaptor
reads the student's averaged features.

Targets are an argument, made once for a batch, and both losses are means over scans: they accumulate over
micro-batches, and keep the contract of `objective.gather`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch.nn import functional as F

from hilum.errors import RunError
from hilum.objective.gather import mean_over_ranks
from hilum.objective.parts import sum_in_chunks
from hilum.objective.precision import full, without_autocast
from hilum.tensors import (
    AnchorFeatures,
    AnchorSummary,
    ClsToken,
    PatchTokens,
    Scalar,
    TeacherFeatures,
)

Project = Callable[[torch.Tensor], torch.Tensor]
"""An adaptor: features (..., W) of a student -> (..., D) of a teacher."""


def common_grid(one: Sequence[int], other: Sequence[int]) -> tuple[int, ...]:
    """The coarser of two grids along each axis.

    Raises:
        RunError: `GRID_MISMATCH` for grids of different ranks.
    """
    if len(one) != len(other):
        raise RunError(
            "GRID_MISMATCH", "student and teacher see the same picture", expected=tuple(one), got=tuple(other)
        )
    return tuple(min(a, b) for a, b in zip(one, other, strict=True))


def average_to(features: PatchTokens, grid: Sequence[int], to: Sequence[int]) -> TeacherFeatures:
    """Patch features on a grid that is nowhere finer, float32: a cell is the mean of the patches that it
    touches.

    Args:
        features: patches in the order of the grid's axes, the last one fastest. grid, to: patches per axis.

    Raises:
        RunError: `MODEL_OUTPUT` for another number of patches than `grid` has; `GRID_MISMATCH` for a finer
            grid.
    """
    count = torch.Size(grid).numel()
    if features.shape[1] != count:
        raise RunError(
            "MODEL_OUTPUT",
            "there is a feature for every patch of the grid",
            expected=f"{count} for {tuple(grid)}",
            got=features.shape[1],
        )
    if common_grid(grid, to) != tuple(to):
        raise RunError(
            "GRID_MISMATCH", "features are averaged to coarser grids", expected=f"up to {tuple(grid)}", got=to
        )
    if tuple(grid) == tuple(to):
        return full(features)
    with without_autocast(features):
        maps = full(features).transpose(1, 2).unflatten(2, tuple(grid))
        return F.interpolate(maps, size=tuple(to), mode="area").flatten(2).transpose(1, 2)


def patch_loss(
    student: PatchTokens, targets: AnchorFeatures, project: Project, *, chunk: int | None = None
) -> Scalar:
    """Mean squared error over a scan's patches and a teacher's axes, mean over the scans of all ranks. About
    1 for a student that knows the mean only. No gradient reaches the teacher.

    Args:
        student: features of the same patches as `targets`. targets: standardised features of a teacher.
        project: the adaptor. chunk: scans whose adapted features exist at a time; None for all.

    Raises:
        RunError: `MODEL_OUTPUT` for other scans or patches.
    """
    _same_rows(student, targets, 2)

    def squares(own: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
        return (full(project(own)) - full(wanted)).square().mean(-1).sum()

    total = sum_in_chunks(squares, (student, targets.detach()), chunk)
    return mean_over_ranks(total / student.shape[1], len(student))


def summary_loss(
    student: ClsToken, targets: AnchorSummary, project: Project, *, chunk: int | None = None
) -> Scalar:
    """Mean of 1 - cosine over the scans of all ranks, 0..2. No gradient reaches the teacher.

    Args:
        student: CLS tokens. targets: a teacher's summaries, as they are.
        project: the adaptor. chunk: scans whose adapted summaries exist at a time; None for all.

    Raises:
        RunError: `MODEL_OUTPUT` for other scans.
    """
    _same_rows(student, targets, 1)

    def distances(own: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
        adapted = full(project(own))
        with without_autocast(adapted):
            return (1 - F.cosine_similarity(adapted, full(wanted), dim=-1)).sum()

    return mean_over_ranks(sum_in_chunks(distances, (student, targets.detach()), chunk), len(student))


def _same_rows(student: torch.Tensor, targets: torch.Tensor, axes: int) -> None:
    if student.shape[:axes] != targets.shape[:axes]:
        raise RunError(
            "MODEL_OUTPUT",
            "student and teacher describe the same scans and patches",
            expected=tuple(student.shape[:axes]),
            got=tuple(targets.shape[:axes]),
        )
