"""`hilum exam MODEL --suite phantom|samples|frozen`, `hilum exam --suite report`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

EXAM_SEED = 9_000_000
"""First seed of the exam phantoms; training and validation count from other bases."""


@click.command()
@click.argument("models", metavar="[MODEL]...", nargs=-1)
@click.option(
    "--suite",
    type=click.Choice(["phantom", "samples", "frozen", "report"]),
    required=True,
    help="Which frozen protocol.",
)
@click.option("--baseline", default="phantom-small-cam", show_default=True, help="Examined in the same run.")
@click.option("--cases", default=60, show_default=True, type=click.IntRange(2), help="Unseen phantoms.")
@click.option(
    "--choose", is_flag=True, help="Set thresholds and calibration of MODEL folders from validation first."
)
@click.option("--workers", default=2, show_default=True, type=click.IntRange(1), help="Processes, 4 GB each.")
@click.option(
    "--cohort",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    help="frozen: what hilum prepare --prep PRESET left.",
)
@click.option(
    "--fraction",
    "fractions",
    type=click.FloatRange(0, 1, min_open=True),
    multiple=True,
    default=(0.1, 0.25, 1.0),
    show_default=True,
    help="frozen: share of the training patients that probes learn from; may be given again.",
)
@click.option(
    "--patch", type=click.IntRange(1), help="frozen: size of a patch in voxels, else each encoder's."
)
@click.option("--device", default="cpu", show_default=True, help="frozen: where encoders run.")
@click.option(
    "--precision",
    type=click.Choice(["fp32", "bf16"]),
    default="fp32",
    show_default=True,
    help="frozen: of the encoders' matrix products.",
)
@click.option(
    "--reports",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="report: table of written reports, VolumeName and text columns.",
)
@click.option(
    "--truth",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="report: table of the same scans, 18 label columns, reference reports, or both.",
)
@click.option("--radgraph", is_flag=True, help="report: RadGraph too, if library and weights are installed.")
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default=None,
    help="Write the table as JSON here too; frozen: a folder for JSON and Markdown.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the tables as JSON.")
def exam(
    models: tuple[str, ...],
    suite: str,
    baseline: str,
    cases: int,
    choose: bool,
    workers: int,
    cohort: Path | None,
    fractions: tuple[float, ...],
    patch: int | None,
    device: str,
    precision: str,
    reports: Path | None,
    truth: Path | None,
    radgraph: bool,
    out: Path | None,
    as_json: bool,
) -> None:
    """Every number we publish: a model on a frozen suite, baseline in the same run.

    phantom and samples examine one model that reads scans. frozen probes the features of encoders, any number
    of them on the same scans (docs/exam-frozen.md). report needs no model, but --reports and --truth
    (docs/report.md).
    """
    if suite == "report":
        from hilum.cli.exam_reports import run_reports

        if models or reports is None or truth is None:
            raise click.UsageError("--suite report needs --reports and --truth, and no model")
        _tell(run_reports(reports, truth, with_radgraph=radgraph, quiet=as_json), out, as_json)
        return
    if not models:
        raise click.UsageError(f"--suite {suite} needs a MODEL")
    if suite == "frozen":
        from hilum.cli.exam_frozen import run_frozen

        if cohort is None:
            raise click.UsageError("--suite frozen needs --cohort PREPARED")
        result = run_frozen(
            models,
            cohort,
            fractions=fractions,
            patch=patch,
            device=device,
            bf16=precision == "bf16",
            out=out,
            quiet=as_json,
        )
        click.echo(json.dumps(result, indent=2) if as_json else result["text"])
        return
    if len(models) > 1:
        raise click.UsageError(f"--suite {suite} examines one model, got {len(models)}")
    if suite == "samples":
        result = _samples(models[0])
    else:
        names = [models[0]] + ([baseline] if baseline else [])
        if choose:
            _choose(names, workers)
        result = _phantoms(names, cases, workers)
    _tell(result, out, as_json)


def _tell(result: dict[str, Any], out: Path | None, as_json: bool) -> None:
    """Prints the tables; writes them as JSON where `--out` says."""
    text = json.dumps(result, indent=2)
    if out:
        from hilum.io.atomic import atomic_write

        out.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(out) as file:
            file.write((text + "\n").encode())
    click.echo(text if as_json else result["text"])


def _samples(model: str) -> dict[str, Any]:
    from hilum.exam.samples import as_text, examine_samples
    from hilum.read.scan_model import ScanModel

    scores = examine_samples(ScanModel.load(model))
    return {"suite": "samples", "text": as_text(scores), "rows": [vars(s) for s in scores]}


def _phantoms(names: list[str], cases: int, workers: int) -> dict[str, Any]:
    from hilum.exam.phantom_cases import score_seeds
    from hilum.exam.phantom_table import as_text, tabulate
    from hilum.exam.unseen import require_unseen
    from hilum.read.scan_model import ScanModel

    seeds = range(EXAM_SEED, EXAM_SEED + cases)
    for name in names:
        require_unseen(ScanModel.load(name).card, EXAM_SEED, cases)
    scored = list(_bar(score_seeds(seeds, names, workers=workers), cases, "exam phantoms"))
    tables = []
    for position, name in enumerate(names):
        tables.append(tabulate([row[position] for row in scored], ScanModel.load(name).map_thresholds))
    return {
        "suite": "phantom",
        "seeds": [seeds.start, seeds.stop - 1],
        "tables": [t.as_dict() for t in tables],
        "text": as_text(tables),
    }


def _choose(folders: list[str], workers: int) -> None:
    """Thresholds and calibration from the validation phantoms that each card names; written into the card.
    Models with the same phantoms are examined together."""
    from hilum.exam.choose import choose
    from hilum.exam.phantom_cases import score_seeds
    from hilum.train.run import write_card

    cards = {
        folder: json.loads((Path(folder) / "card.json").read_text(encoding="utf-8")) for folder in folders
    }
    together: dict[Any, list[str]] = {}
    for folder, card in cards.items():
        together.setdefault(_validation(card["recipe"]["data"]), []).append(folder)
    for (seeds, protocol), models in together.items():
        scored = score_seeds(seeds, models, protocol=protocol, workers=workers)
        rows = list(_bar(scored, len(seeds), "validation"))
        for position, folder in enumerate(models):
            write_card(Path(folder), cards[folder] | choose([row[position] for row in rows]))


def _validation(data: dict[str, Any]) -> Any:
    """Seeds and protocol of a recipe's validation phantoms."""
    from hilum.exam.phantom_cases import Protocol

    # made as the training phantoms were; the exam's keep every scanner's own spacing
    spacing = tuple(data["spacing_mm"]) if data["spacing_mm"] else None
    first = data["validation_seed"]
    return range(first, first + data["validation"]), Protocol(data["work_mm"], spacing)


def _bar(items: Any, total: int, what: str) -> Any:
    from rich.console import Console
    from rich.progress import track

    return track(items, total=total, description=what, console=Console(stderr=True))
