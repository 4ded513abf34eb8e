"""A space of scans and texts, examined: retrieval both ways, diseases asked in words, sentences placed.

Everything is read from kept windows (`hilum features`); several models on the same scans, on the same draws
of patients. Baselines that need no model stand beside them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hilum.cohort.joint_samples import SAMPLES, JointSample, read_samples
from hilum.errors import RunError
from hilum.exam.bootstrap import (
    Draws,
    Interval,
    Values,
    auroc_draws,
    interval,
    listed,
    macro_draws,
    mean_draws,
    patient_draws,
    precision_draws,
)
from hilum.exam.depth_errors import Placed, measured, middle_errors, prior_errors, random_errors
from hilum.exam.retrieval import Protocol, kept, map_at, ranks, recalls
from hilum.io.feature_cache import cache_in
from hilum.read.asked import direction
from hilum.read.encoder import LoadedEncoder
from hilum.read.joint import ScanInSpace, in_space, locate
from hilum.read.window_cache import windows_in
from hilum.text.prompt_bank import ENSEMBLES, ensemble_pairs
from hilum.text.vocabulary import FINDINGS
from hilum.train.text_bank import tower_rows

Figures = dict[str, tuple[Interval, Values]]
Steps = Callable[[str, int, int], None]
PROTOCOLS: tuple[Protocol, ...] = ("all", "first")
HIGHEST = "MAE mm, highest depth"
PRIOR_TOWER, PRIOR_TOKENS = "minilm", 512
"""Reads the sentences of the baseline that knows no scan."""


@dataclass(frozen=True)
class Examined:
    """One model.

    Args:
        name: of it. model: loaded. features: folder of windows as it reads them, with their samples.
    """

    name: str
    model: LoadedEncoder
    features: Path


@dataclass(frozen=True)
class JointExam:
    """Figures of every model and baseline.

    Args:
        split: that was measured. scans, patients, snippets: of it. figures: name of a model, or of a
            baseline -> measure -> value with interval, and draws. penalty: of the text prior.
    """

    split: str
    scans: int
    patients: int
    snippets: int
    figures: Mapping[str, Figures]
    penalty: float

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready; an interval is value, low, high."""
        told = {n: {m: listed(row) for m, (row, _) in own.items()} for n, own in self.figures.items()}
        facts = {"split": self.split, "scans": self.scans, "patients": self.patients}
        return facts | {"snippets": self.snippets, "prior_penalty": self.penalty, "figures": told}


def examine_joint(
    models: Sequence[Examined],
    *,
    split: str = "test",
    draws: int = 1000,
    seed: int = 0,
    steps: Steps = lambda what, done, total: None,
) -> JointExam:
    """All of it.

    Args:
        models: their features are of the same scans. split: measured; baselines learn from ``train`` and
            ``val``.
        draws, seed: of patients. steps: told what, how many more, of how many.

    Raises:
        RunError: `REPORT_UNMATCHED` for features of other scans. Others as of `read_samples` and `cache_in`.
    """
    every = _same_samples(models)
    samples = [s for s in every if s.split == split]
    drawn = patient_draws([s.patient for s in samples], draws, seed)
    spaces = {one.name: _spaces(one, samples, steps) for one in models}
    figures: dict[str, Figures] = {}
    for one in models:
        own = spaces[one.name]
        figures[one.name] = {
            **retrieval(one.model, samples, own, drawn),
            **zero_shot(one.model, samples, own, drawn),
            **localization(one.model, samples, own, drawn),
        }
    placed = {s: placed_of(models[0].features, [x for x in every if x.split == s]) for s in _splits(split)}
    asked = placed[split]
    prior, penalty = prior_errors(placed["train"], placed.get("val", placed["train"]), asked)
    for name, errors in (("middle", middle_errors(asked)), ("text alone", prior)):
        figures[name] = measured(errors, asked.of_scan, drawn)
    # an expectation has a mean alone
    chance = measured(random_errors(asked), asked.of_scan, drawn)
    figures["random"] = {name: chance[name] for name in ("MAE mm", "per-scan MAE mm")}
    return JointExam(
        split, len(samples), len({s.patient for s in samples}), len(asked.at_mm), figures, penalty
    )


def retrieval(
    model: LoadedEncoder, samples: Sequence[JointSample], spaces: Sequence[ScanInSpace], draws: Draws
) -> Figures:
    """Both directions in every language, every scan its own row and the first of each report; scans that
    look for scans."""
    scans = np.stack([space.report for space in spaces]).astype(np.float64)
    found: Figures = {}
    for language in sorted({r.language for s in samples for r in s.reports}):
        told = [next((r.text for r in s.reports if r.language == language), None) for s in samples]
        has = np.array([i for i, text in enumerate(told) if text is not None])
        own = [text for text in told if text is not None]
        texts = model.encode_text(own).astype(np.float64)
        for protocol in PROTOCOLS:
            rows = kept(own, protocol)
            similar = texts[rows] @ scans[has[rows]].T
            diagonal, weights = np.arange(len(rows), dtype=np.int64), draws[:, has[rows]]
            for way, table in (("text-scan", similar), ("scan-text", similar.T)):
                name = " ".join(x for x in (way, language, protocol) if x)
                found |= {f"{name} {k}": v for k, v in recalls(ranks(table, diagonal), weights).items()}
    labels = _labels(samples)
    for name, values in map_at(scans @ scans.T, labels).items():
        known = np.isfinite(values)
        drawn = mean_draws(values, draws)
        mean = float(values[known].mean()) if known.any() else float("nan")
        found[f"scan-scan {name}"] = (interval(mean, drawn), drawn)
    return found


