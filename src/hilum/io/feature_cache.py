"""Features of scans on disk: made once by a frozen model, read at every step of a training.

A cache belongs to one model and one preparation; its folder is named by both. Every file carries the hash of
its numbers and of the scan they are of, and is compared with both when it is read.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hilum.errors import WeightsError
from hilum.io.atomic import atomic_write
from hilum.io.weights import load_weights, save_weights

FACTS = "facts.json"


@dataclass(frozen=True)
class FeatureCache:
    """A folder of features.

    Args:
        folder: of them. facts: of model and preparation.
    """

    folder: Path
    facts: Mapping[str, Any]

    def path(self, key: str) -> Path:
        """File of a scan; any key makes a file name."""
        return self.folder / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.safetensors"

    def has(self, key: str) -> bool:
        """Whether a scan's features are there; nothing is compared."""
        return self.path(key).is_file()

    def put(self, key: str, scan_sha256: str, tensors: Mapping[str, np.ndarray]) -> None:
        """Writes beside, flushes, renames. Floating point is kept in half precision, millimetres (`*_mm`) in
        single.

        Raises:
            OutputError: `OUTPUT_UNWRITABLE`.
        """
        kept = {n: t.astype(_kept_as(n)) if t.dtype.kind == "f" else t for n, t in tensors.items()}
        save_weights(self.path(key), kept, {"key": key, "scan": scan_sha256, "numbers": _digest(kept)})

    def get(self, key: str, scan_sha256: str | None = None) -> dict[str, np.ndarray]:
        """A scan's features.

        Args:
            scan_sha256: of the scan as it is now; None does not ask.

        Raises:
            WeightsError: `CACHE_STALE`, they are of another scan; `WEIGHTS_HASH`, `WEIGHTS_TRUNCATED`,
                `WEIGHTS_NONFINITE` for a damaged file.
        """
        path = self.path(key)
        tensors, told = load_weights(path)
        if _digest(tensors) != told.get("numbers"):
            raise WeightsError(
                "WEIGHTS_HASH", "features are what was written", got="other numbers", path=path
            )
        if told.get("key") != key or scan_sha256 not in (None, told.get("scan")):
            raise WeightsError(
                "CACHE_STALE", "features are of this scan", expected=f"{key}, {scan_sha256}",
                got=f"{told.get('key')}, {told.get('scan')}", path=path,
            )  # fmt: skip
        return tensors


def open_cache(root: str | Path, facts: Mapping[str, Any]) -> FeatureCache:
    """The cache of a model and a preparation, made if it is not there.

    Args:
        root: folder of caches. facts: JSON: sha256 of the model, the preparation, what else features depend
            on.

    Raises:
        WeightsError: `CACHE_STALE` for a folder whose facts were changed.
    """
    told = json.dumps(facts, sort_keys=True, allow_nan=False)
    folder = Path(root) / _name(told)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / FACTS
    if not path.exists():
        with atomic_write(path) as file:
            file.write(told.encode())
    elif (found := path.read_text(encoding="utf-8")) != told:
        raise WeightsError(
            "CACHE_STALE", "a cache is of its model", expected=told[:200], got=found[:200], path=path
        )
    return FeatureCache(folder, json.loads(told))


def cache_in(folder: str | Path) -> FeatureCache:
    """A cache that is there, by its own folder.

    Raises:
        WeightsError: `CACHE_STALE` for a folder that is none, or was renamed.
    """
    path = Path(folder) / FACTS
    try:
        told = path.read_text(encoding="utf-8")
        facts = json.loads(told)
    except (OSError, ValueError) as error:
        raise WeightsError("CACHE_STALE", "a cache says what it is of", got=error, path=path) from None
    if Path(folder).resolve().name != _name(told) or not isinstance(facts, dict):
        raise WeightsError(
            "CACHE_STALE", "a cache is of its model", expected=_name(told), got=Path(folder).name, path=path
        )
    return FeatureCache(Path(folder), facts)


def _name(facts: str) -> str:
    return f"features-{hashlib.sha256(facts.encode()).hexdigest()[:16]}"


def _kept_as(name: str) -> type[np.floating[Any]]:
    return np.float32 if name.endswith("_mm") else np.float16


def _digest(tensors: Mapping[str, np.ndarray]) -> str:
    found = hashlib.sha256()
    for name in sorted(tensors):
        tensor = np.ascontiguousarray(tensors[name])
        found.update(f"{name} {tensor.dtype.str} {tensor.shape}".encode())
        found.update(tensor.tobytes())
    return found.hexdigest()
