"""Samples of `exact-chat`: features, report and frontend predictions of a scan, matched by name."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from hilum.errors import UsageError, WeightsError
from hilum.io.report_table import NOTHING, read_table
from hilum.text.label_file import read_label_file
from hilum.train.chat_recipe import ChatData

TENSOR = "features"


@dataclass(frozen=True)
class ChatSample:
    """One scan. present: 18 of 0 and 1; what is not known is 0, as a frontend that says nothing."""

    name: str
    features: Path
    report: str
    present: tuple[int, ...]


def read_samples(data: ChatData) -> tuple[ChatSample, ...]:
    """Every scan that has all three, by name.

    Raises:
        UsageError: `CONFIG_VALUE`, there is none.
        ContainerError, ReportError: as of the readers of both tables.
    """
    found = {path.name.removesuffix(".safetensors"): path for path in data.features.glob("*.safetensors")}
    told = {_stem(row.key): row for row in read_table(data.reports) if not row.refused}
    labels = {_stem(name): row for name, row in read_label_file(data.predictions).rows.items()}
    samples = []
    for name in sorted(found.keys() & told.keys() & labels.keys()):
        text = "\n".join(t.strip() for _, t in told[name].parts if t.strip().lower() not in NOTHING)
        present = tuple(int(label == "present") for label in labels[name])
        samples += [ChatSample(name, found[name], text, present)] if text else []
    if not samples:
        raise UsageError(
            "CONFIG_VALUE", "a scan has features, a report and predictions", expected="one at least",
            got=f"{len(found)} features, {len(told)} reports, {len(labels)} predictions, none of one scan",
            path=data.features,
        )  # fmt: skip
    return tuple(samples)


def load_features(path: Path) -> torch.Tensor:
    """Features [C, U, V, W], float32.

    Raises:
        WeightsError: `WEIGHTS_TRUNCATED` for no whole file, `WEIGHTS_KEYS` without the tensor or with other
            axes, `WEIGHTS_NONFINITE`.
    """
    try:
        with safe_open(path, framework="pt") as file:
            if TENSOR not in file.keys():  # noqa: SIM118 (not a dict)
                raise WeightsError("WEIGHTS_KEYS", "features have their tensor", expected=TENSOR, path=path)
            value = file.get_tensor(TENSOR).float()
    except (SafetensorError, OSError) as error:
        raise WeightsError("WEIGHTS_TRUNCATED", "features are a whole file", got=error, path=path) from None
    if value.ndim != 4:
        raise WeightsError(
            "WEIGHTS_KEYS", "features are [C, U, V, W]", expected=4, got=list(value.shape), path=path
        )
    if not torch.isfinite(value).all():
        raise WeightsError("WEIGHTS_NONFINITE", "features are finite", path=path)
    return value


def facts_of(samples: tuple[ChatSample, ...]) -> str:
    """A hash of names, reports, predictions and sizes of features."""
    rows = [[s.name, s.report, list(s.present), s.features.stat().st_size] for s in samples]
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest()


def _stem(name: str) -> str:
    return name.removesuffix(".gz").removesuffix(".nii")
