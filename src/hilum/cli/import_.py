"""`hilum import colipri|flexict|spectre|radfinder|exact SRC DST`."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from hilum.cli.common import progress

if TYPE_CHECKING:
    from hilum.convert.run import Family, ImportReport

SOURCE = click.argument("source", metavar="SRC", type=click.Path(path_type=Path))
FOLDER = click.argument("folder", metavar="DST", type=click.Path(path_type=Path))
AS_JSON = click.option("--json", "as_json", is_flag=True, help="Print what went where, tensor by tensor.")


@click.group(name="import")
def import_() -> None:
    """Public checkpoints as models of Hilum: strict, every tensor accounted for.

    SRC is a torch archive (its pickle is opened in a process of its own), a safetensors file, or a folder
    with one. DST is the model's folder. A refused checkpoint leaves nothing behind.
    """


@import_.command()
@SOURCE
@FOLDER
@click.option(
    "--text", required=True, type=click.Path(path_type=Path),
    help="Folder with config.json and tokenizer.json of BiomedVLP-CXR-BERT-specialized.",
)  # fmt: skip
@AS_JSON
def colipri(source: Path, folder: Path, text: Path, as_json: bool) -> None:
    """COLIPRI, volumes and reports, as its hub has it: safetensors only. The weights are MIT."""
    _run("colipri", source, folder, as_json, text=text)


@import_.command()
@SOURCE
@FOLDER
@click.option(
    "--kind", type=click.Choice(["2d", "3d"]), default=None,
    help="Which of the two checkpoints without reports it is; their names are the same.",
)  # fmt: skip
@click.option(
    "--text", type=click.Path(path_type=Path), default=None,
    help="Folder with config.json and tokenizer.json of Qwen3-Embedding-0.6B, for FlexiCT-3D-VLM.",
)  # fmt: skip
@AS_JSON
def flexict(source: Path, folder: Path, kind: str | None, text: Path | None, as_json: bool) -> None:
    """FlexiCT-2D, FlexiCT-3D or FlexiCT-3D-VLM. The weights are CC BY-NC-ND 4.0."""
    _run("flexict", source, folder, as_json, kind=kind, text=text)


@import_.command()
@SOURCE
@FOLDER
@AS_JSON
def spectre(source: Path, folder: Path, as_json: bool) -> None:
    """The backbone of SPECTRE, which reads windows of volumes. The weights are CC BY-NC-SA 4.0."""
    _run("spectre", source, folder, as_json)


@import_.command()
@SOURCE
@FOLDER
@click.option(
    "--text", required=True, type=click.Path(path_type=Path),
    help="Folder with config.json and tokenizer.json of Qwen3-Embedding-0.6B.",
)  # fmt: skip
@AS_JSON
def radfinder(source: Path, folder: Path, text: Path, as_json: bool) -> None:
    """RadFinder whole, as its hub has it or its training saves it. The weights are CC BY-NC-SA 4.0."""
    _run("radfinder", source, folder, as_json, text=text)


@import_.command()
@SOURCE
@FOLDER
@click.option(
    "--preset",
    default="exact-ymamba",
    show_default=True,
    help="Whose size the checkpoint has; see hilum models.",
)
@AS_JSON
def exact(source: Path, folder: Path, preset: str, as_json: bool) -> None:
    """EXACT's Y-Mamba, as its public code saves it. That code and its weights state no licence."""
    from hilum.convert.exact import import_exact

    with progress(f"importing {source.name}", quiet=as_json):
        report = import_exact(source, folder, preset=preset)
    click.echo(json.dumps(report.as_dict(), indent=2) if as_json else _as_text(report))


def _run(family: Family, source: Path, folder: Path, as_json: bool, **options: Any) -> None:
    from hilum.convert.run import import_encoder

    with progress(f"importing {source.name}", quiet=as_json):
        report = import_encoder(family, source, folder, **options)
    click.echo(json.dumps(report.as_dict(), indent=2) if as_json else _as_text(report))


def _as_text(report: ImportReport) -> str:
    lines = [f"{report.kind}, {report.parameters:,} parameters -> {report.folder}"]
    counts = Counter(row.note for row in report.rows)
    lines += [f"  {count:5d} tensors {note}" for note, count in counts.most_common()]
    if report.filled:
        lines.append(
            f"  {len(report.filled):5d} tensors the public model has none of: {', '.join(report.filled)}"
        )
    return "\n".join([*lines, report.terms])
