"""The teachers that a recipe names."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hilum.train.distil import DistilRecipe, TeacherRecipe
from hilum.train.teacher_encoder import encoder_teacher
from hilum.train.teachers import Teacher


def load_teachers(recipe: DistilRecipe, student: Mapping[str, Any]) -> list[Teacher]:
    """One for each of the recipe's, in its order, on the CPU; each goes where it is shown pictures.

    Args:
        student: facts of the student's preparation (`Pipeline.facts`, `Store.prep`).

    Raises:
        UsageError: `CONFIG_VALUE` for a teacher whose values the student's do not hold.
        WeightsError: for a folder that is no encoder, or not whole.
    """
    return [_teacher(own, student) for own in recipe.teachers]


def _teacher(own: TeacherRecipe, student: Mapping[str, Any]) -> Teacher:
    return encoder_teacher(Path(own.teacher).expanduser(), student, patch=own.patch, vox=own.vox)
