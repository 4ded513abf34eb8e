"""Which task a recipe on whole prepared scans is."""

from __future__ import annotations

from hilum.errors import UsageError
from hilum.train.adapt_classify import classify_task
from hilum.train.adapt_recipe import ClassifyRecipe, SegmentRecipe
from hilum.train.adapt_segment import segment_task
from hilum.train.exact_data import ExactScans
from hilum.train.exact_keep import KeptTask
from hilum.train.exact_recipe import DenseRecipe, ExactRecipe
from hilum.train.exact_run import exact_task


def dense_task(recipe: DenseRecipe) -> tuple[KeptTask, ExactScans | None]:
    """The task, read and checked, and the scans that choose.

    Raises:
        UsageError: `CONFIG_VALUE` for a method that is none of these. Others as of the methods.
    """
    if isinstance(recipe, ExactRecipe):
        return exact_task(recipe)
    if isinstance(recipe, ClassifyRecipe):
        return classify_task(recipe)
    if isinstance(recipe, SegmentRecipe):
        return segment_task(recipe)
    raise UsageError("CONFIG_VALUE", "a method on whole prepared scans", got=type(recipe).__name__)
