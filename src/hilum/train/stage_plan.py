"""What a stage will do, said before it starts: parameters, groups, memory."""

from __future__ import annotations

from typing import NamedTuple

from hilum.train.groups import GroupRow, group_rows, parameter_groups
from hilum.train.plan import MemoryPlan, View, memory_plan
from hilum.train.stage import StageTask
from hilum.train.stage_recipe import StageRecipe


class StagePlan(NamedTuple):
    """A stage before its run.

    Args:
        parameters: trained ones. scans: that it sees. groups: at the highest learning rate. memory: of a rank
            that holds everything, in MiB, without the text tower's activations.
    """

    parameters: int
    scans: int
    groups: list[GroupRow]
    memory: MemoryPlan


def stage_plan(task: StageTask, ranks: int = 1) -> StagePlan:
    """Nothing is trained for it; the student is built once."""
    recipe, student = task.recipe, task.student()
    groups = parameter_groups(student, recipe.groups)
    count = sum(group.count for group in groups)
    own = sum(p.numel() for p in student.vision.parameters())
    memory = memory_plan(student.vision.config, stage_views(recipe, ranks), others=max(0, count - own))
    scans = sum(len(part.scans) for part in task.parts)
    return StagePlan(count, scans, group_rows(groups, task.rates(recipe.rates.lr.rise)), memory)


def stage_views(recipe: StageRecipe, ranks: int = 1) -> list[View]:
    """The largest views of one backward pass."""
    scans = min(recipe.micro or recipe.batch, -(-recipe.batch // ranks))
    patch = min(recipe.patches)
    if recipe.volumes is not None:
        axes, whole, small = 3, recipe.volumes.side_vox, recipe.volumes.part_side_vox
        wholes, parts = recipe.volumes.wholes, recipe.volumes.parts
    else:
        assert recipe.slices is not None, "checked when the recipe was read"
        axes, wholes, parts = 2, recipe.slices.wholes, recipe.slices.parts
        whole = max(sides.whole for sides in recipe.slices.sides)
        small = max(sides.parts for sides in recipe.slices.sides)
    views = [View((whole,) * axes, wholes * scans, patch)]
    return views + ([View((small,) * axes, parts * scans, patch)] if parts else [])
