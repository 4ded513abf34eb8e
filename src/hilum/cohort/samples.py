"""One prepared scan with its truth, as training and exam read it back from disk."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from safetensors import safe_open

from hilum.geometry import Geometry
from hilum.phantom.narrator_sentence import Sentence


@dataclass(frozen=True)
class Sample:
    """One prepared phantom.

    Args:
        scan: int16 HU on `grid`. organs: uint8 (7, X, Y, Z), how much of each voxel is in each organ channel,
            255 for all of it. lesions: int32, bit d = finding d; None in training.
        labels: float32 (18,). key: seed as text.
        fine, fine_organs: int16 HU and packed organ masks (uint8, bit o = organ channel o) at half the voxel;
            None where they were not made.
        report: sentences of the scan's report with what each is about; () where none was written.
    """

    scan: torch.Tensor
    organs: torch.Tensor
    lesions: torch.Tensor | None
    labels: torch.Tensor
    grid: Geometry
    key: str
    fine: torch.Tensor | None = None
    fine_organs: torch.Tensor | None = None
    report: tuple[Sentence, ...] = ()

    def to(self, device: torch.device) -> Sample:
        """The same with its tensors there."""
        moved: dict[str, Any] = {k: v.to(device) for k, v in vars(self).items() if torch.is_tensor(v)}
        return replace(self, **moved)


def report_json(sentences: Sequence[Sentence]) -> str:
    """Sentences as they stand in a file's metadata: text, section, finding, status, further findings."""
    return json.dumps([[s.text, s.section, s.slug, s.status, s.also] for s in sentences])


def _report(told: str) -> tuple[Sentence, ...]:
    return tuple(
        Sentence(text, section, slug, status, tuple(also))
        for text, section, slug, status, also in json.loads(told)
    )


def load_report(path: Path) -> tuple[Sentence, ...]:
    """The report of one file alone; () where none was written."""
    with safe_open(path, framework="pt") as file:
        return _report(file.metadata().get("report", "[]"))


def load_labels(path: Path) -> torch.Tensor:
    """The 18 labels of one file alone."""
    with safe_open(path, framework="pt") as file:
        return cast(torch.Tensor, file.get_tensor("labels"))


def load(path: Path, *, finer: bool = True) -> Sample:
    """Read one file back. finer: with what it holds at half the voxel, most of its bytes."""
    with safe_open(path, framework="pt") as file:
        meta = file.metadata()
        names = {name for name in file.keys() if finer or not name.startswith("fine")}  # noqa: SIM118
        scan = file.get_tensor("scan")
        lesions, fine, fine_organs = (
            file.get_tensor(name) if name in names else None for name in ("lesions", "fine", "fine_organs")
        )
        shape = (int(scan.shape[0]), int(scan.shape[1]), int(scan.shape[2]))
        grid = Geometry(shape, np.array(json.loads(meta["affine_ras"])))
        organs, labels = file.get_tensor("organs"), file.get_tensor("labels")
        report = _report(meta.get("report", "[]"))
        return Sample(scan, organs, lesions, labels, grid, path.stem, fine, fine_organs, report)
