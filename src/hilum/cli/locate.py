"""`hilum locate`: a sentence about a scan in, millimetres and an image number out."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from hilum.cli.common import echo_json, input_options, json_option, plain, progress
from hilum.errors import OutputError

if TYPE_CHECKING:
    from hilum.read.locate import Answer, LocatedAll


@click.command()
@click.argument("path", type=click.Path())
@click.argument("sentences", metavar="SENTENCE...", nargs=-1)
@click.option(
    "--csv",
    "table",
    type=click.Path(path_type=Path),
    help="Sentences from a column `sentence` (CSV, TSV, XLSX).",
)
@click.option(
    "--model", default="radfinder-nano", show_default=True, type=click.Path(),
    help="Model of windows and texts (3d-joint): a folder, or one that ships.",
)  # fmt: skip
@click.option(
    "--depth", "depth_mm", type=float, metavar="MM", help="Thickness of a depth; by default the model's."
)
@click.option(
    "--picture", type=click.Path(path_type=Path), help="Write a PNG: the scan, and the curves beside it."
)
@click.option("--overwrite", is_flag=True, help="Replace the picture if it exists.")
@json_option
@input_options
def locate(
    path: str,
    sentences: tuple[str, ...],
    table: Path | None,
    model: str,
    depth_mm: float | None,
    picture: Path | None,
    overwrite: bool,
    as_json: bool,
    mode: Any,
    answers: Any,
) -> None:
    """At which height of the scan PATH each SENTENCE belongs.

    PATH is a DICOM folder or zip, a NIfTI, NRRD or NPZ file. Nothing is written but --picture. The answer is
    the height in mm (the same number in RAS and LPS), the slice of the input, for DICOM its series and image
    number, and how spread the model's curve over the depths is.
    """
    from hilum.read.locate import locate_in, sentences_of

    asked = sentences_of(sentences, table)
    if picture is not None and picture.exists() and not overwrite:
        # before a scan is read for nothing
        raise OutputError("OUTPUT_EXISTS", "results never replace other files unasked", path=picture)
    with progress("Locating", quiet=as_json):
        found = locate_in(path, asked, model, depth_mm=depth_mm, mode=mode, answers=answers)
        if picture is not None:
            _draw(found, picture)
    if as_json:
        echo_json(found.as_dict())
        return
    for answer in found.answers:
        click.echo(_line(answer))
    click.echo(f"Depths of {found.depth_step_mm:g} mm. Research use only.")


def _draw(found: LocatedAll, picture: Path) -> None:
    from hilum.io.atomic import atomic_write
    from hilum.show.located import located_picture

    with atomic_write(picture) as file:
        located_picture(found).save(file, "PNG")


def _line(answer: Answer) -> str:
    where = f"z {answer.z_mm:.1f} mm, slice {answer.slice_index} of {answer.slices}"
    if answer.image is not None:
        series, image = answer.image.series_number, answer.image.instance_number
        where += (
            f", series {series if series is not None else '?'}, image {image if image is not None else '?'}"
        )
    return f"{plain(answer.sentence)}\n  {where}, spread {answer.spread_mm:.0f} mm"
