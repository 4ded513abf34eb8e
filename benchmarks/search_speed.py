"""Search in an index beside brute force in memory: the same answers, how long they take, how that grows.

    python benchmarks/search_speed.py [--sizes 10000 100000 1000000] [--width 512] [--questions 50]

Synthetic embeddings: clusters on a sphere, seed 0, written as an index by the library's writer and mapped
from disk; questions are rows with noise. Brute force is one matrix product with all rows in memory and a full
sort per question, as scripts do it. Both sides are warmed up and asked the same questions one by one, in
turns. Writes benchmarks/results/search_speed.json.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from hilum.io.vector_index import IndexModel, open_index, writing
from hilum.read.search import nearest

RESULTS = Path(__file__).parent / "results" / "search_speed.json"
PART, CLUSTERS, TOP = 50_000, 200, 10


def rows_of(count: int, width: int, seed: int, centres: np.ndarray) -> np.ndarray:
    """Synthetic embeddings of length 1 around centres."""
    rng = np.random.default_rng(seed)
    rows = centres[rng.integers(len(centres), size=count)]
    rows = rows + 0.8 * rng.normal(size=(count, width)).astype(np.float32) / np.sqrt(width)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def brute(rows: np.ndarray, question: np.ndarray) -> np.ndarray:
    """The nearest rows by a full sort."""
    return np.argsort(-(rows @ question))[:TOP]


def measured(folder: Path, size: int, width: int, questions: int) -> dict[str, Any]:
    """One size."""
    centres = rows_of(CLUSTERS, width, 1, np.zeros((1, width), dtype=np.float32)).astype(np.float32)
    model = IndexModel("synthetic", "0" * 64, {"report": width})
    parts = []
    began = time.perf_counter()
    with writing(folder, model) as writer:
        for first in range(0, size, PART):
            count = min(PART, size - first)
            part = rows_of(count, width, 2 + first, centres).astype(np.float32)
            writer.add([f"s{first + i}" for i in range(count)], {"report": part}, {})
            parts.append(part)
    wrote = time.perf_counter() - began
    rows, index = np.concatenate(parts), open_index(folder)
    rng = np.random.default_rng(0)
    asked = rows[rng.integers(size, size=questions + 2)] + 0.2 * rng.normal(
        size=(questions + 2, width)
    ) / np.sqrt(width)
    asked = (asked / np.linalg.norm(asked, axis=1, keepdims=True)).astype(np.float32)
    ours_s, brute_s, hit = [], [], []
    for turn, question in enumerate(asked):
        start = time.perf_counter()
        wanted = brute(rows, question)
        middle = time.perf_counter()
        found = nearest(index, "report", question[None], TOP).rows[0]
        end = time.perf_counter()
        if turn >= 2:
            brute_s.append(middle - start)
            ours_s.append(end - middle)
            hit.append(len(set(found.tolist()) & set(wanted.tolist())) / TOP)
    ours, theirs = statistics.median(ours_s), statistics.median(brute_s)
    return {
        "rows": size, "index_MB": round(_bytes(folder) / 1e6),
        "written_s": round(wrote, 1), "recall_at_10": float(np.mean(hit)), "ours_ms": round(1e3 * ours, 2),
        "brute_ms": round(1e3 * theirs, 2), "ratio": round(ours / theirs, 3),
    }  # fmt: skip


def _bytes(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def main() -> None:
    """All sizes."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sizes", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--questions", type=int, default=50)
    options = parser.parse_args()
    found = []
    for size in options.sizes:
        with tempfile.TemporaryDirectory() as folder:
            found.append(measured(Path(folder) / "index", size, options.width, options.questions))
        print(json.dumps(found[-1]), flush=True)
    result = {
        "what": "exact search in an index on disk beside brute force in memory, synthetic embeddings, seed 0",
        "width": options.width, "questions": options.questions, "sizes": found,
        "growth": round(found[-1]["ours_ms"] / found[0]["ours_ms"], 1),
        "hardware": f"{platform.processor() or platform.machine()}, {os.cpu_count()} CPU cores",
    }  # fmt: skip
    RESULTS.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
