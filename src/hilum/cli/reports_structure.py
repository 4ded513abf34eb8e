"""`hilum reports structure`: questions about reports, answered by a language model of the user's choice."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from hilum.cli.common import echo_json, json_option, progress

if TYPE_CHECKING:
    from hilum.io.llm_endpoint import LlmEndpoint
    from hilum.text.structure_run import Asking, StructureRun

PARTIAL = 4
SHOWN = 20


@click.command()
@click.argument("source", metavar="FILE.csv", type=click.Path())
@click.option(
    "--endpoint", required=True, metavar="URL", help="Up to and with /v1, http://localhost:8000/v1."
)
@click.option("--model", required=True, metavar="NAME", help="The model, as the endpoint calls it.")
@click.option("--out", required=True, metavar="FILE.jsonl", type=click.Path(), help="One line per report.")
@click.option("--bank", metavar="FILE.yaml", type=click.Path(), help="Questions; for chest CT otherwise.")
@click.option(
    "--text-column",
    "text_columns",
    metavar="NAME",
    multiple=True,
    help="A column with report text, several allowed; found by name otherwise.",
)
@click.option(
    "--id-column", metavar="NAME", help="The column that names a row; VolumeName or AccessionNo otherwise."
)
@click.option(
    "--cache", metavar="DIR", type=click.Path(), help="Where answers are kept; the user's cache otherwise."
)
@click.option(
    "--workers", type=click.IntRange(1, 256), default=4, show_default=True, help="Requests at a time."
)
@click.option("--limit", type=click.IntRange(min=1), metavar="N", help="Only the first N reports.")
@click.option(
    "--json-mode", type=click.Choice(["none", "object", "schema"]), default="none", show_default=True,
    help="Ask the server to hold the model to JSON, or to the schema of answers.",
)  # fmt: skip
@click.option(
    "--max-tokens", type=click.IntRange(16, 1 << 20), default=8192, show_default=True, help="Of one reply."
)
@click.option(
    "--seed", type=click.IntRange(0, 2**31 - 2), default=0, show_default=True, help="Given to the model."
)
@click.option(
    "--timeout", "timeout_s", type=click.FloatRange(0.1, 86400), default=300.0, show_default=True,
    metavar="SECONDS", help="For one attempt at one request.",
)  # fmt: skip
@click.option(
    "--attempts", type=click.IntRange(1, 20), default=4, show_default=True, help="Tries of one request."
)
@click.option(
    "--key-env", default="HILUM_LLM_KEY", show_default=True, metavar="NAME",
    help="Environment variable with the key.",
)  # fmt: skip
@click.option(
    "--yes-send-reports", is_flag=True, help="Reports may leave this machine for the endpoint's host."
)
@click.option("--allow-http", is_flag=True, help="They may leave it unencrypted.")
@click.option("--overwrite", is_flag=True, help="Replace --out if it exists.")
@json_option
def structure(
    source: str, out: str, limit: int | None, overwrite: bool, as_json: bool, **options: Any
) -> int:
    """Ask a language model what reports say, and keep what their words bear out.

    Every answer needs a quote that stands in the report; without one, and without an answer, it is unknown.
    Answers are kept: a run that was stopped goes on where it was, and asks nothing twice. Exit code 4 when a
    report could not be read or was not answered.
    """
    from hilum.io.atomic import atomic_write
    from hilum.io.report_table import read_table
    from hilum.text.asked_text import asked_text
    from hilum.text.structure_run import structure_reports

    final = _final(source, out, overwrite)
    rows = read_table(source, options.pop("text_columns"), options.pop("id_column"))[:limit]
    asking = _asking(options)
    texts = len({asked_text(row).text for row in rows} - {""})
    _say_where(asking.endpoint, texts)
    with _quiet_log(), progress("Asking", texts, quiet=as_json) as step:
        run = structure_reports(rows, asking, step)
    with atomic_write(final) as file:
        for record in run.records:
            file.write(json.dumps(record, ensure_ascii=False, allow_nan=False).encode() + b"\n")
    if as_json:
        echo_json(_summary(run, asking, source, final))
    else:
        _show(run, final)
    return PARTIAL if run.failed or run.counts.get("refused") else 0


def _final(source: str, out: str, overwrite: bool) -> Path:
    """The output's name, judged before anything is asked."""
    from hilum.errors import OutputError
    from hilum.io.atomic import refuse_existing

    final = Path(out)
    if os.path.lexists(final) and Path(source).exists() and final.exists() and final.samefile(source):
        raise OutputError("OUTPUT_INSIDE_INPUT", "the output is not the input", path=final)
    if not overwrite or final.is_dir():
        refuse_existing(final, overwrite=False)
    if not (final.parent.is_dir() and os.access(final.parent, os.W_OK)):
        raise OutputError(
            "OUTPUT_UNWRITABLE",
            "the output folder exists and can be written",
            got=str(final.parent),
            path=final,
        )
    return final


