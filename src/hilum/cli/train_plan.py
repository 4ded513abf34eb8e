"""What `hilum train --dry-run` says of a stage."""

from __future__ import annotations

import os
from pathlib import Path

import click

from hilum.train.stage import StageTask
from hilum.train.stage_plan import stage_plan


def show_plan(task: StageTask, folder: Path) -> None:
    """Parameters, groups and memory on stderr, the recipe as JSON on stdout."""
    from rich.console import Console
    from rich.table import Table

    recipe = task.recipe
    plan = stage_plan(task, int(os.environ.get("WORLD_SIZE", "1")))
    console = Console(stderr=True)
    console.print(
        f"{recipe.name}: {recipe.method}, {plan.parameters:,} trained parameters, {plan.scans:,} scans, "
        f"{recipe.steps} steps of {recipe.batch} -> {folder}"
    )
    table = Table("learning rate", "factor", "weight decay", "tensors", "parameters", "first")
    for row in plan.groups:
        table.add_row(
            f"{row.lr:.3g}", f"{row.lr_factor:.3g}", f"{row.weight_decay:.3g}", str(row.tensors),
            f"{row.parameters:,}", row.first,
        )  # fmt: skip
    console.print(table)
    parts = "  ".join(f"{name} {value:,.0f}" for name, value in plan.memory._asdict().items())
    console.print(f"memory, MiB (float32): {parts}  together {plan.memory.total:,.0f}")
    click.echo(recipe.model_dump_json(indent=2))
