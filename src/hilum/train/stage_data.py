"""Scans of a stage: views, masks, captions and sentences of sample k, a function of seed and k alone.

A step sees the same scans, views and masks on any number of ranks (`train.stream`).
"""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from hilum.cohort.loader import CropLoader, Part
from hilum.cohort.pipeline import zscore_slices
from hilum.cohort.store import Store
from hilum.errors import UsageError
from hilum.objective.masks import patch_mask, view_ratios
from hilum.tensors import PatchMask, ScanCrop
from hilum.text.captions import Pair, ScanText, draw_caption, draw_pairs
from hilum.train.stage_recipe import StageRecipe
from hilum.train.stream import SampleStream, generator_of
from hilum.train.views import Views, stack_views
from hilum.train.views_slice import draw_sides, slice_views
from hilum.train.views_volume import volume_views


@dataclass(frozen=True)
class StageSample:
    """One scan of a step.

    Args:
        key: of the scan. views: of it. masks: patches of each whole view that the student does not see.
        patch: size of a patch in this step. scale: slope and intercept of its values over HU.
        caption: "" for none. pairs: sentences with their opposites.
    """

    key: str
    views: Views
    masks: PatchMask
    patch: int
    scale: tuple[float, float] = (1.0, 0.0)
    caption: str = ""
    pairs: tuple[Pair, ...] = ()


@dataclass(frozen=True)
class StageBatch:
    """A rank's scans of a step.

    Args:
        views: [V, B, 1, ...]. masks: [B, V, N]. scale: [B, 2] slope and intercept of values over HU.
    """

    keys: tuple[str, ...]
    views: Views
    masks: torch.Tensor
    patch: int
    scale: torch.Tensor
    captions: tuple[str, ...] = ()
    pairs: tuple[tuple[Pair, ...], ...] = ()

    def __len__(self) -> int:
        return len(self.keys)

    def to(self, device: torch.device) -> StageBatch:
        """The same with its tensors there."""
        views = self.views
        anchor = None if views.anchor is None else views.anchor.to(device)
        moved = Views(views.whole.to(device), views.parts.to(device), anchor)
        return replace(self, views=moved, masks=self.masks.to(device))

    def parts(self, scans: int | None) -> list[StageBatch]:
        """So many scans at a time; None for all at once."""
        size = scans or len(self)
        return [self.part(slice(first, first + size)) for first in range(0, len(self), size)]

    def part(self, rows: slice) -> StageBatch:
        """Some of its scans."""
        views = self.views
        anchor = None if views.anchor is None else views.anchor[:, rows]
        return StageBatch(
            self.keys[rows],
            Views(views.whole[:, rows], views.parts[:, rows], anchor),
            self.masks[rows],
            self.patch,
            self.scale[rows],
            self.captions[rows],
            self.pairs[rows],
        )


def stack_samples(samples: Sequence[StageSample]) -> StageBatch:
    """A batch of samples of one step."""
    return StageBatch(
        tuple(s.key for s in samples),
        stack_views([s.views for s in samples]),
        torch.stack([s.masks for s in samples]),
        samples[0].patch,
        torch.tensor([s.scale for s in samples]),
        tuple(s.caption for s in samples),
        tuple(s.pairs for s in samples),
    )


def patch_of(recipe: StageRecipe, step: int) -> int:
    """The size of a patch in a step, the same on every rank."""
    drawn = torch.randint(len(recipe.patches), (), generator=generator_of(recipe.seed, "patch", step))
    return recipe.patches[int(drawn)]


