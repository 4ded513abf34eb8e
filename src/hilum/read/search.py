"""Which rows of an index are nearest to a question: exact, by the cosine, block by block; or, in a large
index, by its lists, and exact in what came after them.

Source: reciprocal rank fusion, Cormack et al., SIGIR 2009.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float32, Int64

from hilum.errors import UsageError
from hilum.io.inverted_lists import OpenLists
from hilum.io.vector_index import KEY, VectorIndex

Questions = Float32[np.ndarray, "Q E"]
"""Embeddings of length 1."""
BLOCK_BYTES = 64 * 2**20
"""Of vectors that are compared at a time: what is read once stays in the cache of a server's processor."""
FUSION = 60
"""How little the first ranks of a list count more than the next (Cormack et al.)."""


@dataclass(frozen=True)
class Hits:
    """Nearest rows of each question, nearest first; which of equals come in is not said.

    Args:
        rows: numbers of rows; -1 where there are not as many. scores: cosines, -inf there.
    """

    rows: Int64[np.ndarray, "Q K"]
    scores: Float32[np.ndarray, "Q K"]


def nearest(
    index: VectorIndex,
    space: str,
    questions: Questions,
    count: int = 10,
    allowed: Bool[np.ndarray, "N"] | None = None,
    lists: OpenLists | None = None,
) -> Hits:
    """The `count` rows nearest to each question.

    Args:
        space: of the index. questions: of length 1. allowed: which rows count; None for all.
        lists: of this space; rows that they hold are looked for in them, so that some may be missed, and only
            later ones exactly. Not together with `allowed`: the lists that are probed may hold none of them.

    Raises:
        UsageError: `CONFIG_VALUE` for a count below 1, questions of another width or lists with `allowed`;
            `OPTION_UNKNOWN` for a space that the index does not have. WeightsError: as of `OpenLists.search`.
    """
    _require_questions(index, space, questions, count)
    if lists is None:
        rows = np.full((len(questions), count), -1, dtype=np.int64)
        scores = np.full((len(questions), count), -np.inf, dtype=np.float32)
        passed, first = 0, 0
    elif allowed is None:
        rows, scores = lists.search(questions, count)
        passed, first = lists.facts.parts, lists.facts.rows
    else:
        raise UsageError("CONFIG_VALUE", "some rows are searched exactly", expected="no lists", got="lists")
    asked = np.ascontiguousarray(questions.T)
    for part in index.vectors(space, passed):
        step = max(1, BLOCK_BYTES // (4 * part.shape[1]))
        for start in range(0, len(part), step):
            block = part[start : start + step]
            found = np.ascontiguousarray((block @ asked).T)
            if allowed is not None:
                found[:, ~allowed[first + start : first + start + len(block)]] = -np.inf
            rows, scores = _merged(rows, scores, found, first + start)
        first += len(part)
    return Hits(np.where(np.isfinite(scores), rows, -1), scores)


def fused(
    lists: Sequence[Sequence[Hashable]], weights: Sequence[float] | None = None
) -> list[tuple[Hashable, float]]:
    """Several rankings as one: each gives weight / (60 + rank) to what it holds, best first.

    Raises:
        UsageError: `CONFIG_VALUE`, not one weight per list.
    """
    weights = [1.0] * len(lists) if weights is None else weights
    if len(weights) != len(lists):
        raise UsageError(
            "CONFIG_VALUE", "every ranking has its weight", expected=len(lists), got=len(weights)
        )
    total: dict[Hashable, float] = {}
    for ranking, weight in zip(lists, weights, strict=True):
        for rank, item in enumerate(ranking, start=1):
            total[item] = total.get(item, 0.0) + weight / (FUSION + rank)
    # a stable sort: ties stay in the order of the lists
    return sorted(total.items(), key=lambda pair: -pair[1])


def allowed_rows(index: VectorIndex, filters: Mapping[str, str]) -> Bool[np.ndarray, "N"] | None:
    """Rows whose columns hold what is asked for; None without filters.

    Args:
        filters: column -> value, as text.

    Raises:
        UsageError: `COLUMN_MISSING`.
    """
    if not filters:
        return None
    # the other columns, of which reports are most, are not read
    table = index.rows(list(dict.fromkeys([KEY, *filters])))
    if missing := sorted(set(filters) - set(table.column_names)):
        raise UsageError(
            "COLUMN_MISSING", "an index has the columns it is filtered by",
            expected=", ".join(index.rows().column_names), got=", ".join(missing), path=index.folder,
        )  # fmt: skip
    held = np.ones(len(table), dtype=bool)
    for column, value in filters.items():
        held &= np.array([str(one) == value for one in table.column(column).to_pylist()], dtype=bool)
    return held


def _require_questions(index: VectorIndex, space: str, questions: Questions, count: int) -> None:
    width = index.model.spaces.get(space)
    if count < 1 or (width is not None and questions.shape[1] != width):
        raise UsageError(
            "CONFIG_VALUE", "a question fits the space", expected=f"{width} numbers, 1 or more answers",
            got=f"{questions.shape[1]} numbers, {count} answers",
        )  # fmt: skip


def _merged(
    rows: np.ndarray, scores: np.ndarray, found: np.ndarray, first: int
) -> tuple[np.ndarray, np.ndarray]:
    """The best of what was best and of a block."""
    count = rows.shape[1]
    if found.shape[1] > count:
        # only what may enter the list is sorted
        top = np.argpartition(-found, count - 1, axis=1)[:, :count]
        top.sort(axis=1)
    else:
        top = np.broadcast_to(np.arange(found.shape[1]), found.shape)
    both = np.concatenate([scores, np.take_along_axis(found, top, axis=1)], axis=1)
    numbers = np.concatenate([rows, top + first], axis=1)
    order = np.argsort(-both, axis=1, kind="stable")[:, :count]
    return np.take_along_axis(numbers, order, axis=1), np.take_along_axis(both, order, axis=1)
