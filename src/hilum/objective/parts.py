"""The same loss in less memory: rows in chunks, batches in parts.

`sum_in_chunks` is for what is wide (65,536 prototypes, all texts of all ranks): one chunk's logits exist at a
time, and are computed again in the backward pass (`torch.utils.checkpoint`).

`backward_in_parts` is for what is deep: a backbone runs over one part of the batch at a time, while the loss
sees all parts at once. Losses that compare scans with each other (CLIP, KoLeo, Sinkhorn) are no sum over
micro-batches, so that accumulating them is another loss; this is the same. Source: Gao et al., "Scaling deep
contrastive learning batch size under memory limited setup", RepL4NLP 2021.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
from torch.utils.checkpoint import checkpoint

from hilum.errors import UsageError
from hilum.tensors import Scalar

Part = TypeVar("Part")


def sum_in_chunks(
    function: Callable[..., torch.Tensor], rows: Sequence[torch.Tensor], chunk: int | None
) -> torch.Tensor:
    """Sum of `function(*rows)` over chunks of rows; the function gives a sum over its rows.

    Args:
        rows: tensors of as many rows each. chunk: rows at a time, all at once where None.

    Raises:
        UsageError: ``CONFIG_VALUE``, a chunk of no rows.
    """
    if chunk is not None and chunk < 1:
        raise UsageError("CONFIG_VALUE", "a chunk has rows", expected="at least 1", got=chunk)
    count = len(rows[0])
    if chunk is None or count <= chunk:
        return function(*rows)
    sums = [
        checkpoint(function, *part, use_reentrant=False, preserve_rng_state=False)
        for part in zip(*(tensor.split(chunk) for tensor in rows), strict=True)
    ]
    return torch.stack(sums).sum()


def backward_in_parts(
    embed: Callable[[Part], tuple[torch.Tensor, ...]],
    parts: Sequence[Part],
    loss: Callable[..., Scalar],
) -> Scalar:
    """Value of ``loss(*embed(whole batch))``, its gradients added to every parameter's `.grad`.

    Each part is embedded twice, first without a graph. Whatever `embed` draws at random it must draw alike
    both times: Hilum's backbones take their noise as an argument.

    Args:
        embed: tensors of one part, its rows along the first axis.
        loss: scalar of all rows; its own parameters (a temperature) get their gradients too.
    """
    with torch.no_grad():
        pieces = [embed(part) for part in parts]
    leaves = [torch.cat(tensors).requires_grad_() for tensors in zip(*pieces, strict=True)]
    value = loss(*leaves)
    value.backward()
    owed = [_owed(leaf).split([len(p[i]) for p in pieces]) for i, leaf in enumerate(leaves)]
    del pieces
    for k, part in enumerate(parts):
        # what needs no gradient, a frozen tower's for instance, has nothing to pass back
        pairs = [(t, grads[k]) for t, grads in zip(embed(part), owed, strict=True) if t.requires_grad]
        torch.autograd.backward([t for t, _ in pairs], [grad for _, grad in pairs])
    return value.detach()


def _owed(leaf: torch.Tensor) -> torch.Tensor:
    return torch.zeros_like(leaf) if leaf.grad is None else leaf.grad
