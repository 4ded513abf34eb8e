"""Scans -> a store: by processes here or by Ray, one writer at a time, killed and gone on with at any moment.

A scan is two files, values and then record, each of which appears whole (`io.atomic`); the index is made from
the records at the end. So an interrupted preparation, run again, ends as an undisturbed one, bit for bit.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, runtime_checkable

from hilum.cohort.prep_presets import Codec, Pipeline, pipeline
from hilum.cohort.store import (
    FORMAT,
    INDEX_FILE,
    REFUSED_FILE,
    SCANS,
    STORE_FILE,
    ScanRow,
    file_id,
    read_store_file,
    sealed,
    unsealed,
)
from hilum.errors import ContainerError, HilumError, OutputError, RunError, UsageError
from hilum.io.atomic import atomic_write
from hilum.io.hashing import sha256_of
from hilum.io.limits import Answers, Mode
from hilum.io.lock import output_lock

if TYPE_CHECKING:
    from hilum.cohort.pipeline import Stored
    from hilum.volume import CTVolume

Where = Literal["here", "processes", "ray"]


@dataclass(frozen=True)
class StoreJob:
    """One scan to prepare.

    Args:
        key: unique within the store and stable between runs; any text.
        path: what `io.open.open_volume` reads. answers, mode: as there.
        sha256: of the input as the manifest has it; a kept scan made from another one is made again.
    """

    key: str
    path: str
    answers: Answers = Answers()  # noqa: RUF009  frozen
    mode: Mode = "repair"
    sha256: str | None = None


@runtime_checkable
class Maker(Protocol):
    """What makes a store's arrays of a scan, if not a `Pipeline` its values; goes to worker processes."""

    @property
    def codec(self) -> Codec:
        """Of the store's chunks."""

    def facts(self) -> dict[str, Any]:
        """Every setting (JSON types only)."""

    def to_store(self, volume: CTVolume, job: StoreJob) -> Stored:
        """What is kept of a scan."""


@dataclass(frozen=True)
class Outcome:
    """What became of a job: ``made``, ``kept`` from an earlier run, or ``refused`` with its error's parts."""

    key: str
    status: Literal["made", "kept", "refused"]
    error: dict[str, str | None] | None = None


@dataclass(frozen=True)
class StoreSummary:
    """A finished preparation."""

    root: Path
    made: int
    kept: int
    refused: tuple[Outcome, ...]


def prepare_store(
    jobs: Iterable[StoreJob],
    root: str | Path,
    prep: str | Pipeline | Maker,
    *,
    workers: int = 1,
    where: Where = "processes",
    wait_s: float = 0.0,
    on_outcome: Callable[[Outcome], None] | None = None,
) -> StoreSummary:
    """Prepares every job into the store at `root`; what is there already and whole is kept.

    Args:
        jobs: the whole content of the store; scans of an earlier run that are not among them are removed.
        root: the store's folder, made if its parent exists. On a cluster: on a file system that all see.
        prep: a preset's name, a pipeline, or what makes arrays of another kind.
        workers: processes (or Ray tasks) at a time. where: ``here`` in this process, ``processes``, ``ray``.
        wait_s: how long another writer is waited for.
        on_outcome: called once per job, in no fixed order.

    Raises:
        OutputError: `OUTPUT_LOCKED` naming the other writer, `OUTPUT_UNWRITABLE`.
        UsageError: `RESUME_CHANGED` for another preparation than the store's, `KEY_DUPLICATE`,
            `PRESET_UNKNOWN`, `OPTION_UNKNOWN`.
        RunError: `WORKER_LOST`.
    """
    chosen = pipeline(prep) if isinstance(prep, str) else prep
    by_key = _by_key(jobs)
    folder = Path(root)
    tell = on_outcome or (lambda outcome: None)
    try:
        (folder / SCANS).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(
            "OUTPUT_UNWRITABLE", "a store can be made there", got=error.strerror, path=folder
        ) from error
    with output_lock(folder, wait_s):
        _begin(folder, chosen)
        rows = {key: row for key, job in by_key.items() if (row := _kept(folder, job, chosen)) is not None}
        for key in rows:
            tell(Outcome(key, "kept"))
        kept, refused = len(rows), []
        todo = [job for key, job in by_key.items() if key not in rows]
        for result in _results(todo, folder, chosen, workers, where):
            if isinstance(result, ScanRow):
                rows[result.key] = result
                tell(Outcome(result.key, "made"))
            else:
                refused.append(result)
                tell(result)
        refused.sort(key=lambda outcome: outcome.key)
        _finish(folder, chosen, [rows[key] for key in sorted(rows)], refused)
    return StoreSummary(folder, len(rows) - kept, kept, tuple(refused))


