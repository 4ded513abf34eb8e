"""EXACT's two decoders on a FlexiCT backbone: organs and anomaly maps from the tokens of patches.

Tokens are made finer by transposed convolutions alone, as in Primus (arXiv:2503.01835), since a transformer
has no features finer than its patches. Organ features flow one way into the anomalies', and there is an
anomaly head at half and at full resolution, as in Y-Mamba (`model.ymamba`). Ours, not the paper's.

Parameters of the backbone are named as in an encoder folder (``vision.*``), so that a pretrained one goes in
as it is. What reading volumes never uses, the embedding of slices and the mask token, takes no gradient.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hilum.errors import WeightsError
from hilum.model.vit import TrainNoise, ViT
from hilum.model.vit_config import ViTConfig
from hilum.model.ynet import YNetOutput, start_head
from hilum.tensors import ScanBatch

PATCH = 8
"""Three doublings lead from patches to voxels."""
START = -3.0
"""First logit everywhere: most voxels are in no organ and have no finding."""


@dataclass(frozen=True)
class ExactViTConfig:
    """A preset's numbers.

    Args:
        backbone: of the transformer; patches of 8 voxels. widths: channels of both decoders at 1/4, 1/2, 1/1.
        organs, findings: output channels. detach: anomaly gradients stop at the organ decoder's features.

    Raises:
        WeightsError: `CONFIG_VALUE` for numbers that make no network.
    """

    backbone: ViTConfig
    widths: tuple[int, int, int] = (192, 64, 24)
    organs: int = 7
    findings: int = 18
    detach: bool = False

    def __post_init__(self) -> None:
        counts = (*self.widths, self.organs, self.findings)
        fine = len(self.widths) == 3 and all(isinstance(n, int) and n > 0 for n in counts)
        if not fine or self.backbone.patch_base(3) != (PATCH,) * 3 or self.backbone.channels != 1:
            raise WeightsError(
                "CONFIG_VALUE", "preset.net makes a network",
                expected="three widths above 0, patches of 8 voxels, one channel", got=self,
            )  # fmt: skip

    @classmethod
    def read(cls, numbers: Mapping[str, Any]) -> ExactViTConfig:
        """With the backbone's numbers as a mapping."""
        return cls(**{**numbers, "backbone": ViTConfig(**numbers["backbone"])})


class Finer(nn.Module):
    """Twice as fine, channels normed within each voxel."""

    def __init__(self, below: int, width: int) -> None:
        super().__init__()
        self.up = nn.ConvTranspose3d(below, width, 2, stride=2)
        self.norm = nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        """(B, below, U, V, W) -> (B, width, 2U, 2V, 2W)."""
        normed = cast(Tensor, self.norm(self.up(x).movedim(1, -1)))
        return F.gelu(normed).movedim(-1, 1)


class ExactViT(nn.Module):
    """The whole network; see the module's docstring."""

    def __init__(self, config: ExactViTConfig) -> None:
        super().__init__()
        self.config = config
        self.vision = ViT(config.backbone)
        for unused in (self.vision.mask_token, *self._of_slices()):
            unused.requires_grad_(False)
        tokens, (a, b, c) = config.backbone.width, config.widths
        self.seg = nn.ModuleList([Finer(tokens, a), Finer(a, b), Finer(b, c)])
        # each but the first reads its own features and the organs' of the same resolution
        self.abn = nn.ModuleList([Finer(tokens, a), Finer(2 * a, b), Finer(2 * b, c)])
        self.organ_head = nn.Conv3d(c, config.organs, 1)
        self.low_head = nn.Conv3d(b, config.findings, 1)
        self.high_head = nn.Conv3d(2 * c, config.findings, 1)
        for head in (self.organ_head, self.low_head, self.high_head):
            start_head(head, START)

    def _of_slices(self) -> list[nn.Parameter]:
        return [] if self.vision.patch_2d is None else list(self.vision.patch_2d.parameters())

    def forward(self, scan: ScanBatch, noise: TrainNoise | None = None) -> YNetOutput:
        """Prepared scans -> logits: organs, anomalies at half and at full resolution.

        Args:
            scan: (B, 1, U, V, W), every axis a multiple of 8. noise: as of `ViT`, where there is some.

        Raises:
            InputRefused: `PATCH_GRID`, `MODEL_INPUT`, as of `ViT`.
        """
        seg = abn = self.vision(scan, noise=noise).maps()
        found = []
        for up_seg, up_abn in zip(self.seg, self.abn, strict=True):
            seg, abn = up_seg(seg), up_abn(abn)
            found.append(abn)
            abn = torch.cat([abn, seg.detach() if self.config.detach else seg], dim=1)
        heads = (self.organ_head(seg), self.low_head(found[1]), self.high_head(abn))
        organs, low, high = (logits.float() for logits in heads)
        return YNetOutput(organs, low, high)
