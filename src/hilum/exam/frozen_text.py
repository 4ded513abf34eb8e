"""What a model of scans and reports says without any probe: each finding's sentence against its denial."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType

import numpy as np
import torch
from jaxtyping import Float32, Float64

from hilum.exam.frozen_models import Loaded
from hilum.model.encoder import unit, without_text
from hilum.read.encoder import prompts
from hilum.text.captions import Statement, told
from hilum.text.vocabulary import FINDINGS

Pairs = Sequence[tuple[str, str]]
ImageFeatures = Float32[np.ndarray, "S F"]
Scores = Float64[np.ndarray, "S D"]


def _pairs() -> Mapping[str, Pairs]:
    statements = [Statement(finding.slug, "") for finding in FINDINGS]
    return {
        "plain prompts": list(zip(*prompts([finding.name for finding in FINDINGS]), strict=True)),
        # as training words opposite sentences
        "told sentences": [(told(s, "en", there=True), told(s, "en", there=False)) for s in statements],
    }


PROMPTS: Mapping[str, Pairs] = MappingProxyType(_pairs())
"""Name -> per finding the sentence that it is there, and the one that it is not."""


@torch.inference_mode()
def zero_shot(one: Loaded, features: ImageFeatures, pairs: Pairs) -> Scores:
    """How much nearer a scan lies to the finding's sentence than to its denial: the difference of cosines.
    The softmax of both at any temperature orders scans alike.

    Args:
        one: an encoder of kind 3d-vlm. features: CLS and mean patch of the scans. pairs: of `PROMPTS`.

    Raises:
        UsageError: `MODEL_INPUT` for a model without reports.
    """
    projection = one.model.encoder.projection
    if projection is None:
        raise without_text("zero-shot classification")
    scans = unit(projection(torch.from_numpy(features).to(projection.weight.device))).cpu().numpy()
    present, absent = (one.model.encode_text([pair[i] for pair in pairs]) for i in (0, 1))
    return scans.astype(np.float64) @ (present - absent).astype(np.float64).T
