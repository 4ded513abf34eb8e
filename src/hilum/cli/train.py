"""`hilum train RECIPE.toml [key=value ...]`."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import click

from hilum.cli.common import counted_bars

if TYPE_CHECKING:
    from rich.progress import TaskID

    from hilum.train.chat_recipe import ChatRecipe
    from hilum.train.exact_recipe import DenseRecipe
    from hilum.train.joint_recipe import JointRecipe
    from hilum.train.loop import Progress
    from hilum.train.recipe import Recipe
    from hilum.train.stage_recipe import StageRecipe

ItemT = TypeVar("ItemT")


@click.command()
@click.argument("recipe_file", metavar="RECIPE", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.argument("overrides", metavar="[KEY=VALUE]...", nargs=-1)
@click.option(
    "--out", type=click.Path(path_type=Path), default=None, help="Folder of the run. [default: runs/NAME]"
)
@click.option(
    "--cache", type=click.Path(path_type=Path), default=None, help="Where prepared phantoms are kept."
)
@click.option("--dry-run", is_flag=True, help="Check everything, say what would be done, do nothing.")
def train(
    recipe_file: Path, overrides: tuple[str, ...], out: Path | None, cache: Path | None, dry_run: bool
) -> None:
    """Train a model from a recipe; run again to go on where it stopped.

    On several processes: torchrun --nproc-per-node N -m hilum train RECIPE. SIGTERM ends the step, saves and
    exits with 4; the same command goes on there.
    """
    from hilum.train.exact_recipe import DenseRecipe
    from hilum.train.recipe import load_recipe
    from hilum.train.stage_recipe import StageRecipe

    recipe = load_recipe(recipe_file, overrides)
    folder = out or Path("runs") / recipe.name
    first = os.environ.get("RANK", "0") == "0"
    if recipe.method == "exact-chat":  # type: ignore[attr-defined]
        _train_chat(recipe, folder, dry_run=dry_run, first=first)  # type: ignore[arg-type]
    elif recipe.method == "radfinder":  # type: ignore[attr-defined]
        _train_joint(recipe, folder, dry_run=dry_run, first=first)  # type: ignore[arg-type]
    elif isinstance(recipe, StageRecipe):
        _train_stage(recipe, folder, dry_run=dry_run, first=first)
    elif isinstance(recipe, DenseRecipe):
        _train_dense(recipe, folder, dry_run=dry_run, first=first)
    else:
        store = cache or Path(os.environ.get("HILUM_CACHE", Path.home() / ".cache" / "hilum"))
        _train_phantoms(recipe, folder, store, dry_run=dry_run)  # type: ignore[arg-type]


def _train_phantoms(recipe: Recipe, folder: Path, store: Path, *, dry_run: bool) -> None:
    from hilum.io.weights import preset_data
    from hilum.model.preset import Preset, build_network
    from hilum.train.run import run_recipe

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


def _train_stage(recipe: StageRecipe, folder: Path, *, dry_run: bool, first: bool) -> None:
    from hilum.train.stage_run import run_stage, stage_task

    show = _Bars(shown=first)
    if dry_run:
        with show.progress:
            task = stage_task(recipe, track=show.track)
        if first:
            from hilum.cli.train_plan import show_plan

            show_plan(task, folder)
        return
    with show.progress:
        encoder = run_stage(recipe, folder, track=show.track, report=show.report)
    if first:
        click.echo(str(encoder))


def _train_chat(recipe: ChatRecipe, folder: Path, *, dry_run: bool, first: bool) -> None:
    from hilum.train.chat_data import read_samples
    from hilum.train.chat_run import run_chat

    if dry_run:
        samples = read_samples(recipe.data)
        click.echo(f"{recipe.name}: {recipe.stage}, {len(samples)} scans, {recipe.steps} steps", err=True)
        click.echo(recipe.model_dump_json(indent=2))
        return
    show = _Bars(shown=first)
    with show.progress:
        writer = run_chat(recipe, folder, report=show.report)
    if first:
        click.echo(str(writer))


def _train_joint(recipe: JointRecipe, folder: Path, *, dry_run: bool, first: bool) -> None:
    from hilum.train.joint_run import joint_task, run_joint

    show = _Bars(shown=first)
    if dry_run:
        with show.progress:
            task = joint_task(recipe, track=show.track)
        if first:
            count = sum(p.numel() for p in task.student().parameters() if p.requires_grad)
            click.echo(
                f"{recipe.name}: {recipe.method}, {count:,} trained parameters, "
                f"{len(task.scans.samples):,} scans, {len(task.scans.texts):,} texts, "
                f"{task.steps} steps of {recipe.batch} -> {folder}",
                err=True,
            )
            click.echo(recipe.model_dump_json(indent=2))
        return
    with show.progress:
        encoder = run_joint(recipe, folder, track=show.track, report=show.report)
    if first:
        click.echo(str(encoder))


def _train_dense(recipe: DenseRecipe, folder: Path, *, dry_run: bool, first: bool) -> None:
    from hilum.train.dense_run import dense_task
    from hilum.train.exact_keep import run_kept

    show = _Bars(shown=first)
    task, chosen = dense_task(recipe)
    if dry_run:
        if first:
            count = sum(p.numel() for p in task.student().parameters() if p.requires_grad)
            masked = sum(task.scans.masked(i) for i in range(len(task.scans)))
            click.echo(
                f"{recipe.name}: {recipe.method}, {count:,} trained parameters, {len(task.scans):,} scans, "
                f"{masked:,} with masks, {task.steps} steps of {recipe.batch} -> {folder}",
                err=True,
            )
            click.echo(recipe.model_dump_json(indent=2))
        return
    with show.progress:
        run_kept(task, chosen, folder, report=show.report)
    if first:
        click.echo(str(folder))


class _Bars:
    """Rich progress on stderr: one bar for what is prepared, one for steps."""

    def __init__(self, *, shown: bool = True) -> None:
        self.progress = counted_bars(disable=not shown)
        self.steps: TaskID | None = None

    def track(self, items: Iterable[ItemT], total: int, what: str) -> Iterable[ItemT]:
        """Count items as they come."""
        task = self.progress.add_task(what, total=total)
        for item in items:
            self.progress.advance(task)
            yield item

    def report(self, state: Progress) -> None:
        """One training step is done."""
        if self.steps is None:
            # a run that goes on has no speed for the steps before
            self.steps = self.progress.add_task("steps", total=state.steps, completed=state.step)
        losses = "  ".join(f"{k} {v:.3f}" for k, v in state.losses.items())
        self.progress.update(self.steps, completed=state.step + 1, description=f"steps  {losses}")
