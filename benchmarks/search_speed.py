"""Search in an index beside brute force in memory: exact, and by lists (FAISS, the extra `index`).

    python benchmarks/search_speed.py [--sizes 10000 100000 1000000] [--width 512] [--questions 50]
        [--kinds clustered isotropic] [--folder WHERE]

Synthetic embeddings of length 1, seed 0. "clustered": 4000 centres and noise of 0.8 of their length.
"isotropic": no structure at all, the hard case for lists: every row is about as far as every other. They are
written as an index by the library's writer and mapped from disk. Questions are new draws from the same
distribution, not rows of the index.

Brute force has all rows in memory: a product by numpy and a partition, or a product and topk by torch. Each
way is timed with one thread and with one per core, and its better median counts: on a machine with other
load, threads wait for each other. All ways are warmed up and asked the same questions one by one, in turns,
in one process, so that other load on the machine meets them alike. Recall is counted on more questions than
are timed. Lists are made in a process of their own, at 10 000 rows as well, where the library would not, to
see the growth. Needs 5 GB of disk in FOLDER and 5 GB of memory at a million rows. Writes
benchmarks/results/search_speed.json.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import torch
from threadpoolctl import threadpool_limits

from hilum.io.inverted_lists import ListFacts, open_lists
from hilum.io.vector_index import IndexModel, VectorIndex, open_index, writing
from hilum.read import approximate
from hilum.read.search import nearest

RESULTS = Path(__file__).parent / "results" / "search_speed.json"
PART, CENTRES, NOISE, TOP, WARM_UP = 50_000, 4000, 0.8, 10, 3
CORES = os.cpu_count() or 1
EXAM = 500
"""Questions that recall is counted on."""
SPACE = "report"
Way = Callable[[np.ndarray], np.ndarray]
"""A question -> numbers of rows, nearest first."""


def rows_of(kind: str, count: int, width: int, seed: int) -> np.ndarray:
    """Synthetic embeddings of length 1."""
    rng = np.random.default_rng(seed)
    rows = rng.standard_normal((count, width), dtype=np.float32)
    if kind == "clustered":
        centres = np.random.default_rng(1).standard_normal((CENTRES, width), dtype=np.float32)
        rows = centres[rng.integers(CENTRES, size=count)] + np.float32(NOISE) * rows
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def written(folder: Path, kind: str, size: int, width: int) -> VectorIndex:
    """An index of synthetic rows."""
    with writing(folder, IndexModel("synthetic", "0" * 64, {SPACE: width})) as writer:
        for first in range(0, size, PART):
            count = min(PART, size - first)
            rows = rows_of(kind, count, width, 2 + first)
            writer.add([f"s{first + i}" for i in range(count)], {SPACE: rows}, {})
    return open_index(folder)


def lists_of(folder: Path) -> tuple[ListFacts, dict[str, float]]:
    """Makes lists; what is known of them, and the time that took."""
    approximate.LEAST_ROWS = 0
    began = time.perf_counter()
    facts = approximate.build_lists(folder, SPACE)
    took = time.perf_counter() - began
    assert facts is not None
    return facts, {"lists_built_s": round(took, 1)}


def ways_of(index: VectorIndex) -> dict[str, Way]:
    """All that are compared. Rows of brute force are in memory once, for numpy and torch."""
    rows = np.empty((len(index), index.model.spaces[SPACE]), dtype=np.float32)
    first = 0
    for part in index.vectors(SPACE):
        rows[first : first + len(part)] = part
        first += len(part)
    tensor, lists = torch.from_numpy(rows), open_lists(index, SPACE)

    def by_numpy(question: np.ndarray) -> np.ndarray:
        scores = rows @ question
        best = np.argpartition(-scores, TOP)[:TOP]
        return best[np.argsort(-scores[best])]

    def by_torch(question: np.ndarray) -> np.ndarray:
        return torch.topk(tensor @ torch.from_numpy(question), TOP).indices.numpy()

    return {
        "brute_numpy": by_numpy,
        "brute_torch": by_torch,
        "exact": lambda question: nearest(index, SPACE, question[None], TOP).rows[0],
        "approximate": lambda question: nearest(index, SPACE, question[None], TOP, lists=lists).rows[0],
    }


def measured(folder: Path, kind: str, size: int, width: int, questions: int) -> dict[str, Any]:
    """One kind and size."""
    index = written(folder, kind, size, width)
    with ProcessPoolExecutor(1, get_context("spawn")) as other:
        facts, made = other.submit(lists_of, folder).result()
    began = time.perf_counter()
    open_lists(index, SPACE)
    opened_s = time.perf_counter() - began
    shares = _shares(index, rows_of(kind, EXAM, width, 1_000_004))
    asked, ways = rows_of(kind, questions + WARM_UP, width, 1_000_003), ways_of(index)
    medians = {f"{threads}_threads_ms": _medians(ways, asked, threads) for threads in (1, CORES)}
    best = {name: min(one[name] for one in medians.values()) for name in ways}
    brute = min(best["brute_numpy"], best["brute_torch"])
    ratios = {f"{name}_over_brute": round(best[name] / brute, 4) for name in ("exact", "approximate")}
    told = {"best_ms": {"brute": brute, "exact": best["exact"], "approximate": best["approximate"]}, **ratios}
    return {"kind": kind, "rows": size, **told, **medians, **shares, **made, **_lists(facts, opened_s)}


def _medians(ways: dict[str, Way], questions: np.ndarray, threads: int) -> dict[str, float]:
    """Way -> milliseconds."""
    took: dict[str, list[float]] = {name: [] for name in ways}
    before = torch.get_num_threads(), faiss.omp_get_max_threads()
    torch.set_num_threads(threads)
    faiss.omp_set_num_threads(threads)
    with threadpool_limits(threads):
        for question in questions:
            best = []
            for name, way in ways.items():
                start = time.perf_counter()
                best.append(way(question)[0])
                took[name].append(time.perf_counter() - start)
            # that of lists may be another
            assert best[0] == best[1] == best[2], best
    torch.set_num_threads(before[0])
    faiss.omp_set_num_threads(before[1])
    return {name: round(1e3 * statistics.median(times[WARM_UP:]), 3) for name, times in took.items()}


def _shares(index: VectorIndex, questions: np.ndarray) -> dict[str, Any]:
    """Recall of lists against exact search, and by question its worst."""
    true, lists = nearest(index, SPACE, questions, TOP), open_lists(index, SPACE)
    found = nearest(index, SPACE, questions, TOP, lists=lists)
    pairs = zip(true.rows.tolist(), found.rows.tolist(), strict=True)
    shares = [len(set(wanted) & set(got)) / TOP for wanted, got in pairs]
    return {"recall_at_10": round(statistics.mean(shares), 4), "recall_at_10_worst": min(shares)}


def _lists(facts: ListFacts, opened_s: float) -> dict[str, Any]:
    return {
        "held_out_recall_at_10": round(facts.recall["rows"], 4), "lists": facts.lists, "probes": facts.probes,
        "lists_MB": round(facts.bytes / 1e6), "lists_opened_ms": round(1e3 * opened_s, 1),
    }  # fmt: skip


def growth_of(found: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Kind -> way -> how many times as long its last size takes as its first."""
    grown = {}
    for kind in dict.fromkeys(one["kind"] for one in found):
        sizes = [one for one in found if one["kind"] == kind]
        first, last = sizes[0]["best_ms"], sizes[-1]["best_ms"]
        grown[kind] = {name: round(last[name] / first[name], 1) for name in first}
    return grown


