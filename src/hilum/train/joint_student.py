"""Everything of a space of scans and texts that is trained, in one module, and the three losses of a step
(RadFinder §1.5)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import nn

from hilum.model.causal_lm import with_lora
from hilum.model.radfinder import JointNumbers, RadFinder
from hilum.model.text_tower import TextTower
from hilum.objective.depth import TAU, depth_loss
from hilum.objective.prompts import prompt_logits, prompt_loss
from hilum.objective.siglip import siglip_loss
from hilum.tensors import TextIds, TextMask, TowerRows
from hilum.train.joint_data import JointBatch
from hilum.train.joint_recipe import JointLora, JointLosses

Texts = TowerRows | tuple[TextIds, TextMask]
"""What a frozen tower said of texts, or their tokens for one that learns."""


class JointTexts(NamedTuple):
    """Texts of a step."""

    reports: Texts
    snippets: Texts
    prompts: Texts


class JointSeen(NamedTuple):
    """Embeddings of a step; rows of length 1.

    Args:
        reports, diseases: of the scans (B, E), main and copied head. depths: (B, D, E).
        texts: of the reports (B, E). snippets: (S, E). prompts: (P, E).
    """

    reports: torch.Tensor
    diseases: torch.Tensor
    depths: torch.Tensor
    texts: torch.Tensor
    snippets: torch.Tensor
    prompts: torch.Tensor


class JointStudent(nn.Module):
    """Combiner and heads, and a text tower where that learns.

    Args:
        numbers: of the joint model. losses: parts that no loss reaches are not trained.
        text: with its weights, if `lora` is given. bias: of SigLIP at the start.
    """

    def __init__(
        self, numbers: JointNumbers, losses: JointLosses, text: TextTower | None = None,
        lora: JointLora | None = None, bias: float = -10.0,
    ) -> None:  # fmt: skip
        super().__init__()
        self.joint = RadFinder(numbers.config())
        nn.init.constant_(self.joint.scale.bias, bias)
        self.text = text
        if text is not None and lora is not None:
            text.requires_grad_(False)
            with_lora(text.model, lora.rank, lora.alpha, lora.dropout, lora.targets)
        self._rest(losses)

    def forward(
        self, batch: JointBatch, texts: JointTexts, present: torch.Tensor, rescale: torch.Tensor
    ) -> JointSeen:
        """One part of a step.

        Args:
            present: windows that are shown. rescale: of coordinates.
        """
        joint = self.joint
        scans = joint.scans(batch.both, present, rescale)
        depths, _ = joint.depths(batch.depths, present, rescale)
        return JointSeen(
            scans.report, scans.disease, depths, joint.reports(self._pooled(texts.reports)),
            joint.snippets(self._pooled(texts.snippets)), joint.reports(self._pooled(texts.prompts)),
        )  # fmt: skip

    def _pooled(self, texts: Texts) -> torch.Tensor:
        if isinstance(texts, torch.Tensor):
            return texts
        assert self.text is not None, "tokens are for a tower that learns"
        if len(texts[0]):
            return self.text(*texts)
        return torch.zeros(0, self.joint.config.text_width, device=texts[0].device)

    def _rest(self, losses: JointLosses) -> None:
        """What no loss reaches rests."""
        joint = self.joint
        if not losses.snippets:
            joint.text_copy.requires_grad_(False)
            joint.combiner.depth_proj.requires_grad_(False)
            if not losses.prompts:
                joint.image_copy.requires_grad_(False)
        if not losses.report:
            joint.image_head.requires_grad_(False)
            joint.scale.bias.requires_grad_(False)
            joint.scale.log_scale.requires_grad_(bool(losses.prompts))
            joint.text_head.requires_grad_(bool(losses.prompts))
            if not losses.prompts:
                joint.combiner.window_proj.requires_grad_(False)


@torch.no_grad()
def fill_in(joint: RadFinder, losses: JointLosses) -> None:
    """After training: what no loss reached takes the place of what it began as a copy of. Without placed
    sentences a depth is read as the windows' means are, and compared with what was trained on reports."""
    if losses.snippets:
        return
    joint.combiner.start_depths()
    joint.text_copy.load_state_dict(joint.text_head.state_dict())
    if not losses.prompts:
        joint.image_copy.load_state_dict(joint.image_head.state_dict())


def joint_losses(
    joint: RadFinder,
    seen: JointSeen,
    batch: JointBatch,
    shown: torch.Tensor,
    positive: torch.Tensor,
    groups: torch.Tensor,
    weights: JointLosses,
) -> dict[str, torch.Tensor]:
    """Named losses of the whole step, each already weighted; one with weight 0 is left out.

    Args:
        shown: (B, D) depths of which a window was shown. positive, groups: (Q,) of `objective.prompts`.
    """
    scale, bias = joint.scale()
    found = {}
    if weights.report:
        loss = siglip_loss(seen.reports, seen.texts, scale, bias, same=batch.reports)
        found["report"] = weights.report * loss
    if weights.prompts:
        present, absent = chosen_prompts(seen.prompts, batch.variants)
        logits = prompt_logits(seen.diseases, present, absent, scale)
        found["prompts"] = weights.prompts * prompt_loss(logits, batch.answers, positive, groups)
    if weights.snippets:
        of = batch.of_scan
        cosines = torch.einsum("se,sde->sd", seen.snippets, seen.depths[of])
        valid = (batch.there & shown)[of]
        loss = depth_loss(cosines / TAU, batch.depth_mm[of], valid, batch.at_mm, weights.sigma_mm)
        found["snippets"] = weights.snippets * loss
    return found


def chosen_prompts(prompts: torch.Tensor, variants: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The bank's sentences (Q · 2 · V, E), and which of them (N, Q, 2) -> present and absent (N, Q, E)."""
    questions = variants.shape[1]
    rows = prompts.unflatten(0, (questions, 2, -1))
    each = torch.arange(questions, device=prompts.device)
    return rows[each, 0, variants[:, :, 0]], rows[each, 1, variants[:, :, 1]]
