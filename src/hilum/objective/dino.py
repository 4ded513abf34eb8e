"""DINO: a student's views say about a scan what the teacher's views say, as shares of prototypes.

Source: Caron et al., ICCV 2021, §3.1; targets by Sinkhorn-Knopp (`objective.sinkhorn`) as of DINOv2;
temperatures and weights in FlexiCT §2. Heads: `model.dino_head`.

Targets come in as an argument and are made once for the whole batch. The student may then run in
micro-batches: their losses, weighted by their rows, add up to the loss of the whole batch.
"""

from __future__ import annotations

import torch

from hilum.errors import UsageError
from hilum.objective.gather import mean_over_ranks
from hilum.objective.precision import full, without_autocast
from hilum.objective.sinkhorn import sinkhorn
from hilum.tensors import PrototypeLogits, PrototypeShares, RowWeights, Scalar, TeacherViews, ViewLogits

STUDENT_TEMPERATURE = 0.1


def view_targets(logits: TeacherViews, temperature: float, iterations: int = 3) -> TeacherViews:
    """Targets of all teacher's views together."""
    return sinkhorn(logits.flatten(0, 1), temperature, iterations).unflatten(0, logits.shape[:2])


def soft_cross_entropy(
    student: PrototypeLogits, targets: PrototypeShares, temperature: float = STUDENT_TEMPERATURE
) -> RowWeights:
    """Cross-entropy per row, in float32 also under autocast. A row of targets may sum to any number.

    Raises:
        UsageError: ``CONFIG_VALUE``, a temperature that is not positive.
    """
    if not temperature > 0:
        raise UsageError("CONFIG_VALUE", "a student's temperature", expected="above 0", got=temperature)
    with without_autocast(student):
        scaled = full(student) / temperature
        targets = full(targets)
        return torch.logsumexp(scaled, -1) * targets.sum(-1) - (targets * scaled).sum(-1)


def dino_loss(
    student: ViewLogits,
    targets: TeacherViews,
    *,
    same_views: bool,
    temperature: float = STUDENT_TEMPERATURE,
) -> Scalar:
    """Mean cross-entropy over pairs of a student's and a teacher's view and over the scans of all ranks.

    Args:
        student: logits of the student's views. targets: `view_targets` of the same scans.
        same_views: student and teacher saw the same views in the same order (global ones); no view is then
            compared with itself. False for local views.

    Raises:
        UsageError: ``CONFIG_VALUE``, the same views, but not as many of them, or only one.
    """
    views, teachers = len(student), len(targets)
    if same_views and (views != teachers or views < 2):
        raise UsageError(
            "CONFIG_VALUE",
            "global views are compared with each other, none with itself",
            expected="two or more of the student, as many of the teacher",
            got=f"{views} and {teachers}",
        )
    wanted = full(targets).sum(0).expand(views, *targets.shape[1:])
    if same_views:
        wanted = wanted - full(targets)
    pairs = views * (teachers - 1 if same_views else teachers)
    rows = soft_cross_entropy(student.flatten(0, 1), wanted.flatten(0, 1), temperature)
    return mean_over_ranks(rows.sum(), student.shape[1] * pairs)


def view_shares(global_views: int, local_views: int) -> tuple[float, float]:
    """What the global and the local loss weigh so that each pair of views counts alike: 2 and 8 views make 2
    and 16 pairs."""
    pairs = (global_views * (global_views - 1), global_views * local_views)
    return pairs[0] / max(sum(pairs), 1), pairs[1] / max(sum(pairs), 1)
