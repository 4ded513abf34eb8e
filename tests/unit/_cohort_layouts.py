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


def workbook(path: Path, rows: list[list[str]]) -> Path:
    """An XLSX with inline strings, written by hand as a spreadsheet would."""
    import zipfile
    from xml.sax.saxutils import escape

    def cell(column: int, row: int, text: str) -> str:
        return f'<c r="{chr(65 + column)}{row}" t="inlineStr"><is><t>{escape(text)}</t></is></c>'

    lines = "".join(
        f'<row r="{n}">' + "".join(cell(k, n, text) for k, text in enumerate(row)) + "</row>"
        for n, row in enumerate(rows, 1)
    )
    space = "http://schemas.openxmlformats.org/spreadsheetml/2006/main"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as book:
        book.writestr(
            "xl/worksheets/sheet1.xml",
            f'<worksheet xmlns="{space}"><sheetData>{lines}</sheetData></worksheet>',
        )
    return path


def merlin(root: Path) -> Path:
    """Merlin: volumes, a workbook of reports, labels of -1, 0, 1."""
    for number, name in enumerate(("AC1", "AC2", "AC3")):
        save(root / f"merlin_data/{name}.nii.gz", seed=number)
    workbook(root / "reports_final.xlsx", [
        ["study id", "Findings", "Split", "Few Shot"],
        ["AC1", "FINDINGS: Liver is normal. IMPRESSION: 1. No abnormality.", "train", "0"],
        ["AC2", "The spleen is large & there is ascites.", "val", "1"],
        ["AC3", "Not given.", "test", "0"],
    ])  # fmt: skip
    names = ("study id", "atelectasis", "pleural_effusion", "renal_cyst", "lymphadenopathy")
    cells = [("AC1", "1", "0", "-1", "1"), ("AC2", "-1", "1", "0", "0")]
    rows = [dict(zip(names, row, strict=True)) for row in cells]
    table(root / "zero_shot_findings_disease_cls.csv", rows)
    return root


def inspect(root: Path) -> Path:
    """INSPECT: volumes below full/CTPA and dated TSV tables."""
    base = root / "full"
    for number, name in enumerate(("PE1", "PE2", "PE3")):
        save(base / f"CTPA/{name}.nii.gz", seed=number)
    ids = [("100", "p1", "PE1", "train"), ("200", "p2", "PE2", "valid"), ("300", "p1", "PE9", "test")]
    rows = [{"impression_id": i, "person_id": p, "image_id": f"{m}.nii.gz"} for i, p, m, _ in ids]
    table(base / "study_mapping_20250611.tsv", rows, "\t")
    table(base / "study_mapping_20240101.tsv", [{"impression_id": "0", "image_id": "old"}], "\t")
    table(base / "splits_20250611.tsv", [{"impression_id": i, "split": s} for i, _, _, s in ids], "\t")
    texts = {"100": "IMPRESSION: No embolism in the main arteries.", "200": "", "300": "x"}
    table(
        base / "impressions_20250611.tsv",
        [{"impression_id": i, "impressions": t} for i, t in texts.items()],
        "\t",
    )
    values = {"100": ("False", "Censored"), "200": ("True", "True"), "300": ("True", "False")}
    table(base / "labels_20250611.tsv", [
        {"impression_id": i, "pe_positive_nlp": a, "12_month_mortality": b} for i, (a, b) in values.items()
    ], "\t")  # fmt: skip
    return root


