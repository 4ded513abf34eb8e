"""`hilum locate`: a sentence about a scan in, millimetres and an image number out."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from hilum.cli.common import echo_json, input_options, json_option, plain, progress

if TYPE_CHECKING:
    from hilum.read.locate import Answer


@click.command()
@click.argument("path", type=click.Path())
@click.argument("sentences", metavar="SENTENCE...", nargs=-1)
@click.option("--csv", "table", type=click.Path(path_type=Path), help="Sentences from a column `sentence`.")
@click.option(
    "--model", required=True, type=click.Path(), help="Folder of a model of windows and texts (3d-joint)."
)
@click.option(
    "--depth", "depth_mm", type=float, metavar="MM", help="Thickness of a depth; by default the model's."
)
@json_option
@input_options
def locate(
    path: str,
    sentences: tuple[str, ...],
    table: Path | None,
    model: str,
    depth_mm: float | None,
    as_json: bool,
    mode: Any,
    answers: Any,
) -> None:
    """At which height of the scan PATH each SENTENCE belongs.

    PATH is a DICOM folder or zip, a NIfTI, NRRD or NPZ file. Nothing is written. The answer is the height in
    mm (the same number in RAS and LPS), the slice of the input, for DICOM its series and image number, and
    how spread the model's curve over the depths is.
    """
    from hilum.read.locate import locate_in, sentences_of

    asked = sentences_of(sentences, table)
    with progress("Locating", quiet=as_json):
        found = locate_in(path, asked, model, depth_mm=depth_mm, mode=mode, answers=answers)
    if as_json:
        echo_json(found.as_dict())
        return
    for answer in found.answers:
        click.echo(_line(answer))
    click.echo(f"Depths of {found.depth_step_mm:g} mm. Research use only.")


def _line(answer: Answer) -> str:
    where = f"z {answer.z_mm:.1f} mm, slice {answer.slice_index} of {answer.slices}"
    if answer.image is not None:
        series, image = answer.image.series_number, answer.image.instance_number
        where += (
            f", series {series if series is not None else '?'}, image {image if image is not None else '?'}"
        )
    return f"{plain(answer.sentence)}\n  {where}, spread {answer.spread_mm:.0f} mm"
