"""Organ loss: Tversky + focal, and its decaying weight.

Source: EXACT §1.7: per channel 0.7 (1 - Tversky) + 0.3 Focal, mean over channels; weight max(2 exp(-10 e /
E), 0.5). The truth may be a share of each voxel. What counts as hit is then min(p, t), p t for masks;
with the product, the best prediction of a share would be all or nothing (Wang et al., NeurIPS 2023).
"""

from __future__ import annotations

import math

import torch
from torch.nn import functional as F

from hilum.tensors import ChannelLosses, OrganLogits, OrganTruth


def tversky_focal(logits: OrganLogits, truth: OrganTruth, **weights: float) -> torch.Tensor:
    """Mean of `tversky_focal_each`, with its weights."""
    return tversky_focal_each(logits, truth, **weights).mean()


def tversky_focal_each(
    logits: OrganLogits,
    truth: OrganTruth,
    *,
    false_positive: float = 0.3,
    false_negative: float = 0.7,
    focal_alpha: float = 0.9,
    focal_gamma: float = 2.0,
    smooth: float = 1.0,
) -> ChannelLosses:
    """Loss of every channel of every scan. `false_positive` and `false_negative` are Tversky's weights; the
    defaults are the paper's."""
    target = truth.to(logits.dtype)
    prob = torch.sigmoid(logits)
    axes = tuple(range(2, logits.dim()))
    hit = torch.minimum(prob, target).sum(axes)
    miss_fp, miss_fn = prob.sum(axes) - hit, target.sum(axes) - hit
    tversky = (hit + smooth) / (hit + false_positive * miss_fp + false_negative * miss_fn + smooth)
    entropy = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
    wrong = (target - prob).abs()
    weight = target * (2 * focal_alpha - 1) + (1 - focal_alpha)
    focal = (weight * wrong.pow(focal_gamma) * entropy).mean(axes)
    return 0.7 * (1 - tversky) + 0.3 * focal


def segmentation_weight(progress: float, start: float = 2.0, floor: float = 0.5) -> float:
    """Weight of the organ loss at `progress` in [0, 1] of the training: 2 at the start, 0.5 from about
    0.14 on."""
    return max(start * math.exp(-10.0 * progress), floor)
