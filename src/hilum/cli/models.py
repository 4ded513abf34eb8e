"""`hilum models`: what there is, how large, trained on what, under which licence."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from hilum.cli.common import echo_json, json_option, plain

if TYPE_CHECKING:
    from hilum.read.model_list import ModelRow


@click.command()
@click.argument("folders", metavar="[FOLDER]...", nargs=-1, type=click.Path(path_type=Path))
@json_option
def models(folders: tuple[Path, ...], as_json: bool) -> None:
    """List presets, the models that ship, and those in each FOLDER.

    A FOLDER is a model or holds some, e.g. one that `hilum train` or `hilum import` wrote. Sizes are exact;
    weights are not read, so that their hash is not checked here.
    """
    from hilum.read.model_list import known_models

    rows = known_models(folders)
    if as_json:
        echo_json({"models": [row.as_dict() for row in rows]})
    else:
        _show(rows)


def _show(rows: list[ModelRow]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for name in ("name", "what", "kind", "parameters", "trained on", "licence"):
        table.add_column(name, justify="right" if name == "parameters" else "left", overflow="fold")
    for row in rows:
        trained = f"SYNTHETIC: {row.trained_on}" if row.synthetic else row.trained_on or "no weights"
        cells = [
            row.folder or row.name,
            row.what,
            row.kind,
            f"{row.parameters:,}",
            trained,
            row.licence or "",
        ]
        table.add_row(*(plain(cell) for cell in cells))
    Console(highlight=False).print(table)
