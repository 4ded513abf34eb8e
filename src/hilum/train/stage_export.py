"""What a stage leaves: the teacher as an encoder folder, and its heads for the stage after.

Every part comes from the average (spec §2, defect c: the student's own projection and text tower were
published beside the average's vision tower).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hilum import __version__
from hilum.cohort.loader import Part
from hilum.io.encoder_file import EncoderConfig, EncoderFile, TextConfig, save_encoder
from hilum.io.weights import save_weights
from hilum.train.stage_recipe import StageRecipe
from hilum.train.stage_start import Start, heads_beside

PARTS = ("vision.", "projection.", "temperature.", "text.")


def export_stage(
    folder: Path,
    name: str,
    teacher: Mapping[str, torch.Tensor],
    recipe: StageRecipe,
    start: Start,
    parts: list[Part],
    step: int,
) -> Path:
    """Writes `folder/name`, and the heads beside it.

    Args:
        teacher: all of the average's tensors (`Average.tensors`). step: how many it has seen.
    """
    arrays = {key: value.float().numpy() for key, value in teacher.items()}
    exported = {key: value for key, value in arrays.items() if key.startswith(PARTS)}
    file = EncoderFile(
        _config(recipe, start, parts, exported), exported, _tokenizer(start), _card(recipe, parts, step)
    )
    save_encoder(folder / name, file, overwrite=True)
    heads = {key: value for key, value in arrays.items() if not key.startswith(PARTS)}
    if heads:
        save_weights(heads_beside(folder / name), heads, {"step": str(step), "name": recipe.name})
    return folder / name


def _config(
    recipe: StageRecipe, start: Start, parts: list[Part], tensors: Mapping[str, np.ndarray]
) -> EncoderConfig:
    before = None if start.file is None else start.file.config
    prep = dict(parts[0].store.prep)
    kind = {"flexict-2d": "2d", "flexict-3d": "3d", "flexict-text": "3d-vlm"}[recipe.method]
    facts: dict[str, Any] = {"kind": kind, "backbone": dict(start.preset), "patch": min(recipe.patches)}
    if recipe.slices is not None:
        return EncoderConfig.from_dict(facts | {"prep": prep | {"values": "zscore-slice"}})
    assert recipe.volumes is not None
    facts |= {"prep": prep, "field_vox": (recipe.volumes.field,) * 3}
    if recipe.volumes.whole_vox == "middle":
        # whole fields were shown, all with so many voxels; other stages saw regions of many sizes
        facts["view_vox"] = (recipe.volumes.side_vox,) * 3
    if before is not None:
        facts["prep_2d"] = before.prep if before.kind == "2d" else before.prep_2d
    if recipe.text is not None and start.text is not None:
        text = TextConfig(
            config=dict(start.text_config or {}),
            pooling=start.text.pooling,
            max_tokens=recipe.text.max_tokens,
            lower=True,
        )
        facts |= {"text": text.model_dump(), "embedding": int(tensors["projection.weight"].shape[0])}
    return EncoderConfig.from_dict(facts)


def _tokenizer(start: Start) -> str | None:
    return None if start.tokens is None else start.tokens.text


def _card(recipe: StageRecipe, parts: list[Part], step: int) -> dict[str, Any]:
    scans = sum(len(part.scans) for part in parts)
    what = "synthetic chest phantoms; no real patient" if recipe.synthetic else "chest CTs"
    return {
        "name": recipe.name,
        "synthetic": recipe.synthetic,
        "trained_on": f"{scans} scans, {what}",
        "stage": recipe.method,
        "steps": step,
        "recipe": recipe.model_dump(mode="json"),
        "hilum": __version__,
        "licence": "Apache-2.0",
        "use": "research and software testing; not a medical device; not for diagnosis",
    }
