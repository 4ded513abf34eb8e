"""From a recipe of EXACT to a model folder that reads scans."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from hilum.io.weights import preset_data
from hilum.model.preset import build, preset_from
from hilum.train.exact_data import ExactScans
from hilum.train.exact_keep import KeptTask, fill, run_kept
from hilum.train.exact_recipe import ExactRecipe
from hilum.train.exact_scans import sides_of
from hilum.train.exact_student import ExactStudent, adapt, merge
from hilum.train.exact_task import OUTPUTS, ExactTask
from hilum.train.exact_valid import Choice, Judged, choose, scan_probabilities
from hilum.train.loop import Report
from hilum.train.parallel import device_of


class ExactRun(ExactTask, KeptTask):
    """EXACT with what it leaves."""

    @property
    def preset(self) -> str:
        """See `KeptTask`."""
        return self.recipe.preset

    def rebuilt(self, tensors: dict[str, torch.Tensor]) -> nn.Module:
        """See `KeptTask`: the network as its preset builds it, low-rank changes merged."""
        network = copy.deepcopy(self.network)
        adapt(network, self.recipe.adapt, self.recipe.lora_rank, OUTPUTS)
        student = ExactStudent(network)
        student.load_state_dict(tensors)
        return merge(student.network)

    def judge(self, module: nn.Module, chosen: ExactScans) -> Choice:
        """See `KeptTask`."""
        recipe = self.recipe
        device = device_of(recipe.device)
        answers = scan_probabilities(module, chosen, recipe.rule, device, recipe.shape_vox)
        return choose(answers, chosen.labels)

    def weights(self, module: nn.Module) -> Mapping[str, torch.Tensor]:
        """See `KeptTask`."""
        return module.state_dict()

    def facts(self, judged: Judged | None) -> dict[str, Any]:
        """See `KeptTask`. Voxel thresholds are the scan's: a finding is present only where some voxel is,
        and no voxel was ever outlined that could choose another."""
        thresholds = rounded(judged)
        return {
            "rule": self.recipe.rule.facts(),
            "prevalence": [round(f, 5) for f in self.prevalence],
            "thresholds": thresholds,
            "map_thresholds": thresholds,
        }


def rounded(judged: Judged | None) -> dict[str, float]:
    """Thresholds of a choice, none without one."""
    return {} if not isinstance(judged, Choice) else {s: round(t, 6) for s, t in judged.thresholds.items()}


def run_exact(recipe: ExactRecipe, out: Path, *, report: Report | None = None) -> Path:
    """Trains (or goes on); `out` gets `model.safetensors` and `card.json` of the best validation.

    Raises:
        LeakError: `PATIENT_LEAK`, splits share a patient.
        Others as of `train`, `read_manifest`, `open_store` and `load_weights`.
    """
    task, chosen = exact_task(recipe)
    return run_kept(task, chosen, out, report=report)


def exact_task(recipe: ExactRecipe) -> tuple[ExactRun, ExactScans | None]:
    """Everything that a run needs, read and checked, and the scans that choose."""
    torch.manual_seed(recipe.seed)
    network = build(preset_from(preset_data(recipe.preset)))
    sha256 = None if recipe.start is None else fill(network, recipe.start, recipe.preset)
    scans, chosen = sides_of(recipe)
    return ExactRun(recipe, scans, network, sha256), chosen
