"""Building the lists of a large index, and how many of them a search has to look through.

Source: inverted lists around centres of k-means, Sivic & Zisserman, ICCV 2003; FAISS, Douze et al. 2024.
Centres are learned on a sample, without the rows that are held out. These then are questions: the number of
probed lists is the least that finds `RECALL` of their true ten nearest rows. Other kinds of questions lie
elsewhere in the space (a text is not a scan), so the caller can add some, and the worst kind decides.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32, Int64

from hilum.errors import WeightsError
from hilum.io.inverted_lists import (
    ListFacts,
    clear_lists,
    faiss_library,
    open_lists,
    write_lists,
)
from hilum.io.lock import output_lock
from hilum.io.vector_index import VectorIndex, clear_leftovers, open_index
from hilum.read.search import Questions, nearest

Rows = Float32[np.ndarray, "M E"]
Centres = Float32[np.ndarray, "L E"]
LEAST_ROWS = 20_000
"""Below, an exact search takes a few milliseconds, and most lists have to be probed."""
MOST_LISTS = 2**14
PER_LIST = 40
"""Rows of the sample per list; FAISS asks for 39."""
ROUNDS = 10
"""Of k-means."""
HELD_OUT = 1000
TOP, RECALL = 10, 0.99
BLOCK_ROWS = 2**16
"""Rows that are put into lists at a time."""


def build_lists(
    folder: str | Path, space: str, questions: Mapping[str, Questions] | None = None, *, seed: int = 0,
    wait_s: float = 0.0,
) -> ListFacts | None:  # fmt: skip
    """Lists of all rows that an index has now; those that are there already stay when they are of all rows
    and whole. None for an index with fewer than `LEAST_ROWS`, whose exact search is as fast. Holds all
    vectors of the space in memory, up to twice.

    Args:
        folder: of the index. space: of it. questions: kind -> others than its own rows to count recall with,
            of length 1. seed: of sample and centres. wait_s: for another writer.

    Raises:
        UsageError: `EXTRA_MISSING`, `OPTION_UNKNOWN` for another space. OutputError: `OUTPUT_LOCKED`,
            `OUTPUT_UNWRITABLE`. WeightsError: as of `open_index`.
    """
    faiss_library()
    where = Path(folder)
    index = open_index(where)
    if len(index) < LEAST_ROWS:
        return None
    with output_lock(where, wait_s):
        clear_leftovers(where)
        index = open_index(where)
        facts = _there(index, space) or _built(index, space, questions or {}, seed)
        clear_lists(where)
    return facts


def _there(index: VectorIndex, space: str) -> ListFacts | None:
    try:
        lists = open_lists(index, space)
        if lists is None or lists.facts.parts != len(index.parts):
            return None
        lists.verify()
    except WeightsError:
        return None
    return lists.facts


@dataclass(frozen=True)
class _Exam:
    """Questions whose nearest rows are known.

    Args:
        questions: of length 1. own: number of the row that a question is, which does not count; or -1.
        tenth: cosine of the last of the nearest. probes: lists to look through for `RECALL` of them.
    """

    questions: Questions
    own: Int64[np.ndarray, "Q"]
    tenth: Float32[np.ndarray, "Q"]
    probes: int

    def recall(self, found: Any, probes: int) -> float:
        """Measured: the share of the nearest rows that a search finds; of equals, any counts."""
        wanted = faiss_library().SearchParametersIVF(nprobe=probes)
        scores, rows = found.search(self.questions, TOP + 1, params=wanted)
        _, best = _without(rows, scores, self.own)
        return float(np.mean(best >= self.tenth[:, None] - 1e-6))


def _built(index: VectorIndex, space: str, others: Mapping[str, Questions], seed: int) -> ListFacts:
    order = np.random.default_rng(seed).permutation(len(index))
    held, rest = np.sort(order[:HELD_OUT]), order[HELD_OUT:]
    count = max(1, min(int(4 * math.sqrt(len(index))), len(rest) // PER_LIST, MOST_LISTS))
    centres = _centres(_gathered(index, space, np.sort(rest[: PER_LIST * count])), count, seed)
    found = _filled(index, space, centres)
    exams = {"rows": _exam(index, space, centres, _gathered(index, space, held), held)}
    for kind, questions in others.items():
        if len(questions):
            exams[kind] = _exam(index, space, centres, questions, np.full(len(questions), -1))
    probes = max(exam.probes for exam in exams.values())
    recall = {kind: exam.recall(found, probes) for kind, exam in exams.items()}
    # a row on the border of two lists may have been put into the other one
    while min(recall.values()) < RECALL and probes < count:
        probes = min(count, probes + 1 + probes // 8)
        recall = {kind: exam.recall(found, probes) for kind, exam in exams.items()}
    return write_lists(index, space, found, probes, recall, seed)


def _centres(sample: Rows, count: int, seed: int) -> Centres:
    """Centres of k-means by the cosine, the same for the same rows and seed."""
    width = sample.shape[1]
    means = faiss_library().Kmeans(
        width, count, niter=ROUNDS, seed=seed, spherical=True, max_points_per_centroid=len(sample)
    )
    means.train(sample)
    return np.asarray(means.centroids, dtype=np.float32).reshape(count, width)


def _filled(index: VectorIndex, space: str, centres: Centres) -> Any:
    library, (count, width) = faiss_library(), centres.shape
    quantizer = library.IndexFlatIP(width)
    quantizer.add(centres)
    found = library.IndexIVFFlat(quantizer, width, count, library.METRIC_INNER_PRODUCT)
    for part in index.vectors(space):
        for start in range(0, len(part), BLOCK_ROWS):
            found.add(np.ascontiguousarray(part[start : start + BLOCK_ROWS]))
    return found


def _exam(
    index: VectorIndex, space: str, centres: Centres, questions: Questions, own: Int64[np.ndarray, "Q"]
) -> _Exam:
    hits = nearest(index, space, questions, TOP + 1)
    rows, scores = _without(hits.rows, hits.scores, own)
    near, places = np.unique(rows, return_inverse=True)
    list_of = np.argmax(_gathered(index, space, near) @ centres.T, axis=1)[places.reshape(rows.shape)]
    ranks = np.argsort(np.argsort(-(questions @ centres.T), axis=1), axis=1)
    needed = np.sort(1 + np.take_along_axis(ranks, list_of, axis=1), axis=None)
    return _Exam(questions, own, scores[:, -1], int(needed[math.ceil(RECALL * needed.size) - 1]))


def _without(rows: np.ndarray, scores: np.ndarray, own: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The first `TOP` of each question, itself left out."""
    kept = np.where(rows == own[:, None], np.float32(-np.inf), scores)
    order = np.argsort(-kept, axis=1, kind="stable")[:, :TOP]
    return np.take_along_axis(rows, order, axis=1), np.take_along_axis(kept, order, axis=1)


def _gathered(index: VectorIndex, space: str, numbers: Int64[np.ndarray, "M"]) -> Rows:
    """Some rows of a space, whose numbers are in order."""
    found, first = [], 0
    for part in index.vectors(space):
        start, stop = np.searchsorted(numbers, [first, first + len(part)])
        found.append(part[numbers[start:stop] - first])
        first += len(part)
    return np.concatenate(found)
