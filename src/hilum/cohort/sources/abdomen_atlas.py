"""AbdomenAtlas and folders like it: `BDMAP_00000001/{ct,combined_labels}.nii.gz` and
`segmentations/*.nii.gz`.

The data set joins scans of many public ones under new names: hold it against every cohort that it may contain
(`hilum prepare --against`).

Source: Li et al., arXiv 2407.16697; the data set's card.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from hilum.cohort.records import MaskRef, ScanRecord
from hilum.cohort.sources.base import Source, SourceOptions, any_file, masks_in, volumes
from hilum.io.confine import relative_to

SCAN, COMBINED = "ct.nii.gz", "combined_labels.nii.gz"


def _detect(root: Path) -> bool:
    return any_file(root, f"*/{SCAN}") and any_file(root, "*/segmentations/*.nii.gz", f"*/{COMBINED}")


def _records(root: Path, options: SourceOptions) -> Iterator[ScanRecord]:
    for path in volumes(root, f"*/{SCAN}"):
        folder = path.parent
        combined = folder / COMBINED
        whole = (MaskRef("organs", relative_to(root, combined), "labels"),) if combined.is_file() else ()
        yield ScanRecord(
            key=folder.name,
            path=relative_to(root, path),
            patient=f"abdomenatlas:{folder.name}",
            study=folder.name,
            masks=(*whole, *masks_in(root, folder / "segmentations")),
        )


SOURCE = Source("abdomenatlas", "AbdomenAtlas", "HU, by each file's own header", _detect, _records)
