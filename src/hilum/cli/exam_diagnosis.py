"""`hilum exam MODEL --suite diagnosis --cohort PREPARED`: runs it, shows progress, writes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from hilum.cli.common import progress, write_files
from hilum.cohort.audit import require_clean
from hilum.cohort.manifest import MANIFEST, Manifest, read_manifest
from hilum.exam.diagnosis import Asked, Diagnosis, chosen_for_card, examine_model, examine_table
from hilum.exam.diagnosis_answers import Answers, answers_of_model, answers_of_table, table_of
from hilum.exam.diagnosis_table import as_markdown, as_text
from hilum.exam.label_sets import label_set
from hilum.exam.unseen import require_cohorts_unseen, require_patients_unseen
from hilum.io.hashing import sha256_of
from hilum.read.scan_model import ScanModel
from hilum.show.reliability import reliability_svg
from hilum.train.run import write_card


def run_diagnosis(
    models: tuple[str, ...],
    cohort: Path,
    *,
    predictions: Path | None,
    choose: bool,
    asked: Mapping[str, Any],
    parts: tuple[str, str],
    out: Path | None,
    quiet: bool,
) -> dict[str, Any]:
    """The suite's result, with `text` for a terminal.

    Args:
        models: one, or none with `predictions`. cohort: prepared folder or manifest.
        predictions: table of probabilities. choose: thresholds and calibration from validation first.
        asked: convention, rule, label_set, calcification. parts: names of validation and test part.
        out: folder for diagnosis.json, diagnosis.md, predictions.csv, reliability.svg; None writes nothing.
        quiet: no progress.
    """

    if len(models) != (0 if predictions else 1):
        raise click.UsageError("--suite diagnosis examines one MODEL, or --predictions FILE")
    manifest = read_manifest(cohort)
    val_name, test_name = parts
    if val_name == test_name:
        raise click.UsageError(f"validation and test are two parts, got {val_name} twice")
    test = manifest.only(test_name)
    val = manifest.only(val_name) if val_name in manifest.splits() else None
    if val is not None:
        require_clean(val, test, (val_name, test_name))
    what = Asked(
        asked["convention"], asked["rule"], label_set(asked["label_set"], manifest.source),
        asked["calcification"],
    )  # fmt: skip
    facts = {"cohort": _cohort_facts(manifest, cohort), "part": test_name}
    if predictions is not None:
        result, told = _table(predictions, val, test, what, facts)
    else:
        result, told = _model(models[0], val, test, choose, what, facts, quiet)
    return _finish(result, told, out)


def _cohort_facts(manifest: Manifest, path: Path) -> dict[str, Any]:

    file = path / MANIFEST if path.is_dir() else path
    return {"source": manifest.source or "a cohort", "manifest_sha256": sha256_of(file)}


def _table(
    path: Path, val: Manifest | None, test: Manifest, asked: Asked, facts: dict[str, Any]
) -> tuple[Diagnosis, dict[str, Answers]]:

    parts = {"val": answers_of_table(path, val)} if val is not None else {}
    parts["test"] = answers_of_table(path, test)
    about = {
        "model": path.name,
        "sha256": sha256_of(path),
        "seen": "a table: whom its model saw is not known",
    }
    return examine_table(parts.get("val"), parts["test"], asked, about | facts), parts


def _model(
    name: str,
    val: Manifest | None,
    test: Manifest,
    choose: bool,
    asked: Asked,
    facts: dict[str, Any],
    quiet: bool,
) -> tuple[Diagnosis, dict[str, Answers]]:

    model = ScanModel.load(name)
    patients = test.table.column("patient").to_pylist()
    seen = require_patients_unseen(model.card, patients)
    if isinstance((model.card.get("recipe") or {}).get("data"), list):
        seen = require_cohorts_unseen(model.card, test)
    parts = {}
    if choose:
        if val is None:
            raise click.UsageError("--choose needs a validation part in the cohort")
        if not Path(name).is_dir():
            raise click.UsageError(f"--choose writes into a model folder, got {name}")
        with progress("validation scans", len(val), quiet) as step:
            parts["val"] = answers_of_model(model, val, step)
        model.card.update(chosen_for_card(parts["val"], val))
        write_card(Path(name), model.card)
        parts["val"] = parts["val"].calibrated_by(model)
    with progress("test scans", len(test), quiet) as step:
        parts["test"] = answers_of_model(model, test, step)
    about = {"model": model.name, "sha256": model.sha256, "seen": seen}
    return examine_model(model.card, parts["test"], asked, about | facts), parts


def _finish(result: Diagnosis, told: dict[str, Answers], out: Path | None) -> dict[str, Any]:

    facts = result.as_dict()
    if out is not None:
        title = f"{facts['model']}, {facts['scans']} scans of {facts['cohort']['source']}"
        write_files(
            out,
            {
                "predictions.csv": table_of(told),
                "reliability.svg": reliability_svg(title, result.diagrams),
                "diagnosis.md": as_markdown(result),
                "diagnosis.json": json.dumps(facts, indent=1, allow_nan=False) + "\n",
            },
        )
    return {**facts, "text": as_text(result)}
