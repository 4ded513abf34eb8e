"""A text encoder of the Hugging Face layouts, built from configuration data alone, and its pooling.

Sources: mean pooling, Reimers and Gurevych, EMNLP 2019; last-token pooling as of Qwen3-Embedding
(arXiv:2506.05176), which FlexiCT's third stage trains; attention pooling with one learned query as in Lee et
al., Set Transformer, ICML 2019, without its extra layers.

What differs from calling the library: seen tokens are moved to the front of their row first, so that an
embedding depends neither on the side of the padding nor on the padding's id; there is no dropout, whose
noise would come from a global generator; no head exists that the loss does not reach, so that DDP finds no
unused parameter; code, data types and attention kernels that a configuration names are not taken from it.
"""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Mapping
from typing import Any, Literal, cast, get_args

import torch
from torch import nn

from hilum.errors import InputRefused, UsageError, WeightsError
from hilum.model.mean_query import MeanQueryPool
from hilum.tensors import PooledText, TextIds, TextMask, TextQuery, TextStates, TextWeights

Pooling = Literal["mean", "last", "cls", "attention", "mean-query"]
"""How the seen tokens of a text become one vector."""

NOT_TAKEN = (
    "auto_map",
    "attn_implementation",
    "_attn_implementation",
    "experts_implementation",
    "quantization_config",
    "dtype",
    "torch_dtype",
    "gradient_checkpointing",
)
"""Keys of a configuration that name code, kernels or data types: Hilum decides them."""

DROPOUT = re.compile(r"(dropout|dropout_prob|dropout_p|pdrop|layerdrop)$")
"""Keys of a configuration that are a share of dropout."""


class TextTower(nn.Module):
    """Token ids to one vector per text, not normalised.

    Args:
        config: a Hugging Face configuration (the contents of ``config.json``); ``model_type`` names the
            layout. Weights are fresh, float32.
        pooling: ``mean`` over seen tokens, the ``last`` of them, the first (``cls``), ``attention`` with one
            learned query, which starts as the mean, or ``mean-query`` (`model.mean_query`), whose query is
            the mean token. heads: of ``mean-query``, unused by others.

    Raises:
        UsageError: ``EXTRA_MISSING`` without the extra `text`; ``CONFIG_VALUE`` for an unknown pooling.
        WeightsError: ``CONFIG_KEY``, ``CONFIG_VALUE``, ``CONFIG_CODE`` for a configuration that describes no
            encoder which the library has.
    """

    def __init__(self, config: Mapping[str, Any], pooling: str = "mean", heads: int = 12) -> None:
        super().__init__()
        if pooling not in get_args(Pooling):
            raise UsageError(
                "CONFIG_VALUE", "a pooling is known", expected=" | ".join(get_args(Pooling)), got=pooling
            )
        self.config, self.pooling = dict(config), cast(Pooling, pooling)
        module = _build(config)
        self.model: nn.Module = module
        self.width = int(module.config.hidden_size)
        """Numbers of an embedding."""
        self.words = int(module.get_input_embeddings().num_embeddings)
        """Every id is smaller."""
        self.max_tokens = _max_tokens(module)
        """Tokens of the longest text that has positions; None: any."""
        self._pad_id = int(module.config.pad_token_id or 0)
        # Zeros: every token counts alike at first, and the query has a gradient at once.
        self.query = nn.Parameter(torch.zeros(self.width)) if pooling == "attention" else None
        self.pooler = MeanQueryPool(self.width, heads) if pooling == "mean-query" else None

    def forward(self, ids: TextIds, mask: TextMask) -> PooledText:
        """One vector per text, float32; zeros (and no gradient) where nothing is seen.

        Raises:
            InputRefused: ``MODEL_INPUT``, no token at all, or more than have positions.
        """
        length = ids.shape[1]
        if length < 1 or (self.max_tokens is not None and length > self.max_tokens):
            raise InputRefused(
                "MODEL_INPUT",
                "a text has as many tokens as the tower has positions",
                expected=f"1 to {self.max_tokens}" if self.max_tokens else "at least 1",
                got=length,
            )
        # Seen tokens first: positions count from the text's first token on whichever side padding stands.
        order = torch.argsort((~mask).to(torch.int8), dim=1, stable=True)
        seen = mask.gather(1, order)
        ids = ids.gather(1, order).masked_fill(~seen, self._pad_id)
        # Attention over nothing has no value: an empty row looks at one padding token, which pooling drops.
        looked_at = seen.clone()
        looked_at[:, 0] = True
        states = self.model(input_ids=ids, attention_mask=looked_at.long()).last_hidden_state
        if self.pooler is not None:
            return self.pooler(states.masked_fill(~seen[..., None], 0.0), seen).float()
        return pool(states, seen, self.pooling, self.query)


