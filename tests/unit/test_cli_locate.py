"""`hilum locate`: DICOM and NIfTI of one scan, a table of sentences, and what is refused."""

import numpy as np
import pytest
from _called import Called
from _cohort_layouts import AFFINE, chest, dicom_series, save
from _encoders import file_of, stand_in
from PIL import Image

from hilum.cli.locate import locate
from hilum.cohort.prep_presets import Pipeline
from hilum.io.encoder_file import save_encoder
from hilum.io.open import open_volume
from hilum.show.figures import OUTLINE

PREP = Pipeline(
    "tiny-joint", spacing_mm=(8.0, 8.0, 3.0), clip_first=True, values="unit", fit="pad-multiple",
    fit_vox=(32, 32, 16),
)  # fmt: skip
NET = {"patch": 8, "patch_z": 4, "rope_full": True, "slices": False, "qkv_bias": True, "registers": 0}
call = Called(locate)


@pytest.fixture(autouse=True)
def model(tmp_path, monkeypatch):
    stand_in(monkeypatch)
    sizes = {"patch": [8, 8, 4], "field_vox": [32, 32, 16]}
    save_encoder(tmp_path / "model", file_of("3d-joint", prep=PREP.facts(), prep_2d=None, net=NET, **sizes))
    return tmp_path / "model"


def test_an_answer_is_a_place_to_go_to(tmp_path, model):
    dicom_series(tmp_path / "scan", "1", "p", chest())
    found = call.told(tmp_path / "scan", "effusion on the left", "a nodule", "--model", model)
    assert found["model"]["name"] == "tiny" and len(found["model"]["sha256"]) == 64
    assert np.allclose(np.diff(found["depth_mm"]), 12.0)
    first, second = found["answers"]
    assert first["sentence"] == "effusion on the left" and sum(first["share"]) == pytest.approx(1, abs=1e-3)
    assert len(first["share"]) == len(found["depth_mm"]) and first["share"] != second["share"]
    volume = open_volume(tmp_path / "scan")
    assert first["slices"] == 32
    # the slice that is named lies at the height that is named
    heights = [ref.position_mm[2] for ref in volume.provenance.slices]
    assert abs(heights[first["slice_index"]] - first["z_mm"]) <= 7.5 / 2 + 0.01
    named = volume.provenance.slices[first["slice_index"]]
    assert first["image"]["instance_number"] == named.instance_number
    assert first["image"]["sop_uid"] == named.sop_uid


def test_dicom_and_nifti_say_the_same_height(tmp_path, model):
    dicom_series(tmp_path / "scan", "1", "p", chest())
    affine = AFFINE.copy()
    affine[:3, :3], affine[:3, 3] = np.diag([-8.0, -9.0, 7.5]), (180.0, 201.0, -300.0)
    save(tmp_path / "scan.nii.gz", affine=affine)
    one, other = (
        call.told(tmp_path / name, "nodule", "--model", model)["answers"][0]
        for name in ("scan", "scan.nii.gz")
    )
    assert one["z_mm"] == pytest.approx(other["z_mm"], abs=0.02) and other["image"] is None
    text = call(tmp_path / "scan", "nodule", "--model", model).output
    assert f"z {one['z_mm']:.1f} mm, slice {one['slice_index']} of 32, series" in text
    assert "Depths of 12 mm" in text


def test_sentences_come_from_a_table_too(tmp_path, model):
    scan = save(tmp_path / "scan.nii.gz")
    (tmp_path / "a.csv").write_text('id,sentence\n1,"Erguss, links"\n2,Rundherd\n', encoding="utf-8")
    found = call.told(scan, "nodule", "--csv", tmp_path / "a.csv", "--model", model, "--depth", "6")
    assert [a["sentence"] for a in found["answers"]] == ["nodule", "Erguss, links", "Rundherd"]
    assert np.allclose(np.diff(found["depth_mm"]), 6.0)


def test_what_cannot_be_asked_is_refused(tmp_path, model):
    scan = save(tmp_path / "scan.nii.gz")
    save_encoder(tmp_path / "other", file_of("3d"))
    (tmp_path / "a.csv").write_text("text\nnodule\n")
    (tmp_path / "b.csv").write_bytes(b"sentence\n\xff\xfe\n")
    for arguments, code in (
        ((scan, "--model", model), "OPTION_UNKNOWN"),
        ((scan, " ", "--model", model), "OPTION_UNKNOWN"),
        ((scan, "nodule", "--model", tmp_path / "other"), "MODEL_INPUT"),
        ((scan, "nodule", "--model", tmp_path / "none"), "MODEL_UNKNOWN"),
        ((scan, "nodule", "--model", model, "--depth", "5"), "CONFIG_VALUE"),
        ((scan, "--csv", tmp_path / "a.csv", "--model", model), "COLUMN_MISSING"),
        ((scan, "--csv", tmp_path / "b.csv", "--model", model), "TEXT_ENCODING"),
        ((scan, "--csv", tmp_path / "c.csv", "--model", model), "NOT_FOUND"),
        ((tmp_path / "a.csv", "nodule", "--model", model), "NOT_AN_IMAGE"),
    ):
        assert call.refusal(*arguments).code == code, arguments


def test_the_picture_shows_the_answer_at_its_height(tmp_path, model):
    scan = save(tmp_path / "scan.nii.gz")
    picture = tmp_path / "where.png"
    found = call.told(scan, "nodule", "effusion", "--model", model, "--picture", picture)
    image = np.asarray(Image.open(picture).convert("RGB")).astype(int)
    volume = open_volume(scan)
    corners = volume.geometry.corners_mm()[:, 2]
    top, bottom = corners.max() + volume.spacing_mm[2] / 2, corners.min() - volume.spacing_mm[2] / 2
    width = volume.shape[0] * volume.spacing_mm[0]
    assert image.shape[1] > 512 and image.shape[0] == pytest.approx((top - bottom) / width * 512, abs=2)
    row = round((top - found["answers"][0]["z_mm"]) / width * 512)
    line = np.abs(image[:, 200] - np.array(OUTLINE[:3])).sum(1) < 10
    assert line[max(0, row - 1) : row + 2].any(), "the line lies at the answer's height"
    again = (scan, "nodule", "--model", model, "--picture", picture)
    assert call.refusal(*again).code == "OUTPUT_EXISTS"
    assert call(*again, "--overwrite").exception is None
