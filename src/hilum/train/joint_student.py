"""Everything of a space of scans and texts that is trained, in one module, and the three losses of a step
(RadFinder §1.5)."""

from __future__ import annotations

import copy
from typing import NamedTuple

import torch
from torch import nn
from torch.nn import functional as F

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


class Standard(nn.Module):
    """Numbers of a frozen tower, each with mean 0 and deviation 1 over the training set: what all scans (all
    reports) have in common says nothing of any, and drowns what tells them apart. Folded into the first map
    when training is over (`fold`)."""

    mean: torch.Tensor
    deviation: torch.Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("deviation", torch.ones(width))

    @torch.no_grad()
    def fit(self, rows: torch.Tensor) -> None:
        """Of rows (N, W)."""
        self.mean.copy_(rows.mean(0))
        self.deviation.copy_(rows.std(0, correction=0).clamp_min(1e-3))

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        """(..., W)."""
        return (rows - self.mean) / self.deviation

    @torch.no_grad()
    def fold(self, first: nn.Linear) -> None:
        """Into the map that reads the rows: it then reads them as they are."""
        first.weight.div_(self.deviation)
        first.bias.sub_(first.weight @ self.mean)


class Shake(NamedTuple):
    """Against learning a small cohort by heart: some hundred scans are told apart by any of their numbers.

    Args:
        noise: normal, added to standardised rows. drop: chance of a number of all windows of a scan to become
            the mean.
    """

    noise: float = 0.0
    drop: float = 0.0

    def windows(self, rows: torch.Tensor) -> torch.Tensor:
        """Of scans (B, ..., E)."""
        if self.drop:
            each = rows.new_ones(len(rows), *[1] * (rows.dim() - 2), rows.shape[-1])
            rows = rows * F.dropout(each, self.drop)
        return self.texts(rows)

    def texts(self, rows: torch.Tensor) -> torch.Tensor:
        """Of texts (N, W)."""
        return rows + self.noise * torch.randn_like(rows) if self.noise else rows


class JointStudent(nn.Module):
    """Combiner and heads, and a text tower where that learns.

    Args:
        numbers: of the joint model. losses: parts that no loss reaches are not trained.
        text: with its weights, if `lora` is given. bias: of SigLIP at the start. fan: see `by_width`.
        shake: what is done to rows of frozen towers.
    """

    def __init__(
        self, numbers: JointNumbers, losses: JointLosses, text: TextTower | None = None,
        lora: JointLora | None = None, bias: float = -10.0, fan: bool = False,
        shake: Shake = Shake(),  # noqa: B008  frozen
    ) -> None:  # fmt: skip
        super().__init__()
        self.shake = shake
        self.joint = RadFinder(numbers.config())
        if fan:
            by_width(self.joint)
        nn.init.constant_(self.joint.scale.bias, bias)
        self.windows, self.depths = Standard(2 * numbers.window_width), Standard(numbers.window_width)
        self.reports, self.snippets = Standard(numbers.text_width), Standard(numbers.text_width)
        self.text, self.places = text, bool(losses.snippets)
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
        scans = joint.scans(self._shaken(self.windows(batch.both)), present, rescale)
        depths = self._depths(batch, present, rescale) if self.places else scans.disease[:, None]
        return JointSeen(
            scans.report, scans.disease, depths, self._reports(texts.reports),
            joint.snippets(self._told(self.snippets, texts.snippets)), self._reports(texts.prompts),
        )  # fmt: skip

    def _depths(self, batch: JointBatch, present: torch.Tensor, rescale: torch.Tensor) -> torch.Tensor:
        """(B, D, E), 0 for scans without a sentence that is placed: nobody asks for their depths."""
        asked = batch.of_scan.unique()
        if len(asked) == 0:
            # a gradient, if of nothing: ranks agree on what has one
            asked = torch.zeros(1, dtype=torch.int64, device=batch.both.device)
        rows = self._shaken(self.depths(batch.depths[asked]))
        found, _ = self.joint.depths(rows, present[asked], rescale)
        return found.new_zeros(len(batch), *found.shape[1:]).index_copy(0, asked, found)

    @torch.no_grad()
    def folded(self) -> RadFinder:
        """The joint part, reading rows as they come."""
        joint = copy.deepcopy(self.joint)
        self.windows.fold(joint.combiner.window_proj)
        self.depths.fold(joint.combiner.depth_proj)
        for standard, head in ((self.reports, joint.text_head), (self.snippets, joint.text_copy)):
            first = head.layers[0]
            assert isinstance(first, nn.Linear)
            standard.fold(first)
        return joint

    def _reports(self, texts: Texts) -> torch.Tensor:
        return self.joint.reports(self._told(self.reports, texts))

    def _told(self, standard: Standard, texts: Texts) -> torch.Tensor:
        rows = standard(self._pooled(texts))
        return self.shake.texts(rows) if self.training else rows

    def _shaken(self, rows: torch.Tensor) -> torch.Tensor:
        return self.shake.windows(rows) if self.training else rows

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
def by_width(joint: RadFinder) -> None:
    """Fresh maps as wide as Glorot and Bengio (AISTATS 2010) have them. The published deviation of 0.02 is
    about that for maps of 2,000; in narrow ones every layer of a head would shrink what tells scans apart."""
    for module in joint.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
    joint.combiner.start_depths()
    joint.copy_heads()


@torch.no_grad()
def fill_in(student: JointStudent, losses: JointLosses) -> None:
    """After training: what no loss reached takes the place of what it began as a copy of. Without placed
    sentences a depth is read as the windows' means are, and compared with what was trained on reports."""
    if losses.snippets:
        return
    joint = student.joint
    joint.combiner.start_depths()
    joint.text_copy.load_state_dict(joint.text_head.state_dict())
    student.snippets.load_state_dict(student.reports.state_dict())
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
