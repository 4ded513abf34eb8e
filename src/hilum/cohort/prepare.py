"""From a data set to its manifest: every scan judged, every refusal listed, every report looked at.

A killed run goes on where it stopped; a scan that kills its reader is one refusal; equal data give equal
bytes.
"""

from __future__ import annotations

import csv
import io
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import hilum
from hilum.cohort.audit import Audit, audit, audit_splits
from hilum.cohort.journal import Journal
from hilum.cohort.judge import Judgement, Refusal, judge
from hilum.cohort.manifest import MANIFEST, RECEIPT, Manifest, ScanRow
from hilum.cohort.records import ScanRecord
from hilum.cohort.report_hash import faults_of, group_of
from hilum.cohort.sources.base import Source, SourceOptions, unique
from hilum.cohort.sources.registry import source_for
from hilum.cohort.splits import assign
from hilum.cohort.workers import run_jobs
from hilum.errors import ContainerError, OutputError
from hilum.io.atomic import atomic_write
from hilum.io.limits import Mode
from hilum.io.lock import output_lock

REFUSED, LEAKS = "refused.csv", "leaks.csv"
TRY_AGAIN = ("WORKER_DIED", "MEMORY_PLAN", "INTERNAL")
"""What may be the machine's fault and not the scan's: the next run judges these anew."""
FORMULA = ("=", "+", "-", "@", "\t", "\r")


@dataclass(frozen=True)
class PrepareOptions:
    """How a cohort is prepared.

    Args:
        source: name of the adapter; None finds it. of_source: what the user says about the data set.
        shares: of train, val and test for patients without a given split; None gives them none.
        keep_splits: whether splits that the data set gives are kept. seed: of the split.
        against: manifests that must share nothing with this cohort, by name.
        mode: see `open_volume`. workers: processes. wait_s: how long to wait for another writer.
    """

    source: str | None = None
    of_source: SourceOptions = field(default_factory=SourceOptions)
    shares: Mapping[str, float] | None = None
    keep_splits: bool = True
    seed: int = 0
    against: Mapping[str, Manifest] = field(default_factory=dict)
    mode: Mode = "repair"
    workers: int = 1
    wait_s: float = 0.0


@dataclass(frozen=True)
class Prepared:
    """What came of it.

    Args:
        manifest: of the scans that are fit. refusals: by key. reports: fault -> how many reports.
        splits: name -> number of scans and of patients. kept: judgements taken over from an earlier run.
        audits: of every two splits, and of the cohort with each one it was held against.
    """

    manifest: Manifest
    refusals: tuple[Refusal, ...]
    reports: Mapping[str, int]
    splits: Mapping[str, tuple[int, int]]
    kept: int
    audits: tuple[Audit, ...] = ()

    @property
    def leaks(self) -> int:
        """Pairs of scans that must not be apart."""
        return sum(len(a.leaks) for a in self.audits)

    def as_dict(self) -> dict[str, Any]:
        """For `--json`."""
        return {
            "source": self.manifest.source,
            "scans": len(self.manifest),
            "refused": [r.as_dict() for r in self.refusals],
            "reports": dict(self.reports),
            "splits": {k: {"scans": n, "patients": p} for k, (n, p) in self.splits.items()},
            "audits": [a.as_dict() for a in self.audits],
        }


Judged = tuple[ScanRecord, Judgement | Refusal]


