"""Tiny cohorts in exactly the layouts of the data sets. Every text in them was written for these tests."""

from __future__ import annotations

import csv
from pathlib import Path

import nibabel as nib
import numpy as np

SHAPE = (48, 40, 32)
AFFINE = np.array([[-8.0, 0, 0, 180.0], [0, 9.0, 0, -150.0], [0, 0, 7.5, -300.0], [0, 0, 0, 1]])


def chest(seed: int = 0, shape: tuple[int, int, int] = SHAPE) -> np.ndarray:
    """int16 HU: air, a body whose size and lungs depend on the seed, spine, noise."""
    rng = np.random.default_rng(seed)
    wide, deep, apart, high = rng.uniform([0.72, 0.62, 0.3, 0.65], [0.88, 0.78, 0.4, 0.9])
    x, y, z = np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij")
    hu = np.full(shape, -1000.0)
    hu[(x / wide) ** 2 + (y / deep) ** 2 < 1] = 40.0
    for side in (-1, 1):
        size = rng.uniform(0.2, 0.26)
        hu[((x - side * apart) / size) ** 2 + (y / 0.45) ** 2 + (z / high) ** 2 < 1] = -850.0
    hu[x**2 + (y + 0.5) ** 2 < 0.012] = 500.0
    return np.round(hu + rng.normal(0, 12.0, shape)).clip(-1024, 3071).astype(np.int16)


def save(
    path: Path, values: np.ndarray | None = None, affine: np.ndarray | None = None, seed: int = 0
) -> Path:
    """A NIfTI by nibabel."""
    path.parent.mkdir(parents=True, exist_ok=True)
    stored = chest(seed) if values is None else values
    image = nib.Nifti1Image(stored, AFFINE if affine is None else affine, dtype=stored.dtype)
    image.header.set_xyzt_units("mm")
    nib.save(image, path)
    return path


def save_mask(path: Path, shape: tuple[int, ...] = SHAPE) -> Path:
    """A NIfTI of zeros and ones."""
    mask = np.zeros(shape, dtype=np.uint8)
    mask[..., 10:12, 10:12] = 1
    return save(path, mask)


def table(path: Path, rows: list[dict], delimiter: str = ",") -> Path:
    """A CSV with the columns of the first row."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), delimiter=delimiter)
        writer.writeheader()
        writer.writerows(rows)
    return path


def plain_cohort(root: Path, count: int, **columns) -> Path:
    """`count` scans and `cohort.csv`; a column's value may be a function of the number."""
    rows = []
    for i in range(count):
        save(root / f"scans/{i:03d}.nii.gz", seed=i)
        row = {"path": f"scans/{i:03d}.nii.gz", "patient": f"p{i}"}
        rows.append(row | {k: v(i) if callable(v) else v for k, v in columns.items()})
    table(root / "cohort.csv", rows)
    return root


CT_RATE_NAMES = [
    "train_1_a_1", "train_1_a_2", "train_1_b_1", "train_2_a_1", "train_2_a_2", "train_11755_a_3",
    "valid_1_a_1", "valid_1_a_2",
]  # fmt: skip
REPORT = "Heart size is normal. A calcified nodule of {} mm is seen in the right upper lobe of the lung."


def ct_rate(root: Path, fixed: bool = True) -> Path:
    """CT-RATE: volumes in folders by patient and scan, and its five kinds of tables."""
    from hilum.text.vocabulary import FINDINGS

    base = root / "dataset"
    meta: dict[str, list[dict]] = {"train": [], "valid": []}
    reports: dict[str, list[dict]] = {"train": [], "valid": []}
    labels: dict[str, list[dict]] = {"train": [], "valid": []}
    for number, name in enumerate(CT_RATE_NAMES):
        split, patient, scan, recon = name.split("_")
        person = f"{split}_{patient}"
        folder = base / (f"{split}_fixed" if fixed else split) / person / f"{person}_{scan}"
        values = chest(number) if fixed else (chest(number).astype(np.int32) + 8192).astype(np.uint16)
        save(folder / f"{name}.nii.gz", values, AFFINE if fixed else np.eye(4))
        meta[split].append({
            "VolumeName": f"{name}.nii.gz", "XYSpacing": f"[{8.0 if recon == '1' else 7.5}, 9.0]",
            "ZSpacing": "7.5", "ImagePositionPatient": "[-180.0, -150.0, -300.0]",
            "ImageOrientationPatient": "[1.0, 0.0, 0.0, 0.0, 1.0, 0.0]", "Rows": "40", "Columns": "48",
            "NumberofSlices": "32", "RescaleSlope": "1", "RescaleIntercept": "-8192", "StudyDate": "20200101",
        })  # fmt: skip
        size = 5 if patient == "2" else ord(scan) - 90
        reports[split].append({
            "VolumeName": f"{name}.nii.gz", "ClinicalInformation_EN": "Not given.",
            "Technique_EN": "Not given.", "Findings_EN": REPORT.format(size),
            "Impressions_EN": "Calcified nodule." if scan == "a" else "Not given.",
        })  # fmt: skip
        row = {"VolumeName": f"{name}.nii.gz"} | {f.name: "0" for f in FINDINGS}
        labels[split].append(row | {"Lung nodule": "1", "Emphysema": "" if recon == "2" else "0"})
    for split, said in (("train", "train"), ("valid", "validation")):
        table(base / f"metadata/{said}_metadata.csv", meta[split])
        table(base / f"radiology_text_reports/{said}_reports.csv", reports[split])
        table(base / f"multi_abnormality_labels/{split}_predicted_labels.csv", labels[split])
    (base / "metadata/no_chest_train.txt").write_text("train_2_a_2.nii.gz\n")
    return root


def rad_chestct(root: Path) -> Path:
    """RAD-ChestCT: NPZ at 0.8 mm on axes down, back, left, and a table of abnormalities by location."""
    root.mkdir(parents=True, exist_ok=True)
    for name, seed in (("trn00001", 1), ("trn00002", 2), ("val00003", 3), ("tst00004", 4)):
        small = chest(seed)
        sizes = zip(SHAPE, (260, 240, 220), strict=True)
        index = [np.linspace(0, n - 1, m).round().astype(int) for n, m in sizes]
        ras = small[np.ix_(*index)].clip(-1000, 1000)
        # axis 0 superior to inferior, axis 1 anterior to posterior, axis 2 right to left
        np.savez_compressed(root / f"{name}.npz", ct=ras.transpose(2, 1, 0)[::-1, ::-1, ::-1])
    columns = [
        f"{a}*{where}"
        for a in (
            "calcification",
            "nodule",
            "nodulegr1cm",
            "hernia",
            "opacity",
            "stent",
            "hardware",
            "emphysema",
        )
        for where in ("left_lung", "heart", "other_location")
    ]
    for table_name, name, ones in (
        ("imgtrain", "trn00001", ("calcification*heart", "nodulegr1cm*left_lung")),
        ("imgvalid", "val00003", ("stent*heart",)),
        ("imgtest", "tst00004", ()),
    ):
        row = {"NoteAcc_DEID": name} | {c: "1" if c in ones else "0" for c in columns}
        table(root / f"{table_name}_Abnormality_and_Location_Labels.csv", [row])
    return root
