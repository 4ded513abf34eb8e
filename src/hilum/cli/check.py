"""`hilum check`: is this a volume to trust? Findings with stable codes, the grid, and what reading would
do."""

from __future__ import annotations

import click
from rich.console import Console
from rich.table import Table

from hilum.cli.common import echo_json, input_options, json_option, plain, progress
from hilum.io.checks import Inspection
from hilum.io.limits import Answers, Mode

COLOURS = {"note": "cyan", "repair": "yellow", "ask": "magenta", "refuse": "red"}
REFUSED = 3


@click.command()
@click.argument("path", type=click.Path())
@input_options
@json_option
def check(path: str, mode: Mode, answers: Answers, as_json: bool) -> int:
    """Say whether PATH can be trusted, and what reading it would do.

    PATH is a folder or zip of DICOM files, one DICOM file, NIfTI, NRRD or NPZ. Nothing is written.
    Exit code 0 when it would be read, 3 when it would be refused.
    """
    from hilum.io.open import inspect

    with progress("Reading", quiet=as_json):
        seen = inspect(path, mode=mode, answers=answers)
    if as_json:
        echo_json(seen.as_dict())
    else:
        _show(seen)
    return REFUSED if seen.refused else 0


def _show(seen: Inspection) -> None:
    console = Console(highlight=False, soft_wrap=False)
    console.print(f"[bold]{plain(seen.path)}[/bold]  {seen.kind or 'not an image'}")
    if seen.geometry is not None:
        grid, sizes = seen.geometry, zip(seen.geometry.shape, seen.geometry.spacing_mm, strict=True)
        shown = " × ".join(f"{n}" for n in grid.shape)
        spacing = " × ".join(f"{s:.2f}" for _, s in sizes)
        extent = " × ".join(f"{e:.0f}" for e in grid.extent_mm)
        console.print(f"{shown} voxels · {spacing} mm · {extent} mm field of view · stored {grid.axcodes}")
    _findings(seen, console)
    _candidates(seen, console)
    for step in seen.plan:
        console.print(f"  would {plain(step)}" if seen.refused else f"  will {plain(step)}")
    if seen.refused:
        codes = ", ".join(dict.fromkeys(f.code for f in seen.stopping))
        console.print(f"[bold red]refused[/bold red] ({codes})")
    else:
        console.print("[bold green]would be read[/bold green]")


def _findings(seen: Inspection, console: Console) -> None:
    if not seen.findings:
        console.print("  nothing found against it")
        return
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for name in ("", "code", "what", "expected", "got"):
        table.add_column(name, overflow="fold")
    for finding in seen.findings:
        level = finding.level.name.lower()
        what = f"{finding.rule}. {finding.hint}" if finding.hint else f"{finding.rule}."
        cells = [plain(text) for text in (what, finding.expected, finding.got)]
        table.add_row(f"[{COLOURS[level]}]{level}[/]", finding.code, *cells)
    console.print(table)


def _candidates(seen: Inspection, console: Console) -> None:
    if not seen.candidates:
        return
    names = list(dict.fromkeys(name for candidate in seen.candidates for name in candidate))
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for name in names:
        table.add_column(name.replace("_", " "), overflow="fold")
    for candidate in seen.candidates:
        table.add_row(*(plain(candidate.get(name, "")) for name in names))
    console.print(table)
