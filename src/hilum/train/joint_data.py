"""What a step of a space of scans and texts sees: kept windows of scans, numbers of texts, answers."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from hilum.cohort.joint_samples import SAMPLES, JointSample, read_samples
from hilum.errors import RunError, UsageError
from hilum.io.feature_cache import FeatureCache, cache_in
from hilum.text.prompt_bank import PromptBank
from hilum.train.joint_recipe import JointRecipe
from hilum.train.stream import SampleStream, generator_of


@dataclass(frozen=True)
class JointScans:
    """The scans of a run, and every text that it may see.

    Args:
        cache: of their windows. samples: those of the split. bank: questions.
        texts: distinct, reports and placed sentences first, prompts last. first_prompt: where those begin.
    """

    cache: FeatureCache
    samples: tuple[JointSample, ...]
    bank: PromptBank
    texts: tuple[str, ...]
    first_prompt: int

    def number_of(self) -> dict[str, int]:
        """Text -> its place in `texts`; prompts are found by `prompts`."""
        return {text: i for i, text in enumerate(self.texts[: self.first_prompt])}

    @property
    def prompts(self) -> torch.Tensor:
        """(Q · 2 · V,) numbers of the bank's sentences, in its order."""
        return torch.arange(self.first_prompt, len(self.texts))

    def answers(self) -> torch.Tensor:
        """(N, Q) 1, 0, or NaN for unknown."""
        names = [q.name for q in self.bank.questions]
        rows = [[sample.labels.get(name, float("nan")) for name in names] for sample in self.samples]
        return torch.tensor(rows, dtype=torch.float32)

    def facts(self) -> dict[str, Any]:
        """What a run that goes on must agree with."""
        told = [sample.model_dump_json() for sample in self.samples]
        digest = hashlib.sha256("\n".join([*told, *self.texts]).encode()).hexdigest()
        return {"features": dict(self.cache.facts), "samples": digest}


def read_joint(folder: Path, bank: PromptBank, split: str, apart: Sequence[str], shortest: int) -> JointScans:
    """Scans of a split, with at least one report that is worth reading.

    Args:
        apart: splits that must share no patient with it. shortest: words of such a report.

    Raises:
        WeightsError: `CACHE_STALE`. ReportError: `SAMPLES_DAMAGED`.
        RunError: `PATIENT_LEAK` for a patient of another split, `REPORT_EMPTY` for no scan at all.
    """
    cache, every = cache_in(folder), read_samples(folder / SAMPLES)
    chosen = [kept for s in every if s.split == split and (kept := _worth(s, shortest)).reports]
    _require_apart(chosen, [s for s in every if s.split in apart], folder)
    if not chosen:
        raise RunError(
            "REPORT_EMPTY", "scans of the split have reports", expected=f"split {split}",
            got=f"none of {len(every)} scans", path=folder,
        )  # fmt: skip
    if missing := [s.key for s in chosen if not cache.has(s.key)]:
        raise RunError(
            "REPORT_UNMATCHED", "every sample has features", expected=f"{len(chosen)} scans",
            got=missing[:5], path=folder,
        )  # fmt: skip
    said = [r.text for s in chosen for r in s.reports] + [p.text for s in chosen for p in s.snippets]
    texts = tuple(dict.fromkeys(said))
    return JointScans(cache, tuple(chosen), bank, (*texts, *bank.texts()), len(texts))


class JointExample(NamedTuple):
    """One scan of a step, with what was drawn of it.

    Args:
        windows: tensors of the cache. answers: (Q,). report: number of a text. snippets: (text, mm).
        variants: (Q, 2) paraphrases.
    """

    key: str
    windows: dict[str, torch.Tensor]
    answers: torch.Tensor
    report: int
    snippets: list[tuple[int, float]]
    variants: torch.Tensor