def main() -> None:
    """All kinds and sizes."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sizes", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--kinds", nargs="+", default=["clustered", "isotropic"])
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--questions", type=int, default=50)
    parser.add_argument("--folder", type=Path, help="where the indices are, for the time of the run")
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    found: list[dict[str, Any]] = []
    for kind in options.kinds:
        for size in options.sizes:
            with tempfile.TemporaryDirectory(dir=options.folder) as folder:
                found.append(measured(Path(folder) / "index", kind, size, options.width, options.questions))
            print(json.dumps(found[-1]), flush=True)
            # after every size: a long run that is stopped leaves what it has
            options.out.write_text(json.dumps(_result(options, found), indent=2) + "\n", encoding="utf-8")


def _result(options: argparse.Namespace, found: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "what": "median latency of one question: brute force in memory, exact search in an index on disk, "
        "and its lists; synthetic embeddings, in one process in turns, on a machine with other load",
        "seed": 0, "width": options.width, "questions": options.questions, "runs": found,
        "growth_first_to_last_size": growth_of(found),
        "machine": f"{platform.processor() or platform.machine()}, {CORES} CPU cores",
        "load_average": round(os.getloadavg()[0], 1),
        "versions": {"numpy": np.__version__, "torch": torch.__version__, "faiss": faiss.__version__},
    }  # fmt: skip


if __name__ == "__main__":
    main()
