"""A language model that writes the report of a feature grid: attentional pooling, projector, image tokens in
the prompt.

Source: EXACT §2.4 (EXACT-CHAT, after LLaVA and CT-CHAT): 256 queries look at the features with 8 heads (the
pooler of CoCa, Yu et al., TMLR 2022), a 2-layer MLP takes them into the language model's space; the language
model is frozen, or trained through LoRA (Hu et al., ICLR 2022) of rank 128, alpha 256, dropout 0.05.

The features may be any grid [B, C, U, V, W]: a row is C numbers. Where a row lies is told to the pooler by a
linear map of its place, which starts at zero (ours).
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from hilum.errors import InputRefused
from hilum.model.causal_lm import causal_lm, with_lora
from hilum.tensors import FeatureGrid, ImageTokens, Scalar, TextIds, TextMask
from hilum.text.report_prompt import IMAGE_ID


@dataclass(frozen=True)
class LoraShape:
    """LoRA as published. targets: names of linear maps within each layer."""

    rank: int = 128
    alpha: int = 256
    dropout: float = 0.05
    targets: tuple[str, ...] = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


class AttentionPool(nn.Module):
    """`queries` learned questions to all rows of a feature grid.

    Args:
        width: C of the features. queries: image tokens. heads: of attention; divides `width`.
    """

    def __init__(self, width: int, queries: int = 256, heads: int = 8) -> None:
        super().__init__()
        self.query = nn.Parameter(torch.randn(queries, width) * width**-0.5)
        self.place = nn.Linear(3, width, bias=False)
        nn.init.zeros_(self.place.weight)
        self.norm_query, self.norm_features = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = nn.MultiheadAttention(width, heads, batch_first=True)
        self.norm = nn.LayerNorm(width)

    def forward(self, features: FeatureGrid) -> ImageTokens:
        """Features [B, C, U, V, W] -> [B, Q, C]."""
        axes = [
            torch.linspace(-1, 1, n, device=features.device, dtype=features.dtype) for n in features.shape[2:]
        ]
        places = torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1).flatten(0, 2)
        rows = self.norm_features(features.flatten(2).transpose(1, 2)) + self.place(places)
        query = self.norm_query(self.query).expand(len(features), -1, -1)
        return self.norm(self.attention(query, rows, rows, need_weights=False)[0])


class ReportWriter(nn.Module):
    """Features and a prompt to the next words.

    Args:
        width: C of the features. config: a Hugging Face configuration of a causal language model; weights are
            fresh. queries, heads: of the pooling. lora: None leaves the language model frozen.

    Raises:
        UsageError: `EXTRA_MISSING` without the extras `text` and, for LoRA, `chat`.
        WeightsError: as of `causal_lm`.
    """

    def __init__(
        self,
        width: int,
        config: Mapping[str, Any],
        queries: int = 256,
        heads: int = 8,
        lora: LoraShape | None = None,
    ) -> None:
        super().__init__()
        self.lm = causal_lm(config).requires_grad_(False)
        self.words = int(self.lm.get_input_embeddings().num_embeddings)
        inside = int(self.lm.config.hidden_size)
        self.pool = AttentionPool(width, queries, heads)
        self.project = nn.Sequential(nn.Linear(width, inside), nn.GELU(), nn.Linear(inside, inside))
        if lora is not None:
            with_lora(self.lm, lora.rank, lora.alpha, lora.dropout, lora.targets)

    def forward(self, features: FeatureGrid, ids: TextIds, seen: TextMask, counted: TextMask) -> Scalar:
        """Sum of the cross-entropies of the counted tokens, in float32.

        Args:
            ids: [B, T] with `IMAGE_ID` once per row. seen: False for padding, on whichever side.
            counted: tokens that the loss counts; the first of a row is never counted.
        """
        states, labels = self._rows(features, ids, seen, counted)
        logits = self.lm(inputs_embeds=states.rows, attention_mask=states.seen.long(), use_cache=False).logits
        flat = logits[:, :-1].flatten(0, 1).float()
        return F.cross_entropy(flat, labels[:, 1:].flatten(), ignore_index=-100, reduction="sum")

    @torch.no_grad()
    def write(self, features: FeatureGrid, ids: Sequence[int], end_id: int, max_new: int = 512) -> list[int]:
        """The report of one scan, word for word the most probable (greedy), without its end.

        Args:
            features: [1, C, U, V, W]. ids: of the prompt, `IMAGE_ID` once. max_new: tokens at most.
        """
        row = torch.tensor([list(ids)], device=features.device)
        all_seen = torch.ones_like(row, dtype=torch.bool)
        states, _ = self._rows(features, row, all_seen, torch.zeros_like(all_seen))
        told: list[int] = []
        given, past = {"inputs_embeds": states.rows}, None
        while len(told) < max_new:
            with warnings.catch_warnings():
                # transformers renames the argument to `cache`, which its earlier versions do not know
                warnings.simplefilter("ignore", FutureWarning)
                out = self.lm(**given, past_key_values=past, use_cache=True)
            best = int(out.logits[0, -1].argmax())
            if best == end_id:
                break
            told.append(best)
            given, past = {"input_ids": torch.tensor([[best]], device=features.device)}, out.past_key_values
        return told

    def image_tokens(self, features: FeatureGrid) -> ImageTokens:
        """Features as the language model reads them, [B, Q, H]."""
        return self.project(self.pool(features))

    def _rows(
        self, features: FeatureGrid, ids: TextIds, seen: TextMask, counted: TextMask
    ) -> tuple[_Rows, torch.Tensor]:
        """Embeddings with the image in its place, seen ones first, and labels (-100: not counted)."""
        if not bool(((ids == IMAGE_ID) & seen).sum(1).eq(1).all()):
            raise InputRefused(
                "MODEL_INPUT", "a prompt has one place for the image", expected=1, got="others"
            )
        # seen tokens first: a row is the same on whichever side its padding stands
        order = torch.argsort((~seen).to(torch.int8), dim=1, stable=True)
        ids, seen, counted = (x.gather(1, order) for x in (ids, seen, counted))
        image = self.image_tokens(features)
        many, start = image.shape[1], (ids == IMAGE_ID).int().argmax(dim=1, keepdim=True)
        at = torch.arange(ids.shape[1] - 1 + many, device=ids.device).expand(len(ids), -1)
        inside = (at >= start) & (at < start + many)
        source = torch.where(at < start, at, (at - many + 1).clamp(min=0))
        known = seen.gather(1, source)
        words = ids.gather(1, source).masked_fill(inside | ~known, 0)
        text = self.lm.get_input_embeddings()(words)
        picture = image.gather(1, (at - start).clamp(0, many - 1)[..., None].expand(-1, -1, image.shape[2]))
        rows = torch.where(inside[..., None], picture.to(text.dtype), text)
        labels = words.masked_fill(inside | ~known | ~counted.gather(1, source), -100)
        return _Rows(rows, inside | known), labels


@dataclass(frozen=True)
class _Rows:
    """Embeddings [B, S, H] and which of them are no padding [B, S]."""

    rows: torch.Tensor
    seen: torch.Tensor
