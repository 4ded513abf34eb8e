"""A classifier of a frozen model's anomaly maps as a task (EXACT §2.1b)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from hilum.errors import UsageError
from hilum.io.weights import preset_data
from hilum.model.map_heads import LEVEL, MapHeads, map_features
from hilum.model.preset import ExactPreset, build_exact, preset_from
from hilum.model.ymamba import YMamba
from hilum.objective.dense_read import read_maps
from hilum.objective.dense_rule import DenseRule
from hilum.tensors import MapFeatures
from hilum.text.vocabulary import FINDINGS
from hilum.train.adapt_recipe import ClassifyRecipe
from hilum.train.exact_data import ExactBatch, ExactScans, stack
from hilum.train.exact_keep import KeptTask, card_at, fill, run_kept
from hilum.train.exact_run import rounded
from hilum.train.exact_scans import preps_agree, sides_of
from hilum.train.exact_valid import Choice, Judged, choose
from hilum.train.loop import Report
from hilum.train.parallel import device_of
from hilum.train.task import Losses

PAPER_POSITIVES = (
    9.211, 2.384, 8.295, 32.863, 2.992, 6.065, 3.176, 4.187, 3.022, 1.216, 1.678, 3.153, 7.123, 18.166,
    13.848, 6.335, 10.817, 13.407,
)  # fmt: skip
"""Absent over present per finding as EXACT has it (§2.1b)."""


class ClassifyRun(KeptTask):
    """Heads on frozen features; the model itself is no part of the student.

    Args:
        recipe: of the run. scans: that it learns from. base: the model, filled. card: of it.
    """

    recipe: ClassifyRecipe

    def __init__(
        self, recipe: ClassifyRecipe, scans: ExactScans, base: YMamba, card: Mapping[str, Any]
    ) -> None:
        super().__init__(recipe, scans, str(card["sha256"]))
        self.base, self.card = base.eval().requires_grad_(False), card
        self.rule = DenseRule.from_facts(card["rule"])
        f = torch.tensor(scans.prevalence())
        measured = ((1 - f) / f).tolist()
        self.positives = PAPER_POSITIVES if recipe.positives == "paper" else tuple(measured)
        self._held: dict[str, torch.Tensor] = {}

    @property
    def preset(self) -> str:
        """See `KeptTask`."""
        return str(self.card["preset"])

    def student(self) -> MapHeads:
        """See `Task`."""
        torch.manual_seed(self.recipe.seed)
        return MapHeads(self.base.config.widths[LEVEL], len(FINDINGS), self.recipe.dropout)

    def known(self, batch: ExactBatch) -> dict[str, torch.Tensor]:
        """See `DenseTask`."""
        return {"findings": (~torch.isnan(batch.labels)).sum()}

    def sums(self, model: nn.Module, part: ExactBatch, step: int) -> Losses:
        """See `DenseTask`."""
        logits = model(self.features(part)).float()
        weight = torch.tensor(self.positives, device=logits.device)
        truth = torch.nan_to_num(part.labels)
        each = F.binary_cross_entropy_with_logits(logits, truth, pos_weight=weight, reduction="none")
        return {"findings": (each * ~torch.isnan(part.labels)).sum()}

    @torch.no_grad()
    def features(self, part: ExactBatch) -> MapFeatures:
        """What the frozen encoder says of the gated maps of the frozen model, one scan at a time."""
        return torch.stack([self._features(scan, part.keys[b]) for b, scan in enumerate(part.parts(1))])

    def _features(self, scan: ExactBatch, key: str) -> torch.Tensor:
        if key not in self._held:
            self.base.to(scan.scan.device)
            out = self.base(scan.scan)
            found = read_maps(out.organs, out.low, out.high, self.rule, scan.voxel_ml)
            features = map_features(self.base, found.high * found.gates)[0].float()
            if not self.recipe.keep_features:
                return features
            self._held[key] = features.cpu()
        return self._held[key].to(scan.scan.device)

    def rebuilt(self, tensors: dict[str, torch.Tensor]) -> MapHeads:
        """See `KeptTask`."""
        heads = self.student()
        heads.load_state_dict(tensors)
        return heads.eval()

    @torch.inference_mode()
    def judge(self, module: nn.Module, chosen: ExactScans) -> Choice:
        """See `KeptTask`."""
        device = device_of(self.recipe.device)
        heads, answers = module.to(device).eval(), []
        for i in range(len(chosen)):
            (batch,) = stack([chosen.sample(i, self.recipe.shape_vox)])
            logits = heads(self.features(batch.to(device)))
            answers.append(torch.sigmoid(logits.float())[0].cpu().numpy())
        return choose(np.stack(answers).astype(np.float32), chosen.labels)

    def weights(self, module: nn.Module) -> dict[str, torch.Tensor]:
        """See `KeptTask`: the model as it was, and the heads beside it."""
        heads = {f"map_heads.{name}": value for name, value in module.state_dict().items()}
        return {**self.base.state_dict(), **heads}

    def facts(self, judged: Judged | None) -> dict[str, Any]:
        """See `KeptTask`."""
        return {
            "rule": self.rule.facts(),
            "map_heads": {"dropout": self.recipe.dropout},
            "base": {key: self.card[key] for key in ("name", "sha256", "trained_on")},
            "thresholds": rounded(judged),
            "map_thresholds": self.card["map_thresholds"],
        }


def run_classify(recipe: ClassifyRecipe, out: Path, *, report: Report | None = None) -> Path:
    """Trains (or goes on); `out` is a model that reads scans, whose probabilities are the heads'.

    Raises:
        As of `exact_run.run_exact`.
    """
    task, chosen = classify_task(recipe)
    return run_kept(task, chosen, out, report=report)


def classify_task(recipe: ClassifyRecipe) -> tuple[ClassifyRun, ExactScans | None]:
    """Everything that a run needs, read and checked.

    Raises:
        UsageError: `CONFIG_VALUE`, the model reads no maps of scans that are prepared like these.
    """
    assert recipe.start is not None, "checked when the recipe was read"
    card = card_at(recipe.start)
    preset = preset_from(preset_data(str(card["preset"])))
    if not isinstance(preset, ExactPreset) or "rule" not in card:
        raise UsageError(
            "CONFIG_VALUE", "maps are those of a model of EXACT", got=card["preset"], path=recipe.start
        )
    base = build_exact(preset)
    if not isinstance(base, YMamba):
        raise UsageError(
            "CONFIG_VALUE", "maps are read by a network with levels", expected="ymamba", got=preset.network,
            path=recipe.start,
        )  # fmt: skip
    fill(base, recipe.start, preset.name)
    scans, chosen = sides_of(recipe)
    if preps_agree(scans) != card["prep"]:
        raise UsageError(
            "CONFIG_VALUE", "scans are prepared as the model's were", expected=card["prep"]["name"],
            got=preps_agree(scans)["name"], path=recipe.start,
        )  # fmt: skip
    return ClassifyRun(recipe, scans, base, card), chosen
