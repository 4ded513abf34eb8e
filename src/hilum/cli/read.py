"""`hilum read`: one chest CT in, one folder out."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from hilum.cli.common import echo_json, input_options, json_option, plain

if TYPE_CHECKING:
    from hilum.io.llm_endpoint import LlmEndpoint
    from hilum.read.reading import Reading

STEPS = (
    "open",
    "load model",
    "run model",
    "place",
    "reword",
    "ask",
    "write organs",
    "write maps",
    "write page",
)


@click.command()
@click.argument("path", type=click.Path())
@click.option("--out", required=True, type=click.Path(), help="Folder to make.")
@click.option("--organs", type=click.Path(), help="Organ masks of your own (TotalSegmentator map or folder).")
@click.option("--model", default="phantom-small", show_default=True, help="Model that reads.")
@click.option("--language", type=click.Choice(["en", "de"]), default="en", help="Of the report and page.")
@click.option("--all-maps", is_flag=True, help="Write the maps of all 18 findings, not only those present.")
@click.option(
    "--aamaps", is_flag=True, help="Write the model's maps on its own grid too, named as EXACT's are."
)
@click.option("--overwrite", is_flag=True, help="Replace the folder if it exists.")
@click.option(
    "--prompt", "prompts", metavar="WORDS", multiple=True,
    help="Ask for anything else in words, e.g. 'hiatal hernia'; may be given again. Not calibrated.",
)  # fmt: skip
@click.option(
    "--prompt-model",
    default="radfinder-nano",
    show_default=True,
    help="Model of scans and texts for --prompt.",
)
@click.option(
    "--ensemble", type=click.Choice(["t3", "mean7"]), default="mean7", show_default=True,
    help="Sentences that --prompt is put into.",
)  # fmt: skip
@click.option(
    "--refine",
    metavar="URL",
    help="Have the report reworded by a language model, up to and with /v1; every sentence is checked.",
)
@click.option("--refine-model", metavar="NAME", help="The model, as the endpoint calls it.")
@click.option("--yes-send-report", is_flag=True, help="The report may leave this machine for that host.")
@click.option("--allow-http", is_flag=True, help="It may leave unencrypted.")
@json_option
@input_options
def read(
    path: str,
    out: str,
    organs: str | None,
    model: str,
    language: Any,
    all_maps: bool,
    aamaps: bool,
    overwrite: bool,
    prompts: tuple[str, ...],
    prompt_model: str,
    ensemble: str,
    refine: str | None,
    refine_model: str | None,
    yes_send_report: bool,
    allow_http: bool,
    as_json: bool,
    mode: Any,
    answers: Any,
) -> None:
    """Read one chest CT: findings, maps, organs, report, page.

    PATH is a DICOM folder or zip, a NIfTI, NRRD or NPZ file. The folder --out gets reading.json, report.txt,
    index.html, receipt.json, organs.nii.gz and maps/. A refused input writes nothing.
    """
    folder = Path(out)
    _check_output(folder, Path(path), overwrite)
    endpoint = _endpoint(refine, refine_model, yes_send_report, allow_http)
    with _steps(quiet=as_json) as tell:
        from hilum.read.reader import read as read_scan
        from hilum.show.save import save

        reading = read_scan(
            path, model=model, organs=organs, mode=mode, answers=answers, language=language, progress=tell
        )
        if endpoint is not None:
            from hilum.read.refine import refine as reword

            tell("reword")
            reading = reword(reading, endpoint)
        if prompts:
            from hilum.read.asked import with_asked

            tell("ask")
            reading = with_asked(reading, prompts, prompt_model, ensemble)
        save(reading, folder, overwrite=overwrite, all_maps=all_maps, aamaps=aamaps, progress=tell)
    if as_json:
        echo_json(_as_dict(reading, folder))
    else:
        _show(reading, folder)


def _endpoint(url: str | None, model: str | None, send: bool, allow_http: bool) -> LlmEndpoint | None:
    """Who rewords the report, from the options; refused when it may not go there."""
    if url is None:
        return None
    from hilum.errors import UsageError
    from hilum.io.llm_endpoint import endpoint_of

    if model is None:
        raise click.UsageError("--refine needs --refine-model NAME")
    endpoint = endpoint_of(url, model, allow_http=allow_http)
    if not endpoint.loopback and not send:
        raise UsageError(
            "LLM_SEND",
            "reports leave this machine only when that is said",
            expected="--yes-send-report",
            got=f"the host {endpoint.host}",
            hint="Sentences about findings would be sent, no picture and no header.",
        )
    click.echo(f"Sentences about findings go to {endpoint.host}.", err=True)
    return endpoint


def _check_output(folder: Path, source: Path, overwrite: bool) -> None:
    """Before any work: the output is free, and does not lie inside the input."""
    from hilum.errors import OutputError
    from hilum.io.atomic import refuse_existing

    refuse_existing(folder, overwrite)
    inside, outside = folder.resolve(), source.resolve()
    if inside == outside or (source.is_dir() and outside in inside.parents) or inside in outside.parents:
        raise OutputError(
            "OUTPUT_INSIDE_INPUT",
            "nothing is written where the input lies",
            expected="a folder that neither holds the input nor lies in it",
            got=str(folder),
            hint="Choose another folder with --out.",
        )


@contextmanager
def _steps(quiet: bool) -> Iterator[Callable[[str], None]]:
    """A progress line on stderr: which step, and how far."""
    if quiet:
        yield lambda step: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = [SpinnerColumn(), TextColumn("{task.description:<14}"), BarColumn(), TimeElapsedColumn()]
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("open", total=len(STEPS))

        def tell(step: str) -> None:
            done = STEPS.index(step) if step in STEPS else 0
            bar.update(task, description=step, completed=done)

        yield tell


def _as_dict(reading: Reading, folder: Path) -> dict[str, Any]:
    """What a script needs first; all of it is in `reading.json`."""
    return {
        "out": str(folder),
        "page": str(folder / "index.html"),
        "notice": reading.notice,
        "coverage": reading.coverage.model_dump(mode="json"),
        "findings": [f.model_dump(mode="json") for f in reading.findings],
        "report": [s.text for s in reading.report.sentences],
        "asked": [a.model_dump(mode="json") for a in reading.asked],
    }


def _show(reading: Reading, folder: Path) -> None:
    click.echo(reading.report.text, nl=False)
    click.echo()
    for note in (n for n in reading.receipt.notes if n.startswith("report:")):
        click.echo(plain(note), err=True)
    for finding in reading.present:
        where = finding.where
        place = f"{where.peak_mm_ras} mm RAS" if where else "no place"
        click.echo(f"{finding.probability:5.2f}  {finding.name:<36} {place}")
    for asked in reading.asked:
        click.echo(f"{asked.score:5.2f}  {plain(asked.text)} (asked in words, not calibrated)")
    click.echo(f"\n{folder / 'index.html'}")
