"""MosMed: `studies/CT-0` ... `CT-4`, 1110 studies of as many people, 50 with a mask in `masks/`.

The folder is the degree of COVID-19 pneumonia, CT-0 none to CT-4 critical. Every tenth slice is public (8
mm).

Source: Morozov et al., arXiv 2005.06465.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from hilum.cohort.records import Label, MaskRef, ScanRecord
from hilum.cohort.sources.base import Source, SourceOptions, any_file, stem, volumes
from hilum.io.confine import relative_to

DEGREES = ("CT-0", "CT-1", "CT-2", "CT-3", "CT-4")
_FOLDER = re.compile(r"CT-?([0-4])")


def _detect(root: Path) -> bool:
    return any_file(root, "studies/CT-*/study_*.nii*")


def _records(root: Path, options: SourceOptions) -> Iterator[ScanRecord]:
    for path in volumes(root / "studies", "CT-*/study_*.nii*"):
        folder = _FOLDER.fullmatch(path.parent.name)
        name = stem(path)
        masks = volumes(root / "masks", f"{name}_mask.nii*")
        degree = f"CT-{folder[1]}" if folder else ""
        labels: dict[str, Label] = {f"mosmed/{d}": int(d == degree) for d in DEGREES} if folder else {}
        if folder:
            labels["covid_pneumonia"] = int(degree != "CT-0")
        yield ScanRecord(
            key=name,
            path=relative_to(root, path),
            patient=f"mosmed:{name}",
            study=name,
            labels=labels,
            masks=tuple(MaskRef("covid_lesion", relative_to(root, m)) for m in masks),
            notes=("every tenth slice",),
        )


SOURCE = Source("mosmed", "MosMed", "HU, by each file's own header", _detect, _records)