class StageStream(SampleStream[StageSample]):
    """One rank's samples of a stage.

    Args:
        recipe: of the stage. parts: stores with keys. texts: what each scan's report gives; patients: whose
            scan it is (both for stages with text). start: first step. rank, ranks: of this process.

    Raises:
        UsageError: `CONFIG_VALUE` for stores that hold no z-scores, or a batch that ranks cannot share.
    """

    def __init__(
        self,
        recipe: StageRecipe,
        parts: Sequence[Part],
        *,
        texts: Mapping[str, ScanText] | None = None,
        patients: Mapping[str, str] | None = None,
        start: int = 0,
        rank: int = 0,
        ranks: int = 1,
    ) -> None:
        super().__init__(recipe.batch, start=start, rank=rank, ranks=ranks)
        for part in parts:
            _must_be_scores(part, recipe)
        self.recipe = recipe
        self.texts, self.patients = texts or {}, patients or {}
        self.scans = CropLoader(parts, shape_vox=None, seed=recipe.seed, slices=recipe.slices is not None)
        self._tellers = sorted(key for key, text in self.texts.items() if text.positives)

    def sample(self, k: int) -> StageSample:
        """Sample k of the whole run."""
        recipe, (step, index) = self.recipe, divmod(k, self.recipe.batch)
        crop = self.scans.sample(k)
        views = self._views(crop.image, step, generator_of(recipe.seed, "views", k))
        patch = patch_of(recipe, step)
        grid = [n // patch for n in views.whole.shape[2:]]
        masks = self._masks(step, index, grid, len(views.whole))
        sample = StageSample(
            crop.key, views, masks, patch, _over_hu(self.scans.parts[crop.part].store, crop.key)
        )
        if recipe.text is None:
            return sample
        rng = random.Random(f"{recipe.seed}/{k}")
        text = self.texts[crop.key]
        caption = draw_caption(text, rng, shuffle_chance=recipe.text.shuffle_chance)
        pairs = draw_pairs(text, self._others(crop.key, rng), rng, count=recipe.text.pairs)
        return replace(sample, caption=caption, pairs=tuple(pairs))

    def _views(self, image: ScanCrop, step: int, generator: torch.Generator) -> Views:
        recipe = self.recipe
        if recipe.slices is not None:
            sides = draw_sides(recipe.slices, generator_of(recipe.seed, "sides", step))
            return slice_views(zscore_slices(image, 0), sides, recipe.slices, generator)
        assert recipe.volumes is not None, "checked when the recipe was read"
        return volume_views(image, recipe.volumes, generator)

    def _masks(self, step: int, index: int, grid: Sequence[int], views: int) -> PatchMask:
        """Masks of one scan's whole views: how much each hides is dealt out over the step's views."""
        recipe, dealt = self.recipe, views * self.recipe.batch
        order = torch.randperm(dealt, generator=generator_of(recipe.seed, "dealt", step)).tolist()
        ratios = dict(zip(order, view_ratios(dealt, recipe.masks), strict=False))
        masks = []
        for view in range(views):
            place = view * recipe.batch + index
            generator = generator_of(recipe.seed, "mask", step, place)
            masks.append(patch_mask(grid, ratios.get(place, 0.0), generator, recipe.masks).flatten())
        return torch.stack(masks)

    def _others(self, key: str, rng: random.Random) -> list[ScanText]:
        """Texts of some other patients, who have findings to tell."""
        assert self.recipe.text is not None, "only stages with text ask"
        own = self.patients.get(key)
        drawn = rng.choices(self._tellers, k=self.recipe.text.others) if self._tellers else []
        return [self.texts[other] for other in drawn if self.patients.get(other) != own]


def _over_hu(store: Store, key: str) -> tuple[float, float]:
    """value = HU · slope + intercept, however the store keeps it."""
    trace = json.loads(store.row(key).trace)
    return float(trace["slope"]), float(trace["intercept"])


def _must_be_scores(part: Part, recipe: StageRecipe) -> None:
    # a z-score of a z-score is the z-score: slices may come from volumes
    fine = ("zscore-scan", "zscore-slice") if recipe.slices is not None else ("zscore-scan",)
    if part.store.prep["values"] not in fine:
        raise UsageError(
            "CONFIG_VALUE",
            "a stage learns from z-scores",
            expected=f"a store of {' or '.join(fine)}",
            got=part.store.prep["values"],
            path=part.store.root,
            hint="Prepare with --prep flexict-3d, or flexict-2d for slices.",
        )