def make_scan(job: StoreJob, folder: Path, prep: Pipeline | Maker) -> ScanRow | Outcome:
    """Reads, prepares and writes one scan; what can be said against it comes back as a refusal."""
    try:
        with _one_thread():
            return _make(job, folder, prep)
    except OutputError:
        raise
    except HilumError as error:
        # A path may hold a name; the key says which scan it was.
        return Outcome(job.key, "refused", {**error.as_dict(), "path": None})
    except MemoryError:
        full = RunError("MEMORY_PLAN", "a volume fits the memory of this machine", got="not enough memory")
        return Outcome(job.key, "refused", full.as_dict())
    except OSError:
        raise
    except Exception as fault:
        # one scan that finds a fault of Hilum does not stop ten thousand others
        inner = RunError("INTERNAL", "a scan is prepared", got=f"{type(fault).__name__}: {fault}")
        return Outcome(job.key, "refused", inner.as_dict())


def _by_key(jobs: Iterable[StoreJob]) -> dict[str, StoreJob]:
    found: dict[str, StoreJob] = {}
    for job in jobs:
        if job.key in found:
            raise UsageError("KEY_DUPLICATE", "every scan of a store has a key of its own", got=repr(job.key))
        found[job.key] = job
    return {key: found[key] for key in sorted(found)}


def _begin(folder: Path, prep: Pipeline | Maker) -> None:
    """Checks that the store is of this preparation, and marks a new one as not yet finished."""
    for left in (*folder.glob(".hilum-*.tmp"), *(folder / SCANS).glob(".hilum-*.tmp")):
        left.unlink(missing_ok=True)
    try:
        known = read_store_file(folder)["prep"]
    except ContainerError as error:
        if error.code == "FORMAT_NEWER":
            raise
        # None yet, or damaged: records say which scans are of this preparation.
        _write(folder / STORE_FILE, sealed({"format": FORMAT, "prep": prep.facts(), "index_sha256": ""}))
        return
    if known != prep.facts():
        changed = [k for k in sorted({*known, *prep.facts()}) if known.get(k) != prep.facts().get(k)]
        raise UsageError(
            "RESUME_CHANGED",
            "a store holds one preparation",
            expected={k: known.get(k) for k in changed},
            got={k: prep.facts().get(k) for k in changed},
            path=folder,
            hint="Give the new preparation a folder of its own.",
        )


def _kept(folder: Path, job: StoreJob, prep: Pipeline | Maker) -> ScanRow | None:
    """The row of a scan that is there, whole, and of the same input and preparation."""
    name = folder / SCANS / file_id(job.key)
    try:
        facts = unsealed(name.with_suffix(".json").read_bytes())
        if facts is None or facts.keys() != {f.name for f in fields(ScanRow)}:
            return None
        row = ScanRow.from_dict(facts)
        if row.key != job.key or json.loads(row.trace)["prep"] != prep.facts():
            return None
        if job.sha256 is not None and job.sha256 != row.source_sha256:
            return None
        return row if sha256_of(name.with_suffix(".b2nd")) == row.file_sha256 else None
    except OSError:
        return None


