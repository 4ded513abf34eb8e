"""ReXGroundingCT: `dataset.json` with a text per finding, `segmentations/<name>` with a channel per finding.

The masks are 4-D, (finding, x, y, z); a voxel's value is the number of its entity. Names are CT-RATE's,
and so are the people. The volumes may lie anywhere below the root but in `segmentations/`.

Source: the data set's card and code (arXiv 2507.22030).
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hilum.cohort.records import MaskRef, ScanRecord, Sentence
from hilum.cohort.sources.base import Source, SourceOptions, stem, volumes
from hilum.cohort.sources.ct_rate import BROKEN, NAME
from hilum.errors import ReportError
from hilum.io.confine import relative_to

INDEX, MASKS = "dataset.json", "segmentations"
SPLITS = {"train": "train", "val": "val", "test": "test"}
CATEGORIES = {
    "1a": "bronchial wall thickening", "1b": "bronchiectasis", "1c": "emphysema", "1d": "septal thickening",
    "1e": "micronodules", "1f": "other diffuse", "2a": "linear opacity", "2b": "atelectasis or consolidation",
    "2c": "ground-glass opacity", "2d": "nodule or mass", "2e": "pleural effusion or thickening",
    "2f": "honeycombing", "2g": "pneumothorax", "2h": "other focal",
}  # fmt: skip


def _detect(root: Path) -> bool:
    return (root / INDEX).is_file() and (root / MASKS).is_dir()


def _records(root: Path, options: SourceOptions) -> Iterator[ScanRecord]:
    held = {p.name: p for p in volumes(root, "**/*.nii.gz") if MASKS not in p.relative_to(root).parts}
    index = _index(root / INDEX)
    for split, name in SPLITS.items():
        for entry in index.get(split, ()):
            yield _record(root, entry, name, held.get(str(entry.get("name"))))


def _index(path: Path) -> dict[str, Any]:
    try:
        held = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ReportError("TEXT_ENCODING", "dataset.json is JSON", got=str(error)[:100], path=path) from error
    if not isinstance(held, dict) or not any(isinstance(held.get(s), list) for s in SPLITS):
        raise ReportError(
            "COLUMN_MISSING", "dataset.json has lists of scans", expected=", ".join(SPLITS), path=path
        )
    return held


def _record(root: Path, entry: dict[str, Any], split: str, path: Path | None) -> ScanRecord:
    file = str(entry.get("name", ""))
    name, parts = stem(file), NAME.fullmatch(stem(file))
    findings, categories = entry.get("findings") or {}, entry.get("categories") or {}
    broken = BROKEN.get(name, "") if path is not None else "the volume is not below the root"
    if parts is None:
        broken = "a name that is not CT-RATE's"
    mask = root / MASKS / Path(file).name
    numbers = sorted(findings, key=int) if mask.is_file() else []
    return ScanRecord(
        key=name or "unnamed",
        path=file if path is None else relative_to(root, path),
        patient=f"ct-rate:{parts['patient']}" if parts else f"rexgroundingct:{name}",
        study=f"{parts['patient']}_{parts['scan']}" if parts else "",
        series=parts["recon"] if parts else "",
        split=split,
        masks=tuple(MaskRef(f"finding/{n}", relative_to(root, mask), "channel", int(n)) for n in numbers),
        sentences=tuple(
            Sentence(CATEGORIES.get(str(categories.get(n)), str(categories.get(n, ""))), str(text),
                     f"finding/{n}" if numbers else "")
            for n, text in sorted(findings.items(), key=lambda pair: int(pair[0]))
        ),
        broken=broken,
    )  # fmt: skip


SOURCE = Source(
    "rexgroundingct", "ReXGroundingCT", "HU: its upload applied slope and intercept", _detect, _records
)
