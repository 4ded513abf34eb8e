"""RadFinder: one space for scans, reports, prompts and snippets, and a place for every depth of a scan.

Source: RadFinder §1.2, 1.3. Window features and text features come from towers of their own (any window
encoder; `model.text_tower`); here is what is trained on both sides of the space: the combiner, a head per
tower for whole reports, and a copy of each for what is small. Prompts about diseases meet the copied image
head with the main text head; snippets meet the copied heads of both.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import nn

from hilum.model.combiner import Combiner, CombinerConfig, Frame, combiner_vit
from hilum.model.joint_head import JointHead
from hilum.model.temperature import SigmoidScale
from hilum.tensors import (
    DepthTokens,
    JointRows,
    ScanDepthMask,
    TowerRows,
    WindowDepths,
    WindowFeatures,
    WindowMask,
)


@dataclass(frozen=True)
class RadFinderConfig:
    """Numbers of the joint model.

    Args:
        combiner: of the image side. text_width: of the text tower's last tokens. hidden, bottleneck, size: of
            the heads.
    """

    combiner: CombinerConfig = field(default_factory=CombinerConfig)
    text_width: int = 1024
    hidden: int = 2048
    bottleneck: int = 256
    size: int = 512


@dataclass(frozen=True)
class JointNumbers:
    """The same as a preset tells it: flat.

    Args:
        window_width: features of a window's CLS. text_width: of the text tower. width, depth, heads: of the
            combiner. frame: where depths lie. hidden, bottleneck, size: of the heads.
    """

    window_width: int = 1080
    text_width: int = 1024
    width: int = 1080
    depth: int = 4
    heads: int = 12
    frame: Frame = "published"
    hidden: int = 2048
    bottleneck: int = 256
    size: int = 512

    def config(self) -> RadFinderConfig:
        """As the network takes it."""
        blocks = combiner_vit(self.width, self.depth, self.heads)
        combiner = CombinerConfig(self.window_width, blocks, self.frame)
        return RadFinderConfig(combiner, self.text_width, self.hidden, self.bottleneck, self.size)


class ScanEmbeddings(NamedTuple):
    """A scan in the space: `report` for whole reports (main head), `disease` for prompts (copied head)."""

    report: JointRows
    disease: JointRows


class RadFinder(nn.Module):
    """See the module's docstring."""

    def __init__(self, config: RadFinderConfig) -> None:
        super().__init__()
        self.config = config
        width = config.combiner.vit.width
        sizes = (config.hidden, config.bottleneck, config.size)
        self.combiner = Combiner(config.combiner)
        self.image_head, self.image_copy = JointHead(2 * width, *sizes), JointHead(2 * width, *sizes)
        self.text_head = JointHead(config.text_width, *sizes)
        self.text_copy = JointHead(config.text_width, *sizes)
        self.scale = SigmoidScale()
        self.copy_heads()

    @torch.no_grad()
    def copy_heads(self) -> None:
        """The copies begin as what they are copies of."""
        self.image_copy.load_state_dict(self.image_head.state_dict())
        self.text_copy.load_state_dict(self.text_head.state_dict())

    def scans(
        self, windows: WindowFeatures, present: WindowMask, rescale: torch.Tensor | None = None
    ) -> ScanEmbeddings:
        """Scans from their windows' [CLS; mean of patches].

        Args:
            present: which windows each scan has. rescale: of coordinates, in training.
        """
        found = self.combiner(windows, present, rescale)
        kept = (found.tokens * present[..., None]).sum((1, 2, 3))
        mean = kept / present.sum((1, 2, 3)).clamp_min(1)[:, None]
        both = torch.cat([found.cls, mean], dim=1)
        return ScanEmbeddings(self.image_head(both), self.image_copy(both))

    def depths(
        self, windows: WindowDepths, present: WindowMask, rescale: torch.Tensor | None = None
    ) -> tuple[DepthTokens, ScanDepthMask]:
        """Every depth of every scan in the space (B, D, E), and which depths each scan has."""
        cls, rows, valid = self.combiner.depths(windows, present, rescale)
        return self.image_copy(torch.cat([cls[:, None].expand_as(rows), rows], dim=2)), valid

    def reports(self, pooled: TowerRows) -> JointRows:
        """Whole reports, and prompts, from the text tower's last tokens."""
        return self.text_head(pooled)

    def snippets(self, pooled: TowerRows) -> JointRows:
        """Sentences that have a depth."""
        return self.text_copy(pooled)
