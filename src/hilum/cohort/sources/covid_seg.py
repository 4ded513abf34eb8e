"""COVID-19-CT-Seg: 10 `coronacases_*` and 10 `radiopaedia_*` volumes with masks of lungs and infection.

The Radiopaedia ones were published as grey values of 0 to 255 and not HU: reading refuses them (`NOT_HU`).
Two of them may be one case: their name is `radiopaedia_<article>_<case>_<series>`.

Source: Ma et al., Medical Physics 48 (2021); doi 10.5281/zenodo.3757476.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from hilum.cohort.records import MaskRef, ScanRecord
from hilum.cohort.sources.base import Source, SourceOptions, any_file, stem, volumes
from hilum.io.confine import relative_to

NAME = re.compile(r"(?P<patient>coronacases_\d+|radiopaedia_\d+_\d+)(?:_(?P<series>\d+))?")
MASK_FOLDERS = {
    "Lung_Mask": "lungs",
    "Infection_Mask": "covid_lesion",
    "Lung_and_Infection_Mask": "lungs_and_lesion",
}


def _detect(root: Path) -> bool:
    return any_file(root, "coronacases_*.nii*", "*/coronacases_*.nii*")


def _records(root: Path, options: SourceOptions) -> Iterator[ScanRecord]:
    for path in volumes(root, "*.nii*") + volumes(root, "*/*.nii*"):
        parts = NAME.fullmatch(stem(path))
        if parts is None or path.parent.name in MASK_FOLDERS:
            continue
        yield ScanRecord(
            key=stem(path),
            path=relative_to(root, path),
            patient=f"covid-19-ct-seg:{parts['patient']}",
            study=parts["patient"],
            series=parts["series"] or "",
            labels={"covid_pneumonia": 1},
            masks=tuple(_masks(root, stem(path))),
        )


def _masks(root: Path, name: str) -> Iterator[MaskRef]:
    for folder, what in MASK_FOLDERS.items():
        for path in volumes(root / folder, f"{name}.nii*"):
            kind = "labels" if folder == "Lung_and_Infection_Mask" else "binary"
            yield MaskRef(what, relative_to(root, path), kind)  # type: ignore[arg-type]


SOURCE = Source(
    "covid-19-ct-seg", "COVID-19-CT-Seg", "coronacases in HU; radiopaedia in grey values, refused", _detect,
    _records,
)  # fmt: skip