def _make(job: StoreJob, folder: Path, prep: Pipeline | Maker) -> ScanRow:
    from hilum.cohort.pipeline import to_store
    from hilum.cohort.store_chunks import encode
    from hilum.io.open import open_volume

    volume = open_volume(job.path, mode=job.mode, answers=job.answers)
    stored = to_store(prep, volume) if isinstance(prep, Pipeline) else prep.to_store(volume, job)
    frame, table = encode(stored.values, prep.codec)
    if not all(math.isfinite(x) for x in (stored.slope, stored.intercept)):
        raise RunError("OUTPUT_NONFINITE", "values are finite", got=(stored.slope, stored.intercept))
    row = ScanRow(
        key=job.key,
        file=file_id(job.key),
        affine_ras=tuple(stored.trace.grid.affine_ras.ravel().tolist()),
        shape=table.shape,
        dtype=table.dtype,
        slope=stored.slope,
        intercept=stored.intercept,
        pad=float(stored.values.min()),
        source_sha256=volume.provenance.sha256,
        file_sha256=hashlib.sha256(frame).hexdigest(),
        file_bytes=len(frame),
        first=table.first,
        lengths=table.lengths,
        crcs=table.crcs,
        trace=json.dumps(stored.trace.as_dict(), sort_keys=True),
        findings=tuple(sorted({finding.code for finding in volume.provenance.findings})),
    )
    name = folder / SCANS / row.file
    _write(name.with_suffix(".b2nd"), frame)
    _write(name.with_suffix(".json"), row.record())
    return row


def _results(
    jobs: list[StoreJob], folder: Path, prep: Pipeline | Maker, workers: int, where: Where
) -> Iterator[ScanRow | Outcome]:
    if where == "here":
        yield from (make_scan(job, folder, prep) for job in jobs)
    elif where in ("processes", "ray"):
        from hilum.cohort import store_workers

        run = store_workers.by_processes if where == "processes" else store_workers.by_ray
        yield from run(make_scan, [(job, folder, prep) for job in jobs], max(1, workers))
    else:
        raise UsageError("OPTION_UNKNOWN", "a place to work", expected="here | processes | ray", got=where)


def _finish(folder: Path, prep: Pipeline | Maker, rows: list[ScanRow], refused: list[Outcome]) -> None:
    """Index, refusals, then the store's own file; only then are files removed that it does not name."""
    index = _parquet(rows)
    said = [{"key": outcome.key, "error": outcome.error} for outcome in refused]
    refusals = (json.dumps(said, indent=1) + "\n").encode("ascii")
    _write(folder / INDEX_FILE, index)
    _write(folder / REFUSED_FILE, refusals)
    facts: dict[str, Any] = {"format": FORMAT, "prep": prep.facts(), "scans": len(rows)}
    facts["index_sha256"] = hashlib.sha256(index).hexdigest()
    facts["refused_sha256"] = hashlib.sha256(refusals).hexdigest()
    _write(folder / STORE_FILE, sealed(facts))
    known = {row.file for row in rows}
    for path in (folder / SCANS).iterdir():
        if path.stem not in known:
            path.unlink(missing_ok=True)


def _parquet(rows: list[ScanRow]) -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as parquet

    kinds = {
        "affine_ras": pa.list_(pa.float64()),
        "shape": pa.list_(pa.int32()),
        "lengths": pa.list_(pa.int32()),
        "crcs": pa.list_(pa.uint32()),
        "findings": pa.list_(pa.string()),
        "slope": pa.float64(),
        "intercept": pa.float64(),
        "pad": pa.float64(),
        "file_bytes": pa.int64(),
        "first": pa.int64(),
    }
    schema = pa.schema([(f.name, kinds.get(f.name, pa.string())) for f in fields(ScanRow)])
    columns = {f.name: [getattr(row, f.name) for row in rows] for f in fields(ScanRow)}
    sink = pa.BufferOutputStream()
    parquet.write_table(pa.table(columns, schema=schema), sink, compression="zstd")
    return sink.getvalue().to_pybytes()


def _write(path: Path, content: bytes) -> None:
    with atomic_write(path) as file:
        file.write(content)


@contextmanager
def _one_thread() -> Iterator[None]:
    """Sums depend on how many threads share them; a store does not."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
