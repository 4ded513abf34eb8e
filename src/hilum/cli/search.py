"""`hilum search`: what an index holds that is like some words, like a scan, or like both."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from hilum.cli.common import echo_json, input_options, json_option, plain, progress, recall_of

SHOWN = 160
"""Characters of a report on the screen."""


@click.command()
@click.argument("index", type=click.Path())
@click.option("--model", required=True, type=click.Path(), help="The model that made the index.")
@click.option("--text", "texts", multiple=True, help="Words to search by; may be given again.")
@click.option("--scan", "scans", multiple=True, type=click.Path(), help="A scan to search by; as well.")
@click.option(
    "--organs", multiple=True, type=click.Path(path_type=Path),
    help="Organ masks of each --scan, for an index of a region; by default a model's.",
)  # fmt: skip
@click.option("--filter", "filters", multiple=True, metavar="COLUMN=VALUE", help="Only such rows.")
@click.option("--top", type=click.IntRange(1, 1000), default=10, show_default=True, help="Answers.")
@click.option(
    "--exact/--approximate",
    default=None,
    help="Every row, or the lists of `hilum index --approximate`; by default lists from 100000 rows on.",
)
@json_option
@input_options
def search(
    index: str,
    model: str,
    texts: tuple[str, ...],
    scans: tuple[str, ...],
    organs: tuple[Path, ...],
    filters: tuple[str, ...],
    top: int,
    exact: bool | None,
    as_json: bool,
    mode: Any,
    answers: Any,
) -> None:
    """The scans of INDEX that are nearest to a text, a scan, or several of either, with their reports.

    One question is answered by the cosine; several are fused by rank. Of an index of a region (`hilum index
    --region`) that part of a scan is compared alone. Nothing is written.
    """
    from hilum.read.ask_index import How, ask

    how: How = "auto" if exact is None else "exact" if exact else "approximate"
    wanted = dict(_pair(one) for one in filters)
    with progress("Searching", quiet=as_json):
        found = ask(
            index, model, texts=texts, scans=scans, filters=wanted, top=top, mode=mode, answers=answers,
            how=how, organs=organs,
        )  # fmt: skip
    if as_json:
        echo_json(found.as_dict())
        return
    for rank, row in enumerate(found.rows, start=1):
        report = " ".join(str(row.get("report") or "").split())
        short = report if len(report) <= SHOWN else report[: SHOWN - 1] + "…"
        click.echo(f"{rank:3d}  {row['score']:.3f}  {plain(str(row['key']))}  {plain(short)}")
    way = "exactly" if found.lists is None else f"approximately ({recall_of(found.lists.recall)})"
    region = f", the {found.model['region']} alone" if found.model["region"] else ""
    click.echo(f"{found.asked} of {found.size} scans searched {way}{region}. Research use only.")


def _pair(text: str) -> tuple[str, str]:
    column, sign, value = text.partition("=")
    if not sign or not column:
        raise click.UsageError(f"--filter is COLUMN=VALUE, got {text}")
    return column.strip(), value.strip()