@dataclass(frozen=True, eq=False)
class JointBatch:
    """Scans of a step on this rank, padded to one grid.

    Args:
        both: (B, U, V, W, 2 E). depths: (B, U, V, W, P, E). present: (B, U, V, W). depth_mm: (B, D).
        there: (B, D) depths of the scan itself. answers: (B, Q). variants: (B, Q, 2).
        reports: (B,) texts. snippets: (S,) texts. of_scan: (S,) scans of this batch. at_mm: (S,).
        prompts: texts of the bank, or a share of them.
    """

    keys: tuple[str, ...]
    both: torch.Tensor
    depths: torch.Tensor
    present: torch.Tensor
    depth_mm: torch.Tensor
    there: torch.Tensor
    answers: torch.Tensor
    variants: torch.Tensor
    reports: torch.Tensor
    snippets: torch.Tensor
    of_scan: torch.Tensor
    at_mm: torch.Tensor
    prompts: torch.Tensor

    def __len__(self) -> int:
        return len(self.keys)

    def to(self, device: torch.device) -> JointBatch:
        """The same with its tensors there."""
        moved: dict[str, Any] = {
            f.name: value.to(device) for f in fields(self) if torch.is_tensor(value := getattr(self, f.name))
        }
        return replace(self, **moved)

    def parts(self, micro: int | None) -> list[JointBatch]:
        """A few scans at a time, each with its sentences and a share of the prompts; joined in this order
        they are the whole."""
        if micro is None or micro >= len(self):
            return [self]
        starts = range(0, len(self), micro)
        shares = self.prompts.tensor_split(len(starts))
        return [self._some(first, first + micro, share) for first, share in zip(starts, shares, strict=True)]

    def _some(self, first: int, last: int, prompts: torch.Tensor) -> JointBatch:
        own = (self.of_scan >= first) & (self.of_scan < last)
        rows = ("both", "depths", "present", "depth_mm", "there", "answers", "variants", "reports")
        cut: dict[str, Any] = {name: getattr(self, name)[first:last] for name in rows}
        return replace(
            self, **cut, keys=self.keys[first:last], prompts=prompts, snippets=self.snippets[own],
            of_scan=self.of_scan[own] - first, at_mm=self.at_mm[own],
        )  # fmt: skip


class JointStream(SampleStream[JointExample]):
    """Scans in an order of their own in every epoch; what is drawn of each is a function of seed and
    place."""

    def __init__(
        self, recipe: JointRecipe, scans: JointScans, *, start: int = 0, rank: int = 0, ranks: int = 1
    ) -> None:
        super().__init__(recipe.batch, start=start, rank=rank, ranks=ranks)
        self.recipe, self.scans = recipe, scans
        self.answers, self.numbers = scans.answers(), scans.number_of()
        self._order: tuple[int, torch.Tensor] = (-1, torch.empty(0))

    def sample(self, k: int) -> JointExample:
        """See `SampleStream`."""
        epoch, position = divmod(k, len(self.scans.samples))
        if self._order[0] != epoch:
            drawn = generator_of(self.recipe.seed, "order", epoch)
            self._order = epoch, torch.randperm(len(self.scans.samples), generator=drawn)
        index = int(self._order[1][position])
        sample, generator = self.scans.samples[index], generator_of(self.recipe.seed, "drawn", k)
        report = sample.reports[_one(len(sample.reports), generator)]
        order = torch.randperm(len(sample.snippets), generator=generator)[: self.recipe.snippets]
        # by its place in the step, so that it does not matter which rank sees it
        asked = k % self.batch < (self.recipe.placed or self.batch)
        placed = [sample.snippets[int(i)] for i in order] if asked else []
        questions, variants = len(self.scans.bank.questions), self.scans.bank.variants
        return JointExample(
            key=sample.key,
            windows=tensors_of(self.scans.cache.get(sample.key, sample.scan or None)),
            answers=self.answers[index],
            report=self.numbers[report.text],
            snippets=[(self.numbers[p.text], p.z_mm) for p in placed],
            variants=torch.randint(variants, (questions, 2), generator=generator),
        )

    def collate(self, examples: list[JointExample]) -> JointBatch:
        """Examples -> a batch."""
        windows = pad_windows([example.windows for example in examples])
        placed = [(i, *snippet) for i, example in enumerate(examples) for snippet in example.snippets]
        return JointBatch(
            keys=tuple(example.key for example in examples),
            **windows,
            answers=torch.stack([example.answers for example in examples]),
            variants=torch.stack([example.variants for example in examples]),
            reports=torch.tensor([example.report for example in examples]),
            snippets=torch.tensor([text for _, text, _ in placed], dtype=torch.int64),
            of_scan=torch.tensor([i for i, _, _ in placed], dtype=torch.int64),
            at_mm=torch.tensor([mm for _, _, mm in placed], dtype=torch.float32),
            prompts=self.scans.prompts,
        )

    def batches(self, workers: int) -> Iterator[JointBatch]:
        """This rank's batch of every step."""
        yield from self.loader(workers, self.collate)


