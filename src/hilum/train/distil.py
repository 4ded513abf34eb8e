"""Distillation as a part of a student: adaptors and standardisation of every teacher, trained and saved with
it. The teachers themselves are frozen, and in no state.

    distil = Distil(width, recipe, teachers)          # a part of the student
    distil.fit(batches)                               # before the first step and before the average is made
    targets = distil.targets(images, spacing_mm, scale)           # once per batch, without a gradient
    losses = distil.losses(out.cls, out.patches, out.grid, targets)
    loss = loss + distil.weighted(losses)
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import nn

from hilum.errors import RunError, UsageError
from hilum.model.distil_head import DistilHead, DistilHeadConfig
from hilum.objective.distil import average_to, common_grid, patch_loss, summary_loss
from hilum.objective.phi_s import Moments, Standard, Standardise, mean_of_all
from hilum.tensors import AnchorFeatures, AnchorSummary, ClsToken, PatchTokens, Scalar
from hilum.train.distil_recipe import DistilRecipe, TeacherRecipe
from hilum.train.teachers import Features, HuScale, Shown, Teacher


class Target(NamedTuple):
    """What one teacher says of a batch.

    Args:
        patches: standardised (B, N, D). summary: (B, D), centred or not; None where it is not learned.
        grid: patches per axis.
    """

    patches: AnchorFeatures
    summary: AnchorSummary | None
    grid: tuple[int, ...]


class Distil(nn.Module):
    """See the module's docstring.

    Args:
        width: of the student's tokens. recipe: weights. teachers: one for each of the recipe's, in its order.

    Raises:
        UsageError: `CONFIG_VALUE` for another number of teachers, or a summary that a teacher does not have.
    """

    def __init__(self, width: int, recipe: DistilRecipe, teachers: Sequence[Teacher]) -> None:
        super().__init__()
        if len(teachers) != len(recipe.teachers):
            raise UsageError(
                "CONFIG_VALUE",
                "every teacher of a recipe is there",
                expected=[teacher.teacher for teacher in recipe.teachers],
                got=[teacher.name for teacher in teachers],
            )
        self.recipe = recipe
        named = {own.label: teacher for own, teacher in zip(recipe.teachers, teachers, strict=True)}
        self._frozen = _Frozen(named)
        self.heads, self.standards = nn.ModuleDict(), nn.ModuleDict()
        for own in recipe.teachers:
            teacher = named[own.label]
            summary_width = _summary_width(own, teacher)
            sizes = DistilHeadConfig(width, teacher.width, summary_width, recipe.hidden)
            self.heads[own.label] = DistilHead(sizes)
            centred = summary_width if summary_width and own.summary == "centred" else 0
            self.standards[own.label] = Standardise(teacher.width, centred)

    @property
    def is_fitted(self) -> bool:
        """Whether every teacher's standardisation is there, estimated or from a checkpoint."""
        return all(self._standard(name).sha256 is not None for name in self.standards)

    @torch.no_grad()
    def fit(self, batches: Iterable[Shown]) -> None:
        """Estimates every teacher's standardisation. Enter it on every rank, each with its own training
        scans, as many or as few as it has: every rank gets the same, that of all.

        Args:
            batches: scans as the student is shown them, `fit_scans` of them over all ranks.

        Raises:
            RunError: `MODEL_OUTPUT` for features that do not vary or are not finite.
        """
        sums = {name: _Sums(self._standard(name)) for name in self._frozen}
        for shown in batches:
            for name, teacher in self._frozen.items():
                sums[name].add(teacher.features(shown))
        for name, teacher in self._frozen.items():
            self._standard(name).hold(*sums[name].found(teacher.sha256))

    @torch.no_grad()
    def targets(
        self, images: torch.Tensor, spacing_mm: Sequence[float], scale: HuScale | None = None
    ) -> dict[str, Target]:
        """What every teacher says of a batch.

        Args:
            images: (B, 1, X, Y, Z) or (B, 1, X, Y), prepared as the student's, without masks and
                distortions. spacing_mm: voxel size per axis. scale: the way back to HU, for teachers that
                need it.

        Raises:
            RunError: `MODEL_OUTPUT` before `fit`; `RESUME_CHANGED` where the standardisation is another
                teacher's.
        """
        shown = Shown(images, tuple(spacing_mm), scale)
        found = {}
        for own in self.recipe.teachers:
            teacher, standard = self._frozen[own.label], self._checked(own.label)
            said: Features = teacher.features(shown)
            summary = said.summary if own.summary_weight else None
            if summary is not None and len(standard.centre):
                summary = summary - standard.centre.to(summary)
            found[own.label] = Target(standard(said.patches), summary, said.grid)
        return found

    def losses(
        self,
        cls: ClsToken,
        patches: PatchTokens,
        grid: Sequence[int],
        targets: Mapping[str, Target],
    ) -> dict[str, Scalar]:
        """Every teacher's losses, before their weights: ``NAME/patches`` and, where it is learned,
        ``NAME/summary``. Their mean over ranks is the loss of one process.

        Args:
            cls, patches, grid: the student's output for the scans of `targets`.

        Raises:
            RunError: `MODEL_OUTPUT`, `GRID_MISMATCH` for output of other pictures.
        """
        found, chunk = {}, self.recipe.chunk
        for own in self.recipe.teachers:
            target, head = targets[own.label], self._head(own.label)
            to = common_grid(grid, target.grid)
            student = average_to(patches, grid, to)
            teacher = average_to(target.patches, target.grid, to)
            found[f"{own.label}/patches"] = patch_loss(student, teacher, head.patches, chunk=chunk)
            if head.summary is not None and target.summary is not None:
                found[f"{own.label}/summary"] = summary_loss(cls, target.summary, head.summary, chunk=chunk)
        return found

    def weighted(self, losses: Mapping[str, Scalar]) -> Scalar:
        """The sum of `losses` with the recipe's weights."""
        total = torch.stack([self.weights[name] * value for name, value in losses.items()])
        return total.sum()

    @property
    def weights(self) -> dict[str, float]:
        """By the names of `losses`."""
        found = {}
        for own in self.recipe.teachers:
            found[f"{own.label}/patches"] = own.weight
            if self._head(own.label).summary is not None:
                found[f"{own.label}/summary"] = own.summary_weight
        return found

    def _checked(self, name: str) -> Standardise:
        standard, teacher = self._standard(name), self._frozen[name]
        if standard.sha256 is None:
            raise RunError(
                "MODEL_OUTPUT",
                "a teacher's features are standardised before they are learned",
                expected="Distil.fit, or a checkpoint that holds its result",
                got=f"neither for {name}",
            )
        if standard.sha256 != teacher.sha256:
            raise RunError(
                "RESUME_CHANGED",
                f"a run goes on with its teacher {name}",
                expected=f"weights {standard.sha256[:12]}",
                got=f"weights {teacher.sha256[:12]}",
            )
        return standard

    def _standard(self, name: str) -> Standardise:
        module = self.standards[name]
        assert isinstance(module, Standardise)
        return module

    def _head(self, name: str) -> DistilHead:
        module = self.heads[name]
        assert isinstance(module, DistilHead)
        return module


