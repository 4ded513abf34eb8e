"""RadGenome-ChestCT: CT-RATE's volumes at 1 x 1 x 3 mm, with masks of regions and a sentence for each.

`dataset/{train,valid}_preprocessed/valid_1000/valid_1000a/valid_1000_a_1.nii.gz` (the scan's folder has no
underscore); `{train,valid}_region_mask/seg_<volume>/<region>.nii.gz`, `*anatomy_mask*/seg_<volume>/...`;
`radgenome_files/{train,validation}_region_report.csv` (Volumename, Anatomy, Sentence).

Labels are CT-RATE's: `multi_abnormality_labels/{train,valid}_predicted_labels.csv`, copied or linked beside.

The volumes' affine is the identity and wrong: the voxels are 3 mm high. Their axes are those of the published
preprocessing (LPS, then x and y turned round), which is RAS. People are CT-RATE's and have its keys.

Source: Zhang et al., arXiv 2404.16754; the data set's card and code.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from hilum.cohort.records import MaskRef, ScanRecord, Sentence
from hilum.cohort.sources.base import Source, SourceOptions, any_file, masks_in, stem, volumes
from hilum.cohort.sources.ct_rate import NAME, SPLITS, TABLES, Tables, base_of, labels_in
from hilum.io.confine import relative_to
from hilum.io.limits import Answers, Placement
from hilum.io.table import read_table, said

PLACE = Placement((1.0, 0, 0, 0, 0, 1.0, 0, 0, 0, 0, 3.0, 0), source="RadGenome-ChestCT's description")


def _detect(root: Path) -> bool:
    return any_file(base_of(root), "*_preprocessed/*/*/*.nii.gz")


def _records(root: Path, options: SourceOptions) -> Iterator[ScanRecord]:
    base = base_of(root)
    for split in SPLITS:
        # CT-RATE's, where its table lies beside: RadGenome has none
        labels = Tables(base, split).labels
        sentences = _sentences(base / "radgenome_files" / f"{TABLES[split]}_region_report.csv")
        for path in volumes(base / f"{split}_preprocessed", "*/*/*.nii.gz"):
            parts = NAME.fullmatch(stem(path))
            if parts is not None:
                masks = tuple(_masks(root, base, split, stem(path)))
                known = {m.name for m in masks}
                yield ScanRecord(
                    key=stem(path),
                    path=relative_to(root, path),
                    patient=f"ct-rate:{parts['patient']}",
                    study=f"{parts['patient']}_{parts['scan']}",
                    series=parts["recon"],
                    split=SPLITS[split],
                    labels=labels_in(labels.get(stem(path), {})),
                    masks=masks,
                    sentences=tuple(
                        Sentence(place, text, f"region/{place}" if f"region/{place}" in known else "")
                        for place, text in sentences.get(stem(path), ())
                    ),
                    answers=Answers(placement=PLACE),
                    scaling="hu",
                    notes=("place from the data set's description: 1 x 1 x 3 mm, axes RAS",),
                )


def _sentences(path: Path) -> dict[str, list[tuple[str, str]]]:
    held: dict[str, list[tuple[str, str]]] = defaultdict(list)
    if path.is_file():
        for row in read_table(path, ("Volumename", "Anatomy", "Sentence")):
            if said(row["Sentence"]):
                held[stem(row["Volumename"])].append((said(row["Anatomy"]) or "whole", said(row["Sentence"])))
    return held


def _masks(root: Path, base: Path, split: str, name: str) -> Iterator[MaskRef]:
    for kind, pattern in (("region", f"{split}_region_mask*"), ("anatomy", f"{split}_anatomy_mask*")):
        for folder in sorted(base.glob(pattern)):
            for place in (folder / f"seg_{name}", folder / folder.name / f"seg_{name}"):
                yield from (MaskRef(f"{kind}/{m.name}", m.path) for m in masks_in(root, place))


SOURCE = Source(
    "radgenome", "RadGenome-ChestCT", "HU; place from the data set's description", _detect, _records
)
