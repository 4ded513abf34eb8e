"""An encoder whole: the backbone and, where it was trained with reports, what makes both kinds of embedding.

Source: FlexiCT §1: a scan's embedding is a linear map of CLS and mean patch (as of DINO.txt), brought to
length 1; a text's is its pooled tokens, brought to length 1. In the public code a missing projection or
temperature passes silently; here every tensor is accounted for.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from hilum.errors import UsageError, WeightsError
from hilum.io.encoder_file import EncoderConfig, TextConfig
from hilum.model.preset import BackbonePreset, load_state
from hilum.model.temperature import Temperature
from hilum.model.vit import ViT, ViTOutput
from hilum.tensors import Embeddings


class Encoder(nn.Module):
    """What a folder of `io.encoder_file` holds, as modules; their names are those of the tensors.

    Args:
        vision: the backbone. projection: CLS and mean patch -> embedding. temperature: of similarities.
        text: `model.text_tower.TextTower`; it is as wide as an embedding. The last three together or none.
    """

    def __init__(
        self,
        vision: ViT,
        projection: nn.Linear | None = None,
        temperature: Temperature | None = None,
        text: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.vision = vision
        self.projection = projection
        self.temperature = temperature
        self.text = text

    def project(self, output: ViTOutput) -> Embeddings:
        """Of each picture of a batch, before it is brought to length 1: (B, E). Means of these are means of
        CLS and patches: the map is linear.

        Raises:
            UsageError: `MODEL_INPUT` for a model without reports.
        """
        if self.projection is None:
            raise without_text("an embedding in the space of texts")
        return self.projection(torch.cat([output.cls, output.patches.mean(1)], dim=1))

    def image_embedding(self, output: ViTOutput) -> Embeddings:
        """(B, E) of length 1, in float32 or better.

        Raises:
            UsageError: as of `project`.
        """
        return unit(self.project(output))


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


def build_encoder(config: EncoderConfig) -> Encoder:
    """With fresh weights, from torch's own generator.

    Raises:
        WeightsError: `CONFIG_KEY`, `CONFIG_VALUE` for a backbone, text tower or embedding that makes no
            model.
    """
    vision = ViT(BackbonePreset.from_dict(config.backbone).net)
    if config.text is None or config.embedding is None:
        return Encoder(vision)
    text = _text_tower(config.text)
    if text.width != config.embedding:
        raise WeightsError(
            "CONFIG_VALUE",
            "texts and scans share one space",
            expected=f"embedding = {text.width}, the width of the text tower",
            got=config.embedding,
        )
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


def _text_tower(config: TextConfig) -> nn.Module:
    # the language models' library is heavy, and only this kind of encoder needs it
    from hilum.model.text_tower import TextTower

    return TextTower(config.config, config.pooling)
