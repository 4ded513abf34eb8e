"""The teachers that a recipe names."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hilum.errors import UsageError
from hilum.train.distil_recipe import DistilRecipe, TeacherRecipe
from hilum.train.teacher_astra import astra_teacher
from hilum.train.teacher_encoder import encoder_teacher
from hilum.train.teachers import Teacher


def load_teachers(recipe: DistilRecipe, student: Mapping[str, Any]) -> list[Teacher]:
    """One for each of the recipe's, in its order, on the CPU; each goes where it is shown pictures.

    Args:
        student: facts of the student's preparation (`Pipeline.facts`, `Store.prep`).

    Raises:
        UsageError: `CONFIG_VALUE` for a teacher whose values the student's do not hold, or patches of Astra.
        WeightsError: for a folder that is no encoder, or not whole.
        RunError: `FETCH_FAILED` for Astra's weights.
    """
    return [_teacher(own, student) for own in recipe.teachers]


def _teacher(own: TeacherRecipe, student: Mapping[str, Any]) -> Teacher:
    if own.teacher == "astra":
        if own.patch is not None:
            raise UsageError("CONFIG_VALUE", "Astra has no patches", expected="patch left out", got=own.patch)
        return astra_teacher(student, vox=own.vox)
    return encoder_teacher(Path(own.teacher).expanduser(), student, patch=own.patch, vox=own.vox)
