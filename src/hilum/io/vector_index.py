"""An index of embeddings on disk: vectors as safetensors, what they are of as Parquet, in parts that never
change once they are written.

`index.json` names the parts and is replaced in one step. A part that it does not name is not there: a killed
writer leaves the index as it was before its last part, and the next one takes the leftovers away. A reader
holds the parts of the moment it opened; a writer only adds.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Float32
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from hilum.errors import OutputError, UsageError, WeightsError
from hilum.io.atomic import atomic_folder, atomic_write
from hilum.io.hashing import sha256_of
from hilum.io.lock import output_lock

FORMAT = 2
"""1: whole scans. 2: some region of them, if `region` says one."""
INDEX, VECTORS, ROWS = "index.json", "vectors.safetensors", "rows.parquet"
PART = re.compile(r"part-\d{6}")
LEFTOVERS = ".hilum-*.tmp"
"""What a killed writer leaves beside (`io.atomic`)."""
KEY = "key"
"""The column that every row has: a scan's key, once per index."""
INDEX_BYTES = 2**24
MOST_HELD = 2**14
"""Maps of parts that an index holds on to: to map a page anew for each question takes longer than to compare
what is on it. Linux gives a process some 65000 maps."""

Vectors = Float32[np.ndarray, "N E"]
"""Rows of length 1."""


@dataclass(frozen=True)
class IndexModel:
    """Whose embeddings these are; searching with another model's is refused.

    Args:
        name, sha256: of the model. spaces: name of each kind of embedding -> its numbers.
        region: part of the chest that was looked at alone; "" for whole scans.
    """

    name: str
    sha256: str
    spaces: Mapping[str, int]
    region: str = ""


@dataclass(frozen=True)
class Part:
    """Rows that were written together. `sha256`: file name -> hash."""

    name: str
    rows: int
    sha256: Mapping[str, str]


@dataclass(frozen=True)
class VectorIndex:
    """An index as it was when it was opened.

    Args:
        folder: of it. model: whose embeddings. parts: in the order of writing.
    """

    folder: Path
    model: IndexModel
    parts: tuple[Part, ...]
    _held: dict[tuple[str, str], Vectors] = field(default_factory=dict, compare=False, repr=False)

    def __len__(self) -> int:
        return sum(part.rows for part in self.parts)

    def vectors(self, space: str, first_part: int = 0) -> Iterator[Vectors]:
        """Part by part, mapped from disk.

        Args:
            first_part: how many parts are passed over.

        Raises:
            UsageError: `OPTION_UNKNOWN` for a space that it does not have. WeightsError: `WEIGHTS_TRUNCATED`.
        """
        if space not in self.model.spaces:
            known = ", ".join(self.model.spaces)
            raise UsageError("OPTION_UNKNOWN", "an index has its spaces", expected=known, got=space)
        for part in self.parts[first_part:]:
            yield self._vectors_of(part, space)

    def _vectors_of(self, part: Part, space: str) -> Vectors:
        if (held := self._held.get((part.name, space))) is not None:
            return held
        rows = _mapped(self.folder / part.name / VECTORS, space, (part.rows, self.model.spaces[space]))
        if len(self._held) < MOST_HELD:
            self._held[part.name, space] = rows
        return rows

    def rows(self, columns: Sequence[str] | None = None) -> pa.Table:
        """What the vectors are of, in their order.

        Args:
            columns: only these; one that no part has is left out.
        """
        tables = [_table(self.folder / part.name / ROWS, columns) for part in self.parts]
        return (
            pa.concat_tables(tables, promote_options="default")
            if tables
            else pa.table({KEY: pa.array([], pa.string())})
        )

    def picked(self, numbers: Sequence[int]) -> list[dict[str, Any]]:
        """Some rows, in this order; of the parts, only those that hold them are read.

        Args:
            numbers: of rows, from 0.
        """
        ends = np.cumsum([part.rows for part in self.parts])
        holders = np.searchsorted(ends, numbers, side="right").tolist()
        tables = {one: _table(self.folder / self.parts[one].name / ROWS) for one in set(holders)}
        return [
            tables[one].slice(number - int(ends[one]) + self.parts[one].rows, 1).to_pylist()[0]
            for number, one in zip(numbers, holders, strict=True)
        ]

    def keys(self) -> list[str]:
        """Key of every row."""
        return self.rows([KEY]).column(KEY).to_pylist()

    def verify(self) -> None:
        """Every byte of it.

        Raises:
            WeightsError: `WEIGHTS_HASH`, a file is not the one that was written.
        """
        for part in self.parts:
            for name, digest in part.sha256.items():
                path = self.folder / part.name / name
                if (found := sha256_of(path)) != digest:
                    raise WeightsError(
                        "WEIGHTS_HASH", "an index is what was written", expected=digest, got=found, path=path
                    )

    def require_model(self, name: str, sha256: str) -> None:
        """Refuse another model's questions.

        Raises:
            WeightsError: `CACHE_STALE`.
        """
        if sha256 != self.model.sha256:
            raise WeightsError(
                "CACHE_STALE",
                "an index is searched with the model that made it",
                expected=f"{self.model.name}, sha256 {self.model.sha256}",
                got=f"{name}, sha256 {sha256}",
                path=self.folder,
                hint="Make the index anew with this model.",
            )

    def require_region(self, region: str) -> None:
        """Refuse rows of another part of the chest.

        Raises:
            WeightsError: `CACHE_STALE`.
        """
        if region != self.model.region:
            raise WeightsError(
                "CACHE_STALE", "an index is of one region", expected=self.model.region or "whole scans",
                got=region or "whole scans", path=self.folder, hint="Make another index for this region.",
            )  # fmt: skip


