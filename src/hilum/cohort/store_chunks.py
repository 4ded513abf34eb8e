"""One scan of a store: a Blosc2 frame in chunks of 32³, each with a CRC-32, read a box at a time.

Any Blosc2 reader opens the file (`blosc2.open`). Here chunks are fetched by their recorded places instead: a
chunk's CRC is checked before a decoder sees its bytes, and only the chunks of a box are read.
Blosc2 runs on one thread: its pool hangs in forked workers.
"""

from __future__ import annotations

import itertools
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from types import ModuleType
from typing import TypeAlias

import numpy as np

from hilum.cohort.prep_presets import Codec
from hilum.errors import ContainerError, UsageError

EDGE = 32
"""Voxels along each edge of a chunk; 64 KiB of int16 fit the second-level cache, slices and crops alike."""

Three: TypeAlias = tuple[int, int, int]


@dataclass(frozen=True)
class ChunkTable:
    """Where the chunks of a file lie, in C order of the chunk grid.

    Args:
        shape: voxels of the array. dtype: of the array. first: byte of the first stored chunk.
        lengths: bytes of each chunk; 0 for one that holds only zeros and is not stored.
        crcs: CRC-32 of those bytes.
    """

    shape: Three
    dtype: str
    first: int
    lengths: tuple[int, ...]
    crcs: tuple[int, ...]

    @property
    def grid(self) -> Three:
        """Chunks along each axis."""
        return chunk_grid(self.shape)

    def offsets(self) -> list[int]:
        """Byte of each chunk in the file."""
        return list(itertools.accumulate(self.lengths, initial=self.first))[:-1]


