"""What a stage starts from: random weights, or the teacher of the stage before (FlexiCT §2, the chain).

A 3D patch embedding is inflated when a model of slices meets volumes for the first time, and never again:
what a folder's `kind` says decides, not a switch (spec §2, defect e).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hilum.errors import UsageError, WeightsError
from hilum.io.encoder_file import EncoderFile, is_encoder, load_encoder
from hilum.io.weights import load_weights, preset_data
from hilum.model.preset import BackbonePreset, load_state
from hilum.model.text_tower import TextTower
from hilum.model.vit import ViT
from hilum.model.vit_config import ViTConfig
from hilum.text.tokens import Tokens
from hilum.train.stage_recipe import StageRecipe
from hilum.train.student import Student

ENCODER = "encoder"
"""What a run exports, in its folder."""


@dataclass
class Start:
    """What a student is filled with.

    Args:
        preset: the backbone's data. vision: its numbers. file: the encoder of the stage before, or None.
        heads: its teacher's heads, by name. volumes: whether this stage sees volumes.
        teacher: encoder of the Gram loss; None takes `file`. text, tokens, text_config: the language side.
    """

    preset: Mapping[str, Any]
    vision: ViTConfig
    file: EncoderFile | None = None
    heads: Mapping[str, np.ndarray] = field(default_factory=dict)
    volumes: bool = True
    teacher: EncoderFile | None = None
    text: TextTower | None = None
    tokens: Tokens | None = None
    text_config: Mapping[str, Any] | None = None

    @property
    def sha256(self) -> list[str]:
        """Of the weights that decide the run."""
        return [str(file.card["sha256"]) for file in (self.file, self.teacher) if file is not None]

    def fill(self, student: Student) -> None:
        """Loads, strictly, what there is.

        Raises:
            WeightsError: `WEIGHTS_KEYS` for weights of another network.
        """
        if self.file is None:
            return
        load_state(student.vision, tensors_of(self.file, "vision."))
        if self.volumes and self.file.config.kind == "2d":
            student.vision.inflate()
        for name in ("dino", "ibot", "projection", "temperature"):
            module = getattr(student, name)
            own = tensors_in({**self.heads, **self.file.tensors}, f"{name}.")
            if module is not None and own and _fits(module, own):
                load_state(module, own)

    def anchor(self) -> ViT:
        """The frozen teacher of the Gram loss."""
        file = self.teacher or self.file
        assert file is not None, "checked when the recipe was read"
        vision = ViT(self.vision)
        load_state(vision, tensors_of(file, "vision."))
        if self.volumes and file.config.kind == "2d":
            vision.inflate()
        return vision


def start_of(recipe: StageRecipe) -> Start:
    """Reads what a recipe names.

    Raises:
        UsageError: `CONFIG_VALUE` for a stage that cannot follow the one before; `PRESET_UNKNOWN`.
        WeightsError: as of `load_encoder`.
    """
    preset = preset_data(recipe.backbone)
    described = BackbonePreset.from_dict(preset)
    start = Start(preset, described.net, volumes=recipe.volumes is not None)
    if recipe.start is not None:
        start.file = read_stage(recipe.start)
        start.heads = _heads(encoder_in(recipe.start))
    if recipe.gram_teacher is not None:
        start.teacher = read_stage(recipe.gram_teacher)
    if recipe.text is not None:
        _add_text(start, recipe)
    return start


def read_stage(folder: Path) -> EncoderFile:
    """The encoder that a run left in its folder, or that the folder is.

    Raises:
        UsageError: `CONFIG_VALUE` where there is none.
        WeightsError: as of `load_encoder`.
    """
    return load_encoder(encoder_in(folder))


def encoder_in(folder: Path) -> Path:
    """The folder itself, or the encoder in it.

    Raises:
        UsageError: `CONFIG_VALUE` where there is none.
    """
    for place in (folder, folder / ENCODER):
        if is_encoder(place):
            return place
    raise UsageError(
        "CONFIG_VALUE",
        "a stage starts from a folder with an encoder",
        expected=f"{folder} or {folder / ENCODER}",
        got="none there",
        path=folder,
        hint="Run the stage before to its end.",
    )


def tensors_of(file: EncoderFile, prefix: str) -> dict[str, torch.Tensor]:
    """A part of an encoder, without its prefix."""
    return tensors_in(file.tensors, prefix)


def tensors_in(tensors: Mapping[str, np.ndarray], prefix: str) -> dict[str, torch.Tensor]:
    """Tensors under a prefix, without it."""
    return {k.removeprefix(prefix): torch.from_numpy(v) for k, v in tensors.items() if k.startswith(prefix)}


def _fits(module: torch.nn.Module, own: Mapping[str, torch.Tensor]) -> bool:
    # a stage may have heads of its own size: they start fresh
    return {k: v.shape for k, v in module.state_dict().items()} == {k: v.shape for k, v in own.items()}


def heads_beside(encoder: Path) -> Path:
    """The heads of a teacher, for a stage that goes on with them; no exported model has them."""
    encoder = encoder.resolve()
    return encoder.with_name(f"{encoder.name}-heads.safetensors")


def _heads(encoder: Path) -> dict[str, np.ndarray]:
    path = heads_beside(encoder)
    return load_weights(path)[0] if path.is_file() else {}


def _add_text(start: Start, recipe: StageRecipe) -> None:
    assert recipe.text is not None
    if start.file is not None and start.file.config.text is not None:
        if start.file.tokenizer is None:
            raise WeightsError("CONFIG_VALUE", "a model of reports has a tokenizer", got="none")
        text = start.file.config.text
        start.text = TextTower(text.config, text.pooling)
        load_state(start.text, tensors_of(start.file, "text."))
        start.tokens, start.text_config = Tokens(start.file.tokenizer), text.config
        return
    from hilum.train.text_source import load_text_tower

    start.text, start.tokens, start.text_config = load_text_tower(recipe.text.encoder, recipe.text.pooling)
