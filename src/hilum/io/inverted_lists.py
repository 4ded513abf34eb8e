"""An approximate index beside the parts of an exact one: its rows in lists around centres, FAISS's IVF-Flat.

`approximate.json` says, space by space, which file holds the lists, of which parts they are and how much they
find; it is replaced in one step after the file is on disk. Of a file FAISS parses the head alone: it is no
longer than its lists need, and has the hash that was written down, before FAISS sees it. All behind it is
vectors and row numbers, whose length is known: they are mapped from disk and compared, and a number is looked
at before it is believed. `OpenLists.verify` hashes every byte.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32, Int64

from hilum.errors import UsageError, WeightsError
from hilum.io.atomic import atomic_write
from hilum.io.hashing import sha256_of
from hilum.io.vector_index import VECTORS, VectorIndex

FORMAT = 1
APPROXIMATE = "approximate.json"
FILE = re.compile(r"lists-\d{6}\.faiss")
JSON_BYTES = 2**20
HEAD_SPARE_BYTES = 4096
"""What the head of a file holds beside centres and lengths of lists: some 150 bytes."""
AGAIN = "Search with --exact, or make it anew: hilum index ... --approximate."


@dataclass(frozen=True)
class ListFacts:
    """What is known of the lists of one space.

    Args:
        file: its name. bytes, sha256: of all of it. head_bytes, head_sha256: of what FAISS parses.
        parts: how many of the index, from the first, its rows are of. parts_sha256: of their vectors.
        rows: of these parts. lists: how many there are. probes: how many of them a search looks through.
        recall: kind of question -> share of the true ten nearest rows that it finds so. seed: of the build.
    """

    file: str
    bytes: int
    sha256: str
    head_bytes: int
    head_sha256: str
    parts: int
    parts_sha256: str
    rows: int
    lists: int
    probes: int
    recall: Mapping[str, float]
    seed: int


@dataclass(frozen=True)
class OpenLists:
    """Lists that can be searched; made by `open_lists`.

    Args:
        path: of the file. facts: of it. found: FAISS's index, mapped from disk.
    """

    path: Path
    facts: ListFacts
    found: Any

    def search(
        self, questions: Float32[np.ndarray, "Q E"], count: int, probes: int | None = None
    ) -> tuple[Int64[np.ndarray, "Q K"], Float32[np.ndarray, "Q K"]]:
        """Rows and their cosines, nearest first; -1 and -inf where the probed lists have no more.

        Args:
            questions: of length 1. count: K. probes: lists to look through; as the facts say by default.

        Raises:
            WeightsError: `WEIGHTS_HASH`, a row's number cannot be one.
        """
        wanted = faiss_library().SearchParametersIVF(nprobe=probes or self.facts.probes)
        scores, rows = self.found.search(np.ascontiguousarray(questions), count, params=wanted)
        if rows.size and not -1 <= rows.min() <= rows.max() < self.facts.rows:
            raise WeightsError(
                "WEIGHTS_HASH", "lists hold rows of their index", expected=f"0 to {self.facts.rows - 1}",
                got=f"{rows.min()} to {rows.max()}", path=self.path, hint=AGAIN,
            )  # fmt: skip
        return rows, np.where(rows >= 0, scores, np.float32(-np.inf))

    def verify(self) -> None:
        """Every byte of it.

        Raises:
            WeightsError: `WEIGHTS_HASH`.
        """
        _require_hash(self.path, sha256_of(self.path), self.facts.sha256)


def faiss_library() -> Any:
    """FAISS.

    Raises:
        UsageError: `EXTRA_MISSING` without the extra `index`.
    """
    try:
        return importlib.import_module("faiss")
    except ImportError as error:
        raise UsageError(
            "EXTRA_MISSING", "approximate search needs the extra `index`", got=str(error),
            hint="pip install 'hilum[index]'",
        ) from error  # fmt: skip


def read_facts(index: VectorIndex, space: str) -> ListFacts | None:
    """What is written down of the lists of a space. None where there are none, or none that this reader can
    use: they were made of parts that came after it opened the index.

    Raises:
        WeightsError: `CONFIG_FILE` for another kind of file, `FORMAT_NEWER`, `CACHE_STALE` for lists of an
            index with other rows.
    """
    facts = _all_facts(index.folder).get(space)
    if facts is None or space not in index.model.spaces or facts.parts > len(index.parts):
        return None
    if (digest := parts_sha256(index, facts.parts)) != facts.parts_sha256:
        raise WeightsError(
            "CACHE_STALE", "lists are of the parts that they lie beside", expected=digest,
            got=facts.parts_sha256, path=index.folder / APPROXIMATE, hint=AGAIN,
        )  # fmt: skip
    return facts


def open_lists(index: VectorIndex, space: str) -> OpenLists | None:
    """The lists of a space, to be searched; None as of `read_facts`.

    Raises:
        UsageError: `EXTRA_MISSING`. WeightsError: as of `read_facts`; `WEIGHTS_TRUNCATED`, `WEIGHTS_HEADER`
            and `WEIGHTS_HASH` for a file that is not the one that was written.
    """
    facts = read_facts(index, space)
    if facts is None:
        return None
    library, path, width = faiss_library(), index.folder / facts.file, index.model.spaces[space]
    if not path.is_file() or path.stat().st_size != facts.bytes:
        raise WeightsError(
            "WEIGHTS_TRUNCATED", "lists are whole", expected=f"{facts.bytes} bytes", path=path, hint=AGAIN,
            got=f"{path.stat().st_size} bytes" if path.is_file() else "no file",
        )  # fmt: skip
    most = facts.lists * (4 * width + 8) + HEAD_SPARE_BYTES
    if facts.head_bytes > most or facts.bytes - facts.head_bytes != _body_bytes(facts.rows, width):
        raise _no_lists(path, f"{facts.head_bytes} bytes before {facts.bytes - facts.head_bytes}")
    _require_hash(path, _head_sha256(path, facts.head_bytes), facts.head_sha256)
    try:
        found = library.read_index(str(path), library.IO_FLAG_MMAP)
    except RuntimeError as error:
        raise _no_lists(path, str(error)[:200]) from None
    got = (type(found).__name__, found.d, found.ntotal, getattr(found, "nlist", 0), found.metric_type)
    if got != ("IndexIVFFlat", width, facts.rows, facts.lists, library.METRIC_INNER_PRODUCT):
        raise _no_lists(path, str(got))
    return OpenLists(path, facts, found)


def write_lists(
    index: VectorIndex, space: str, found: Any, probes: int, recall: Mapping[str, float], seed: int
) -> ListFacts:
    """Lists of all rows of an index: on disk, and named when this returns. The caller holds its lock.

    Args:
        found: FAISS's IVF-Flat index of the rows of the space, each under its number. probes, recall, seed:
            see `ListFacts`.

    Raises:
        OutputError: `OUTPUT_UNWRITABLE`.
    """
    try:
        there = _all_facts(index.folder)
    except WeightsError:
        # damaged, or a format of tomorrow: whoever makes lists anew is told by `open_lists` to do so
        there = {}
    path = index.folder / _free_name(index.folder)
    library = faiss_library()
    with atomic_write(path) as file:
        writer = library.PyCallbackIOWriter(file.write)
        library.write_index(found, writer)
    size = path.stat().st_size
    head = size - _body_bytes(len(index), index.model.spaces[space])
    facts = ListFacts(
        path.name, size, sha256_of(path), head, _head_sha256(path, head), len(index.parts),
        parts_sha256(index, len(index.parts)), len(index), int(found.nlist), probes, dict(recall), seed,
    )  # fmt: skip
    _write_facts(index.folder, {**there, space: facts})
    return facts


def clear_lists(folder: Path) -> None:
    """Takes away files of lists that nothing names: earlier ones, and what a killed writer left. The caller
    holds the lock."""
    named = {facts.file for facts in _all_facts(folder).values()}
    for path in folder.iterdir():
        if FILE.fullmatch(path.name) and path.name not in named:
            path.unlink()


def parts_sha256(index: VectorIndex, count: int) -> str:
    """Of which rows lists are: one hash over those of the vectors of the first `count` parts, in order."""
    told = [f"{part.name} {part.rows} {part.sha256.get(VECTORS)}" for part in index.parts[:count]]
    return hashlib.sha256("\n".join(told).encode()).hexdigest()


def _all_facts(folder: Path) -> dict[str, ListFacts]:
    path = folder / APPROXIMATE
    if not path.exists():
        return {}
    try:
        with path.open("rb") as file:
            data = json.loads(file.read(JSON_BYTES))
        if data["format"] > FORMAT:
            raise WeightsError(
                "FORMAT_NEWER", "a format is known", expected=FORMAT, got=data["format"], path=path
            )
        found = {str(space): _facts(told) for space, told in data["spaces"].items()}
        if data["kind"] != "hilum-approximate":
            raise ValueError("another kind of file")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise WeightsError(
            "CONFIG_FILE", "an approximate index has its approximate.json",
            got=f"{type(error).__name__}: {error}"[:200], path=path, hint=AGAIN,
        ) from None  # fmt: skip
    return found


def _facts(told: Mapping[str, Any]) -> ListFacts:
    facts = ListFacts(**{**told, "recall": {str(k): float(v) for k, v in told["recall"].items()}})
    numbers = (facts.bytes, facts.head_bytes, facts.parts, facts.rows, facts.lists, facts.probes, facts.seed)
    if not all(type(n) is int and n >= 0 for n in numbers) or not FILE.fullmatch(facts.file):
        raise ValueError(f"{facts}")
    if not 1 <= facts.probes <= facts.lists or not all(0 <= share <= 1 for share in facts.recall.values()):
        raise ValueError(f"{facts.probes} of {facts.lists} lists, recall {facts.recall}")
    return facts


def _write_facts(folder: Path, spaces: Mapping[str, ListFacts]) -> None:
    data = {
        "kind": "hilum-approximate",
        "format": FORMAT,
        "spaces": {space: asdict(facts) for space, facts in spaces.items()},
    }
    with atomic_write(folder / APPROXIMATE) as file:
        file.write((json.dumps(data, indent=1) + "\n").encode())


def _free_name(folder: Path) -> str:
    """Never a name that lists had: a reader may be about to open them."""
    taken = [int(path.name[6:12]) for path in folder.iterdir() if FILE.fullmatch(path.name)]
    return f"lists-{max(taken, default=-1) + 1:06d}.faiss"


def _body_bytes(rows: int, width: int) -> int:
    """Vectors in float32 and numbers in int64, of all lists."""
    return rows * (4 * width + 8)


def _head_sha256(path: Path, size: int) -> str:
    with path.open("rb") as file:
        return hashlib.sha256(file.read(size)).hexdigest()


def _require_hash(path: Path, got: str, expected: str) -> None:
    if got != expected:
        raise WeightsError(
            "WEIGHTS_HASH", "lists are what was written", expected=expected, got=got, path=path, hint=AGAIN
        )


def _no_lists(path: Path, got: str) -> WeightsError:
    return WeightsError(
        "WEIGHTS_HEADER", "lists are FAISS's IVF-Flat of these rows", got=got, path=path, hint=AGAIN
    )
