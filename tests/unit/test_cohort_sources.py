"""Each adapter on a tiny cohort in exactly the layout of its data set."""

from __future__ import annotations

import numpy as np
import pytest
from _cohort_layouts import AFFINE, REPORT, chest, ct_rate, rad_chestct

from hilum.cohort.prepare import PrepareOptions, prepare
from hilum.cohort.sources.base import SourceOptions
from hilum.cohort.sources.ct_rate import BROKEN
from hilum.cohort.sources.rad_chestct import SLUGS_16, findings_of, labels_18, scores_16
from hilum.cohort.sources.registry import source_for
from hilum.text.vocabulary import INDEX, SLUGS


def prepared_of(root, tmp_path, **options):
    return prepare(root, tmp_path / "out", PrepareOptions(workers=0, of_source=SourceOptions(**options)))


def test_ct_rate_fixed_is_never_rescaled(tmp_path):
    root = ct_rate(tmp_path / "data")
    assert source_for(root).name == "ct-rate" == source_for(root / "dataset").name
    prepared = prepared_of(root, tmp_path)
    rows = {r.record.key: r for r in prepared.manifest.rows()}
    assert [(r.key, r.code) for r in prepared.refusals] == [("train_11755_a_3", "SCAN_KNOWN_BROKEN")]
    assert len(rows) == 7
    row = rows["train_1_a_1"]
    volume = prepared.manifest.open(row)
    np.testing.assert_array_equal(volume.to_source(volume.hu), chest(0))
    np.testing.assert_allclose(volume.source.affine_ras, AFFINE)
    assert (row.record.patient, row.record.study, row.record.series) == ("ct-rate:train_1", "train_1_a", "1")
    assert (row.split, rows["valid_1_a_1"].split) == ("train", "val")
    assert row.record.text["findings"] == REPORT.format(7) and row.record.text["history"] == ""
    assert row.record.report() == REPORT.format(7) + "\nCalcified nodule."
    assert rows["train_1_b_1"].record.report() == REPORT.format(8)
    assert row.record.labels["lung_nodule"] == 1 and row.record.labels["cardiomegaly"] == 0
    assert rows["train_1_a_2"].record.labels["emphysema"] is None
    assert rows["train_2_a_2"].record.notes == ("listed as no chest",)
    second = rows["train_1_a_2"]
    assert row.text_group == second.text_group and not second.text_fault


def test_ct_rate_raw_takes_place_and_rescale_from_its_metadata(tmp_path):
    root = ct_rate(tmp_path / "data", fixed=False)
    prepared = prepared_of(root, tmp_path)
    rows = {r.record.key: r for r in prepared.manifest.rows()}
    assert len(rows) == 7 and all(r.record.scaling == "table" for r in rows.values())
    volume = prepared.manifest.open(rows["train_1_a_1"])
    np.testing.assert_array_equal(volume.to_source(volume.hu), chest(0))
    expected = np.diag([-8.0, -9.0, 7.5, 1.0])
    expected[:3, 3] = [180.0, 150.0, -300.0]
    np.testing.assert_allclose(volume.source.affine_ras, expected)


def test_ct_rate_raw_without_its_row_is_refused_by_name(tmp_path):
    root = ct_rate(tmp_path / "data", fixed=False)
    file = root / "dataset/metadata/train_metadata.csv"
    lines = file.read_text().splitlines()
    file.write_text(
        "\n".join(line for line in lines if "train_1_b_1" not in line).replace('"[7.5, 9.0]"', "x")
    )
    refused = {r.key: r for r in prepared_of(root, tmp_path).refusals}
    assert set(refused) == {"train_11755_a_3", "train_1_b_1", "train_1_a_2", "train_2_a_2"}
    assert "metadata" in refused["train_1_b_1"].reason


def test_ct_rate_fixed_wins_over_raw(tmp_path):
    ct_rate(tmp_path / "data", fixed=False)
    root = ct_rate(tmp_path / "data", fixed=True)
    rows = list(prepared_of(root, tmp_path).manifest.rows())
    assert len(rows) == 7 and all("_fixed/" in r.record.path for r in rows)