def zero_shot(
    model: LoadedEncoder, samples: Sequence[JointSample], spaces: Sequence[ScanInSpace], draws: Draws
) -> Figures:
    """Macro AUROC and average precision of the 18 findings, asked in words."""
    scans, labels = np.stack([space.disease for space in spaces]), _labels(samples)
    found: Figures = {}
    for ensemble in ENSEMBLES:
        scores = np.stack([_asked(model, scans, ensemble, f.name) for f in FINDINGS], axis=1)
        for name, per in (("AUROC", auroc_draws), ("AP", precision_draws)):
            found[f"zero-shot {ensemble} {name}"] = _macro(per, scores, labels, draws)
    return found


def localization(
    model: LoadedEncoder, samples: Sequence[JointSample], spaces: Sequence[ScanInSpace], draws: Draws
) -> Figures:
    """Every placed sentence, in its own scan; and by the curve's highest depth, the paper's answer."""
    errors, highest, of_scan = list[float](), list[float](), list[int]()
    for i, (sample, space) in enumerate(zip(samples, spaces, strict=True)):
        if sample.snippets:
            found = locate(model, space, [p.text for p in sample.snippets])
            for one, placed in zip(found, sample.snippets, strict=True):
                errors.append(abs(one.z_mm - placed.z_mm))
                highest.append(abs(float(space.depth_mm[one.share.argmax()]) - placed.z_mm))
                of_scan.append(i)
    scans = np.array(of_scan, dtype=np.int64)
    figures = measured(np.array(errors), scans, draws)
    return figures | {HIGHEST: measured(np.array(highest), scans, draws)["MAE mm"]}


def placed_of(features: Path, samples: Sequence[JointSample]) -> Placed:
    """Placed sentences of scans, with what a frozen text tower says of them."""
    cache = cache_in(features)
    texts, spans, of_scan = list[str](), list[tuple[float, float, float]](), list[int]()
    for i, sample in enumerate(samples):
        if not sample.snippets:
            continue
        read = windows_in(cache.get(sample.key, sample.scan or None))
        depths = read.depth_mm[read.there]
        for snippet in sample.snippets:
            texts.append(snippet.text)
            spans.append((snippet.z_mm, float(depths.min()), float(depths.max())))
            of_scan.append(i)
    distinct = sorted(set(texts))
    rows = tower_rows(PRIOR_TOWER, PRIOR_TOKENS, distinct)
    index = {text: n for n, text in enumerate(distinct)}
    at, low, high = np.array(spans, dtype=np.float64).reshape(-1, 3).T
    return Placed(rows[[index[t] for t in texts]], at, low, high, np.array(of_scan, dtype=np.int64))


def _splits(split: str) -> list[str]:
    return list(dict.fromkeys(["train", "val", split]))


def _same_samples(models: Sequence[Examined]) -> list[JointSample]:
    told = [read_samples(one.features / SAMPLES) for one in models]
    if any(other != told[0] for other in told):
        raise RunError(
            "REPORT_UNMATCHED", "models are examined on the same scans and texts",
            got=[one.features.name for one in models], path=models[0].features,
        )  # fmt: skip
    return told[0]


def _spaces(one: Examined, samples: Sequence[JointSample], steps: Steps) -> list[ScanInSpace]:
    cache, found = cache_in(one.features), []
    for sample in samples:
        found.append(in_space(one.model, windows_in(cache.get(sample.key, sample.scan or None))))
        steps(one.name, 1, len(samples))
    return found


def _asked(model: LoadedEncoder, scans: np.ndarray, ensemble: str, name: str) -> np.ndarray:
    """One question of every scan."""
    pairs = ensemble_pairs(ensemble, name[:1].lower() + name[1:])
    return scans.astype(np.float64) @ direction(model, pairs)


def _labels(samples: Sequence[JointSample]) -> np.ndarray:
    rows = [[s.labels.get(f.slug, float("nan")) for f in FINDINGS] for s in samples]
    return np.array(rows, dtype=np.float64)


def _macro(
    per: Callable[..., Values], scores: np.ndarray, labels: np.ndarray, draws: Draws
) -> tuple[Interval, Values]:
    """Over the findings that the scans show both classes of."""
    columns, once = [], np.ones((1, draws.shape[1]))
    values = []
    for d in range(labels.shape[1]):
        known = np.isfinite(labels[:, d])
        truth = labels[known, d] == 1
        if truth.any() and not truth.all():
            columns.append(per(scores[known, d], truth, draws[:, known]))
            values.append(per(scores[known, d], truth, once[:, known])[0])
    drawn = macro_draws(np.stack(columns, axis=1))
    return interval(float(np.mean(values)), drawn), drawn
