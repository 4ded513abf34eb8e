"""From a recipe of `exact-chat` to a writer: a folder with what was trained and what it belongs to.

writer/model.safetensors   pooling, projector, LoRA; not the language model
writer/writer.json         shapes, template, sha256 of the language model, what it was trained on
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from hilum import __version__
from hilum.errors import UsageError, WeightsError
from hilum.io.atomic import atomic_folder, atomic_write
from hilum.io.hashing import sha256_of
from hilum.io.hub import CONFIG, TOKENIZER, read_json, weight_files
from hilum.io.weights import save_weights
from hilum.model.report_writer import LoraShape, ReportWriter
from hilum.text.report_prompt import ReportTokens
from hilum.train.chat_data import read_samples
from hilum.train.chat_recipe import ChatRecipe
from hilum.train.chat_task import ChatStart, ChatTask, load_language_model, load_parts, parts_of
from hilum.train.loop import Report, train

WRITER, CARD = "writer", "writer.json"


@dataclass(frozen=True)
class LoadedWriter:
    """A writer with its tokenizer and card, in eval mode."""

    writer: ReportWriter
    tokens: ReportTokens
    card: dict[str, Any]


def run_chat(recipe: ChatRecipe, out: Path, *, report: Report | None = None) -> Path:
    """Trains (or goes on) and writes `out/writer`.

    Raises:
        As of `train`, `read_samples` and `chat_start`.
    """
    samples = read_samples(recipe.data)
    task = ChatTask(recipe, samples, chat_start(recipe))
    out.mkdir(parents=True, exist_ok=True)

    def export(tensors: dict[str, torch.Tensor], step: int) -> None:
        card = {
            "stage": recipe.stage, "width": task.width, "queries": recipe.queries, "heads": recipe.heads,
            "lora": recipe.lora.model_dump(mode="json") if recipe.stage == "lora" else None,
            "template": recipe.template, "end": recipe.end, "language": recipe.language,
            "language_model": task.start.sha256, "scans": len(samples), "steps": step, "hilum": __version__,
            "use": "research; not a medical device; every sentence needs the check of read.checked",
        }  # fmt: skip
        with atomic_folder(out / WRITER, overwrite=True) as folder:
            arrays = {name: value.numpy() for name, value in parts_of(tensors).items()}
            card["sha256"] = save_weights(folder / "model.safetensors", arrays, {"hilum": __version__})
            with atomic_write(folder / CARD) as file:
                file.write((json.dumps(card, indent=1) + "\n").encode())

    train(task, out, export=export, report=report)
    return out / WRITER


def chat_start(recipe: ChatRecipe) -> ChatStart:
    """Language model, tokenizer and the stage before.

    Raises:
        UsageError: `CONFIG_VALUE`, a LoRA stage without the projector of the stage before.
        WeightsError: files that cannot be trusted.
    """
    if recipe.stage == "lora" and recipe.start is None:
        raise UsageError(
            "CONFIG_VALUE", "the stage of LoRA starts from a trained projector", expected="start = ...",
            got="none",
        )  # fmt: skip
    folder = recipe.language_model
    weights = None if recipe.fresh else language_model_weights(folder)
    tokens = ReportTokens((folder / TOKENIZER).read_text(encoding="utf-8"), recipe.template, recipe.end)
    before = None if recipe.start is None else load_file(recipe.start / "model.safetensors")
    sums = [sha256_of(folder / CONFIG), sha256_of(folder / TOKENIZER)]
    sums += [] if recipe.fresh else [sha256_of(path) for path in weight_files(folder)]
    own = [] if recipe.start is None else [sha256_of(recipe.start / "model.safetensors")]
    digest = hashlib.sha256(json.dumps([sums, own, recipe.fresh]).encode()).hexdigest()
    return ChatStart(read_json(folder / CONFIG), weights, tokens, before, digest)


def language_model_weights(folder: Path) -> dict[str, torch.Tensor]:
    """All tensors of a folder, float32.

    Raises:
        WeightsError: `WEIGHTS_KEYS`, a tensor twice.
    """
    found: dict[str, torch.Tensor] = {}
    for path in weight_files(folder):
        for name, value in load_file(path).items():
            if name in found:
                raise WeightsError("WEIGHTS_KEYS", "a parameter is in one shard", got=name, path=path)
            found[name] = value.float()
    return found


def load_writer(folder: Path, language_model: Path, *, fresh_seed: int | None = None) -> LoadedWriter:
    """A writer that was trained, on its language model.

    Args:
        fresh_seed: of a language model whose weights were drawn (tests); None loads them.

    Raises:
        WeightsError: `WEIGHTS_KEYS`; `WEIGHTS_HASH`, the weights are not those of the card.
    """
    card = read_json(folder / CARD)
    if sha256_of(folder / "model.safetensors") != card["sha256"]:
        raise WeightsError("WEIGHTS_HASH", "weights are those of their card", path=folder)
    lora = None
    if card["lora"] is not None:
        lora = LoraShape(**{**card["lora"], "targets": tuple(card["lora"]["targets"])})
    if fresh_seed is not None:
        torch.manual_seed(fresh_seed)
    writer = ReportWriter(
        card["width"], read_json(language_model / CONFIG), card["queries"], card["heads"], lora
    )
    if fresh_seed is None:
        load_language_model(writer, language_model_weights(language_model))
    load_parts(writer, load_file(folder / "model.safetensors"))
    text = (language_model / TOKENIZER).read_text(encoding="utf-8")
    return LoadedWriter(writer.eval(), ReportTokens(text, card["template"], card["end"]), card)