def radgenome(root: Path) -> Path:
    """RadGenome-ChestCT: volumes of 1 x 1 x 3 mm under an identity affine, masks by region, sentences."""
    base = root / "dataset"
    index = [np.linspace(0, n - 1, m).round().astype(int) for n, m in zip(SHAPE, (220, 200, 60), strict=True)]
    ras = chest(3)[::-1][np.ix_(*index)]
    name = "valid_1000_a_1"
    save(base / f"valid_preprocessed/valid_1000/valid_1000a/{name}.nii.gz", ras, np.eye(4))
    for region in ("lung", "trachea and bronchie"):
        mask = (ras < -700).astype(np.uint8)
        save(base / f"valid_region_mask/seg_{name}/{region}.nii.gz", mask, np.eye(4))
    table(base / "radgenome_files/validation_region_report.csv", [
        {"Volumename": f"{name}.nii.gz", "Anatomy": "lung", "Sentence": "There is a nodule of 4 mm."},
        {"Volumename": f"{name}.nii.gz", "Anatomy": "heart", "Sentence": "The heart is of normal size."},
        {"Volumename": f"{name}.nii.gz", "Anatomy": "", "Sentence": "Bones are intact."},
    ])  # fmt: skip
    return root


def rexgrounding(root: Path) -> Path:
    """ReXGroundingCT: dataset.json, 4-D masks (finding, x, y, z), volumes somewhere below."""
    import json

    names = ["train_1741_b_2.nii.gz", "valid_7_a_1.nii.gz"]
    save(root / f"images/{names[0]}", seed=5)
    mask = np.zeros((2, *SHAPE), dtype=np.uint8)
    mask[0, 10, 12, 14] = 1
    mask[1, 20:24, 22, 24] = 3
    for name in names:
        save(root / f"segmentations/{name}", mask)
    texts = {"0": "A nodule of 5 mm in the right upper lobe.", "1": "Pleural effusion on the left."}
    entry = {"findings": texts, "categories": {"0": "2d", "1": "2e"}, "shape": list(SHAPE), "protocol": "x"}
    index = {"train": [{"name": names[0]} | entry], "val": [], "test": [{"name": names[1]} | entry]}
    (root / "dataset.json").write_text(json.dumps(index))
    return root


def mosmed(root: Path) -> Path:
    """MosMed: studies by degree, masks of some."""
    for number, (degree, study) in enumerate((("CT-0", "0001"), ("CT-1", "0255"), ("CT-4", "1110"))):
        save(root / f"studies/{degree}/study_{study}.nii.gz", seed=number)
    save_mask(root / "masks/study_0255_mask.nii.gz")
    table(root / "dataset_registry.csv", [{"study_id": "study_0001"}])
    return root


def covid_seg(root: Path) -> Path:
    """COVID-19-CT-Seg: HU volumes, grey ones, masks in three folders."""
    scans = root / "COVID-19-CT-Seg_20cases"
    save(scans / "coronacases_001.nii.gz", seed=1)
    grey = ((chest(2).astype(np.float32) + 1250) * 255 / 1500).clip(0, 255).astype(np.uint8)
    for name in ("radiopaedia_10_85902_1", "radiopaedia_10_85902_3"):
        save(scans / f"{name}.nii.gz", grey)
    for folder in ("Lung_Mask", "Infection_Mask", "Lung_and_Infection_Mask"):
        save_mask(root / folder / "coronacases_001.nii.gz")
    return root


def abdomen_atlas(root: Path) -> Path:
    """AbdomenAtlas: a folder per case with a scan, a label map and a mask per organ."""
    for number in (1, 2):
        folder = root / f"BDMAP_0000000{number}"
        save(folder / "ct.nii.gz", seed=number)
        save_mask(folder / "combined_labels.nii.gz")
        save_mask(folder / "segmentations/liver.nii.gz")
    return root


def dicom_series(
    folder: Path, seed: str, patient: str, values: np.ndarray, spacing=(8.0, 9.0, 7.5)
) -> list[str]:
    """A CT series on DICOM's usual axes; SOP UIDs in the order of slices, first the lowest."""
    from hilum.geometry import Geometry
    from hilum.io.dicom_write import SeriesHeader, write_ct_series

    affine = np.diag([-spacing[0], -spacing[1], spacing[2], 1.0])
    affine[:3, 3] = [180.0, 201.0, -300.0]
    hu = np.ascontiguousarray(values.astype(np.float32))
    folder.mkdir(parents=True, exist_ok=True)
    slices = write_ct_series(
        folder / "ct", hu, Geometry((hu.shape[0], hu.shape[1], hu.shape[2]), affine),
        header=SeriesHeader(seed=seed, patient_id=patient),
    )  # fmt: skip
    return [s.sop_uid for s in slices]


