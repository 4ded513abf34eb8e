"""`hilum exam MODEL --suite phantom|samples|frozen|diagnosis|localize|joint`, `hilum exam --suite report`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from hilum.cli.exam_options import suite_options

EXAM_SEED = 9_000_000
"""First seed of the exam phantoms; training and validation count from other bases."""


@click.command()
@click.argument("models", metavar="[MODEL]...", nargs=-1)
@click.option(
    "--suite",
    type=click.Choice(["phantom", "samples", "frozen", "diagnosis", "localize", "joint", "report"]),
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
    type=click.Path(path_type=Path, exists=True),
    help="frozen: what hilum prepare --prep PRESET left; diagnosis: what hilum prepare left or its manifest; "
    "localize: that, or a data set's folder.",
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
    help="A folder for tables as JSON and Markdown and for diagrams; a name with .json: the JSON alone.",
)
@suite_options
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
    more: dict[str, Any],
) -> None:
    """Every number we publish: a model on a frozen suite, baseline in the same run.

    phantom, samples, diagnosis and localize examine one model that reads scans; diagnosis and localize also
    what any other model wrote (docs/exam-diagnosis.md, docs/exam-localize.md). frozen probes the features of
    encoders, any number of them on the same scans (docs/exam-frozen.md). joint examines models of scans and
    texts on kept windows (docs/radfinder.md). report needs no model, but --reports
    and --truth (docs/report.md).
    """
    if suite == "report":
        from hilum.cli.exam_reports import run_reports

        if models or reports is None or truth is None:
            raise click.UsageError("--suite report needs --reports and --truth, and no model")
        _tell(run_reports(reports, truth, with_radgraph=radgraph, quiet=as_json), suite, out, as_json)
        return
    if not models and not (more["predictions"] or more["maps"]):
        raise click.UsageError(f"--suite {suite} needs a MODEL")
    if suite in ("diagnosis", "localize"):
        if cohort is None:
            raise click.UsageError(f"--suite {suite} needs --cohort")
        run = _diagnosis if suite == "diagnosis" else _localize
        result = run(models, cohort, choose, out, as_json, more)
        click.echo(_json(result) if as_json else result["text"])
        return
    if suite == "joint":
        from hilum.cli.exam_joint import run_joint_exam

        if not more["features"]:
            raise click.UsageError("--suite joint needs --features FOLDER, one for all models or one each")
        result = run_joint_exam(models, more["features"], more["test_part"] or "test", quiet=as_json)
        _tell(result, suite, out, as_json)
        return
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
    _tell(result, suite, out, as_json)


def _tell(result: dict[str, Any], suite: str, out: Path | None, as_json: bool) -> None:
    """Prints the tables; writes them where `--out` says."""
    svg = result.pop("svg", None)
    text = _json(result)
    if out:
        from hilum.cli.common import write_files

        if out.suffix == ".json":
            write_files(out.parent, {out.name: text + "\n"})
        else:
            drawn = {"reliability.svg": svg} if svg else {}
            write_files(out, {**drawn, f"{suite}.txt": result["text"] + "\n", f"{suite}.json": text + "\n"})
    click.echo(text if as_json else result["text"])


def _json(result: dict[str, Any]) -> str:
    return json.dumps(result, indent=2)


def _diagnosis(
    models: tuple[str, ...], cohort: Path, choose: bool, out: Path | None, quiet: bool, more: dict[str, Any]
) -> dict[str, Any]:
    from hilum.cli.exam_diagnosis import run_diagnosis

    return run_diagnosis(
        models,
        cohort,
        predictions=more["predictions"],
        choose=choose,
        asked={name: more[name] for name in ("convention", "rule", "label_set", "calcification")},
        parts=(more["validation_part"], more["test_part"]),
        out=out,
        quiet=quiet,
    )


def _localize(
    models: tuple[str, ...], cohort: Path, choose: bool, out: Path | None, quiet: bool, more: dict[str, Any]
) -> dict[str, Any]:
    from hilum.cli.exam_localize import Localizing, run_localize

    if choose or more["convention"] == "fvlm":
        raise click.UsageError("--suite localize chooses its cuts itself, and knows no convention fvlm")
    ask = Localizing(
        more["source"],
        more["maps"],
        more["convention"],
        more["join"],
        more["grid"],
        more["cut"],
        more["chosen"],
        (more["validation_part"], more["test_part"]),
        more["tolerance_mm"],
    )
    return run_localize(models, cohort, ask, out, quiet)


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
    from hilum.show.reliability import reliability_svg

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
        "svg": reliability_svg(f"{names[0]}, {cases} unseen phantoms (SYNTHETIC)", tables[0].diagrams),
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
