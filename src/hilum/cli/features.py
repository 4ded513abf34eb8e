"""`hilum features`: windows of a cohort's scans, kept for training."""

from __future__ import annotations

from pathlib import Path

import click

from hilum.cli.common import counted_bars, echo_json, json_option, plain

PARTIAL = 4


@click.command()
@click.argument("cohort", type=click.Path(path_type=Path))
@click.option(
    "--model", required=True, metavar="NAME",
    help="Folder of a window encoder, or reader:NAME for a model that reads scans.",
)  # fmt: skip
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Folder of caches.")
@click.option(
    "--depth-mm", "depths_mm", type=click.FloatRange(0, min_open=True), multiple=True, default=(12.0,),
    show_default=True, help="Thickness of a depth; may be given again.",
)  # fmt: skip
@click.option("--root", type=click.Path(path_type=Path), help="Where the scans lie, if not where they lay.")
@click.option(
    "--snippets", type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="JSON lines of placed sentences: key, text, z_mm.",
)  # fmt: skip
@json_option
def features(
    cohort: Path, model: str, out: Path, depths_mm: tuple[float, ...], root: Path | None,
    snippets: Path | None, as_json: bool,
) -> int:  # fmt: skip
    """Read every scan of COHORT in windows, once, and keep them with its report and labels.

    COHORT is what `hilum prepare` left, or its manifest. `hilum train` of the method radfinder learns from a
    folder that this prints. Sentences of reports that point at images of their own DICOM series get their
    place in mm. Scans that are there already are not read again. A scan that is refused is listed and left
    out (exit code 4).
    """
    from hilum.cohort.manifest import read_manifest
    from hilum.read.window_cache import window_cache
    from hilum.read.window_cohort import keep_windows, read_placed

    table = read_manifest(cohort, root)
    given = None if snippets is None else read_placed(snippets)
    windows = window_cache(out, model, depths_mm)
    with counted_bars(disable=as_json) as bars:
        row = bars.add_task("reading windows", total=len(table))
        done = keep_windows(windows, table, given, progress=lambda key: bars.advance(row))
    placed = sum(len(s.snippets) for s in done.samples)
    if as_json:
        echo_json(
            {"added": done.added, "scans": len(done.samples), "placed": placed, "lost": done.lost,
             "folders": {f"{mm:g}": str(folder) for mm, folder in done.folders.items()},
             "refused": [refusal.as_dict() for refusal in done.refused]}
        )  # fmt: skip
        return PARTIAL if done.refused else 0
    click.echo(f"{len(done.samples)} scans ({done.added} new), {placed} placed sentences, {done.lost} lost")
    for refusal in done.refused:
        click.echo(f"  {plain(refusal.key)}: {refusal.code} {plain(refusal.reason)}")
    for mm, folder in done.folders.items():
        click.echo(f"{mm:g} mm: {plain(str(folder))}")
    return PARTIAL if done.refused else 0
