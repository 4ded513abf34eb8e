"""`hilum exam MODEL --suite localize --cohort ROOT`: runs it, shows progress, writes."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from hilum.cli.common import progress, write_files
from hilum.cohort.manifest import MANIFEST, read_manifest
from hilum.cohort.records import ScanRecord
from hilum.cohort.sources.base import SourceOptions, unique
from hilum.cohort.sources.registry import source_for
from hilum.cohort.splits import assign
from hilum.exam.localize import UNION, Comparing, Refused, ScanScore, examined, score_scans
from hilum.exam.localize_cohorts import ALIASES, protocol_of
from hilum.exam.localize_cuts import Cut
from hilum.exam.localize_maps import MapSource, maps_of_folder, maps_of_model
from hilum.exam.localize_table import as_markdown, as_text, choose_cuts, tabulate
from hilum.exam.unseen import require_patients_unseen
from hilum.read.scan_model import ScanModel

DEFAULT_SHARES = {"val": 0.3, "test": 0.7}
"""Of a data set that has no split of its own, by patient."""


@dataclass(frozen=True)
class Localizing:
    """What the user asked for.

    Args:
        source: adapter, None finds it. maps: folder of maps instead of a model. convention: ``default`` or
            ``paper``. join, grid: see `Comparing`; None is the convention's. kind: of cuts that are tried.
        chosen: JSON of an earlier result whose cuts hold. parts: validation and test. tolerance_mm: of the
            pointing game.
    """

    source: str | None
    maps: Path | None
    convention: str
    join: str | None
    grid: str | None
    kind: str
    chosen: Path | None
    parts: tuple[str, str]
    tolerance_mm: float


def run_localize(
    models: tuple[str, ...], cohort: Path, ask: Localizing, out: Path | None, quiet: bool
) -> dict[str, Any]:
    """The suite's result, with `text` for a terminal.

    Args:
        models: one, or none with maps. cohort: a data set's folder, or what `hilum prepare` left of it.
        ask: see `Localizing`. out: folder for localize.json and localize.md. quiet: no progress.
    """

    if len(models) != (0 if ask.maps else 1):
        raise click.UsageError("--suite localize examines one MODEL, or --maps DIR")
    if ask.parts[0] == ask.parts[1]:
        raise click.UsageError(f"validation and test are two parts, got {ask.parts[0]} twice")
    source, root, parts = _parts(cohort, ask.source)
    protocol_of(source)
    paper = ask.convention == "paper"
    how = Comparing(ask.join or "sum", ask.grid or ("published" if paper else "scan"))  # type: ignore[arg-type]
    seen_by = [r.patient for part in ask.parts for r in parts.get(part, [])]
    maps, about = _maps(models, ask.maps, seen_by)
    scorer = _Scorer(source, root, maps, how, quiet)
    cuts, origin = _cuts(ask, source, parts.get(ask.parts[0], []), scorer)
    scores = scorer.scored(parts.get(ask.parts[1], []), "test scans")
    if not scores:
        raise click.UsageError(f"no scan of {cohort} has outlined lesions in its part {ask.parts[1]!r}")
    facts = {
        **about,
        "source": source,
        "part": ask.parts[1],
        "convention": ask.convention,
        "join": how.join,
        "grid": how.grid,
        "cuts_from": origin,
        "union_of": list(protocol_of(source).union),
        "refused": scorer.refused,
    }
    result = tabulate(scores, cuts, facts, tolerance_mm=ask.tolerance_mm)
    told = result.as_dict()
    if out is not None:
        text = json.dumps(told, indent=1, allow_nan=False) + "\n"
        write_files(out, {"localize.md": as_markdown(result), "localize.json": text})
    return {**told, "text": as_text(result)}


def _parts(cohort: Path, name: str | None) -> tuple[str, Path, dict[str, list[ScanRecord]]]:
    """Source, root of the files, and the records to compare by part."""

    if cohort.is_file() or (cohort / MANIFEST).is_file():
        manifest = read_manifest(cohort)
        if manifest.root is None:
            raise click.UsageError(f"{cohort} does not remember the folder of its scans")
        source, root = manifest.source, manifest.root
        split_of = {row.record.key: row.split for row in manifest.rows()}
        records = [row.record for row in manifest.rows()]
    else:
        adapter = source_for(cohort, ALIASES.get(name or "", name))
        source, root = adapter.name, cohort
        records = list(unique(adapter.records(cohort, SourceOptions())))
        split_of = assign(records, DEFAULT_SHARES)
    parts: dict[str, list[ScanRecord]] = {}
    for record in records:
        if examined(source, record):
            parts.setdefault(split_of[record.key], []).append(record)
    return source, root, parts


def _maps(
    models: Sequence[str], folder: Path | None, patients: Sequence[str]
) -> tuple[MapSource, dict[str, Any]]:

    if folder is not None:
        seen = "maps: whom their model saw is not known"
        return maps_of_folder(folder), {"model": f"maps in {folder.name}", "seen": seen}
    model = ScanModel.load(models[0])
    seen = require_patients_unseen(model.card, patients)
    return maps_of_model(model), {"model": model.name, "sha256": model.sha256, "seen": seen}


@dataclass
class _Scorer:
    """Runs the maps over records and remembers who was refused."""

    source: str
    root: Path
    maps: MapSource
    how: Comparing
    quiet: bool

    def __post_init__(self) -> None:
        self.refused: dict[str, str] = {}

    def scored(self, records: Sequence[ScanRecord], what: str) -> list[ScanScore]:
        """In their order, without those refused."""

        found = []
        with progress(what, len(records), self.quiet) as step:
            for one in score_scans(records, str(self.root), self.source, self.maps, self.how, step):
                if isinstance(one, Refused):
                    self.refused[one.key] = one.code
                else:
                    found.append(one)
        return found


def _cuts(
    ask: Localizing, source: str, validation: Sequence[ScanRecord], scorer: _Scorer
) -> tuple[Mapping[str, Cut], str]:
    """Target -> cut and who chose it: the paper, an earlier run, or validation scans; never the test part."""

    if ask.convention == "paper":
        published = protocol_of(source).published
        if published is None:
            raise click.UsageError(f"no published threshold for {source}")
        return {UNION: Cut(published)}, f"published, absolute {published:g}, for the union"
    if ask.chosen is not None:
        try:
            told = json.loads(ask.chosen.read_text(encoding="utf-8"))["chosen"]
            return {t: Cut.of(c) for t, c in told.items()}, f"an earlier run ({ask.chosen.name})"
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise click.UsageError(f"{ask.chosen} is no result of --suite localize") from error
    scores = scorer.scored(validation, "validation scans")
    origin = f"{len(scores)} validation scans (part {ask.parts[0]})" if scores else "none: no validation scan"
    return choose_cuts(scores, ask.kind), origin  # type: ignore[arg-type]