def open_index(folder: str | Path) -> VectorIndex:
    """The parts of this moment.

    Raises:
        WeightsError: `CONFIG_FILE` for what is no index, `FORMAT_NEWER`, `WEIGHTS_TRUNCATED` for a part that
            is missing.
    """
    where = Path(folder)
    path = where / INDEX
    try:
        with path.open("rb") as file:
            data = json.loads(file.read(INDEX_BYTES))
        if data["format"] > FORMAT:
            raise WeightsError(
                "FORMAT_NEWER", "an index's format is known", expected=FORMAT, got=data["format"], path=path
            )
        told = data["model"]
        model = IndexModel(told["name"], told["sha256"], dict(told["spaces"]), str(told.get("region", "")))
        parts = tuple(Part(p["name"], int(p["rows"]), dict(p["sha256"])) for p in data["parts"])
        if data["kind"] != "hilum-index" or not all(PART.fullmatch(p.name) for p in parts):
            raise ValueError("another kind of file")
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise WeightsError(
            "CONFIG_FILE",
            "an index is a folder with index.json",
            got=f"{type(error).__name__}: {error}"[:200],
            path=path,
        ) from None
    for part in parts:
        for name in (VECTORS, ROWS):
            if not (where / part.name / name).is_file():
                raise WeightsError(
                    "WEIGHTS_TRUNCATED",
                    "an index has all its parts",
                    got=f"no {part.name}/{name}",
                    path=where,
                )
    return VectorIndex(where, model, parts)


class IndexWriter:
    """Adds rows; made by `writing`."""

    def __init__(self, index: VectorIndex) -> None:
        self.index, self._keys = index, set(index.keys())

    def known(self, key: str) -> bool:
        """Whether a scan is there already."""
        return key in self._keys

    def add(
        self, keys: Sequence[str], vectors: Mapping[str, np.ndarray], columns: Mapping[str, Sequence[Any]]
    ) -> None:
        """One part, on disk and named when this returns.

        Args:
            keys: of the rows, none of which is there yet. vectors: every space of the model -> its rows,
                float32 (N, E) of length 1.
            columns: what else is known of them, by name.

        Raises:
            UsageError: `CONFIG_VALUE` for rows that do not fit: a space or row too few, a key twice, a length
                that is not 1. OutputError: `OUTPUT_UNWRITABLE`.
        """
        if not keys:
            return
        _require_fit(self.index.model, keys, vectors, self._keys)
        name = f"part-{len(self.index.parts):06d}"
        with atomic_folder(self.index.folder / name, overwrite=True) as beside:
            save_file(
                {space: np.ascontiguousarray(rows) for space, rows in vectors.items()}, beside / VECTORS
            )
            table = pa.table(
                {KEY: pa.array(list(keys), pa.string())} | {k: list(v) for k, v in columns.items()}
            )
            pq.write_table(table, beside / ROWS)
            digests = {file: sha256_of(beside / file) for file in (VECTORS, ROWS)}
        part = Part(name, len(keys), digests)
        self.index = VectorIndex(self.index.folder, self.index.model, (*self.index.parts, part))
        _write_index(self.index)
        self._keys.update(keys)