class _Sums:
    """What is added up of one teacher while statistics are estimated."""

    def __init__(self, standard: Standardise) -> None:
        device = standard.mean.device
        self.patches = Moments(len(standard.mean), device)
        self.summary = torch.zeros(len(standard.centre), dtype=torch.float64, device=device)
        self.pictures = torch.zeros((), dtype=torch.float64, device=device)

    def add(self, said: Features) -> None:
        self.patches.add(said.patches.flatten(0, 1))
        if len(self.summary) and said.summary is not None:
            self.summary += said.summary.to(self.summary).sum(0)
        self.pictures += len(said.patches)

    def found(self, sha256: str) -> tuple[Standard, str, torch.Tensor]:
        """As `Standardise.hold` takes it; all ranks enter."""
        return self.patches.standard(), sha256, mean_of_all(self.summary, self.pictures)


class _Frozen(dict[str, Teacher]):
    """Teachers by name: no modules of the student, and one for all of its copies (the average is a copy)."""

    def __deepcopy__(self, memo: dict[int, Any]) -> _Frozen:
        return self


def _summary_width(own: TeacherRecipe, teacher: Teacher) -> int | None:
    if own.summary_weight and teacher.summary_width is None:
        raise UsageError(
            "CONFIG_VALUE",
            "a summary is learned from a teacher that has one",
            expected=f"summary_weight = 0 for {own.label}",
            got=own.summary_weight,
        )
    return teacher.summary_width if own.summary_weight else None
