"""A causal language model of the Hugging Face layouts, built from configuration data alone, and LoRA on it.

As `text_tower` for encoders: code, data types and kernels that a configuration names are not taken from it,
and there is no dropout but LoRA's own.
"""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from hilum.errors import UsageError, WeightsError
from hilum.model.text_tower import DROPOUT, NOT_TAKEN, transformers_library


def causal_lm(data: Mapping[str, Any]) -> Any:
    """The model with fresh weights, float32.

    Args:
        data: contents of a ``config.json``; ``model_type`` names the layout.

    Raises:
        UsageError: `EXTRA_MISSING`. WeightsError: `CONFIG_VALUE`, the library has no such causal model.
    """
    library = transformers_library()
    kind = data.get("model_type")
    known = (
        kind in library.CONFIG_MAPPING and library.CONFIG_MAPPING[kind] in library.MODEL_FOR_CAUSAL_LM_MAPPING
    )
    if not known:
        raise WeightsError(
            "CONFIG_VALUE", "a model that writes is a causal language model of a known layout",
            expected="llama, qwen3 and the like", got=kind,
        )  # fmt: skip
    config = library.CONFIG_MAPPING[kind].from_dict({k: v for k, v in data.items() if k not in NOT_TAKEN})
    for key, value in config.to_dict().items():
        if DROPOUT.search(key) and isinstance(value, int | float):
            setattr(config, key, 0.0)
    return library.AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation="sdpa")


def with_lora(model: Any, rank: int, alpha: int, dropout: float, targets: Sequence[str]) -> None:
    """LoRA into the named linear maps of a frozen model, in place; only its own weights are trained.

    Raises:
        UsageError: `EXTRA_MISSING` without the extra `chat`; `CONFIG_VALUE`, the model has no such map.
    """
    library = _peft()
    settings = library.LoraConfig(
        r=rank, lora_alpha=alpha, lora_dropout=dropout, target_modules=list(targets), bias="none"
    )
    try:
        library.inject_adapter_in_model(settings, model)
    except ValueError as error:
        raise UsageError(
            "CONFIG_VALUE", "LoRA is put into linear maps that the model has", expected=list(targets),
            got=str(error)[:200],
        ) from None  # fmt: skip


def _peft() -> Any:
    """Imported when LoRA is asked for: it takes many seconds."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return importlib.import_module("peft")
    except ImportError as error:
        raise UsageError(
            "EXTRA_MISSING", "LoRA needs the extra `chat`", got=str(error), hint="pip install 'hilum[chat]'"
        ) from error
