"""EXACT in small: organ masks and voxel anomaly maps from scan labels (EXACT §1.5, 1.7)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial, reduce

import torch
from torch.nn import functional as F

from hilum.model.fold import fold, rows
from hilum.model.preset import Preset
from hilum.model.ynet import OrganFeatures, YNet
from hilum.objective.mil import Pooled, least_open, organ_gate, pool_scan, voxel_counts
from hilum.objective.segmentation import segmentation_weight, tversky_focal
from hilum.objective.siblings import inherited
from hilum.tensors import GateRows, OrganTruth
from hilum.text.vocabulary import GATES, ORGAN_CHANNELS, ORGAN_OF
from hilum.train.batch import Batch
from hilum.train.boxes import Box, Boxes
from hilum.train.methods.scan_labels import scan_loss
from hilum.train.recipe import ObjectiveRecipe

PAPER_COUNT_LOW = 6
PAPER_COUNT_HIGH = 48
GATE_ML = {
    "lung": 4200.0,
    "airways": 200.0,
    "pleura": 2700.0,
    "mediastinum": 900.0,
    "heart": 900.0,
    "oesophagus": 80.0,
    "global": 12000.0,
}
"""About how large each organ channel is in a grown-up; only `voxel_scale` asks."""
OWN = 0.75
"""How much a finding's own size weighs in `voxel_scale` beside that of its gate."""
THIN = 4
"""Of how many cells in which siblings look alike a box reads one."""
LOUD = 0.01
"""Keeps the loss of a box near 1."""


def pooled_counts(preset: Preset, recipe: ObjectiveRecipe) -> tuple[list[int], list[int]]:
    """Voxels averaged into a scan probability, per finding, at half and full resolution."""
    if recipe.pool == "paper":
        return [PAPER_COUNT_LOW] * len(ORGAN_OF), [PAPER_COUNT_HIGH] * len(ORGAN_OF)
    return voxel_counts(preset.pool_ml, preset.voxel_ml * 8, 1), voxel_counts(preset.pool_ml, preset.voxel_ml)


def organ_rows(organs: OrganTruth) -> torch.Tensor:
    """Shares -> (B, N, O, 8) at half resolution, eight voxels of the full grid in each."""
    return rows(fold(organs)).unflatten(2, (-1, 8))


