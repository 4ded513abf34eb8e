"""From a recipe of the method `radfinder` to an encoder of kind 3d-joint."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hilum import __version__
from hilum.errors import WeightsError
from hilum.io.encoder_file import EncoderConfig, EncoderFile, load_encoder, save_encoder
from hilum.io.hub import FETCHED
from hilum.io.weights import preset_data
from hilum.model.preset import JointPreset
from hilum.model.text_tower import TextTower
from hilum.text.prompt_bank import load_bank
from hilum.text.tokens import Tokens
from hilum.train.joint_data import JointScans, read_joint
from hilum.train.joint_recipe import JointRecipe
from hilum.train.joint_student import fill_in
from hilum.train.joint_task import JointRun, JointTower
from hilum.train.loop import Report, train
from hilum.train.text_bank import Track, tower_rows, untracked
from hilum.train.text_source import load_text_tower

ENCODER = "encoder"
READER = "reader:"
"""How the source of windows begins whose windows are read by a model that reads scans."""


def joint_task(recipe: JointRecipe, texts: Path | None = None, track: Track = untracked) -> JointRun:
    """Scans, texts and preset of a recipe, checked against each other.

    Args:
        texts: folder of kept embeddings; the user's cache by default. track: of texts.

    Raises:
        UsageError, RunError, ReportError, WeightsError: as of `read_joint`, `load_bank` and
            `load_text_tower`; `CONFIG_VALUE` for a preset of another width than windows or texts have.
    """
    scans = read_joint(
        recipe.features, load_bank(recipe.questions), recipe.split, recipe.apart, recipe.shortest
    )
    preset = JointPreset.from_dict(preset_data(recipe.preset))
    tower = _tower(recipe, scans, texts, track)
    widths = {"windows": int(scans.cache.facts["width"]), "texts": tower.width}
    wanted = {"windows": preset.net.window_width, "texts": preset.net.text_width}
    if widths != wanted:
        raise WeightsError(
            "CONFIG_VALUE", "a preset is as wide as what it reads", expected=wanted, got=widths,
            path=recipe.features,
        )  # fmt: skip
    return JointRun(recipe, preset, scans, tower)


def run_joint(
    recipe: JointRecipe, out: Path, *, texts: Path | None = None, track: Track = untracked,
    report: Report | None = None,
) -> Path:  # fmt: skip
    """Trains (or goes on) and writes `out/encoder`.

    Raises:
        As of `joint_task` and `train`.
    """
    task = joint_task(recipe, texts, track)
    out.mkdir(parents=True, exist_ok=True)

    def export(tensors: dict[str, torch.Tensor], step: int) -> None:
        save_encoder(out / ENCODER, joint_file(task, tensors, step), overwrite=True)

    train(task, out, export=export, report=report)
    return out / ENCODER


def joint_file(task: JointRun, tensors: Mapping[str, torch.Tensor], step: int) -> EncoderFile:
    """What is written: the joint part, and of both towers what cannot be had by name."""
    net, facts = task.preset.net, task.scans.cache.facts
    joint = {f"joint.{n}": t.numpy() for n, t in finished(task, tensors).items()}
    images, config = _windows(facts)
    text, texts, tokenizer = _text(task, tensors)
    config |= {
        "kind": "3d-joint", "embedding": net.size, "text": text,
        "joint": {
            "width": net.width, "depth": net.depth, "heads": net.heads, "frame": net.frame,
            "hidden": net.hidden, "bottleneck": net.bottleneck,
        },
    }  # fmt: skip
    arrays = {**joint, **images, **texts}
    return EncoderFile(EncoderConfig.from_dict(config), arrays, tokenizer, _card(task, step))


def finished(task: JointRun, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Tensors of the joint part, whole: what rested filled in, standards folded in
    (`joint_student`)."""
    student = task.student()
    student.load_state_dict({name: tensor.float() for name, tensor in tensors.items()})
    fill_in(student, task.recipe.losses)
    state = student.folded().state_dict()
    return {name: tensor.detach().clone() for name, tensor in state.items()}


def _windows(facts: Mapping[str, Any]) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Tensors and config of what reads windows."""
    source = str(facts["source"])
    if source.startswith(READER):
        reader = {"name": source.removeprefix(READER), "sha256": facts["model"]}
        return {}, {"reader": reader, "depth_mm": facts["depth_mm"]}
    file = load_encoder(Path(source))
    if file.card["sha256"] != facts["model"]:
        raise WeightsError(
            "CACHE_STALE", "windows are of the encoder that is exported with them",
            expected=facts["model"], got=file.card["sha256"], path=source,
        )  # fmt: skip
    vision = {n: t for n, t in file.tensors.items() if n.startswith("vision.")}
    config = file.config
    kept = {"backbone": config.backbone, "prep": config.prep, "patch": config.patch}
    return vision, kept | {"field_vox": config.field_vox, "depth_mm": facts["depth_mm"]}


def _text(
    task: JointRun, tensors: Mapping[str, torch.Tensor]
) -> tuple[dict[str, Any], dict[str, np.ndarray], str]:
    """Config, tensors and tokenizer of the text tower. One that rests and can be fetched by name is
    named."""
    recipe = task.recipe.text
    tower, tokens, config = load_text_tower(recipe.encoder)
    told = {"config": config, "pooling": tower.pooling, "max_tokens": recipe.max_tokens}
    if recipe.lora is None and recipe.encoder in FETCHED:
        return told | {"encoder": recipe.encoder}, {}, tokens.text
    state = tower.state_dict() if recipe.lora is None else _merged(task, tensors)
    return told, {f"text.{n}": t.float().numpy() for n, t in state.items()}, tokens.text


def _merged(task: JointRun, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The tower with LoRA added to its maps, under its own names."""
    lora = task.recipe.text.lora
    assert lora is not None
    own = {n.removeprefix("text."): t.float() for n, t in tensors.items() if n.startswith("text.")}
    merged = {n.replace(".base_layer.", "."): t for n, t in own.items() if ".lora_" not in n}
    for name, down in own.items():
        if ".lora_A." in name:
            up = own[name.replace(".lora_A.", ".lora_B.")]
            merged[name.split(".lora_A.")[0] + ".weight"] += lora.alpha / lora.rank * (up @ down)
    return merged


def _tower(recipe: JointRecipe, scans: JointScans, texts: Path | None, track: Track) -> JointTower:
    name = f"{recipe.text.encoder} {recipe.text.max_tokens}"
    if recipe.text.lora is None:
        rows = tower_rows(recipe.text.encoder, recipe.text.max_tokens, list(scans.texts), texts, track)
        return JointTower(name, rows.shape[1], torch.from_numpy(rows))
    tower, tokens, _ = load_text_tower(recipe.text.encoder)
    assert isinstance(tower, TextTower) and isinstance(tokens, Tokens)
    return JointTower(name, tower.width, None, tower, tokens)


def _card(task: JointRun, step: int) -> dict[str, Any]:
    recipe, scans = task.recipe, task.scans
    what = "synthetic chest phantoms; no real patient" if recipe.synthetic else "chest CTs"
    counts = f"{len(scans.samples)} scans with reports, {what}"
    return {
        "name": recipe.name,
        "synthetic": recipe.synthetic,
        "trained_on": counts,
        "placed_sentences": sum(len(s.snippets) for s in scans.samples),
        "stage": recipe.method,
        "steps": step,
        "recipe": recipe.model_dump(mode="json", exclude={"features"}),
        "windows": dict(scans.cache.facts),
        "hilum": __version__,
        "licence": "Apache-2.0",
        "use": "research and software testing; not a medical device; not for diagnosis",
    }
