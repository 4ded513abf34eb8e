"""What several commands share: the options about input, `--json`, progress on stderr."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from hilum.io.limits import Answers

if TYPE_CHECKING:
    from rich.progress import Progress

CallT = TypeVar("CallT", bound=Callable[..., Any])

INPUT_OPTIONS: tuple[tuple[tuple[str, ...], dict[str, Any]], ...] = (
    (
        ("--mode",),
        {
            "type": click.Choice(["refuse", "repair", "report-only"]),
            "default": "repair",
            "show_default": True,
            "help": "What stops: repairs too; only open questions and refusals; only what cannot be decoded.",
        },
    ),
    (("--strict",), {"is_flag": True, "help": "The same as --mode refuse."}),
    (
        ("--affine",),
        {"type": click.Choice(["sform", "qform"]), "help": "Which NIfTI affine holds when they disagree."},
    ),
    (
        ("--assume",),
        {"metavar": "AXES", "help": "Axes of a file without a place: RAS, LPS, ..., rad-chestct."},
    ),
    (("--frame",), {"type": click.IntRange(min=0), "help": "Which frame of a 4-D file, from 0."}),
    (("--series",), {"metavar": "UID|NUMBER", "help": "Which DICOM series."}),
    (("--rescale",), {"metavar": "SLOPE,INTERCEPT", "help": "Stored value to HU, where DICOM does not say."}),
    (("--rectify",), {"is_flag": True, "help": "Resample a sheared or tilted grid onto straight axes."}),
    (("--split",), {"is_flag": True, "help": "Read the longest run of slices without a gap."}),
    (
        ("--fill",),
        {
            "type": click.IntRange(min=0),
            "default": 0,
            "help": "Interpolate up to this many missing slices in a row.",
        },
    ),
    (("--regrid",), {"is_flag": True, "help": "Resample slices at irregular distances."}),
    (("--allow-mip",), {"is_flag": True, "help": "Read an intensity projection all the same."}),
    (
        ("--accept-fov",),
        {"is_flag": True, "help": "The field of view is right although unlikely for a chest."},
    ),
)
"""Option names and their click arguments; the ASK flags of `hilum.io.limits.Answers`."""


def input_options(command: CallT) -> CallT:
    """Adds the input options; the command receives `mode: str` and `answers: Answers` instead of them."""

    @functools.wraps(command)
    def call(*args: Any, **options: Any) -> Any:
        names = [flags[-1].lstrip("-").replace("-", "_") for flags, _ in INPUT_OPTIONS]
        chosen = {name: options.pop(name) for name in names}
        mode, strict = chosen.pop("mode"), chosen.pop("strict")
        return command(*args, mode="refuse" if strict else mode, answers=_answers(chosen), **options)

    decorated: Any = call
    for flags, settings in reversed(INPUT_OPTIONS):
        decorated = click.option(*flags, **settings)(decorated)
    return decorated


def json_option(command: CallT) -> CallT:
    """Adds `--json`; the command receives `as_json: bool`."""
    return click.option("--json", "as_json", is_flag=True, help="Print one JSON object on stdout.")(command)


def echo_json(value: dict[str, Any]) -> None:
    """One JSON object on stdout, UTF-8, keys in their order; NaN never appears (it is not JSON)."""
    click.echo(json.dumps(value, ensure_ascii=False, allow_nan=False, indent=2))


def counted_bars(**options: Any) -> Progress:
    """Bars that count, with the time that is left, on stderr. options: of `rich.progress.Progress`."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, console=Console(stderr=True), **options)


@contextmanager
def progress(
    description: str, total: int | None = None, quiet: bool = False
) -> Iterator[Callable[[int], None]]:
    """A progress line on stderr for anything over two seconds.

    Args:
        description: what is being done.
        total: steps, or None when unknown (a spinner).
        quiet: show nothing (for `--json`).

    Yields:
        A function to call with the number of steps just done.
    """
    if quiet:
        yield lambda steps: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = [SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn()]
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(description, total=total)
        yield lambda steps: bar.advance(task, steps)


def write_files(out: Path, texts: Mapping[str, str]) -> None:
    """Texts into a folder, which is made; each in one step.

    Raises:
        OutputError: see `atomic_write`.
    """
    from hilum.io.atomic import atomic_write

    out.mkdir(parents=True, exist_ok=True)
    for name, text in texts.items():
        with atomic_write(out / name) as file:
            file.write(text.encode("utf-8"))


def _answers(chosen: dict[str, Any]) -> Answers:
    rescale = chosen.pop("rescale")
    series = chosen.pop("series")
    if series is not None and series.isdigit():
        series = int(series)
    return Answers(rescale=_rescale(rescale), series=series, **chosen)


def _rescale(given: str | None) -> tuple[float, float] | None:
    if given is None:
        return None
    try:
        slope, intercept = (float(part) for part in given.split(","))
    except ValueError as error:
        raise click.BadParameter(
            f"two numbers, slope,intercept; got {given!r}", param_hint="--rescale"
        ) from error
    return slope, intercept


def recall_of(shares: Mapping[str, float]) -> str:
    """What an approximate search finds, by kind of question, in words."""
    return "recall@10 " + ", ".join(f"{share:.3f} of {plain(kind)}" for kind, share in shares.items())


def plain(value: Any, *, lines: bool = False) -> str:
    """Text from a file, safe to print: no markup, no control characters; `lines` keeps line ends."""
    from rich.markup import escape

    return escape("".join(c if c.isprintable() or (lines and c == "\n") else "\ufffd" for c in str(value)))