def prepare(
    root: str | Path,
    out: str | Path,
    options: PrepareOptions | None = None,
    *,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Prepared:
    """Judges every scan of a data set and writes manifest, table of refusals and receipt into `out`.

    Args:
        root: of the data set, or its table. out: folder, made if it is not there.
        options: see there. progress: called with the number of scans judged and of all.

    Raises:
        ContainerError, UsageError: the data set is not there or not known. ReportError: its tables lack a
            column (`COLUMN_MISSING`), two scans share a key, a patient stands in two given splits.
        OutputError: `out` is below the data set (`INPUT_TOUCHED`), locked (`OUTPUT_LOCKED`) or unwritable.
    """
    options = options or PrepareOptions()
    root, out = Path(root), Path(out)
    source = source_for(root, options.source)
    top = root if root.is_dir() else root.parent
    _refuse_inside(top, out)
    records = sorted(unique(source.records(root, options.of_source)), key=lambda r: r.key)
    if not records:
        raise ContainerError(
            "NOT_FOUND", "a data set holds scans", expected=source.title, got="none", path=root
        )
    if not options.keep_splits:
        records = [replace(r, split="") for r in records]
    chosen = assign(records, options.shares, options.seed)
    _make(out)
    with output_lock(out, options.wait_s):
        journal = Journal(out, top, options.mode)
        kept, judged = 0, []
        for done, (old, pair) in enumerate(_judge_all(records, top, journal, options), 1):
            kept += old
            judged.append(pair)
            progress(done, len(records))
        prepared = _audited(_gather(judged, chosen, source, top, kept), options.against)
        _write(prepared, out, options)
    return prepared


def _judge_all(
    records: list[ScanRecord], top: Path, journal: Journal, options: PrepareOptions
) -> Iterator[tuple[bool, Judged]]:
    """Every record with its judgement, those that are known first."""
    fresh = []
    for record in records:
        known = journal.find(record)
        if known is None:
            fresh.append(record)
        else:
            yield True, (record, known)
    jobs = ((record, top, options.mode) for record in fresh)
    for end in run_jobs(_judge_one, jobs, options.workers):
        record = end.job[0]
        result = end.result
        if result is None:
            gone = ContainerError(
                "WORKER_DIED", "reading a scan ends with a result", got="the process that read it died",
                hint="It may need more memory than there is, or crash a decoder.",
            )  # fmt: skip
            result = Refusal.of(record, gone)
        if not (isinstance(result, Refusal) and result.code in TRY_AGAIN):
            journal.keep(record, result)
        yield False, (record, result)


def _judge_one(job: tuple[ScanRecord, Path, Mode]) -> Judgement | Refusal:
    record, top, mode = job
    return judge(record, top, mode=mode)


def _gather(
    judged: Iterable[Judged], chosen: Mapping[str, str], source: Source, top: Path, kept: int
) -> Prepared:
    ordered = sorted(judged, key=lambda pair: pair[0].key)
    refusals = tuple(result for _, result in ordered if isinstance(result, Refusal))
    fit = [(record, result) for record, result in ordered if isinstance(result, Judgement)]
    reports = [(record.study or record.key, record.report()) for record, _ in fit]
    faults = faults_of(reports) if any(text for _, text in reports) else [""] * len(fit)
    rows = [
        ScanRow(record, result, chosen[record.key], fault, group_of(text))
        for (record, result), fault, (_, text) in zip(fit, faults, reports, strict=True)
    ]
    counts = Counter(faults if any(text for _, text in reports) else [])
    people: dict[str, set[str]] = {}
    for row in rows:
        people.setdefault(row.split, set()).add(row.record.patient)
    scans = Counter(row.split for row in rows)
    return Prepared(
        Manifest.of(rows, source.name, top),
        refusals,
        {name or "whole": count for name, count in sorted(counts.items())},
        {name or "none": (scans[name], len(people[name])) for name in sorted(people)},
        kept,
    )


def _audited(prepared: Prepared, against: Mapping[str, Manifest]) -> Prepared:
    """Leaks are told, not refused: the manifest is a fact. Training and exams across them are refused."""
    mine = prepared.manifest
    audits = audit_splits(mine) + [audit(mine, other, (mine.source, name)) for name, other in against.items()]
    return replace(prepared, audits=tuple(audits))


def _write(prepared: Prepared, out: Path, options: PrepareOptions) -> None:
    """The manifest last: where it stands, the rest stands too."""
    _write_table(out / REFUSED, refused_table(prepared.refusals))
    _write_table(out / LEAKS, leak_table(prepared.audits))
    receipt = {
        "format": 1,
        "code_version": hilum.__version__,
        "root": str(prepared.manifest.root.resolve()) if prepared.manifest.root else None,
        "source": prepared.manifest.source,
        "protocol": options.of_source.protocol,
        "calcification": options.of_source.calcification,
        "shares": dict(options.shares or {}),
        "seed": options.seed,
        "mode": options.mode,
        "scans": len(prepared.manifest),
        "refused": dict(sorted(Counter(r.code for r in prepared.refusals).items())),
        "reports": dict(prepared.reports),
        "splits": {k: {"scans": n, "patients": p} for k, (n, p) in prepared.splits.items()},
        "leaks": {f"{a.left} / {a.right}": a.counts() for a in prepared.audits if a.leaks},
    }
    with atomic_write(out / RECEIPT) as file:
        file.write((json.dumps(receipt, indent=1, ensure_ascii=False) + "\n").encode("utf-8"))
    prepared.manifest.write(out / MANIFEST)


def refused_table(refusals: Iterable[Refusal]) -> str:
    """refused.csv: key, path, code, reason, hint; what a spreadsheet would run is prefixed (row E10)."""
    names = ("key", "path", "code", "reason", "hint")
    return _csv(names, (refusal.as_dict().values() for refusal in refusals))


def leak_table(audits: Iterable[Audit]) -> str:
    """leaks.csv: the two cohorts or splits, what they share, the two scans."""
    names = ("left", "right", "kind", "left_key", "right_key", "what")
    rows = ((a.left, a.right, k.kind, k.left, k.right, k.what) for a in audits for k in a.leaks)
    return _csv(names, rows)


def _csv(names: tuple[str, ...], rows: Iterable[Iterable[str]]) -> str:
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(names)
    table.writerows([_plain(cell) for cell in row] for row in rows)
    return text.getvalue()


def _write_table(path: Path, text: str) -> None:
    with atomic_write(path) as file:
        file.write(text.encode("utf-8"))


def _plain(cell: str) -> str:
    one_line = " ".join("".join(c if c.isprintable() else " " for c in cell).split())
    return f"'{one_line}" if cell.startswith(FORMULA) else one_line


def _refuse_inside(root: Path, out: Path) -> None:
    """Row G09: nothing is written below the data set."""
    if out.resolve().is_relative_to(root.resolve()):
        raise OutputError(
            "OUTPUT_INSIDE_INPUT", "nothing is written below an input", expected=f"a folder outside {root}",
            got=str(out), path=out, hint="Choose another --out.",
        )  # fmt: skip


def _make(out: Path) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(
            "OUTPUT_UNWRITABLE", "the output is a folder that can be written", got=error.strerror, path=out,
            hint="Choose another output folder.",
        ) from error  # fmt: skip