@contextmanager
def writing(folder: str | Path, model: IndexModel, wait_s: float = 0.0) -> Iterator[IndexWriter]:
    """The one writer of an index, which is made where there is none.

    Args:
        folder: its parent exists. model: whose embeddings will be added. wait_s: for another writer.

    Raises:
        OutputError: `OUTPUT_LOCKED`, `OUTPUT_EXISTS` for a folder of something else, `OUTPUT_UNWRITABLE`.
        WeightsError: `CACHE_STALE` for an index of another model; others as of `open_index`.
    """
    where = Path(folder)
    if where.exists() and not (where / INDEX).exists() and (not where.is_dir() or any(_others(where))):
        raise OutputError(
            "OUTPUT_EXISTS", "an index has a folder of its own", got="something else", path=where
        )
    where.mkdir(exist_ok=True)
    with output_lock(where, wait_s):
        clear_leftovers(where)
        if (where / INDEX).exists():
            index = open_index(where)
            index.require_model(model.name, model.sha256)
            index.require_region(model.region)
        else:
            index = VectorIndex(where, model, ())
            _write_index(index)
        yield IndexWriter(index)


def clear_leftovers(folder: Path) -> None:
    """Takes away what a killed writer left beside. The caller holds the lock."""
    for left in folder.glob(LEFTOVERS):
        shutil.rmtree(left) if left.is_dir() else left.unlink()


def _others(folder: Path) -> Iterator[Path]:
    """What a killed first writer does not leave."""
    return (path for path in folder.iterdir() if not path.name.startswith(".hilum"))


def _write_index(index: VectorIndex) -> None:
    model = asdict(index.model)
    if not model["region"]:
        del model["region"]
    data = {
        "kind": "hilum-index",
        # an older reader would compare whole scans with a region
        "format": FORMAT if "region" in model else 1,
        "model": model,
        "parts": [asdict(part) for part in index.parts],
    }
    with atomic_write(index.folder / INDEX) as file:
        file.write((json.dumps(data, indent=1) + "\n").encode())


def _require_fit(
    model: IndexModel, keys: Sequence[str], vectors: Mapping[str, np.ndarray], there: set[str]
) -> None:
    wrong: list[str] = []
    if len(set(keys)) != len(keys) or there & set(keys):
        wrong.append("a key twice")
    for space, size in model.spaces.items():
        rows = vectors.get(space)
        if rows is None or rows.shape != (len(keys), size) or rows.dtype != np.float32:
            wrong.append(f"{space}: {None if rows is None else (rows.dtype.name, rows.shape)}")
        elif not np.allclose(np.linalg.norm(rows, axis=1), 1.0, atol=1e-3):
            wrong.append(f"{space}: a length that is not 1")
    wrong += [f"{space}: unknown" for space in vectors if space not in model.spaces]
    if wrong:
        expected = f"{len(keys)} new keys; float32 rows of length 1: {dict(model.spaces)}"
        raise UsageError(
            "CONFIG_VALUE", "rows of an index fit its spaces", expected=expected, got="; ".join(wrong)
        )


def _table(path: Path, columns: Sequence[str] | None = None) -> pa.Table:
    with pq.ParquetFile(path) as file:
        known = file.schema_arrow.names
        return file.read(None if columns is None else [name for name in columns if name in known])


def _mapped(path: Path, name: str, shape: tuple[int, int]) -> Vectors:
    """A tensor of a safetensors file without reading it."""
    try:
        with safe_open(path, framework="np") as file:
            found = file.get_slice(name)
            if found.get_dtype() != "F32" or tuple(found.get_shape()) != shape:
                raise ValueError(f"{name} {found.get_dtype()} {found.get_shape()} for {shape}")
        with path.open("rb") as raw:
            length = int.from_bytes(raw.read(8), "little")
            start, end = json.loads(raw.read(length))[name]["data_offsets"]
        if 8 + length + end > path.stat().st_size:
            raise ValueError("shorter than its header says")
        return np.memmap(path, dtype="<f4", mode="r", offset=8 + length + start, shape=shape)
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        raise WeightsError(
            "WEIGHTS_TRUNCATED", "a part of an index is whole", got=str(error)[:200], path=path
        ) from None
