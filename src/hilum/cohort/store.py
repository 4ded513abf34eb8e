"""Prepared scans on disk: one Blosc2 file per scan, one Parquet index, everything under a hash. Reading side.

    STORE/store.json       format, preparation, sha256 of index and refusals; under a sha256 of its own
    STORE/index.parquet    one row per scan, by key: grid, scale, hashes, chunk table, trace
    STORE/refused.json     what was not taken, with codes
    STORE/scans/ID.b2nd    the values; ID is a hash of the key, never the key itself
    STORE/scans/ID.json    the row, written after the values: a scan without it was not finished

A store is a function of its inputs: nothing in it says when, where or in which order it was made.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from hilum.cohort.store_chunks import EDGE, ChunkTable, Three, bad_chunks, damaged, read_box
from hilum.errors import ContainerError
from hilum.io.hashing import sha256_of
from hilum.types import AffineRas

FORMAT = 1
STORE_FILE, INDEX_FILE, REFUSED_FILE, SCANS = "store.json", "index.parquet", "refused.json", "scans"


@dataclass(frozen=True)
class ScanRow:
    """One scan of a store.

    Args:
        key: of the job. file: name without suffix below `scans`.
        affine_ras: voxel -> mm RAS+, 16 numbers row by row. shape: voxels. dtype: as stored.
        slope, intercept: value = stored * slope + intercept.
        pad: stored value that stands for outside the scan (the smallest one in it).
        source_sha256: of the input. file_sha256, file_bytes: of the values' file.
        first, lengths, crcs: chunk table. trace: JSON of the preparation's trace.
        findings: codes of what was found in the input.
    """

    key: str
    file: str
    affine_ras: tuple[float, ...]
    shape: tuple[int, ...]
    dtype: str
    slope: float
    intercept: float
    pad: float
    source_sha256: str
    file_sha256: str
    file_bytes: int
    first: int
    lengths: tuple[int, ...]
    crcs: tuple[int, ...]
    trace: str
    findings: tuple[str, ...]

    @classmethod
    def from_dict(cls, facts: Mapping[str, Any]) -> ScanRow:
        """From a row of the index or a record; lists become tuples."""
        values: dict[str, Any] = {f.name: facts[f.name] for f in fields(cls)}
        values = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
        return cls(**values)

    @property
    def table(self) -> ChunkTable:
        """Where its chunks lie."""
        x, y, z = self.shape
        return ChunkTable((x, y, z), self.dtype, self.first, self.lengths, self.crcs)

    @property
    def affine(self) -> AffineRas:
        """Voxel -> mm, RAS+."""
        return np.array(self.affine_ras, dtype=np.float64).reshape(4, 4)

    def record(self) -> bytes:
        """Content of the scan's JSON file."""
        return sealed(asdict(self))


@dataclass(frozen=True)
class StoreFault:
    """Something in a store that is not what was written.

    Args:
        key: of the scan; empty for the store's own files. file: below the store.
        chunk: index in the chunk grid, or None. what: in words.
    """

    key: str
    file: str
    chunk: int | None
    what: str


@dataclass(frozen=True)
class Store:
    """A store that was opened.

    Args:
        root: its folder. prep: settings of its preparation. rows: by key, sorted.
    """

    root: Path
    prep: Mapping[str, Any]
    rows: Mapping[str, ScanRow]

    @property
    def keys(self) -> tuple[str, ...]:
        """Every scan, sorted."""
        return tuple(self.rows)

    @cached_property
    def tables(self) -> dict[str, ChunkTable]:
        """Chunk tables that were asked for already."""
        return {}

    def row(self, key: str) -> ScanRow:
        """One scan's row.

        Raises:
            ContainerError: `NOT_FOUND`.
        """
        if key not in self.rows:
            raise ContainerError("NOT_FOUND", "the store holds the scan", got=repr(key), path=self.root)
        return self.rows[key]

    def read(self, key: str, start_vox: Three | None = None, shape_vox: Three | None = None) -> np.ndarray:
        """A box of a scan as stored (the whole scan by default).

        Raises:
            ContainerError: `STORE_DAMAGED` naming scan and chunk, `NOT_FOUND`.
            UsageError: `GRID_MISMATCH` when the box leaves the scan.
        """
        row = self.row(key)
        table = self.tables.get(key) or self.tables.setdefault(key, row.table)
        start = start_vox or (0, 0, 0)
        x, y, z = (n - low for n, low in zip(table.shape, start, strict=True))
        return read_box(self.path_of(row), table, start, shape_vox or (x, y, z), key)

    def path_of(self, row: ScanRow) -> Path:
        """The file of its values."""
        return self.root / SCANS / f"{row.file}.b2nd"


def file_id(key: str) -> str:
    """The name of a scan's files: a hash, so that no key can leave the folder or name a patient."""
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).hexdigest()[:24]


def sealed(facts: Mapping[str, Any]) -> bytes:
    """JSON with a sha256 of itself."""
    body = json.dumps(facts, indent=1, sort_keys=True)
    seal = hashlib.sha256(body.encode()).hexdigest()
    return (json.dumps({**facts, "sha256": seal}, indent=1, sort_keys=True) + "\n").encode("ascii")


