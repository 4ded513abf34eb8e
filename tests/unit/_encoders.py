"""Tiny encoders, and a text tower that stands in for a language model, for the tests of encoders."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import nn

from hilum.cohort.prep_presets import Pipeline
from hilum.io.encoder_file import READS_TEXT, EncoderConfig, EncoderFile
from hilum.model.encoder import build_encoder, tensors_of

NET = {"width": 24, "depth": 2, "heads": 2, "patch": 8, "layer_scale": 0.5, "drop_path": 0.0}
"""Smallest backbone whose heads are shared by three axes; its branches matter from the start."""

VOLUMES = Pipeline(
    "tiny-3d", axes="LPS", spacing_mm=(4.0, 4.0, 4.0), values="zscore-scan", fit="at-least",
    fit_vox=(32, 32, 32), pad="min",
)  # fmt: skip
SLICES = Pipeline(
    "tiny-2d", axes="LPS", spacing_mm=(4.0, 4.0, 4.0), values="zscore-slice", fit="shape",
    fit_vox=(64, 64, 0), pad="min",
)  # fmt: skip
CARD = {"name": "tiny", "synthetic": True, "trained_on": "nothing: random weights", "licence": "Apache-2.0"}


class StandInTower(nn.Module):
    """Means of token embeddings, behind the contract of `model.text_tower.TextTower`."""

    def __init__(self, config: Any, pooling: str) -> None:
        super().__init__()
        self.width, self.pooling = int(config["hidden_size"]), pooling
        self.words = nn.Embedding(int(config["vocab_size"]), self.width)

    def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        seen = mask[..., None].float()
        return (self.words(ids) * seen).sum(1) / seen.sum(1).clamp_min(1)


class StandInTokens:
    """One token per letter, behind the contract of `text.tokens.Tokens`."""

    def __init__(self, text: str, side: str = "right") -> None:
        self.text = text

    def __call__(self, texts: list[str], max_tokens: int) -> tuple[np.ndarray, np.ndarray]:
        rows = [[ord(letter) % 40 for letter in text][:max_tokens] for text in texts]
        longest = max([1, *map(len, rows)])
        ids = np.array([row + [0] * (longest - len(row)) for row in rows], dtype=np.int64)
        mask = np.array([[True] * len(row) + [False] * (longest - len(row)) for row in rows])
        return ids, mask


def stand_in(monkeypatch: Any) -> None:
    """Text tower and tokens are those below: no language model is needed to test what surrounds one."""
    for name, what, kind in (
        ("model.text_tower", "TextTower", StandInTower),
        ("text.tokens", "Tokens", StandInTokens),
    ):
        module = ModuleType(f"hilum.{name}")
        setattr(module, what, kind)
        monkeypatch.setitem(sys.modules, f"hilum.{name}", module)


def config_of(kind: str = "3d", **changes: Any) -> dict[str, Any]:
    net = {**NET, **changes.pop("net", {})}
    data: dict[str, Any] = {
        "format": 1,
        "model_type": "hilum-encoder",
        "kind": kind,
        "backbone": {"name": "tiny", "network": "vit", "net": net},
        "prep": (SLICES if kind == "2d" else VOLUMES).facts(),
        "prep_2d": None if kind == "2d" else SLICES.facts(),
        "patch": 8,
        "text": None,
        "embedding": None,
    }
    if kind == "3d-vlm":
        tower = {"hidden_size": 12, "vocab_size": 40}
        data |= {"text": {"config": tower, "pooling": "mean", "max_tokens": 16}, "embedding": 12}
    if kind == "3d-joint":
        data |= {
            "text": {"config": {"hidden_size": 10, "vocab_size": 40}, "pooling": "last", "max_tokens": 16},
            "embedding": 12,
            "field_vox": [32, 32, 32],
            "joint": {"width": 24, "depth": 1, "heads": 2, "frame": "shared", "hidden": 16, "bottleneck": 6},
        }
    return {**data, **changes}


def file_of(kind: str = "3d", seed: int = 0, tokenizer: str = "{}", **changes: Any) -> EncoderFile:
    """An encoder with random weights; `stand_in` first for those that read texts."""
    config = EncoderConfig.from_dict(config_of(kind, **changes))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        tensors: dict[str, np.ndarray] = tensors_of(build_encoder(config))
    return EncoderFile(config, tensors, tokenizer if kind in READS_TEXT else None, dict(CARD))
