"""One prepared scan with its truth, as training and exam read it back from disk."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open

from hilum.geometry import Geometry


@dataclass(frozen=True)
class Sample:
    """One prepared phantom.

    Args:
        scan: int16 HU on `grid`. organs: uint8 (7, X, Y, Z), how much of each voxel is in each organ channel,
            255 for all of it. lesions: int32, bit d = finding d; None in training.
        labels: float32 (18,). key: seed as text.
    """

    scan: torch.Tensor
    organs: torch.Tensor
    lesions: torch.Tensor | None
    labels: torch.Tensor
    grid: Geometry
    key: str


def load(path: Path) -> Sample:
    """Read one file back."""
    with safe_open(path, framework="pt") as file:
        meta = file.metadata()
        names = set(file.keys())
        scan = file.get_tensor("scan")
        lesions = file.get_tensor("lesions") if "lesions" in names else None
        shape = (int(scan.shape[0]), int(scan.shape[1]), int(scan.shape[2]))
        grid = Geometry(shape, np.array(json.loads(meta["affine_ras"])))
        return Sample(scan, file.get_tensor("organs"), lesions, file.get_tensor("labels"), grid, path.stem)
