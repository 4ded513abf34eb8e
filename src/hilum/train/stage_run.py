"""From a stage's recipe to an encoder: cohorts opened and audited, training, exports."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

import torch

from hilum.cohort.loader import Part
from hilum.cohort.manifest import Manifest, read_manifest
from hilum.cohort.parts import split_parts
from hilum.cohort.store import open_store
from hilum.errors import UsageError
from hilum.heap import keep_freed_memory
from hilum.text.captions import ScanText, scan_text
from hilum.train.loop import Report, train
from hilum.train.stage import StageTask
from hilum.train.stage_export import export_stage
from hilum.train.stage_recipe import CohortPart, StageRecipe
from hilum.train.stage_start import ENCODER, start_of

Track = Callable[[Iterable[str], int, str], Iterable[str]]


def run_stage(
    recipe: StageRecipe,
    out: Path,
    *,
    track: Track = lambda items, total, what: items,
    report: Report | None = None,
) -> Path:
    """Trains (or goes on) and writes `out/encoder`, with one more per step of `recipe.exports`.

    Raises:
        LeakError: `PATIENT_LEAK`, a split that must be apart shares a patient.
        Others as of `train`, `start_of`, `read_manifest` and `open_store`.
    """
    keep_freed_memory()
    task = stage_task(recipe, track=track)
    out.mkdir(parents=True, exist_ok=True)

    def export(teacher: dict[str, torch.Tensor], step: int) -> None:
        name = ENCODER if step == recipe.steps else f"{ENCODER}-{step:06d}"
        export_stage(out, name, teacher, recipe, task.start, task.parts, step)

    train(task, out, exports=recipe.exports, export=export, report=report)
    return out / ENCODER


def stage_task(recipe: StageRecipe, *, track: Track = lambda items, total, what: items) -> StageTask:
    """Everything that a stage needs, read and checked."""
    start = start_of(recipe)
    parts: list[Part] = []
    texts: dict[str, ScanText] = {}
    patients: dict[str, str] = {}
    for part in recipe.data:
        manifest = read_manifest(part.cohort)
        own = cohort_part(part, manifest)
        if recipe.text is not None:
            told = _texts(manifest, own, track)
            texts |= {key: text for key, (text, _) in told.items()}
            patients |= {key: patient for key, (_, patient) in told.items()}
            own = Part(own.store, own.weight, tuple(told))
        parts.append(own)
    return StageTask(recipe, parts, start, texts=texts, patients=patients)


def cohort_part(part: CohortPart, manifest: Manifest) -> Part:
    """The scans of one entry of `data`, audited against the splits that must be apart from it."""
    store = open_store(part.cohort / f"store-{part.prep}")
    apart = [split for split in part.apart if split in manifest.splits() and split != part.split]
    own = split_parts(manifest, store, [part.split, *apart], part.weight)[part.split]
    if not own.scans:
        raise UsageError(
            "CONFIG_VALUE",
            "a stage has scans",
            expected=f"scans of {part.split}",
            got="none",
            path=part.cohort,
        )
    return own


def _texts(manifest: Manifest, part: Part, track: Track) -> dict[str, tuple[ScanText, str]]:
    """What every scan's report gives, with its patient; scans without a report are left out."""
    wanted = set(part.scans)
    reports = {
        row.record.key: (row.record.report(), row.record.patient)
        for row in manifest.rows()
        if row.record.key in wanted
    }
    told = {key: both for key, both in reports.items() if both[0]}
    if not told:
        raise UsageError("CONFIG_VALUE", "a stage of language has reports", got="none", path=manifest.root)
    return {key: (scan_text(told[key][0]), told[key][1]) for key in track(sorted(told), len(told), "reports")}
