"""What a model of scans and reports says without any probe: each finding's sentence against its denial."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType

import numpy as np
import torch
from jaxtyping import Float32, Float64

from hilum.exam.frozen_models import Loaded
from hilum.model.encoder import Encoder, unit, without_text
from hilum.text.captions import Statement, told
from hilum.text.vocabulary import FINDINGS

Pairs = Sequence[tuple[str, str]]
ImageFeatures = Float32[np.ndarray, "S F"]
Scores = Float64[np.ndarray, "S D"]


def _pairs() -> Mapping[str, Pairs]:
    statements = [Statement(finding.slug, "") for finding in FINDINGS]
    return {
        # as the public evaluation words them (FlexiCT §4)
        "plain prompts": [(f"{finding.name} .", f"No {finding.name}.") for finding in FINDINGS],
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
    encoder = one.encoder
    if encoder.projection is None or one.text is None or one.config.text is None:
        raise without_text("zero-shot classification")
    device = encoder.projection.weight.device
    scans = unit(encoder.projection(torch.from_numpy(features).to(device)))
    present, absent = (_texts(encoder, one, [pair[i] for pair in pairs]) for i in (0, 1))
    return (scans @ (present - absent).T).double().cpu().numpy()


def _texts(encoder: Encoder, one: Loaded, texts: Sequence[str]) -> torch.Tensor:
    setting = one.config.text
    assert setting is not None and one.text is not None and encoder.text is not None, "checked by the caller"
    # the tokenizers' library comes with the extra `text`
    from hilum.text.tokens import Tokens

    words = [setting.prefix + (text.lower() if setting.lower else text) for text in texts]
    ids, mask = Tokens(one.text)(words, setting.max_tokens)
    device = next(encoder.text.parameters()).device
    return unit(encoder.text(torch.from_numpy(ids).to(device), torch.from_numpy(mask).to(device)))
