"""`hilum exam MODEL --suite phantom|samples`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

EXAM_SEED = 9_000_000
"""First seed of the exam phantoms; training and validation count from other bases."""


@click.command()
@click.argument("model")
@click.option(
    "--suite", type=click.Choice(["phantom", "samples"]), required=True, help="Which frozen protocol."
)
@click.option("--baseline", default="phantom-small-cam", show_default=True, help="Examined in the same run.")
@click.option("--cases", default=60, show_default=True, type=click.IntRange(2), help="Unseen phantoms.")
@click.option(
    "--choose", is_flag=True, help="Set thresholds and calibration of MODEL folders from validation first."
)
@click.option("--workers", default=2, show_default=True, type=click.IntRange(1), help="Processes.")
@click.option(
    "--out", type=click.Path(path_type=Path), default=None, help="Write the table as JSON here too."
)
@click.option("--json", "as_json", is_flag=True, help="Print the tables as JSON.")
def exam(
    model: str,
    suite: str,
    baseline: str,
    cases: int,
    choose: bool,
    workers: int,
    out: Path | None,
    as_json: bool,
) -> None:
    """Every number we publish: a model on a frozen suite, baseline in the same run."""
    if suite == "samples":
        result = _samples(model)
    else:
        names = [model] + ([baseline] if baseline else [])
        if choose:
            for name in names:
                _choose(Path(name), workers)
        result = _phantoms(names, cases, workers)
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
    from hilum.read.scan_model import ScanModel

    seeds = range(EXAM_SEED, EXAM_SEED + cases)
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


def _choose(folder: Path, workers: int) -> None:
    """Thresholds and calibration from the validation phantoms that the card names; written into the card."""
    from hilum.exam.choose import choose
    from hilum.exam.phantom_cases import Protocol, score_seeds
    from hilum.train.run import write_card

    card = json.loads((folder / "card.json").read_text(encoding="utf-8"))
    data = card["recipe"]["data"]
    first, count = data["validation_seed"], data["validation"]
    # made as the training phantoms were; the exam's keep every scanner's own spacing
    spacing = tuple(data["spacing_mm"]) if data["spacing_mm"] else None
    scored = score_seeds(
        range(first, first + count),
        [str(folder)],
        protocol=Protocol(data["work_mm"], spacing),
        workers=workers,
    )
    rows = _bar(scored, count, "validation")
    write_card(folder, card | choose([row[0] for row in rows]))


def _bar(items: Any, total: int, what: str) -> Any:
    from rich.console import Console
    from rich.progress import track

    return track(items, total=total, description=what, console=Console(stderr=True))