@pytest.mark.parametrize(
    ("protocol", "keys"),
    [
        ("dup_all", ["train_1_a_1", "train_1_a_2", "train_1_b_1", "train_2_a_1", "train_2_a_2", "valid_1_a_1",
                     "valid_1_a_2"]),
        ("first_all", ["train_1_a_1", "train_1_b_1", "train_2_a_1", "valid_1_a_1"]),
        ("dedup", ["train_1_a_2", "train_1_b_1", "train_2_a_2", "valid_1_a_2"]),
    ],
)  # fmt: skip
def test_ct_rate_protocols(tmp_path, protocol, keys):
    root = ct_rate(tmp_path / "data")
    records = source_for(root).records(root, SourceOptions(protocol=protocol))
    assert sorted(r.key for r in records if not r.broken) == keys
    assert "train_11755_a_3" in BROKEN


def test_rad_chestct_has_its_place_from_the_paper(tmp_path):
    root = rad_chestct(tmp_path / "data")
    assert source_for(root).name == "rad-chestct"
    prepared = prepared_of(root, tmp_path)
    rows = {r.record.key: r for r in prepared.manifest.rows()}
    assert len(rows) == 4 and not prepared.refusals
    assert {k: r.split for k, r in rows.items()} == {
        "trn00001": "train", "trn00002": "train", "val00003": "val", "tst00004": "test"
    }  # fmt: skip
    volume = prepared.manifest.open(rows["trn00001"])
    assert volume.shape == (260, 240, 220) and volume.source.axcodes == "IPL"
    np.testing.assert_allclose(volume.spacing_mm, 0.8)
    # the spine is behind, and the array of the volume is the chest it was made from, axes nearest RAS+
    np.testing.assert_array_equal(volume.hu[0, 0], np.clip(chest(1), -1000, 1000)[0, 0, _nearest(32, 220)])
    assert (volume.hu[130, :120] > 200).any() and not (volume.hu[130, 120:] > 200).any()
    assert rows["trn00002"].record.labels == dict.fromkeys(SLUGS)
    assert all("stands for" in r.record.notes[0] for r in rows.values())


def _nearest(source: int, target: int) -> np.ndarray:
    return np.linspace(0, source - 1, target).round().astype(int)


def test_rad_chestct_labels_and_both_rules_of_calcification(tmp_path):
    root = rad_chestct(tmp_path / "data")
    held = {r.key: r.labels for r in source_for(root).records(root, SourceOptions())}
    first = held["trn00001"]
    assert first["arterial_wall_calcification"] == 1 and first["coronary_calcification"] is None
    assert first["lung_nodule"] == 1 and first["hiatal_hernia"] == 0 and first["mosaic_attenuation"] is None
    assert first["consolidation"] is None  # no such column in the table: unknown, not absent
    assert held["val00003"]["medical_material"] == 1 and first["medical_material"] == 0
    either = {r.key: r.labels for r in source_for(root).records(root, SourceOptions(calcification="either"))}
    assert either["trn00001"]["calcification"] == 1
    assert either["trn00001"]["arterial_wall_calcification"] is None
    last = either["tst00004"]
    assert last["coronary_calcification"] == 0 == last["arterial_wall_calcification"]
    assert findings_of({"nodule*left_lung": "", "nodule*right_lung": "0"})["lung_nodule"] is None


def test_sixteen_and_eighteen():
    scores = np.arange(18, dtype=float)
    arterial, either = scores_16(scores, "arterial"), scores_16(scores, "either")
    assert arterial.tolist() == [0, 1, 2, 3, *range(5, 13), *range(14, 18)]
    assert either.tolist() == [0, 4, 2, 3, *range(5, 13), *range(14, 18)]
    assert scores_16(np.stack([scores, -scores])).shape == (2, 16) and scores[1] == 1
    back = labels_18(np.arange(16) % 2)
    assert [i for i, v in enumerate(back) if v is None] == [4, 13]
    # the expansion that published code uses: e[0:4]=l[0:4]; e[5:13]=l[4:12]; e[14:18]=l[12:16]
    flat = list(np.arange(16) % 2)
    assert back[0:4] == flat[0:4] and back[5:13] == flat[4:12] and back[14:18] == flat[12:16]
    assert len(SLUGS_16) == 16 and INDEX["mosaic_attenuation"] == 13
