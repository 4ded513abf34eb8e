"""Weights in and out: safetensors only, checked before use. NumPy arrays, so that this room stays free of
torch.

Source: trust catalogue rows F01 to F06.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from hilum.errors import UsageError, WeightsError
from hilum.io.atomic import atomic_write
from hilum.io.hashing import sha256_of

FACTS = "facts"
"""The one metadata key: safetensors writes several in an order that changes from run to run."""

PICKLES = {".pt", ".pth", ".ckpt", ".bin", ".pkl", ".pickle"}


def load_weights(path: Path, *, sha256: str | None = None) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Tensors by name and the file's metadata.

    Raises:
        WeightsError: `WEIGHTS_PICKLE`, `WEIGHTS_HASH`, `WEIGHTS_TRUNCATED`, `WEIGHTS_NONFINITE`.
    """
    if path.suffix in PICKLES:
        raise WeightsError(
            "WEIGHTS_PICKLE", "weights are safetensors", expected=".safetensors", got=path.suffix, path=path
        )
    if sha256 is not None and (found := sha256_of(path)) != sha256:
        raise WeightsError(
            "WEIGHTS_HASH", "weights match their pinned hash", expected=sha256, got=found, path=path
        )
    try:
        with safe_open(path, framework="np") as file:
            raw = dict(file.metadata() or {})
            metadata = json.loads(raw[FACTS]) if FACTS in raw else raw
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
    except (SafetensorError, OSError, ValueError) as error:
        raise WeightsError(
            "WEIGHTS_TRUNCATED", "weights are a whole safetensors file", got=error, path=path
        ) from None
    for name, tensor in tensors.items():
        if tensor.dtype.kind == "f" and not np.isfinite(tensor).all():
            raise WeightsError(
                "WEIGHTS_NONFINITE", "weights are finite", expected="finite", got=name, path=path
            )
    return tensors, metadata


def save_weights(path: Path, tensors: Mapping[str, np.ndarray], metadata: Mapping[str, str]) -> str:
    """Write beside, flush, rename; returns the file's sha256. Equal contents are equal bytes."""
    facts = {FACTS: json.dumps(dict(metadata), sort_keys=True)}
    body = save({k: np.ascontiguousarray(v) for k, v in tensors.items()}, metadata=facts)
    with atomic_write(path) as file:
        file.write(body)
    return hashlib.sha256(body).hexdigest()


@contextmanager
def model_folder(name: str) -> Iterator[Path]:
    """The folder of a model, by its path or by the name of one that ships with the package.

    Raises:
        UsageError: `MODEL_UNKNOWN`.
    """
    if Path(name).is_dir():
        yield Path(name)
        return
    shipped = files("hilum") / "weights"
    known = sorted(p.name for p in shipped.iterdir() if (p / "model.safetensors").is_file())
    if name not in known:
        raise UsageError("MODEL_UNKNOWN", "a model ships with Hilum or is a folder", expected=known, got=name)
    with as_file(shipped / name) as folder:
        yield folder


def load_model(folder: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Card and weights of a model's folder, the weights verified by the card's hash.

    Raises:
        WeightsError: as of `load_weights`.
    """
    card = json.loads((folder / "card.json").read_text(encoding="utf-8"))
    return card, load_weights(folder / "model.safetensors", sha256=card["sha256"])[0]


def preset_names() -> list[str]:
    """Every preset that ships with the package, sorted."""
    folder = files("hilum.model") / "presets"
    return sorted(p.name.removesuffix(".json") for p in folder.iterdir() if p.name.endswith(".json"))


def preset_data(name: str) -> dict:
    """The JSON of a preset that ships with the package.

    Raises:
        UsageError: `PRESET_UNKNOWN` with the names that exist.
    """
    if name not in (known := preset_names()):
        raise UsageError("PRESET_UNKNOWN", "a preset ships with Hilum", expected=", ".join(known), got=name)
    path = files("hilum.model") / "presets" / f"{name}.json"
    return json.loads(path.read_text(encoding="utf-8"))
