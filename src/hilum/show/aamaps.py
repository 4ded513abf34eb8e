"""Anomaly maps in the published file naming (EXACT §1.8), on the model's grid with its real affine.

    aamaps/{finding}_GT{y}_PD{yhat}_{high-res|low-res}_combined_pred.nii.gz
    aamaps/original_image.nii.gz   aamaps/prediction_info.txt

`finding` is CT-RATE's column. The publication writes the identity as affine, so that nobody can lay a map on
its scan; and it knows the truth: `y` is NA where nobody gave it. Maps are float32 and gated, so that the scan
probability can be computed again from the high resolution.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from hilum.errors import UsageError
from hilum.io.atomic import atomic_write
from hilum.io.nifti import write_nifti
from hilum.read.found import FindingReading
from hilum.read.reading import GridMaps, Reading
from hilum.text.vocabulary import INDEX

FOLDER = "aamaps"


def write_aamaps(
    folder: Path, reading: Reading, labels: Mapping[str, int | None] | None = None
) -> list[Path]:
    """Writes below `folder`, which exists; returns the files.

    Args:
        labels: slug -> 1, 0 or None, where the truth is known.

    Raises:
        UsageError: `NO_MATERIAL`, the reading has no maps on its model's grid.
    """
    maps = None if reading.material is None else reading.material.on_grid
    if maps is None:
        raise UsageError(
            "NO_MATERIAL", "maps on the model's grid are those of a fresh reading", got="none",
            hint="Read the scan again with a model of Hilum.",
        )  # fmt: skip
    known, files = labels or {}, []
    for finding in reading.findings:
        levels = {"high-res": maps.high} | ({} if maps.low is None else {"low-res": maps.low})
        for level, values in levels.items():
            path = folder / map_name(finding, known.get(finding.slug), level)
            heat = np.ascontiguousarray(values[INDEX[finding.slug]], dtype=np.float32)
            write_nifti(path, heat, maps.grid, f"hilum AAmap {finding.slug} {level}")
            files.append(path)
    if maps.shown is not None:
        path = folder / "original_image.nii.gz"
        write_nifti(
            path, np.ascontiguousarray(maps.shown, dtype=np.float32), maps.grid, "hilum prepared scan"
        )
        files.append(path)
    with atomic_write(folder / "prediction_info.txt") as file:
        file.write(_info(reading, maps, known).encode("utf-8"))
    return [*files, folder / "prediction_info.txt"]


def map_name(finding: FindingReading, truth: int | None, level: str) -> str:
    """The published name of one map."""
    said = "NA" if truth is None else str(truth)
    return f"{finding.name}_GT{said}_PD{int(finding.present)}_{level}_combined_pred.nii.gz"


def _info(reading: Reading, maps: GridMaps, known: Mapping[str, int | None]) -> str:
    lines = [reading.notice, f"model: {reading.model.name}, sha256 {reading.model.sha256}", ""]
    lines.append("finding\tground truth\tprediction\tprobability\tpooled from the high resolution\tthreshold")
    for finding in reading.findings:
        truth = known.get(finding.slug)
        numbers = (finding.probability, float(maps.pooled[INDEX[finding.slug]]), finding.threshold)
        told = "\t".join(f"{number:.6f}" for number in numbers)
        lines.append(f"{finding.name}\t{'NA' if truth is None else truth}\t{int(finding.present)}\t{told}")
    return "\n".join(lines) + "\n"
