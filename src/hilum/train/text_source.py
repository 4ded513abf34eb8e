"""A text tower with its published weights, by name.

Strict both ways: every parameter of the tower is in the files, and every tensor of the files goes into the
tower or is one of `LEFT_OUT`, the heads that no embedding passes through.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from hilum.errors import WeightsError
from hilum.io.fetch import Progress
from hilum.io.hub import CONFIG, POOLING, TOKENIZER, encoder_folder, read_json, weight_files
from hilum.model.preset import load_state
from hilum.model.text_tower import Pooling, TextTower
from hilum.text.tokens import Side, Tokens

LEFT_OUT = (
    r"pooler\..*",
    r"cls\.(predictions|seq_relationship)\..*",
    r"lm_head\..*",
    r"classifier\..*",
    r"(.*\.)?embeddings\.(position_ids|token_type_ids)",
    r"(.*\.)?rotary_emb\.inv_freq",
)
"""Tensors of encoder files that belong to no embedding: heads, and tables that are computed."""

_OLD_NORMS = {".gamma": ".weight", ".beta": ".bias"}
"""BERT's first checkpoints call the weight and bias of a norm so."""


def load_text_tower(
    name: str | Path, pooling: str | None = None, progress: Progress | None = None
) -> tuple[TextTower, Tokens, dict[str, Any]]:
    """The tower with its weights (float32, in eval mode), its tokenizer, and its configuration.

    Args:
        name: as of `io.hub.encoder_folder`; ``minilm`` is the default of recipes.
        pooling: None takes what the folder says, else the layout's own (`default_pooling`).

    Raises:
        UsageError, RunError: as of `encoder_folder`; ``EXTRA_MISSING`` without the extra `text`.
        WeightsError: ``WEIGHTS_KEYS`` for tensors that do not fit, ``WEIGHTS_TRUNCATED``,
            ``WEIGHTS_NONFINITE``; ``TOKEN_IDS`` for a tokenizer with more words than the tower; as of
            `encoder_folder`, `TextTower` and `Tokens`.
    """
    folder = encoder_folder(name, progress)
    config = read_json(folder / CONFIG)
    chosen = pooling or default_pooling(folder, config)
    tokens = Tokens((folder / TOKENIZER).read_text(encoding="utf-8"), side_of(chosen))
    tower = TextTower(config, chosen)
    if tokens.size > tower.words:
        raise WeightsError(
            "TOKEN_IDS",
            "a tower has an embedding for every token",
            expected=f"at most {tower.words} tokens",
            got=tokens.size,
            path=folder,
        )
    load_state(tower.model, _fitted(weight_files(folder), tower.model))
    return tower.eval(), tokens, config


def default_pooling(folder: Path, config: Mapping[str, Any]) -> Pooling:
    """How an encoder pools: what its folder says (as sentence encoders do), else by layout: the last token of
    Qwen, the mean of others.

    Raises:
        WeightsError: ``CONFIG_VALUE`` for a pooling that Hilum does not have.
    """
    if (folder / POOLING).is_file():
        said = [key for key, value in read_json(folder / POOLING).items() if value is True]
        known: dict[str, Pooling] = {
            "pooling_mode_mean_tokens": "mean",
            "pooling_mode_cls_token": "cls",
            "pooling_mode_lasttoken": "last",
        }
        modes = [mode for mode in said if mode.startswith("pooling_mode_")]
        if len(modes) == 1 and modes[0] in known:
            return known[modes[0]]
        if modes:
            raise WeightsError(
                "CONFIG_VALUE",
                "an encoder's pooling is known, or is said",
                expected="one of " + ", ".join(known),
                got=modes,
                path=folder / POOLING,
                hint="Say the pooling: mean, last, cls or attention.",
            )
    return "last" if str(config.get("model_type", "")).startswith("qwen") else "mean"


def side_of(pooling: str) -> Side:
    """Where padding stands by custom: on the left when the last token is read. Embeddings are the same."""
    return "left" if pooling == "last" else "right"


def fitted_names(names: Iterable[str], own: Iterable[str], prefix: str) -> tuple[dict[str, str], list[str]]:
    """Names of a file -> names of the tower, and those left out (`LEFT_OUT`).

    Files of a model with a head put `prefix` before the encoder's names. What is neither keeps its name, so
    that strict loading refuses it.

    Raises:
        WeightsError: ``WEIGHTS_KEYS``, two tensors for one parameter.
    """
    known, left = set(own), list[str]()
    fitted: dict[str, str] = {}
    for name in sorted(names):
        short = name.removeprefix(f"{prefix}.") if prefix else name
        for old, new in _OLD_NORMS.items():
            if short.endswith(old) and short not in known:
                short = short.removesuffix(old) + new
        if short not in known and any(re.fullmatch(pattern, short) for pattern in LEFT_OUT):
            left.append(name)
        elif short in fitted.values():
            raise WeightsError("WEIGHTS_KEYS", "a parameter is in the weights once", expected=short, got=name)
        else:
            fitted[name] = short
    return fitted, left


def _fitted(paths: list[Path], module: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Tensors under the module's own names, float32."""
    tensors: dict[str, torch.Tensor] = {}
    prefix = str(getattr(module, "base_model_prefix", ""))
    for path in paths:
        try:
            # Through torch: half the published encoders are bfloat16, which numpy does not have.
            with safe_open(path, framework="pt") as file:
                names, _ = fitted_names(file.keys(), module.state_dict(), prefix)
                for name, own in names.items():
                    if own in tensors:
                        raise WeightsError(
                            "WEIGHTS_KEYS", "a parameter is in one shard", expected=own, got=name, path=path
                        )
                    tensors[own] = file.get_tensor(name).float()
        except (SafetensorError, OSError) as error:
            raise WeightsError(
                "WEIGHTS_TRUNCATED", "weights are a whole safetensors file", got=error, path=path
            ) from None
    for name, tensor in tensors.items():
        if not torch.isfinite(tensor).all():
            raise WeightsError("WEIGHTS_NONFINITE", "weights are finite", got=name, path=paths[0].parent)
    return tensors
