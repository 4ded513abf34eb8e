"""`hilum index`: the scans of a cohort as rows that can be searched."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import click

from hilum.cli.common import counted_bars, echo_json, json_option, plain, progress, recall_of

PARTIAL = 4


@click.command()
@click.argument("cohort", type=click.Path(path_type=Path))
@click.option("--model", required=True, type=click.Path(), help="Folder of an encoder that reads texts too.")
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Folder of the index.")
@click.option("--root", type=click.Path(path_type=Path), help="Where the scans lie, if not where they lay.")
@click.option("--split", help="Only the scans of this split.")
@click.option("--wait", "wait_s", type=float, default=0.0, help="Seconds to wait for another writer.")
@click.option(
    "--region", default="", metavar="NAME", help="Only this part of each chest: 'left lung', 'heart'."
)
@click.option(
    "--organs", type=click.Path(path_type=Path),
    help="With --region: folder of organ masks, KEY.nii.gz of each scan; by default a model's.",
)  # fmt: skip
@click.option(
    "--approximate", is_flag=True, help="Make it ready for approximate search (20000 scans or more)."
)
@json_option
def index(
    cohort: Path,
    model: str,
    out: Path,
    root: Path | None,
    split: str | None,
    wait_s: float,
    region: str,
    organs: Path | None,
    approximate: bool,
    as_json: bool,
) -> int:
    """Embed every scan of COHORT and keep it in an index, with its report.

    COHORT is what `hilum prepare` left, or its manifest. Scans that the index has already are not read again,
    so a run that was stopped goes on. A scan that is refused is listed and left out (exit code 4).

    With --region only a part of each chest is looked at, and so will be the scans that are searched by: an
    organ, 'left lung', 'upper third of the right lung', or with --organs a lobe, 'left lower lobe'.
    """
    from hilum.cohort.manifest import read_manifest
    from hilum.io.inverted_lists import faiss_library
    from hilum.read.approximate import LEAST_ROWS
    from hilum.read.embed import index_cohort, index_lists
    from hilum.read.encoder import load

    if approximate:
        # said before hours of work
        faiss_library()
    table = read_manifest(cohort, root)
    table = table if split is None else table.only(split)
    loaded = load(model)
    with counted_bars(disable=as_json) as bars:
        row = bars.add_task("indexing", total=len(table))
        done = index_cohort(
            loaded, table, out, wait_s=wait_s, progress=lambda key: bars.advance(row), region=region,
            organs=organs,
        )  # fmt: skip
    with progress("Making lists", quiet=as_json or not approximate):
        lists = index_lists(loaded, out, wait_s=wait_s) if approximate else None
    if as_json:
        echo_json(
            {"added": list(done.added), "there": len(done.there), "rows": done.rows,
             "refused": [refusal.as_dict() for refusal in done.refused],
             "approximate": None if lists is None else asdict(lists)}
        )  # fmt: skip
    else:
        click.echo(f"{len(done.added)} added, {len(done.there)} were there, {len(done.refused)} refused")
        for refusal in done.refused:
            click.echo(f"  {plain(refusal.key)}: {refusal.code} {plain(refusal.reason)}")
        click.echo(f"{done.rows} scans in {plain(str(out))}")
        if lists is not None:
            click.echo(
                f"{lists.lists} lists, of which a search probes {lists.probes}; {recall_of(lists.recall)}"
            )
        elif approximate:
            click.echo(f"No lists: exact search is as fast below {LEAST_ROWS} scans.")
    return PARTIAL if done.refused else 0
