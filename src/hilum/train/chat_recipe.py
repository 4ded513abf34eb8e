"""The recipe of `exact-chat`: a language model learns to write the report of a feature grid, in two
stages."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field

from hilum.train.recipe import RunRecipe, Strict


class ChatData(Strict):
    """What is learned from, three things by name of the scan.

    Every scan with features, a report and predictions is a sample; others are left out and counted.
    """

    features: Path = Field(description="folder of NAME.safetensors, tensor `features` [C, U, V, W]")
    reports: Path = Field(description="table of reports: VolumeName and text columns")
    predictions: Path = Field(description="table of frontend predictions: VolumeName and the 18 columns")


class LoraRecipe(Strict):
    """As published (EXACT §2.4)."""

    rank: int = Field(128, ge=1)
    alpha: int = Field(256, ge=1)
    dropout: float = Field(0.05, ge=0, lt=1)
    targets: tuple[str, ...] = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


class ChatRecipe(RunRecipe):
    """One stage. ``projector``: pooling and projector alone, the language model frozen. ``lora``: these from
    the stage before, and LoRA in the language model.
    """

    method: Literal["exact-chat"]
    stage: Literal["projector", "lora"]
    language_model: Path = Field(description="folder: config.json, tokenizer.json, *.safetensors")
    fresh: bool = Field(False, description="random weights instead of the folder's (tests, shapes)")
    template: str = Field("{prompt}", description="around the prompt, as the model was tuned")
    end: str = Field("</s>", description="token that ends a report")
    language: Literal["en", "de"] = "en"
    data: ChatData
    start: Path | None = Field(None, description="writer of the stage before")
    queries: int = Field(256, ge=1)
    heads: int = Field(8, ge=1)
    lora: LoraRecipe = Field(default_factory=lambda: LoraRecipe.model_validate({}))
    steps: int = Field(ge=1)
    batch: int = Field(1, ge=1)
    lr: float = Field(1e-3, gt=0)
    warmup: int = Field(10, ge=0)
    weight_decay: float = Field(0.0, ge=0)
    beta2: float = Field(0.999, ge=0, lt=1)
    clip: float = Field(1.0, gt=0)
    max_tokens: int = Field(1024, ge=8, description="of prompt and report together")
