"""A prepared cohort as the frozen-feature exam reads it: scans, labels and patients of three splits that
share nothing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float64, Int64

from hilum.cohort.manifest import MANIFEST, Manifest, read_manifest
from hilum.cohort.parts import split_parts
from hilum.cohort.store import STORE_FILE, Store, open_store, read_store_file
from hilum.errors import ContainerError, UsageError
from hilum.exam.unseen import require_cohorts_unseen
from hilum.io.hashing import sha256_of
from hilum.text.vocabulary import SLUGS

SPLITS = ("train", "val", "test")
SAME = ("axes", "spacing_mm", "clip_hu", "smooth", "anchor")
"""Settings of a preparation that a model and a store share; how values are scaled is undone from HU."""

Rows = Int64[np.ndarray, "R"]


@dataclass(frozen=True)
class FrozenCohort:
    """Scans in the order train, val, test.

    Args:
        root: of the preparation. manifest: of all of it. stores: by preset. keys, splits, patients: per scan.
        labels: per scan and finding; 1, 0 or NaN for unknown.
    """

    root: Path
    manifest: Manifest
    stores: Mapping[str, Store]
    keys: tuple[str, ...]
    splits: tuple[str, ...]
    patients: tuple[str, ...]
    labels: Float64[np.ndarray, "N D"]

    @property
    def store(self) -> Store:
        """The first of the stores."""
        return next(iter(self.stores.values()))

    def rows(self, split: str) -> Rows:
        """Places of its scans."""
        return np.flatnonzero(np.array(self.splits) == split).astype(np.int64)

    def patients_of(self, rows: Rows) -> list[str]:
        """Of these scans."""
        return [self.patients[n] for n in rows]

    def store_for(self, prep: Mapping[str, Any]) -> Store:
        """The store whose grid a model was trained on.

        Args:
            prep: of the model, as `EncoderConfig.prep`.

        Raises:
            UsageError: `GRID_MISMATCH`, none of them; nothing is resampled twice.
        """
        for store in self.stores.values():
            if all(store.prep.get(name) == prep.get(name) for name in SAME):
                return store
        wanted = ", ".join(f"{name} {prep.get(name)}" for name in SAME)
        raise UsageError(
            "GRID_MISMATCH",
            "a model is examined on the grid that it was trained on",
            expected=wanted,
            got=f"stores {', '.join(self.stores)}",
            path=self.root,
            hint=f"Run hilum prepare with --prep {prep.get('name')} into the same folder.",
        )

    def facts(self) -> dict[str, Any]:
        """For the result: hashes, sizes and preparations."""
        held = {split: self.rows(split) for split in SPLITS}
        return {
            "source": self.manifest.source,
            "manifest_sha256": sha256_of(self.root / MANIFEST),
            "stores": {
                name: {"sha256": read_store_file(store.root)["index_sha256"], "prep": dict(store.prep)}
                for name, store in self.stores.items()
            },
            "scans": {split: len(rows) for split, rows in held.items()},
            "patients": {split: len(set(self.patients_of(rows))) for split, rows in held.items()},
        }


def open_cohort(root: Path) -> FrozenCohort:
    """What `hilum prepare ROOT --prep PRESET --split ...` left; every two splits are audited.

    Raises:
        ContainerError: `NOT_FOUND`: no manifest, no finished store, or a store without some of the scans.
            `STORE_DAMAGED`. LeakError: `PATIENT_LEAK`. ReportError: as of `read_manifest`; `OPTION_UNKNOWN`
            for a missing split.
    """
    manifest = read_manifest(root)
    found = {path.parent.name: open_store(path.parent) for path in sorted(root.glob(f"*/{STORE_FILE}"))}
    # masks beside scans are no scans
    stores = {name: store for name, store in found.items() if store.prep["values"] != "bits"}
    if not stores:
        raise ContainerError(
            "NOT_FOUND",
            "a cohort has a store of prepared scans",
            expected=f"{root}/store-PRESET",
            got="none",
            path=root,
            hint="Run hilum prepare with --prep flexict-3d.",
        )
    parts = [split_parts(manifest, store, SPLITS) for store in stores.values()]
    keys = {split: parts[0][split].keys or () for split in SPLITS}
    for name, other in zip(stores, parts, strict=True):
        if any(set(other[split].keys or ()) != set(keys[split]) for split in SPLITS):
            raise ContainerError(
                "NOT_FOUND", "stores of one cohort hold the same scans", expected=f"as {next(iter(stores))}",
                got=name, path=root, hint="Run hilum prepare again for that preset.",
            )  # fmt: skip
    ordered = tuple((key, split) for split in SPLITS for key in keys[split])
    held = {row.record.key: row.record for row in manifest.rows()}
    labels = [[_number(held[key].labels.get(slug)) for slug in SLUGS] for key, _ in ordered]
    return FrozenCohort(
        root,
        manifest,
        stores,
        tuple(key for key, _ in ordered),
        tuple(split for _, split in ordered),
        tuple(held[key].patient for key, _ in ordered),
        np.array(labels, dtype=np.float64).reshape(len(ordered), len(SLUGS)),
    )


def require_untrained_on(card: Mapping[str, Any], cohort: FrozenCohort) -> str:
    """Stops before an exam on scans that pretraining saw, as far as the card's recipe says what it saw.

    Args:
        card: of an encoder, with the recipe of its stage.

    Returns:
        What could be looked at, in words, for the result.

    Raises:
        LeakError: `PATIENT_LEAK`, with the rows.
    """
    return require_cohorts_unseen(card, cohort.manifest.only("test"))


def _number(label: int | None) -> float:
    return float("nan") if label is None else float(label)
