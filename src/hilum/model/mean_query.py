"""Tokens to one vector by attention whose question is their own mean, and the same for each token alone.

Source: COLIPRI (arXiv:2510.15042), as its public code pools patches and words; multi-head attention is
Vaswani et al., NeurIPS 2017. Whatever it is asked, a single token answers with itself, mapped: that is
`MeanQueryPool.each`, by the same weights as the pooled vector, and both are compared with texts.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from hilum.errors import WeightsError
from hilum.model.fresh import fresh_linears
from hilum.tensors import AllTokens, ClsToken, Embeddings, SeenTokens, Tokens


class MeanQueryPool(nn.Module):
    """Attention of the mean token over all of them.

    Args:
        width: of tokens and of what comes out. heads: of attention; they divide the width.

    Raises:
        WeightsError: `CONFIG_VALUE` for heads that do not.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        if heads < 1 or width % heads:
            raise WeightsError(
                "CONFIG_VALUE",
                "heads of a pooling share its width",
                expected=f"a divisor of {width}",
                got=heads,
            )
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        fresh_linears(self)

    def forward(self, tokens: AllTokens, seen: SeenTokens | None = None) -> ClsToken:
        """(B, T, W) -> (B, W).

        Args:
            seen: tokens that count, all where None; zeros come out (and no gradient) where none does.
        """
        counts = tokens.new_ones(tokens.shape[:2]) if seen is None else seen.to(tokens.dtype)
        mean = torch.einsum("bt,btw->bw", counts, tokens) / counts.sum(1, keepdim=True).clamp_min(1)
        query, key, value = self.qkv.weight.chunk(3)
        at_query, at_key, at_value = self.qkv.bias.chunk(3)
        q = F.linear(mean[:, None], query, at_query).unflatten(2, (self.heads, -1)).transpose(1, 2)
        k = F.linear(tokens, key, at_key).unflatten(2, (self.heads, -1)).transpose(1, 2)
        v = F.linear(tokens, value, at_value).unflatten(2, (self.heads, -1)).transpose(1, 2)
        # a row without tokens looks at all of them, and is dropped below: softmax over nothing has no value
        mask = None if seen is None else (seen | ~seen.any(1, keepdim=True))[:, None, None]
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        pooled = self.proj(mixed.transpose(1, 2).flatten(2))[:, 0]
        return pooled if seen is None else pooled.masked_fill(~seen.any(1, keepdim=True), 0.0)

    def each(self, tokens: AllTokens) -> AllTokens:
        """(B, T, W) -> the same shape: what `forward` would say of each token if there were no other."""
        width = tokens.shape[2]
        return self.proj(F.linear(tokens, self.qkv.weight[2 * width :], self.qkv.bias[2 * width :]))


class PatchHead(nn.Module):
    """Patches of a backbone into the space of texts: a linear map of each, then `MeanQueryPool`.

    Args:
        width: of patches. size: of an embedding. heads: of the pooling.
    """

    def __init__(self, width: int, size: int, heads: int) -> None:
        super().__init__()
        self.projection = nn.Linear(width, size)
        self.pool = MeanQueryPool(size, heads)
        fresh_linears(self)

    def forward(self, patches: AllTokens) -> Embeddings:
        """Patches (B, N, W) -> one vector (B, E), not of length 1."""
        return self.pool(self.projection(patches))

    def each(self, patches: AllTokens) -> Tokens:
        """Patches (B, N, W) -> one vector each (B, N, E), not of length 1."""
        return self.pool.each(self.projection(patches))