def _asking(options: dict[str, Any]) -> Asking:
    """Whom and what to ask, from the options; refused when reports may not go there."""
    from hilum.errors import UsageError
    from hilum.io.answer_cache import AnswerCache, default_folder
    from hilum.io.llm_client import LlmLimits
    from hilum.io.llm_endpoint import endpoint_of
    from hilum.text.questions import load_bank
    from hilum.text.structure_run import Asking

    endpoint = endpoint_of(
        options["endpoint"],
        options["model"],
        key_variable=options["key_env"],
        allow_http=options["allow_http"],
    )
    if not endpoint.loopback and not options["yes_send_reports"]:
        raise UsageError(
            "LLM_SEND", "reports leave this machine only when that is said", expected="--yes-send-reports",
            got=f"the host {endpoint.host}", hint="Reports may hold patient data: may that host have them?",
        )  # fmt: skip
    total_s = options["timeout_s"]
    limits = LlmLimits(
        connect_s=min(10.0, total_s),
        read_s=min(120.0, total_s),
        total_s=total_s,
        attempts=options["attempts"],
    )
    bank = load_bank(options["bank"])
    return Asking(
        bank, endpoint, AnswerCache(options["cache"] or default_folder()), options["seed"],
        options["max_tokens"], options["json_mode"], options["workers"], limits,
    )  # fmt: skip


def _say_where(endpoint: LlmEndpoint, texts: int) -> None:
    """Once, on stderr: who receives the texts."""
    where = f"{endpoint.host} (this machine)" if endpoint.loopback else endpoint.host
    click.echo(f"hilum: {texts} report texts, less those answered before, go to {where}.", err=True)


@contextmanager
def _quiet_log() -> Iterator[None]:
    """The HTTP library's own log of every request stays out of a log that is set up around us."""
    import logging

    logger = logging.getLogger("httpx")
    before = logger.level
    logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        logger.setLevel(before)


def _summary(run: StructureRun, asking: Asking, source: str, final: Path) -> dict[str, Any]:
    bank = asking.bank
    return {
        "source": Path(source).name,
        "out": str(final),
        "bank": {
            "name": bank.name,
            "version": bank.version,
            "sha256": bank.sha256,
            "questions": len(bank.items),
        },
        "model": asking.endpoint.model,
        "counts": run.counts,
        "spent": run.spent,
        "failed": run.failed,
    }


def _show(run: StructureRun, final: Path) -> None:
    for row in run.failed[:SHOWN]:
        name = "".join(c if c.isprintable() else "\ufffd" for c in row["id"])
        click.echo(f"row {row['row']} {name}: {row['code']} ({row['got']})", err=True)
    if len(run.failed) > SHOWN:
        click.echo(f"and {len(run.failed) - SHOWN} more; each has its code in {final}", err=True)
    numbers = {**run.counts, **run.spent}
    click.echo(", ".join(f"{number} {name.replace('_', ' ')}" for name, number in numbers.items() if number))
