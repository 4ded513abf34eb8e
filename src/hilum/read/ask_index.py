"""A question to an index, in words, by a scan, or both: the nearest scans with their reports."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hilum.errors import UsageError
from hilum.io.limits import Answers, Mode
from hilum.io.open import open_volume
from hilum.io.vector_index import open_index
from hilum.read.embed import REPORT, embed_scan, require_searchable
from hilum.read.encoder import LoadedEncoder, load
from hilum.read.search import allowed_rows, fused, nearest

DEEP = 5
"""Rankings that are fused are so many times as long as what is shown."""


@dataclass(frozen=True)
class Answered:
    """The nearest rows of an index.

    Args:
        rows: each with `key`, its columns, and `score`: the cosine, or of several questions the fused rank
            score. size: rows of the index. asked: those of them that the filters allow.
        model: name and sha256 of it.
    """

    rows: tuple[dict[str, Any], ...]
    size: int
    asked: int
    model: dict[str, str]

    def as_dict(self) -> dict[str, Any]:
        """For `--json`."""
        return {"model": self.model, "size": self.size, "asked": self.asked, "rows": list(self.rows)}


def ask(
    folder: str | Path, model: str | Path, *, texts: Sequence[str] = (), scans: Sequence[str | Path] = (),
    filters: Mapping[str, str] | None = None, top: int = 10, mode: Mode = "repair",
    answers: Answers = Answers(),  # noqa: B008  frozen
) -> Answered:  # fmt: skip
    """The whole way, from folders and paths. Several questions are fused by rank.

    Args:
        folder: of the index. model: that made it. texts, scans: at least one of either.
        filters: column -> value. top: answers.

    Raises:
        UsageError: `OPTION_UNKNOWN` without a question, `COLUMN_MISSING` for a filter. InputRefused: a scan
            cannot be trusted. WeightsError: `CACHE_STALE` for an index of another model.
    """
    if not texts and not scans:
        raise UsageError("OPTION_UNKNOWN", "a search has a question", expected="--text or --scan", got="none")
    index, loaded = open_index(folder), load(model)
    require_searchable(index, loaded)
    allowed = allowed_rows(index, filters or {})
    volumes = [open_volume(path, mode=mode, answers=answers) for path in scans]
    questions = _questions(loaded, texts, [embed_scan(loaded, volume)[REPORT] for volume in volumes])
    depth = top if len(questions) == 1 else DEEP * top
    hits = nearest(index, REPORT, questions, depth, allowed)
    if len(questions) == 1:
        kept = hits.rows[0] >= 0
        found: list[tuple[Hashable, float]] = list(
            zip(hits.rows[0][kept].tolist(), hits.scores[0][kept].tolist(), strict=True)
        )
    else:
        found = fused([[n for n in ranking.tolist() if n >= 0] for ranking in hits.rows])[:top]
    table = index.rows()
    rows = [{**table.slice(int(n), 1).to_pylist()[0], "score": round(float(score), 5)} for n, score in found]  # type: ignore[call-overload]
    told = {"name": index.model.name, "sha256": index.model.sha256}
    return Answered(tuple(rows), len(index), len(index) if allowed is None else int(allowed.sum()), told)


def _questions(model: LoadedEncoder, texts: Sequence[str], scans: Sequence[np.ndarray]) -> np.ndarray:
    rows = [model.encode_text(list(texts))] if texts else []
    return np.concatenate([*rows, *(scan[None] for scan in scans)])
