"""From a manifest and its store to what a loader reads, split by split, and never across a leak (row E03)."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from hilum.cohort.audit import require_clean
from hilum.cohort.loader import Part
from hilum.cohort.manifest import Manifest
from hilum.cohort.store import Store


def split_parts(
    manifest: Manifest, store: Store, splits: Sequence[str], weight: float = 1.0
) -> dict[str, Part]:
    """One part per split, of the scans that the store holds.

    Args:
        manifest: of the cohort. store: made from it. splits: names; each two are audited. weight: of each
        part.

    Raises:
        LeakError: two splits share a patient, a scan or a report (`PATIENT_LEAK`, with rows).
        ReportError: a split that the manifest does not have (`OPTION_UNKNOWN`).
    """
    held = {name: manifest.only(name) for name in splits}
    for a, b in itertools.combinations(splits, 2):
        require_clean(held[a], held[b], (a, b))
    stored = set(store.keys)
    return {
        name: Part(store, weight, tuple(r.record.key for r in held[name].rows() if r.record.key in stored))
        for name in splits
    }
