"""`hilum index`: the scans of a cohort as rows that can be searched."""

from __future__ import annotations

from pathlib import Path

import click

from hilum.cli.common import counted_bars, echo_json, json_option, plain

PARTIAL = 4


@click.command()
@click.argument("cohort", type=click.Path(path_type=Path))
@click.option("--model", required=True, type=click.Path(), help="Folder of an encoder that reads texts too.")
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Folder of the index.")
@click.option("--root", type=click.Path(path_type=Path), help="Where the scans lie, if not where they lay.")
@click.option("--split", help="Only the scans of this split.")
@click.option("--wait", "wait_s", type=float, default=0.0, help="Seconds to wait for another writer.")
@json_option
def index(
    cohort: Path, model: str, out: Path, root: Path | None, split: str | None, wait_s: float, as_json: bool
) -> int:
    """Embed every scan of COHORT and keep it in an index, with its report.

    COHORT is what `hilum prepare` left, or its manifest. Scans that the index has already are not read again,
    so a run that was stopped goes on. A scan that is refused is listed and left out (exit code 4).
    """
    from hilum.cohort.manifest import read_manifest
    from hilum.read.embed import index_cohort
    from hilum.read.encoder import load

    table = read_manifest(cohort, root)
    table = table if split is None else table.only(split)
    loaded = load(model)
    with counted_bars(disable=as_json) as bars:
        row = bars.add_task("indexing", total=len(table))
        done = index_cohort(loaded, table, out, wait_s=wait_s, progress=lambda key: bars.advance(row))
    if as_json:
        echo_json(
            {"added": list(done.added), "there": len(done.there), "rows": done.rows,
             "refused": [refusal.as_dict() for refusal in done.refused]}
        )  # fmt: skip
    else:
        click.echo(f"{len(done.added)} added, {len(done.there)} were there, {len(done.refused)} refused")
        for refusal in done.refused:
            click.echo(f"  {plain(refusal.key)}: {refusal.code} {plain(refusal.reason)}")
        click.echo(f"{done.rows} scans in {plain(str(out))}")
    return PARTIAL if done.refused else 0
