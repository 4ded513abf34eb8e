"""Reports of the training scans as frozen embeddings, made once: the bank that scans are aligned with.

Every distinct text goes through the text encoder once and stays on disk. The encoder does not learn here, so
each number of its embeddings is standardised over the bank (over the texts that are not all normal), and
prompts by the same means and deviations.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from hilum.errors import RunError
from hilum.io.fetch import cache_folder
from hilum.io.weights import load_weights, save_weights
from hilum.tensors import BankPlaceIds, BankTexts, TextPrompts
from hilum.text.prompts import Said, place_sentences, prompt_pairs, report_sentences
from hilum.train.text_source import load_text_tower

ENCODER = "minilm"
MAX_TOKENS = 384
"""Of one text: a report of a phantom has about 250."""
CHUNK = 32

Of = Literal["report", "places"]
Track = Callable[[Iterable[int], int, str], Iterable[int]]
"""Counts chunks of texts as they come: items, how many, what."""
STYLE = "ct-clip"
"""Prompts (`text.prompts.PROMPTS`), for places too."""


@dataclass(frozen=True)
class TextBank:
    """What the training reports say.

    Args:
        row_of: row of each scan, by key. texts: embeddings, one per scan for whole reports, else one per
            place.
        same: equal for equal texts of a place, and for all of its normal ones.
        prompts: of every finding, as there and as not there.
    """

    row_of: Mapping[str, int]
    texts: BankTexts
    same: BankPlaceIds
    prompts: TextPrompts

    def to(self, device: torch.device) -> TextBank:
        """The same with its tensors there."""
        moved: dict[str, Any] = {k: v.to(device) for k, v in vars(self).items() if torch.is_tensor(v)}
        return replace(self, **moved)


def untracked(items: Iterable[int], total: int, what: str) -> Iterable[int]:
    """Tells nobody."""
    return items


def bank_of(reports: Mapping[str, Sequence[Said]], of: Of, cache: Path | None = None) -> TextBank:
    """Embeds what is not yet embedded.

    Args:
        reports: sentences of each scan, by key. of: whole reports, or places.
        cache: folder of embeddings, `hilum/texts` in the user's cache by default.

    Raises:
        RunError: `REPORT_EMPTY`, a scan without a report. Others as of `load_text_tower`.
    """
    if silent := [key for key, report in reports.items() if not report_sentences(report)]:
        raise RunError(
            "REPORT_EMPTY", "every training scan has a report", expected="sentences", got=silent[:5]
        )
    if of == "report":
        told = [[(" ".join(report_sentences(report)), False)] for report in reports.values()]
    else:
        told = [[(" ".join(said), ok) for said, ok in place_sentences(r)] for r in reports.values()]
    asked = [text for pair in prompt_pairs(STYLE) for text in pair]
    known = sorted({text for row in told for text, _ in row} | set(asked))
    index = {text: i for i, text in enumerate(known)}
    vectors = torch.from_numpy(embedded(known, cache))
    # normal texts of places are few and frequent: what differs between the others would be drowned
    seen = vectors[[index[text] for row in told for text, ok in row if not ok]]
    vectors = (vectors - seen.mean(0)) / seen.std(0, correction=0).clamp_min(1e-3)
    texts = vectors[[index[text] for row in told for text, _ in row]].unflatten(0, (len(told), -1))
    same = torch.tensor([[-1 if ok else index[text] for text, ok in row] for row in told])
    prompts = vectors[[index[text] for text in asked]].unflatten(0, (-1, 2)).transpose(0, 1)
    return TextBank({key: row for row, key in enumerate(reports)}, texts, same, prompts)


def embedded(texts: Sequence[str], cache: Path | None = None) -> np.ndarray:
    """One row of length 1 per text, float32, from `cache` or from the encoder."""
    rows = tower_rows(ENCODER, MAX_TOKENS, texts, cache)
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)


def tower_rows(
    name: str, max_tokens: int, texts: Sequence[str], cache: Path | None = None, track: Track = untracked
) -> np.ndarray:
    """What a frozen tower says of texts, one row each, float32, as long as they come.

    Args:
        name: of the tower (`text_source.load_text_tower`). cache: folder of embeddings, `hilum/texts` in the
            user's cache by default. track: of chunks of texts.
    """
    digest = hashlib.sha256("\n".join([name, str(max_tokens), "raw", *texts]).encode()).hexdigest()
    path = (cache or cache_folder() / "texts") / f"{digest[:24]}.safetensors"
    if path.is_file():
        return load_weights(path)[0]["vectors"]
    vectors = _encoded(name, max_tokens, texts, track)
    path.parent.mkdir(parents=True, exist_ok=True)
    save_weights(path, {"vectors": vectors}, {"encoder": name, "texts": digest})
    return vectors


@torch.inference_mode()
def _encoded(name: str, max_tokens: int, texts: Sequence[str], track: Track) -> np.ndarray:
    tower, tokens, _ = load_text_tower(name)
    # texts of one length together: nothing is spent on padding
    order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
    vectors = np.zeros((len(texts), tower.width), dtype=np.float32)
    firsts = range(0, len(order), CHUNK)
    for first in track(firsts, len(firsts), "texts"):
        chunk = order[first : first + CHUNK]
        ids, mask = (torch.from_numpy(a) for a in tokens([texts[i] for i in chunk], max_tokens))
        vectors[chunk] = tower(ids, mask).numpy()
    return vectors
