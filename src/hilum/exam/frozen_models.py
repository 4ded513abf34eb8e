"""Encoder folders -> features of a cohort's scans, and what stands beside them: networks that saw nothing,
and densities alone."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float32

from hilum.cohort.store import Store
from hilum.exam.features import FeatureView, Pooling, ScanFeatures, scan_features
from hilum.exam.frozen_cohort import FrozenCohort, require_untrained_on
from hilum.exam.plain_features import histogram_features, keeps_hu
from hilum.model.encoder import vit_of
from hilum.model.vit import ViT
from hilum.read.encoder import LoadedEncoder, load

AllFeatures = Float32[np.ndarray, "N F"]


@dataclass(frozen=True)
class Looking:
    """How scans are shown.

    Args:
        patch: voxels; None takes each encoder's own. every: one axial slice in so many, for models of slices.
        pooling: of `features.POOLINGS`. bf16: matrix products in bfloat16. device: where networks run.
        cache: folder of kept features, None for none.
    """

    patch: int | None = None
    every: int = 4
    pooling: Pooling = "cls+mean"
    bf16: bool = False
    device: str = "cpu"
    cache: Path | None = None


@dataclass(frozen=True)
class Named:
    """Features of all scans of a cohort, in its order.

    Args:
        name: what the tables call them. features: one row per scan. facts: what they were made from.
    """

    name: str
    features: AllFeatures
    facts: dict[str, Any]


@dataclass(frozen=True)
class Loaded:
    """An encoder of the exam.

    Args:
        name: unique within the exam. model: the encoder. store: the cohort's, on the encoder's grid.
        seen: what could be looked at of the scans that it was trained on.
    """

    name: str
    model: LoadedEncoder
    store: Store
    seen: str

    @property
    def vision(self) -> ViT:
        """Its backbone."""
        return vit_of(self.model.encoder)

    @property
    def kind(self) -> str:
        """What was trained: ``2d``, ``3d`` or ``3d-vlm``."""
        return self.model.config.kind

    def facts(self) -> dict[str, Any]:
        """For the result."""
        keys = ("sha256", "synthetic", "trained_on", "stage", "steps", "licence")
        told = {key: self.model.card[key] for key in keys if key in self.model.card}
        where = {"name": self.name, "kind": self.kind, "store": self.store.root.name}
        return {**where, **told, "unseen": self.seen}


def load_all(
    folders: Sequence[Path], cohort: FrozenCohort, device: str, names: Sequence[str] | None = None
) -> list[Loaded]:
    """Encoders, strictly; each is checked against the exam's test split before anything is computed.

    Args:
        folders: of encoders. cohort: of the exam. device: where they run.
        names: one each; None takes the cards'.

    Raises:
        UsageError: `GRID_MISMATCH`, the cohort has no store on an encoder's grid. LeakError: `PATIENT_LEAK`.
        Others as of `hilum.read.encoder.load`.
    """
    found: list[Loaded] = []
    for n, folder in enumerate(folders):
        model = load(folder, device)
        store = cohort.store_for(model.config.prep)
        seen = require_untrained_on(model.card, cohort)
        wanted = str(model.card["name"]) if names is None else names[n]
        found.append(Loaded(_unique(wanted, [one.name for one in found]), model, store, seen))
    return found


def features_of(
    loaded: Sequence[Loaded],
    cohort: FrozenCohort,
    looking: Looking,
    seed: int,
    on_scans: Callable[[int], None] | None = None,
) -> Iterator[Named]:
    """Densities, then for each kind of backbone one that saw nothing, then the encoders in their order; a
    model of slices both by slices and by its kernels inflated to volumes.

    Args:
        loaded: encoders. cohort: whose scans. looking: how they are shown. seed: of fresh networks.
        on_scans: called with the number of scans just done.
    """
    store = cohort.store
    if keeps_hu(store):
        yield Named("densities", histogram_features(store, cohort.keys, on_scans), {"store": store.root.name})
    for name, vision, one, view in _untrained(loaded, looking, seed):
        yield _named(name, vision, one, view, cohort, looking, on_scans)
    for one in loaded:
        for way, vision, view in ways(one, looking):
            yield _named(f"{one.name}: {way}", vision, one, view, cohort, looking, on_scans)


def passes(loaded: Sequence[Loaded], cohort: FrozenCohort, looking: Looking, seed: int) -> int:
    """How many sets of features `features_of` gives."""
    own = sum(len(list(ways(one, looking))) for one in loaded)
    return int(keeps_hu(cohort.store)) + own + len(list(_untrained(loaded, looking, seed)))


def ways(one: Loaded, looking: Looking) -> Iterator[tuple[str, ViT, FeatureView]]:
    """How an encoder can be shown a scan: ``volume``, or ``slices`` and ``inflated``."""
    vision, config = one.vision, one.model.config
    own = {axes: looking.patch or _patch(one, axes) for axes in (2, 3)}
    view = FeatureView("volume", own[3], config.field_vox, config.view_vox, looking.every, bf16=looking.bf16)
    if one.kind != "2d":
        yield "volume", vision, view
        return
    by_slice = config.prep["values"] == "zscore-slice"
    yield "slices", vision, replace(view, kind="slices", patch=own[2], by_slice=by_slice)
    if one.store.prep["values"] != "zscore-slice":
        inflated = ViT(vision.config).to(vision.cls.device)
        inflated.load_state_dict(vision.state_dict())
        inflated.inflate()
        yield "inflated", inflated, view


def _patch(one: Loaded, axes: int) -> int | tuple[int, ...]:
    """The config's; slices take the first two of three."""
    patch = one.model.config.patch
    return patch if isinstance(patch, int) else tuple(patch[:axes])


def scan_features_of(
    one: Loaded, cohort: FrozenCohort, looking: Looking, on_scans: Callable[[int], None] | None = None
) -> ScanFeatures:
    """Of a model of volumes, with CLS and mean apart; kept ones are found again."""
    ((_, vision, view),) = ways(one, looking)
    return scan_features(vision, one.store, cohort.keys, view, cache=looking.cache, on_scans=on_scans)


def _untrained(
    loaded: Sequence[Loaded], looking: Looking, seed: int
) -> Iterator[tuple[str, ViT, Loaded, FeatureView]]:
    """One per backbone, store and view that an encoder has; a fresh network has nothing to inflate."""
    done: list[Any] = []
    taken: list[str] = []
    for one in loaded:
        for way, vision, view in ways(one, looking):
            same = (vision.config, one.store.root, view)
            if way == "inflated" or same in done:
                continue
            done.append(same)
            fresh = ViT(vision.config)
            fresh.reset(torch.Generator().manual_seed(seed))
            name = f"untrained {one.model.config.backbone.get('name', 'network')}: {way}"
            if view.view_vox is not None:
                name += f" of {' × '.join(map(str, view.view_vox))}"
            taken.append(_unique(name, taken))
            yield taken[-1], fresh.to(looking.device).eval(), one, view


def _named(
    name: str,
    vision: ViT,
    one: Loaded,
    view: FeatureView,
    cohort: FrozenCohort,
    looking: Looking,
    on_scans: Callable[[int], None] | None,
) -> Named:
    made = scan_features(vision, one.store, cohort.keys, view, cache=looking.cache, on_scans=on_scans)
    return Named(name, made.pooled(looking.pooling), {**made.facts, "pooling": looking.pooling})


def _unique(name: str, taken: Sequence[str]) -> str:
    """The name, with a number where it is taken: tables and differences go by names."""
    numbered = (f"{name} ({n})" for n in itertools.count(2))
    return next(wanted for wanted in itertools.chain([name], numbered) if wanted not in taken)
