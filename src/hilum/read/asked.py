"""Anything a user asks of a scan in words: is it nearer to "there is X" than to "there is no X"?

Source: RadFinder §1.5b, 1.8: the copied image head against the main text head, `t3` or `mean7`. The score is
the softmax of both at the model's own scale. It is calibrated on nothing: it orders scans, and is no
probability of disease.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float64

from hilum.errors import UsageError
from hilum.read.found import Probability, Record
from hilum.text.prompt_bank import ensemble_pairs

TextDirection = Float64[np.ndarray, "E"]

if TYPE_CHECKING:
    from hilum.read.encoder import LoadedEncoder
    from hilum.read.reading import Reading
    from hilum.types import EmbeddingVector
    from hilum.volume import CTVolume

MOST_PROMPTS, MOST_CHARS = 1000, 2000


class AskedInWords(Record):
    """One question.

    Args:
        text: what was asked for, e.g. "pleural effusion". ensemble: ``t3`` or ``mean7``.
        margin: cosine with the sentences that state it less that with those that deny it.
        score: softmax of both; not calibrated. model, model_sha256: whose.
    """

    text: str
    ensemble: str
    margin: float
    score: Probability
    model: str
    model_sha256: str


def with_asked(reading: Reading, texts: Sequence[str], model: str | Path, ensemble: str = "mean7") -> Reading:
    """The reading, and what else was asked of its scan.

    Args:
        reading: a fresh one. model: of scans and texts: a folder, or one that ships.

    Raises:
        UsageError: `NO_MATERIAL` for a reading out of a file; `OPTION_UNKNOWN` for an ensemble, or prompts
            that are none; `MODEL_INPUT` for a model without texts.
    """
    from hilum.read.encoder import load  # torch loads only when a model does

    if reading.material is None:
        raise UsageError("NO_MATERIAL", "a question needs the scan", got="a reading out of a file")
    asked = asked_in_words(load(model), reading.material.volume, texts, ensemble)
    known = reading.model_copy(update={"asked": [*reading.asked, *asked]})
    return known.with_material(reading.material)


def asked_in_words(
    model: LoadedEncoder, volume: CTVolume, texts: Sequence[str], ensemble: str = "mean7"
) -> list[AskedInWords]:
    """Each question of one scan.

    Raises:
        UsageError: as of `with_asked`.
    """
    texts = [text.strip() for text in texts]
    if not texts or len(texts) > MOST_PROMPTS or not all(0 < len(t) <= MOST_CHARS for t in texts):
        raise UsageError(
            "OPTION_UNKNOWN", "a prompt is a few words",
            expected=f"1 to {MOST_PROMPTS} of 1 to {MOST_CHARS} characters", got=len(texts),
        )  # fmt: skip
    pairs = [ensemble_pairs(ensemble, text) for text in texts]
    scan, scale = _scan(model, volume)
    told = []
    for text, own in zip(texts, pairs, strict=True):
        margin = float(scan.astype(np.float64) @ direction(model, own))
        score = 1 / (1 + np.exp(-scale * margin))
        told.append(
            AskedInWords(
                text=text, ensemble=ensemble, margin=round(margin, 5), score=round(float(score), 4),
                model=str(model.card["name"]), model_sha256=str(model.card.get("sha256", "")),
            )
        )  # fmt: skip
    return told


def direction(model: LoadedEncoder, pairs: Sequence[tuple[str, str]]) -> TextDirection:
    """From denial to statement (E,): each the mean over its sentences, brought to length 1 again."""
    sides = [model.encode_text([pair[i] for pair in pairs]).astype(np.float64).mean(0) for i in (0, 1)]
    present, absent = (side / max(float(np.linalg.norm(side)), 1e-12) for side in sides)
    return present - absent


def _scan(model: LoadedEncoder, volume: CTVolume) -> tuple[EmbeddingVector, float]:
    """The scan among prompts, and the scale of cosines."""
    from hilum.model.encoder import without_text
    from hilum.read.joint import put_in_space

    if model.encoder.joint is not None:
        scale, _ = model.encoder.joint.scale()
        return put_in_space(model, volume).disease, float(scale.detach())
    features = model.encode_scan(volume)
    if features.embedding is None or model.encoder.temperature is None:
        raise without_text("a question to a scan")
    return features.embedding, float(model.encoder.temperature().detach())