def chunk_grid(shape: Three) -> Three:
    """How many chunks an array of `shape` has along each axis."""
    x, y, z = (-(-n // EDGE) for n in shape)
    return x, y, z


def encode(values: np.ndarray, codec: Codec = "lz4") -> tuple[bytes, ChunkTable]:
    """An int16 or float16 array [U, V, W] as a Blosc2 frame, and where its chunks lie; a pure function.

    Raises:
        UsageError: `DTYPE`.
    """
    if values.ndim != 3 or values.dtype not in (np.dtype(np.int16), np.dtype(np.float16)):
        got = f"{values.dtype} of {values.ndim} axes"
        raise UsageError("DTYPE", "a store keeps int16 or float16 volumes", got=got)
    blosc2 = _blosc2()
    chosen, level = (blosc2.Codec.ZSTD, 1) if codec == "zstd" else (blosc2.Codec.LZ4, 5)
    settings = blosc2.CParams(
        codec=chosen, clevel=level, filters=[blosc2.Filter.SHUFFLE], nthreads=1, typesize=2
    )
    edges = (EDGE,) * 3
    array = blosc2.asarray(np.ascontiguousarray(values), chunks=edges, blocks=edges, cparams=settings)
    frame = bytes(array.to_cframe())
    first = at = int.from_bytes(frame[11:15], "big")
    lengths, crcs = [], []
    for index in range(array.schunk.nchunks):
        chunk = array.schunk.get_chunk(index)
        stored = frame[at : at + len(chunk)] == chunk
        if not stored and np.any(np.frombuffer(blosc2.decompress2(chunk), np.uint8)):
            raise RuntimeError(f"chunk {index} does not lie where the frame's layout says")
        lengths.append(len(chunk) if stored else 0)
        crcs.append(zlib.crc32(chunk) if stored else 0)
        at += lengths[-1]
    shape = (values.shape[0], values.shape[1], values.shape[2])
    return frame, ChunkTable(shape, values.dtype.name, first, tuple(lengths), tuple(crcs))


def read_box(path: Path, table: ChunkTable, start: Three, size: Three, key: str) -> np.ndarray:
    """A box of the array; only the chunks that it touches are read, each checked first.

    Args:
        path: file. table: its chunks. start: first voxel. size: voxels; the box lies inside the array.
        key: of the scan, for messages.

    Raises:
        ContainerError: `STORE_DAMAGED`, naming scan and chunk.
        UsageError: `GRID_MISMATCH` when the box leaves the array.
    """
    for low, n, whole in zip(start, size, table.shape, strict=True):
        if low < 0 or n < 1 or low + n > whole:
            got = f"{start} + {size}"
            raise UsageError("GRID_MISMATCH", "a box lies inside its scan", expected=table.shape, got=got)
    out = np.empty(size, dtype=table.dtype)
    block = np.empty((EDGE,) * 3, dtype=table.dtype)
    # not decompress2: that makes a context of its own for every chunk
    decompress = _blosc2().decompress
    spans = [_overlaps(low, n) for low, n in zip(start, size, strict=True)]
    for (x, y, z), packed in _chunks(path, table, [list(span) for span in spans], key):
        (from_x, to_x), (from_y, to_y), (from_z, to_z) = spans[0][x], spans[1][y], spans[2][z]
        if packed:
            decompress(packed, block)
            out[to_x, to_y, to_z] = block[from_x, from_y, from_z]
        else:
            out[to_x, to_y, to_z] = 0
    return out


def bad_chunks(data: bytes, table: ChunkTable) -> list[int]:
    """Chunks whose bytes in a file's content `data` are not what was written."""
    places = zip(table.offsets(), table.lengths, table.crcs, strict=True)
    return [
        index
        for index, (at, length, crc) in enumerate(places)
        if length and (len(data) < at + length or zlib.crc32(data[at : at + length]) != crc)
    ]


def damaged(path: Path, key: str, index: int | None, table: ChunkTable | None, got: str) -> ContainerError:
    """The refusal that names scan and chunk."""
    where = f"scan {key!r}"
    if index is not None and table is not None:
        corner = np.array(np.unravel_index(index, table.grid)) * EDGE
        where += f", chunk {index} (voxels from {', '.join(str(int(n)) for n in corner)})"
    return ContainerError(
        "STORE_DAMAGED",
        "a store holds what was written into it",
        expected=f"the bytes of {where}",
        got=got,
        path=path,
        hint="Remove this file and prepare again; the other scans are kept.",
    )


def _chunks(
    path: Path, table: ChunkTable, wanted: list[list[int]], key: str
) -> Iterator[tuple[Three, bytes | memoryview]]:
    """Place in the chunk grid and checked bytes of every chunk that is wanted along all three axes."""
    _, rows, columns = table.grid
    offsets, lengths, crcs = table.offsets(), table.lengths, table.crcs
    low, high = wanted[2][0], wanted[2][-1]
    with _opened(path, key) as file:
        for x, y in itertools.product(wanted[0], wanted[1]):
            base = (x * rows + y) * columns
            # chunks along the last axis lie beside each other: one read for the run
            begin, end = offsets[base + low], offsets[base + high] + lengths[base + high]
            file.seek(begin)
            run = memoryview(file.read(end - begin))
            for index in range(base + low, base + high + 1):
                at = offsets[index] - begin
                packed = run[at : at + lengths[index]]
                if len(packed) != lengths[index] or zlib.crc32(packed) != crcs[index]:
                    raise damaged(path, key, index, table, "other bytes")
                yield (x, y, index - base), packed


def _opened(path: Path, key: str) -> FileIO:
    try:
        return path.open("rb", buffering=0)
    except OSError as error:
        raise damaged(path, key, None, None, error.strerror or "no such file") from error


def _overlaps(start: int, size: int) -> dict[int, tuple[slice, slice]]:
    """Chunks along one axis that a span touches: the part of each inside the span, in the chunk and in the
    span."""
    found = {}
    for chunk in range(start // EDGE, (start + size - 1) // EDGE + 1):
        corner = chunk * EDGE
        low, high = max(corner, start), min(corner + EDGE, start + size)
        found[chunk] = slice(low - corner, high - corner), slice(low - start, high - start)
    return found


def _blosc2() -> ModuleType:
    import blosc2

    if blosc2.nthreads != 1:
        blosc2.set_nthreads(1)
    return blosc2
