"""Segmentation of what a data set outlines, from the network of a model, as a task (EXACT §2.3)."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from hilum.cohort.mask_sources import LESION
from hilum.errors import UsageError
from hilum.io.weights import preset_data
from hilum.model.map_heads import MaskNet
from hilum.model.preset import ExactPreset, build_exact, preset_from
from hilum.objective.segmentation import tversky_focal_each
from hilum.train.adapt_recipe import SegmentRecipe
from hilum.train.exact_data import ExactBatch, ExactScans, stack
from hilum.train.exact_keep import KeptTask, fill, run_kept
from hilum.train.exact_scans import sides_of
from hilum.train.exact_student import adapt, merge
from hilum.train.exact_valid import Judged
from hilum.train.loop import Report
from hilum.train.parallel import device_of
from hilum.train.stream import generator_of
from hilum.train.task import Losses

PUBLISHED = ("encoder.", "skips.", "seg.", "seg_last.")
"""What the publication takes of a model: encoder and organ decoder."""

TRIED = tuple(round(0.05 * n, 2) for n in range(1, 20))
"""Thresholds of which validation chooses one."""


@dataclass(frozen=True)
class SegmentChoice:
    """What validation scans say.

    Args:
        macro: mean Dice of the scans at `threshold`, which has the highest.
    """

    macro: float
    threshold: float
    measure: str = "dice"

    def told(self) -> dict[str, Any]:
        """See `Judged`."""
        return {"threshold": self.threshold}


class SegmentRun(KeptTask):
    """One mask, Tversky + focal.

    Args:
        recipe: of the run. scans: outlined ones. network: with its one more map. start: sha256 of the model
            whose weights it has, or None.
    """

    recipe: SegmentRecipe

    def __init__(self, recipe: SegmentRecipe, scans: ExactScans, network: MaskNet, start: str | None) -> None:
        super().__init__(recipe, scans, start)
        self.network = network

    @property
    def preset(self) -> str:
        """See `KeptTask`."""
        return self.recipe.preset

    def student(self) -> MaskNet:
        """See `Task`. What the mask does not ask, the other decoder's last maps, is not trained."""
        torch.manual_seed(self.recipe.seed)
        network = copy.deepcopy(self.network)
        adapt(network, self.recipe.adapt, self.recipe.lora_rank, (1,))
        for parameter in _idle(network):
            parameter.requires_grad_(False)
        return network

    def known(self, batch: ExactBatch) -> dict[str, torch.Tensor]:
        """See `DenseTask`."""
        return {"mask": batch.known.sum()}

    def sums(self, model: nn.Module, part: ExactBatch, step: int) -> Losses:
        """See `DenseTask`."""
        each = tversky_focal_each(
            model(part.scan),
            part.given.masks(),
            false_positive=self.recipe.tversky_fp,
            false_negative=self.recipe.tversky_fn,
        )
        return {"mask": (each * part.known).sum()}

    def rebuilt(self, tensors: dict[str, torch.Tensor]) -> nn.Module:
        """See `KeptTask`."""
        student = self.student()
        student.load_state_dict(tensors)
        return merge(student).eval()

    @torch.inference_mode()
    def judge(self, module: nn.Module, chosen: ExactScans) -> SegmentChoice:
        """See `KeptTask`."""
        device = device_of(self.recipe.device)
        module = module.to(device).eval()
        curves = []
        for i in range(len(chosen)):
            (batch,) = stack([chosen.sample(i, self.recipe.shape_vox)])
            if not bool(batch.known.any()):
                continue
            found = torch.sigmoid(module(batch.scan.to(device)))[0, 0].cpu().numpy()
            curves.append(dice_curve(found, batch.bits[0].numpy() > 0))
        if not curves:
            return SegmentChoice(float("nan"), 0.5)
        means = np.mean(curves, axis=0)
        return SegmentChoice(float(means.max()), TRIED[int(means.argmax())])

    def weights(self, module: nn.Module) -> Mapping[str, torch.Tensor]:
        """See `KeptTask`."""
        return module.state_dict()

    def facts(self, judged: Judged | None) -> dict[str, Any]:
        """See `KeptTask`."""
        threshold = judged.threshold if isinstance(judged, SegmentChoice) else 0.5
        return {"mask": {"reads": self.recipe.head, "threshold": threshold}, "thresholds": {}}


def dice_curve(found: np.ndarray, truth: np.ndarray) -> list[float]:
    """Dice at every threshold of `TRIED`; 1 where neither holds anything."""
    values = []
    for threshold in TRIED:
        inside = found > threshold
        total = int(inside.sum()) + int(truth.sum())
        values.append(1.0 if total == 0 else 2.0 * int((inside & truth).sum()) / total)
    return values


def run_segment(recipe: SegmentRecipe, out: Path, *, report: Report | None = None) -> Path:
    """Trains (or goes on); `out` is a folder that `read.mask_model.MaskModel` takes.

    Raises:
        As of `exact_run.run_exact`.
    """
    task, chosen = segment_task(recipe)
    return run_kept(task, chosen, out, report=report)


def segment_task(recipe: SegmentRecipe) -> tuple[SegmentRun, ExactScans | None]:
    """Everything that a run needs, read and checked.

    Raises:
        UsageError: `CONFIG_VALUE`, a preset without whole maps, or no scan with masks.
    """
    torch.manual_seed(recipe.seed)
    preset = preset_from(preset_data(recipe.preset))
    if not isinstance(preset, ExactPreset):
        raise UsageError("CONFIG_VALUE", "a preset that gives whole maps", got=recipe.preset)
    network = build_exact(preset)
    sha256 = None
    if recipe.start is not None:
        wanted = PUBLISHED if recipe.transfer == "published" else ("",)
        sha256 = fill(network, recipe.start, recipe.preset, wanted)
    scans, chosen = sides_of(recipe, (LESION,))
    scans = scans.pick(few_of(scans, recipe.few, recipe.seed))
    if not len(scans):
        raise UsageError(
            "CONFIG_VALUE", "a segmentation has outlined scans", expected="--masks findings", got="none"
        )
    return SegmentRun(recipe, scans, MaskNet(network, recipe.head), sha256), chosen


def few_of(scans: ExactScans, few: int | None, seed: int) -> list[int]:
    """Scans with a mask, of so many patients."""
    patients = sorted({scans.patients[i] for i in range(len(scans)) if scans.masked(i)})
    order = torch.randperm(len(patients), generator=generator_of(seed, "few")).tolist()
    taken = {patients[n] for n in order[: few or len(patients)]}
    return [i for i in range(len(scans)) if scans.masked(i) and scans.patients[i] in taken]


def _idle(network: MaskNet) -> list[nn.Parameter]:
    """Trained parameters that the mask does not depend on."""
    network(torch.zeros((1, 1, 32, 32, 32), dtype=next(network.parameters()).dtype)).sum().backward()
    idle = [p for p in network.parameters() if p.requires_grad and p.grad is None]
    network.zero_grad(set_to_none=True)
    return idle
