"""An encoder whole: the backbone and, where it was trained with reports, what makes both kinds of embedding.

Source: FlexiCT §1: a scan's embedding is a linear map of CLS and mean patch (as of DINO.txt), brought to
length 1; a text's is its pooled tokens, brought to length 1. In the public code a missing projection or
temperature passes silently; here every tensor is accounted for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from hilum.errors import UsageError, WeightsError
from hilum.io.encoder_file import EncoderConfig, JointConfig, TextConfig
from hilum.model.mean_query import PatchHead
from hilum.model.preset import backbone_from, build_backbone, load_state
from hilum.model.primus import Primus
from hilum.model.radfinder import JointNumbers, RadFinder
from hilum.model.temperature import Temperature
from hilum.model.vit import ViT, ViTOutput
from hilum.tensors import AllTokens, DepthTokens, Embeddings, Tokens, TowerRows


class WindowRead(NamedTuple):
    """What a window encoder says of windows.

    Args:
        both: CLS and the mean of all patches (N, 2 W). depths: mean over the plane of each depth's patches
            (N, P, W), from below upwards.
    """

    both: TowerRows
    depths: DepthTokens


class Encoder(nn.Module):
    """What a folder of `io.encoder_file` holds, as modules; their names are those of the tensors.

    Args:
        vision: the backbone; none where a model that reads scans reads the windows. projection: CLS and mean
            patch -> embedding. temperature: of similarities.
        text: `model.text_tower.TextTower`; with a projection it is as wide as an embedding.
        joint: combiner and heads (`model.radfinder`), in the stead of projection and temperature.
        pooled: patches -> embedding (`model.mean_query`), in the stead of projection.
    """

    vision: ViT | Primus

    def __init__(
        self,
        vision: ViT | Primus | None,
        projection: nn.Linear | None = None,
        temperature: Temperature | None = None,
        text: nn.Module | None = None,
        joint: RadFinder | None = None,
        pooled: PatchHead | None = None,
    ) -> None:
        super().__init__()
        if vision is not None:
            self.vision = vision
        self.projection = projection
        self.temperature = temperature
        self.text = text
        self.joint = joint
        self.pooled = pooled

    def read_windows(self, windows: torch.Tensor, patch: int | Sequence[int] | None = None) -> WindowRead:
        """Windows (N, 1, X, Y, Z) of RAS+ scans, as the combiner reads them (RadFinder §1.2).

        Args:
            patch: voxels of a patch; a thinner one along Z gives more depths.
        """
        out = self.vision(windows, patch=patch)
        depths = out.patches.unflatten(1, out.grid).mean((1, 2))
        return WindowRead(torch.cat([out.cls, out.patches.mean(1)], dim=1), depths)

    def project(self, output: ViTOutput) -> Embeddings:
        """Of each picture of a batch, before it is brought to length 1: (B, E). Means of these are means of
        CLS and patches where the map is linear; where patches are pooled by attention it is not.

        Raises:
            UsageError: `MODEL_INPUT` for a model without reports.
        """
        if self.pooled is not None:
            return self.pooled(output.patches)
        if self.projection is None:
            raise without_text("an embedding in the space of texts")
        return self.projection(torch.cat([output.cls, output.patches.mean(1)], dim=1))

    def image_embedding(self, output: ViTOutput) -> Embeddings:
        """(B, E) of length 1, in float32 or better.

        Raises:
            UsageError: as of `project`.
        """
        return unit(self.project(output))

    def patch_embeddings(self, patches: AllTokens) -> Tokens:
        """Patches (B, N, W) in the space of texts (B, N, E), of length 1, in float32 or better.

        Raises:
            UsageError: `MODEL_INPUT` for a model whose patches are in no space of texts.
        """
        if self.pooled is None:
            raise UsageError(
                "MODEL_INPUT", "patches of this model are compared with texts", got="no pooling of patches",
                expected="an encoder that maps patches one by one, as COLIPRI does",
            )  # fmt: skip
        rows = self.pooled.each(patches)
        return unit(rows.flatten(0, 1)).unflatten(0, rows.shape[:2])

    def text_embedding(self, pooled: torch.Tensor, *, snippets: bool = False) -> Embeddings:
        """Of the text tower's vectors (N, W): of length 1, in float32 or better.

        Args:
            snippets: of a joint model, by the head of what has a depth.
        """
        if self.joint is None:
            return unit(pooled)
        return unit(self.joint.snippets(pooled) if snippets else self.joint.reports(pooled))


def unit(rows: Embeddings) -> Embeddings:
    """Rows brought to length 1, in float32 or better."""
    return F.normalize(rows if rows.dtype == torch.float64 else rows.float(), dim=1)


def without_text(what: str) -> UsageError:
    """The error of a call that only a model of scans and reports can answer."""
    return UsageError(
        "MODEL_INPUT",
        f"{what} needs a model that was trained with reports",
        expected="kind 3d-vlm",
        got="a model without text tower and projection",
        hint="Load the export of the stage flexict-text.",
    )


def vit_of(encoder: Encoder) -> ViT:
    """The backbone, for what looks into it further than its tokens.

    Raises:
        UsageError: `MODEL_INPUT` for another network.
    """
    if isinstance(encoder.vision, ViT):
        return encoder.vision
    raise UsageError(
        "MODEL_INPUT", "this needs a backbone of the network vit", expected="vit",
        got=type(encoder.vision).__name__.lower(), hint="Use hilum.load for its features.",
    )  # fmt: skip


def build_encoder(config: EncoderConfig, window_width: int | None = None) -> Encoder:
    """With fresh weights, from torch's own generator.

    Args:
        window_width: of what a reader says of windows; None takes the backbone's.

    Raises:
        WeightsError: `CONFIG_KEY`, `CONFIG_VALUE` for a backbone, text tower or embedding that makes no
            model.
    """
    vision = None if config.reader else build_backbone(backbone_from(config.backbone))
    if config.text is None or config.embedding is None:
        return Encoder(vision)
    text = _text_tower(config.text)
    if config.joint is not None:
        width = window_width or (0 if vision is None else vision.config.width)
        return Encoder(vision, text=text, joint=_joint(config.joint, width, text, config.embedding))
    assert vision is not None, "checked when the config was read"
    if text.width != config.embedding:
        raise WeightsError(
            "CONFIG_VALUE",
            "texts and scans share one space",
            expected=f"embedding = {text.width}, the width of the text tower",
            got=config.embedding,
        )
    if config.pooled is not None:
        pooled = PatchHead(vision.config.width, config.embedding, config.pooled.heads)
        return Encoder(vision, None, Temperature(), text, pooled=pooled)
    projection = nn.Linear(2 * vision.config.width, config.embedding, bias=False)
    return Encoder(vision, projection, Temperature(), text)


def load_tensors(encoder: Encoder, tensors: Mapping[str, torch.Tensor]) -> None:
    """Strict: every tensor of every part, of its shape; half precision becomes float32.

    Raises:
        WeightsError: `WEIGHTS_KEYS` with the first names; a part that is missing whole is named.
    """
    own = {name.split(".")[0] for name in encoder.state_dict()}
    there = {name.split(".")[0] for name in tensors}
    if own - there:
        raise WeightsError(
            "WEIGHTS_KEYS",
            "a checkpoint holds every part of its model",
            expected=", ".join(sorted(own)),
            got=f"no {', '.join(sorted(own - there))}",
            hint="Parts are never filled in: export the model again, whole.",
        )
    load_state(encoder, tensors)


def tensors_of(encoder: nn.Module) -> dict[str, np.ndarray]:
    """Every tensor as a float32 array of its own, by name: what `EncoderFile` takes. Half precision is the
    caller's ``astype``."""
    state = encoder.state_dict()
    return {name: tensor.detach().float().cpu().numpy().copy() for name, tensor in state.items()}


def _joint(config: JointConfig, window_width: int, text: nn.Module, size: int) -> RadFinder:
    numbers = JointNumbers(window_width, int(text.width), size=size, **config.model_dump())  # type: ignore[arg-type]
    return RadFinder(numbers.config())


def _text_tower(config: TextConfig) -> nn.Module:
    # the language models' library is heavy, and only this kind of encoder needs it
    from hilum.model.text_tower import TextTower

    if config.heads is None:
        return TextTower(config.config, config.pooling)
    return TextTower(config.config, config.pooling, config.heads)
