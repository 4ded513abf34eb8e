"""A question to an index, in words, by a scan, or both: the nearest scans with their reports."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import numpy as np

from hilum.errors import UsageError
from hilum.io.inverted_lists import ListFacts, OpenLists, open_lists
from hilum.io.limits import Answers, Mode
from hilum.io.open import open_volume
from hilum.io.vector_index import VectorIndex, open_index
from hilum.read.approximate import LEAST_ROWS
from hilum.read.embed import REPORT, embed_scan, require_searchable
from hilum.read.encoder import LoadedEncoder, load
from hilum.read.regions import Region, require_region
from hilum.read.search import allowed_rows, fused, nearest

DEEP = 5
"""Rankings that are fused are so many times as long as what is shown."""
LARGE_ROWS = 100_000
"""From here on an index is searched by its lists if it has any and nothing else is asked for."""
FEW_LISTS = 0.25
"""Share of lists up to which to probe them is surely faster than an exact search; rows without any clusters
need nearly all."""
LISTS_TOP = 100
"""Longer rankings are exact: recall of lists is measured on the ten nearest."""

How = Literal["auto", "exact", "approximate"]


@dataclass(frozen=True)
class Answered:
    """The nearest rows of an index.

    Args:
        rows: each with `key`, its columns, and `score`: the cosine, or of several questions the fused rank
            score. size: rows of the index. asked: those of them that the filters allow.
        model: name and sha256 of it, and the region of the index. lists: what is known of the lists that were
            searched; None for a search that was exact.
    """

    rows: tuple[dict[str, Any], ...]
    size: int
    asked: int
    model: dict[str, str]
    lists: ListFacts | None = None

    def as_dict(self) -> dict[str, Any]:
        """For `--json`."""
        how: dict[str, Any] = {"how": "exact"}
        if (facts := self.lists) is not None:
            later = self.size - facts.rows
            how = {"how": "approximate", "recall_at_10": dict(facts.recall), "lists": facts.lists,
                   "probes": facts.probes, "later_rows_exact": later}  # fmt: skip
        told = {"model": self.model, "size": self.size, "asked": self.asked, "search": how}
        return {**told, "rows": list(self.rows)}


def ask(
    folder: str | Path, model: str | Path, *, texts: Sequence[str] = (), scans: Sequence[str | Path] = (),
    filters: Mapping[str, str] | None = None, top: int = 10, mode: Mode = "repair",
    answers: Answers = Answers(), how: How = "auto", organs: Sequence[Path] = (),  # noqa: B008  frozen
) -> Answered:  # fmt: skip
    """The whole way, from folders and paths. Several questions are fused by rank.

    Args:
        folder: of the index. model: that made it. texts, scans: at least one of either.
        filters: column -> value. top: answers. how: auto takes the lists of an index of `LARGE_ROWS` or
            more, if it has any, FAISS is there and they are worth it. Always exact: with filters, and for
            rankings over `LISTS_TOP`. organs: masks of each scan, for an index of a region; none takes a
            model's.

    Raises:
        UsageError: `OPTION_UNKNOWN` without a question, for approximate without lists, or masks that are not
            one per scan; `COLUMN_MISSING` for a filter; `EXTRA_MISSING`. InputRefused: a scan cannot be
            trusted, or does not show the index's region (`COVERAGE`). WeightsError: `CACHE_STALE`
            for an index of another model; for lists as of `open_lists`.
    """
    if not texts and not scans:
        raise UsageError("OPTION_UNKNOWN", "a search has a question", expected="--text or --scan", got="none")
    index, loaded = open_index(folder), load(model)
    require_searchable(index, loaded)
    regions = _regions(index, len(scans), organs)
    depth = top if len(texts) + len(scans) == 1 else DEEP * top
    allowed = allowed_rows(index, filters or {})
    lists = None if allowed is not None or depth > LISTS_TOP else _lists(index, how)
    volumes = [open_volume(path, mode=mode, answers=answers) for path in scans]
    seen = [embed_scan(loaded, *pair)[REPORT] for pair in zip(volumes, regions, strict=True)]
    questions = _questions(loaded, texts, seen)
    hits = nearest(index, REPORT, questions, depth, allowed, lists)
    if len(questions) == 1:
        kept = hits.rows[0] >= 0
        found: list[tuple[Hashable, float]] = list(
            zip(hits.rows[0][kept].tolist(), hits.scores[0][kept].tolist(), strict=True)
        )
    else:
        found = fused([[n for n in ranking.tolist() if n >= 0] for ranking in hits.rows])[:top]
    rows = index.picked([int(n) for n, _ in found])  # type: ignore[call-overload]
    scored = tuple({**row, "score": round(score, 5)} for row, (_, score) in zip(rows, found, strict=True))
    told = {"name": index.model.name, "sha256": index.model.sha256, "region": index.model.region}
    asked = len(index) if allowed is None else int(allowed.sum())
    return Answered(scored, len(index), asked, told, None if lists is None else lists.facts)


def _regions(index: VectorIndex, scans: int, organs: Sequence[Path]) -> list[Region | None]:
    name = index.model.region
    if organs and (not name or len(organs) != scans):
        raise UsageError(
            "OPTION_UNKNOWN", "organ masks are for the scans of an index of a region",
            expected=f"one for each of {scans} scans" if name else "none: the index is of whole scans",
            got=len(organs), path=index.folder,
        )  # fmt: skip
    if not name:
        return [None] * scans
    if scans:
        require_region(name, bool(organs))
    return [Region(name, organs[i] if organs else None) for i in range(scans)]


def _lists(index: VectorIndex, how: How) -> OpenLists | None:
    if how == "exact" or (how == "auto" and (len(index) < LARGE_ROWS or find_spec("faiss") is None)):
        return None
    lists = open_lists(index, REPORT)
    if how == "auto" and lists is not None and lists.facts.probes > FEW_LISTS * lists.facts.lists:
        return None
    if lists is None and how == "approximate":
        raise UsageError(
            "OPTION_UNKNOWN", "an approximate search needs lists of its index", got="none", path=index.folder,
            hint=f"Make them (hilum index ... --approximate, from {LEAST_ROWS} scans on), or search exactly.",
        )  # fmt: skip
    return lists


def _questions(model: LoadedEncoder, texts: Sequence[str], scans: Sequence[np.ndarray]) -> np.ndarray:
    rows = [model.encode_text(list(texts))] if texts else []
    return np.concatenate([*rows, *(scan[None] for scan in scans)])