def pool(states: TextStates, seen: TextMask, pooling: Pooling, query: TextQuery | None = None) -> PooledText:
    """Seen tokens of each text to one vector, in float32 at least; zeros where nothing is seen."""
    states = states if states.dtype == torch.float64 else states.float()
    states = states.masked_fill(~seen[..., None], 0.0)
    weights = pooling_weights(states, seen, pooling, query)
    # No matrix product: autocast would round it.
    return (weights[..., None] * states).sum(dim=1)


def pooling_weights(
    states: TextStates, seen: TextMask, pooling: Pooling, query: TextQuery | None = None
) -> TextWeights:
    """How much each token counts: weights of a row sum to 1, or to 0 where nothing is seen.

    Raises:
        UsageError: `CONFIG_VALUE` without the query of attention, or for ``mean-query``, whose heads weigh
            tokens each in its own way.
    """
    if pooling == "mean-query":
        raise UsageError(
            "CONFIG_VALUE",
            "tokens have one weight each",
            expected="mean | last | cls | attention",
            got=pooling,
        )
    if pooling == "attention":
        if query is None:
            raise UsageError("CONFIG_VALUE", "attention pooling has a query", expected="a query", got=None)
        logits = (states * query.to(states.dtype)).sum(dim=-1) / states.shape[-1] ** 0.5
        # The lowest number, not -inf: the softmax of an empty row stays finite, and so does its gradient.
        return logits.masked_fill(~seen, torch.finfo(logits.dtype).min).softmax(dim=1) * seen
    if pooling == "mean":
        chosen = seen
    elif pooling == "cls":
        chosen = seen & (seen.cumsum(dim=1) == 1)
    else:
        chosen = seen & (seen.flip(1).cumsum(dim=1).flip(1) == 1)
    counts = chosen.sum(dim=1, keepdim=True).clamp_min(1)
    return chosen.to(states.dtype) / counts.to(states.dtype)


def transformers_library() -> Any:
    """Imported when a tower is made: it takes many seconds."""
    try:
        return importlib.import_module("transformers")
    except ImportError as error:
        raise UsageError(
            "EXTRA_MISSING",
            "a text tower needs the extra `text`",
            got=str(error),
            hint="pip install 'hilum[text]'",
        ) from error


def _build(data: Mapping[str, Any]) -> Any:
    library = transformers_library()
    kind = data.get("model_type")
    if kind is None:
        raise WeightsError(
            "CONFIG_KEY", "a configuration names its layout", expected="model_type", got="none"
        )
    if kind not in library.CONFIG_MAPPING:
        code = "CONFIG_CODE" if "auto_map" in data else "CONFIG_VALUE"
        raise WeightsError(
            code,
            "a text encoder is of a layout that transformers has; code beside the weights is not run",
            expected="a known model_type",
            got=kind,
        )
    try:
        return _module(library, library.CONFIG_MAPPING[kind], data)
    except (UsageError, WeightsError):
        raise
    except Exception as error:  # the library refuses a configuration with errors of many kinds
        raise WeightsError(
            "CONFIG_VALUE", f"the configuration makes a {kind}", got=f"{type(error).__name__}: {error}"[:300]
        ) from error


def _module(library: Any, kind: Any, data: Mapping[str, Any]) -> Any:
    config = kind.from_dict({key: value for key, value in data.items() if key not in NOT_TAKEN})
    if (
        config.is_encoder_decoder
        or not hasattr(config, "hidden_size")
        or type(config) not in library.MODEL_MAPPING
    ):
        raise WeightsError(
            "CONFIG_VALUE",
            "a text tower is an encoder, or a decoder used as one",
            expected="BERT, RoBERTa, Qwen3 and the like",
            got=config.model_type,
        )
    for key, value in config.to_dict().items():
        if DROPOUT.search(key) and isinstance(value, int | float):
            setattr(config, key, 0.0)
    config.use_cache = False
    model = library.MODEL_MAPPING[type(config)]
    options: dict[str, Any] = {"attn_implementation": "sdpa" if model._supports_sdpa else "eager"}
    if "add_pooling_layer" in inspect.signature(model.__init__).parameters:
        options["add_pooling_layer"] = False
    module = library.AutoModel.from_config(config, dtype=torch.float32, **options)
    # Made for reading, the library says; whoever trains calls train().
    return module.train()


def _max_tokens(module: Any) -> int | None:
    """RoBERTa and its kin keep the positions up to their padding id for padding."""
    limit = getattr(module.config, "max_position_embeddings", None)
    if limit is None:
        return None
    kept = [
        part.padding_idx + 1
        for name, part in module.named_modules()
        if name.endswith("position_embeddings")
        and isinstance(part, nn.Embedding)
        and part.padding_idx is not None
    ]
    return int(limit) - max(kept, default=0)
