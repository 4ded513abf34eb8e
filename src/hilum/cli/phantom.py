"""`hilum phantom`: chest CTs with known truth. SYNTHETIC."""

from __future__ import annotations

import json
from pathlib import Path

import click

from hilum.cli.common import counted_bars


@click.command()
@click.argument("count", metavar="N", type=click.IntRange(min=1))
@click.option(
    "--out",
    required=True,
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder that the phantoms are written into, one folder each, with cohort.csv.",
)
@click.option("--dicom", is_flag=True, help="Write a DICOM series instead of a NIfTI file.")
@click.option("--spacing", metavar="X,Y,Z|Z", help="Voxel spacing in mm; drawn when not given.")
@click.option(
    "--seed", default=0, show_default=True, type=click.IntRange(min=0), help="Seed of the first phantom."
)
@click.option(
    "--language",
    default="en",
    show_default=True,
    type=click.Choice(["en", "de", "both"]),
    help="Language of the reports.",
)
@click.option(
    "--degrees",
    default="default",
    show_default=True,
    type=click.Choice(["mild", "moderate", "severe", "default"]),
    help="How bad the findings are; default mixes the three.",
)
@click.option("--findings", metavar="A,B", help="Exactly these findings ('none' for a normal chest).")
@click.option("--work-mm", type=click.FloatRange(0.5, 8.0), help="Voxel edge of the working grid in mm.")
@click.option("--overwrite", is_flag=True, help="Make phantoms anew that are already there.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON on stdout.")
def phantom(
    count: int,
    out: Path,
    dicom: bool,
    spacing: str | None,
    seed: int,
    language: str,
    degrees: str,
    findings: str | None,
    work_mm: float | None,
    overwrite: bool,
    as_json: bool,
) -> None:
    """Make N SYNTHETIC chest CTs with masks, reports and truth.

    Phantom i has seed SEED + i. Complete phantoms are kept, so a stopped run can be repeated.
    """
    from hilum.phantom.batch import BatchRequest, make_batch
    from hilum.phantom.write import WriteOptions

    request = BatchRequest(
        seed=seed,
        spacing_mm=parse_spacing(spacing),
        degrees=degrees,
        findings=parse_findings(findings),
        work_mm=work_mm,
        write=WriteOptions(dicom=dicom, languages=("en", "de") if language == "both" else (language,)),
    )
    with counted_bars(transient=True, disable=as_json) as bar:
        task = bar.add_task("SYNTHETIC phantoms", total=count)
        result = make_batch(
            count, out, request, overwrite=overwrite, progress=lambda key, made: bar.advance(task)
        )
    if as_json:
        told = {"synthetic": True, "made": result.made, "kept": result.kept, "table": str(result.table)}
        click.echo(json.dumps(told))
        return
    kept = f", {len(result.kept)} kept" if result.kept else ""
    click.echo(f"{len(result.made)} SYNTHETIC phantoms made{kept}; table: {result.table}")


def parse_spacing(text: str | None) -> float | tuple[float, float, float] | None:
    """`--spacing`: one number is z, three are x, y, z, all in mm."""
    if text is None:
        return None
    try:
        numbers = [float(part) for part in text.split(",")]
    except ValueError:
        numbers = []
    if len(numbers) not in (1, 3):
        raise click.BadParameter(f"expected one or three numbers in mm, got {text!r}", param_hint="--spacing")
    return numbers[0] if len(numbers) == 1 else (numbers[0], numbers[1], numbers[2])


def parse_findings(text: str | None) -> tuple[str, ...] | None:
    """`--findings`: names with commas, `none` for a normal chest."""
    if text is None:
        return None
    return tuple(part.strip() for part in text.split(",") if part.strip() and part.strip() != "none")