def unsealed(text: bytes) -> dict[str, Any] | None:
    """What `sealed` was given, or None when the bytes are not those that it made."""
    try:
        facts = json.loads(text)
        del facts["sha256"]
        return facts if sealed(facts) == text else None
    except (ValueError, KeyError, TypeError, UnicodeError):
        return None


def read_store_file(root: Path) -> dict[str, Any]:
    """`store.json`, checked against its own hash.

    Raises:
        ContainerError: `NOT_FOUND`, `STORE_DAMAGED`, `FORMAT_NEWER`.
    """
    path = root / STORE_FILE
    try:
        text = path.read_bytes()
    except OSError as error:
        raise ContainerError(
            "NOT_FOUND", "a store has its store.json", got=error.strerror or "no such file", path=path
        ) from error
    try:
        facts = json.loads(text)
        version = int(facts["format"])
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise _store_damaged(path, "not a store's record") from error
    if version > FORMAT:
        raise ContainerError(
            "FORMAT_NEWER", "a store is not newer than Hilum", expected=f"<= {FORMAT}", got=version, path=path
        )
    if unsealed(text) is None:
        raise _store_damaged(path, "other bytes")
    return facts


def open_store(root: str | Path) -> Store:
    """Reads the index. Values are checked when they are read, chunk by chunk; `verify_store` checks all.

    Raises:
        ContainerError: `NOT_FOUND` (no store, or one whose preparation was not finished), `STORE_DAMAGED`,
            `FORMAT_NEWER`.
    """
    folder = Path(root)
    facts = read_store_file(folder)
    path = folder / INDEX_FILE
    if not facts.get("index_sha256"):
        raise ContainerError(
            "NOT_FOUND",
            "a store was prepared to its end",
            got="a preparation that stopped",
            path=folder,
            hint="Run the same preparation again; it goes on where it stopped.",
        )
    try:
        digest = sha256_of(path)
    except OSError as error:
        raise _store_damaged(path, error.strerror or "no such file") from error
    if digest != facts["index_sha256"]:
        raise _store_damaged(path, "other bytes")
    import pyarrow.parquet as parquet

    rows = [ScanRow.from_dict(row) for row in parquet.read_table(path).to_pylist()]
    return Store(folder, facts["prep"], {row.key: row for row in rows})


def verify_store(root: str | Path, *, on_scan: Callable[[str], None] | None = None) -> list[StoreFault]:
    """Reads every byte of a store; an empty list says that all of it is what was written.

    Args:
        on_scan: called with each key when its files were read.

    Raises:
        ContainerError: as `open_store`; without a sound index there is nothing to compare with.
    """
    store = open_store(root)
    faults = _file_fault(store.root / REFUSED_FILE, read_store_file(store.root)["refused_sha256"])
    for key, row in store.rows.items():
        faults += _scan_faults(store, row)
        if on_scan is not None:
            on_scan(key)
    known = {row.file for row in store.rows.values()}
    for path in sorted((store.root / SCANS).iterdir()):
        if path.stem not in known:
            faults.append(StoreFault("", f"{SCANS}/{path.name}", None, "a file that the index does not name"))
    return faults


def _scan_faults(store: Store, row: ScanRow) -> list[StoreFault]:
    name = f"{SCANS}/{row.file}"
    try:
        record = (store.root / f"{name}.json").read_bytes()
    except OSError as error:
        record = b""
        faults = [StoreFault(row.key, f"{name}.json", None, error.strerror or "cannot be read")]
    else:
        same = record == row.record()
        faults = [] if same else [StoreFault(row.key, f"{name}.json", None, "not what the index says")]
    try:
        data = store.path_of(row).read_bytes()
    except OSError as error:
        return [*faults, StoreFault(row.key, f"{name}.b2nd", None, error.strerror or "cannot be read")]
    if len(data) == row.file_bytes and hashlib.sha256(data).hexdigest() == row.file_sha256:
        return faults
    chunks = bad_chunks(data, row.table)
    corners = [tuple(int(n) * EDGE for n in np.unravel_index(i, row.table.grid)) for i in chunks]
    faults += [
        StoreFault(row.key, f"{name}.b2nd", i, f"other bytes in the chunk at voxel {corner}")
        for i, corner in zip(chunks, corners, strict=True)
    ]
    if not chunks:
        faults.append(StoreFault(row.key, f"{name}.b2nd", None, "other bytes outside the chunks"))
    return faults


def _file_fault(path: Path, sha256: str) -> list[StoreFault]:
    try:
        same = sha256_of(path) == sha256
    except OSError as error:
        return [StoreFault("", path.name, None, error.strerror or "cannot be read")]
    return [] if same else [StoreFault("", path.name, None, "other bytes")]


def _store_damaged(path: Path, got: str) -> ContainerError:
    error = damaged(path, "", None, None, got)
    return ContainerError(
        error.code,
        error.rule,
        expected="the bytes that were written",
        got=got,
        path=path,
        hint="Prepare again; scans that are whole are kept.",
    )
