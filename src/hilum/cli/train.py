"""`hilum train RECIPE.toml [key=value ...]`."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from rich.progress import TaskID

    from hilum.train.loop import Progress


@click.command()
@click.argument("recipe_file", metavar="RECIPE", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.argument("overrides", metavar="[KEY=VALUE]...", nargs=-1)
@click.option(
    "--out", type=click.Path(path_type=Path), default=None, help="Model folder. [default: runs/NAME]"
)
@click.option(
    "--cache", type=click.Path(path_type=Path), default=None, help="Where prepared phantoms are kept."
)
@click.option("--dry-run", is_flag=True, help="Check the recipe, say what would be done, do nothing.")
def train(
    recipe_file: Path, overrides: tuple[str, ...], out: Path | None, cache: Path | None, dry_run: bool
) -> None:
    """Train a model from a recipe; run again to go on where it stopped."""
    from hilum.io.weights import preset_data
    from hilum.model.preset import Preset, build_network
    from hilum.train.recipe import load_recipe
    from hilum.train.run import run_recipe

    recipe = load_recipe(recipe_file, overrides)
    folder = out or Path("runs") / recipe.name
    store = cache or Path(os.environ.get("HILUM_CACHE", Path.home() / ".cache" / "hilum"))
    network = build_network(Preset.from_dict(preset_data(recipe.preset)))
    count = sum(p.numel() for p in network.parameters())
    click.echo(
        f"{recipe.name}: {recipe.method}, {count:,} parameters, {recipe.optim.steps} steps -> {folder}",
        err=True,
    )
    if dry_run:
        click.echo(recipe.model_dump_json(indent=2))
        return
    show = _Bars()
    with show.progress:
        run_recipe(recipe, folder, store, track=show.track, report=show.report)
    click.echo(str(folder))


class _Bars:
    """Rich progress on stderr: one bar for phantoms, one for steps."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as Bars

        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        self.progress = Bars(*columns, console=Console(stderr=True))
        self.steps: TaskID | None = None

    def track(self, items: Iterable[list[Path]], total: int, what: str) -> Iterable[list[Path]]:
        """Count items as they come."""
        task = self.progress.add_task(what, total=total)
        for item in items:
            self.progress.advance(task)
            yield item

    def report(self, state: Progress) -> None:
        """One training step is done."""
        if self.steps is None:
            self.steps = self.progress.add_task("steps", total=state.steps)
        losses = "  ".join(f"{k} {v:.3f}" for k, v in state.losses.items())
        self.progress.update(self.steps, completed=state.step + 1, description=f"steps  {losses}")