def rtstruct(path: Path, reference: Path, contours: dict[str, list[np.ndarray]], refer: bool = True) -> Path:
    """An RTSTRUCT by pydicom on the series of `reference`; contours in LPS mm."""
    from pydicom import dcmread
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian, generate_uid

    ct = dcmread(reference, stop_before_pixels=True)
    ds = Dataset()
    ds.SOPClassUID, ds.SOPInstanceUID = "1.2.840.10008.5.1.4.1.1.481.3", generate_uid()
    ds.PatientID, ds.StudyInstanceUID, ds.Modality = ct.PatientID, ct.StudyInstanceUID, "RTSTRUCT"
    ds.SeriesInstanceUID = generate_uid()
    series, study, frame = Dataset(), Dataset(), Dataset()
    series.SeriesInstanceUID = ct.SeriesInstanceUID
    study.RTReferencedSeriesSequence = [series] if refer else []
    frame.FrameOfReferenceUID = ct.FrameOfReferenceUID
    frame.RTReferencedStudySequence = [study]
    ds.ReferencedFrameOfReferenceSequence = [frame]
    ds.StructureSetROISequence, ds.ROIContourSequence = [], []
    for number, (name, polygons) in enumerate(contours.items(), 1):
        roi, drawn = Dataset(), Dataset()
        roi.ROINumber, roi.ROIName, roi.ReferencedFrameOfReferenceUID = number, name, ct.FrameOfReferenceUID
        drawn.ReferencedROINumber, drawn.ContourSequence = number, []
        for points in polygons:
            one = Dataset()
            one.ContourGeometricType, one.NumberOfContourPoints = "CLOSED_PLANAR", len(points)
            one.ContourData = [f"{v:.4f}" for v in points.ravel()]
            drawn.ContourSequence.append(one)
        ds.StructureSetROISequence.append(roi)
        ds.ROIContourSequence.append(drawn)
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds.file_meta.MediaStorageSOPClassUID = ds.SOPClassUID
    ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID
    path.parent.mkdir(parents=True, exist_ok=True)
    ds.save_as(path, enforce_file_format=True)
    return path


def square(low: int, high: int) -> list[tuple[int, int]]:
    """The border of a square of pixels, corners low and high."""
    there, back = range(low, high), range(high, low, -1)
    one, two = [(x, low) for x in there], [(high, y) for y in there]
    return one + two + [(x, high) for x in back] + [(low, y) for y in back]


def lidc_xml(path: Path, series: str, readers: list[list[tuple[str, list[tuple[int, int]], bool]]]) -> Path:
    """A LidcReadMessage: per reader, rois of (SOP UID, border, inclusion)."""

    def roi(sop: str, border: list[tuple[int, int]], inclusion: bool) -> str:
        edges = "".join(f"<edgeMap><xCoord>{x}</xCoord><yCoord>{y}</yCoord></edgeMap>" for x, y in border)
        return (
            f"<roi><imageZposition>-1.0</imageZposition><imageSOP_UID>{sop}</imageSOP_UID>"
            f"<inclusion>{str(inclusion).upper()}</inclusion>{edges}</roi>"
        )

    sessions = "".join(
        "<readingSession><servicingRadiologistID>anonymous</servicingRadiologistID>"
        + "".join(f"<unblindedReadNodule><noduleID>1</noduleID>{roi(*r)}</unblindedReadNodule>" for r in rois)
        + "</readingSession>"
        for rois in readers
    )
    path.write_text(
        '<?xml version="1.0" encoding="UTF-8"?><LidcReadMessage xmlns="http://www.nih.gov"><ResponseHeader>'
        f"<SeriesInstanceUid>{series}</SeriesInstanceUid></ResponseHeader>{sessions}</LidcReadMessage>"
    )
    return path