def tensors_of(arrays: dict[str, np.ndarray]) -> dict[str, torch.Tensor]:
    """Of a cache, features in float32."""
    return {
        name: torch.from_numpy(array).float() if array.dtype.kind == "f" else torch.from_numpy(array)
        for name, array in arrays.items()
    }


def pad_windows(scans: Sequence[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """Scans of different grids as one batch: `both`, `depths`, `present`, `depth_mm`, `there`.

    Raises:
        UsageError: `MODEL_INPUT` for scans whose windows have not as many depths.
    """
    per = {tuple(scan["depths"].shape[3:]) for scan in scans}
    if len(per) != 1:
        raise UsageError(
            "MODEL_INPUT", "windows of a batch have as many depths", expected="one number", got=sorted(per)
        )
    grid = [max(scan["both"].shape[axis] for scan in scans) for axis in range(3)]
    depths, width = next(iter(per))
    shape = (len(scans), *grid)
    found = {
        "both": torch.zeros(*shape, scans[0]["both"].shape[3]),
        "depths": torch.zeros(*shape, depths, width),
        "present": torch.zeros(shape, dtype=torch.bool),
        "depth_mm": torch.zeros(len(scans), grid[2] * depths),
        "there": torch.zeros(len(scans), grid[2] * depths, dtype=torch.bool),
    }
    for i, scan in enumerate(scans):
        u, v, w = scan["both"].shape[:3]
        found["both"][i, :u, :v, :w] = scan["both"]
        found["depths"][i, :u, :v, :w] = scan["depths"]
        found["present"][i, :u, :v, :w] = True
        found["depth_mm"][i, : w * depths] = scan["depth_mm"]
        found["there"][i, : w * depths] = scan["there"].bool()
    return found


def samples_facts(recipe: JointRecipe, scans: JointScans, tower: str) -> str:
    """What of a run decides its result; where things lie and how the work is shared does not."""
    beside = {"threads", "device", "parallel", "workers", "checkpoint_every", "track", "features", "micro"}
    facts = recipe.model_dump(mode="json", exclude=beside | {"name", "questions"})
    return json.dumps({**facts, **scans.facts(), "tower": tower}, sort_keys=True)


def _one(count: int, generator: torch.Generator) -> int:
    return int(torch.randint(count, (), generator=generator))


def _worth(sample: JointSample, shortest: int) -> JointSample:
    kept = tuple(r for r in sample.reports if len(r.text.split()) >= shortest)
    return sample.model_copy(update={"reports": kept})


def _require_apart(chosen: Sequence[JointSample], others: Sequence[JointSample], folder: Path) -> None:
    shared = sorted({s.patient for s in chosen} & {s.patient for s in others})
    if shared:
        raise RunError(
            "PATIENT_LEAK", "no patient is in two splits", expected="none", got=shared[:5], path=folder
        )
