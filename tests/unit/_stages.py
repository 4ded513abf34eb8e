"""Tiny stages for tests: stores of small chests, a small start, reports that say something."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from _store_scans import write_scans
from torch import nn

from hilum.cohort.loader import Part
from hilum.cohort.prep_presets import Pipeline
from hilum.cohort.store import open_store
from hilum.cohort.store_write import StoreJob, prepare_store
from hilum.model.text_tower import TextTower
from hilum.model.vit_config import ViTConfig
from hilum.text.captions import ScanText, scan_text
from hilum.text.tokens import Tokens
from hilum.train.stage import StageTask
from hilum.train.stage_recipe import StageRecipe
from hilum.train.stage_start import Start

NET = ViTConfig(width=24, depth=2, heads=1, patch=4, layer_scale=0.3, drop_path=0.0)
PRESET = {"name": "tiny", "network": "vit", "net": {"width": 24, "depth": 2, "heads": 1, "patch": 4,
          "layer_scale": 0.3, "drop_path": 0.0}}  # fmt: skip
PREP = Pipeline("tiny", axes="LPS", spacing_mm=(16.0, 16.0, 16.0), values="zscore-scan", fit="at-least",
                fit_vox=(16, 16, 16), pad="min")  # fmt: skip
REPORTS = (
    "FINDINGS: There is a small pleural effusion on the right. No lung nodule.",
    "FINDINGS: No pleural effusion. There is a nodule in the left upper lobe.",
    "FINDINGS: Cardiomegaly. Emphysema in both lungs. No consolidation.",
    "FINDINGS: Consolidation in the right lower lobe. No emphysema. No cardiomegaly.",
)
WORDS = sorted({w for r in REPORTS for w in r.lower().replace(".", " .").replace(":", " :").split()})


class TinyTower(TextTower):
    """A bag of words: quick, and every parameter has a gradient."""

    def __init__(self, width: int = 12, words: int = 64) -> None:
        nn.Module.__init__(self)
        self.width, self.pooling = width, "mean"
        self.table = nn.Embedding(words, width)
        self.mix = nn.Linear(width, width)

    def forward(self, ids: Any, mask: Any) -> Any:
        seen = mask[..., None].to(self.table.weight.dtype)
        return self.mix((self.table(ids) * seen).sum(1) / seen.sum(1).clamp_min(1))


def tiny_tokens() -> Tokens:
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace

    vocabulary = {word: n for n, word in enumerate(["[PAD]", "[UNK]", *WORDS][:64])}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    return Tokens(tokenizer.to_str())


def tiny_store(folder: Path, scans: int = 4) -> Path:
    jobs = [StoreJob(f"scan{i}", str(p)) for i, p in enumerate(write_scans(folder / "scans", scans))]
    prepare_store(jobs, folder / "store", PREP, where="here")
    return folder / "store"


def tiny_recipe(method: str, **changes: Any) -> StageRecipe:
    base: dict[str, Any] = {
        "name": "tiny", "method": method, "backbone": "tiny", "steps": 4, "batch": 4, "precision": "fp32",
        "threads": 1, "patches": [8, 4], "data": [{"cohort": "."}], "checkpoint_every": 2, "synthetic": True,
        "heads": {"hidden": 16, "bottleneck": 8, "prototypes": 12, "chunk": 7},
        "rates": {"lr": {"peak": 0.01}, "scaling": "none", "ema": {"peak": 0.5}},
    }  # fmt: skip
    if method == "flexict-2d":
        base["slices"] = {"parts": 2, "sides": [{"whole": 16, "parts": 8}]}
    else:
        wholes = 1 if method == "flexict-text" else 2
        base["volumes"] = {"side_vox": 16, "part_side_vox": 8, "whole_vox": [8, 16], "part_vox": [4, 8],
                           "wholes": wholes, "parts": 2}  # fmt: skip
    if method == "flexict-text":
        base["text"] = {"max_tokens": 16, "pair_tokens": 8, "pairs": 4}
        base["losses"] = {"clip": 1.0, "osl": 0.5}
    return StageRecipe.model_validate(base | changes)


def tiny_task(store: Path, recipe: StageRecipe, **start: Any) -> StageTask:
    part = Part(open_store(store))
    texts: dict[str, ScanText] = {}
    begin = Start(PRESET, NET, volumes=recipe.volumes is not None, **start)
    if recipe.text is not None:
        texts = {f"scan{i}": scan_text(REPORTS[i % len(REPORTS)]) for i in range(len(part.store.keys))}
        torch.manual_seed(7)
        begin.text, begin.tokens, begin.text_config = TinyTower(), tiny_tokens(), {"model_type": "tiny"}
    task = StageTask(recipe, [part], begin, texts=texts, patients={key: key for key in texts})
    if recipe.distil is not None:
        task._others = [BlockTeacher()]
    return task


def phantom_cohort(folder: Path, count: int = 4) -> Path:
    """A prepared cohort of coarse phantoms, made as a user would."""
    from hilum.cli import run

    made, prepared = str(folder / "phantoms"), str(folder / "prepared")
    assert run(["phantom", str(count), "--out", made, "--spacing", "8", "--work-mm", "8"]) == 0
    split = "train=0.5,val=0.25,test=0.25"
    assert run(["prepare", made, "--out", prepared, "--prep", "flexict-3d-4mm", "--split", split]) == 0
    return folder / "prepared"


class BlockTeacher:
    """A frozen teacher for tests: fixed features of blocks of 4 voxels."""

    name, sha256, width, summary_width = "blocks", "ab" * 32, 6, 6

    def features(self, shown: Any) -> Any:
        from hilum.train.teachers import Features

        images = shown.images
        blocks = images.unfold(2, 4, 4).unfold(3, 4, 4).unfold(4, 4, 4)
        grid = tuple(blocks.shape[2:5])
        rows = blocks.flatten(5).flatten(2, 4)[:, 0]
        weight = torch.randn(64, 6, generator=torch.Generator().manual_seed(1)).to(rows)
        patches = torch.tanh(rows @ weight / 8)
        return Features(patches.mean(1), patches, grid)