def organ_loss(features: OrganFeatures, batch: Batch, recipe: ObjectiveRecipe) -> torch.Tensor:
    """Tversky + focal on the full grid, and on the coarse heads while a deep network trains."""
    tversky = _tversky(recipe)
    loss = tversky(features.rows().transpose(1, 2), organ_rows(batch.organs).transpose(1, 2))
    for coarse in features.coarse:
        shares = F.avg_pool3d(batch.organs, batch.organs.shape[2] // coarse.shape[2])
        loss = loss + recipe.coarse_weight * tversky(coarse, shares)
    return segmentation_weight(batch.progress) * loss


def outline_loss(model: YNet, features: OrganFeatures, batch: Batch, recipe: ObjectiveRecipe) -> torch.Tensor:
    """Tversky + focal at half the voxel, in one box."""
    view = batch.fine
    assert view is not None, "the loop gives steps that learn outlines a finer view"
    logits = model.outlines(view.scan, features.crop(view.start, view.size))
    assert logits is not None, "the loop refuses a preset without outlines"
    return _tversky(recipe)(logits, view.organs)


def _tversky(recipe: ObjectiveRecipe) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
    return partial(
        tversky_focal,
        false_positive=recipe.tversky_fp,
        false_negative=recipe.tversky_fn,
        focal_alpha=recipe.focal_alpha,
    )


def shared_gate(
    features: Sequence[OrganFeatures], batches: Sequence[Batch], least: Sequence[int], kind: str
) -> GateRows:
    """Where evidence may lie. Siblings look at the same voxels: any of them that is open in one."""
    given = [organ_rows(batch.organs) >= 0.5 for batch in batches]
    if kind == "given":
        opened = given
    else:
        # the gate carries no gradient: anomalies never teach the organs to hide
        opened = [organ_gate(torch.sigmoid(f.rows().detach()), least) for f in features]
        if kind == "either":
            opened = [found | truth for found, truth in zip(opened, given, strict=True)]
    return reduce(torch.logical_or, opened)


def anomaly_loss(
    model: YNet,
    organs: Sequence[OrganFeatures],
    batches: Sequence[Batch],
    preset: Preset,
    recipe: ObjectiveRecipe,
) -> torch.Tensor:
    """The scan labels' loss at both resolutions."""
    counts = pooled_counts(preset, recipe)
    least = least_open(counts[1], ORGAN_OF, len(ORGAN_CHANNELS))
    gate = shared_gate(organs, batches, least, recipe.gate)[0]
    # cells outside every gate (the air around the body) say nothing
    where = gate.flatten(1).any(dim=1).nonzero().flatten()
    gate = gate.index_select(0, where)
    scans = []
    for found, batch in zip(organs, batches, strict=True):
        low, high = model.anomaly_heads.rows(model.anomaly_cells(batch.scan, found).pick(where))
        scans.append(pool_scan(low, high, gate, GATES, counts))
    return torch.stack(
        [scan_loss(Pooled.stack(level), batches, recipe) for level in zip(*scans, strict=True)]
    ).mean()


def box_loss(model: YNet, seen: Boxes, preset: Preset, recipe: ObjectiveRecipe) -> torch.Tensor:
    """What siblings say of each other's voxels, in a few boxes."""
    weight = model.anomaly_heads.cell.weight
    scale = voxel_scale(preset).to(weight.device)
    # a gradient, if of nothing, even where no box could be drawn
    loss = 0.0 * weight.sum()
    for box in seen.boxes:
        where, counts = asked_cells(box)
        cells = [one.pick(where) for one in model.anomaly_box(box.scan, box.shares, box.inner)]
        low, high = (torch.stack(x) for x in zip(*map(model.anomaly_heads.rows, cells), strict=True))
        votes = inherited(
            low, high, box.gates[where], box.labels, box.differs[where], counts,
            explain=recipe.explain, votes_for=recipe.votes_for,
        )  # fmt: skip
        loss = loss + (votes * scale).sum()
    return loss / recipe.boxes


def asked_cells(box: Box) -> tuple[torch.Tensor, torch.Tensor]:
    """Which cells of a box are read (N,), and for how many each stands: all where siblings differ, and one
    in `THIN` of the others, which can only say that nothing is there and resemble their neighbours. A cell
    outside every gate says nothing."""
    where = box.gates.flatten(1).any(1).nonzero().flatten()
    alike = ~box.differs[where].any(1)
    kept = ~alike
    kept[alike.nonzero().flatten()[::THIN]] = True
    return where[kept], torch.where(alike[kept], float(THIN), 1.0)


def voxel_scale(preset: Preset) -> torch.Tensor:
    """Weight of each finding's votes: a geometric mean of the voxels that it has and of those that its gate
    has, so that small findings in large organs are heard and do not shout."""
    gates = [sum(GATE_ML[ORGAN_CHANNELS[organ]] for organ in organs) for organs in GATES]
    mean_ml = [own**OWN * gate ** (1 - OWN) for gate, own in zip(gates, preset.pool_ml, strict=True)]
    voxels = [ml / preset.voxel_ml for ml in mean_ml]
    return LOUD / torch.tensor(voxels)


def losses(
    model: YNet, batches: Sequence[Batch] | Boxes, preset: Preset, recipe: ObjectiveRecipe
) -> dict[str, torch.Tensor]:
    """`organs` and `anomaly`, or `boxes`, or `outlines`, each already weighted; their sum is minimised."""
    if isinstance(batches, Boxes):
        return {"boxes": box_loss(model, batches, preset, recipe)}
    return phase_losses(
        model, batches, recipe, "anomaly", lambda organs: anomaly_loss(model, organs, batches, preset, recipe)
    )


def phase_losses(
    model: YNet,
    batches: Sequence[Batch],
    recipe: ObjectiveRecipe,
    name: str,
    finding_loss: Callable[[Sequence[OrganFeatures]], torch.Tensor],
) -> dict[str, torch.Tensor]:
    """What a step of organs, of findings, of both or of outlines minimises.

    Args:
        name, finding_loss: how findings are learnt, from the scans' organ features.
    """
    learns = batches[0].learns
    # while findings or outlines are learnt alone, the encoder and the organ decoder rest
    with torch.set_grad_enabled(learns in ("organs", "both") and torch.is_grad_enabled()):
        organs = [model.organ_features(batch.scan) for batch in batches]
    if learns == "outlines":
        return {"outlines": outline_loss(model, organs[0], batches[0], recipe)}
    named = {}
    if learns != "findings":
        # siblings have the same organs: one of them is enough
        named["organs"] = organ_loss(organs[0], batches[0], recipe)
    if learns != "organs":
        named[name] = finding_loss(organs)
    return named
