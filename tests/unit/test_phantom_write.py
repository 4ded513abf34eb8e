"""A phantom's folder: complete, SYNTHETIC, resumable; DICOM and NIfTI hold the same scan."""

import csv
import json

import numpy as np
import pytest
from click.testing import CliRunner

from hilum.cli.phantom import phantom as command
from hilum.errors import OutputError, UsageError
from hilum.geometry import Geometry
from hilum.io.hashing import sha256_of
from hilum.io.open import open_volume
from hilum.phantom.batch import BatchRequest, make_batch
from hilum.phantom.draw import draw_plan
from hilum.phantom.make import make_phantom
from hilum.phantom.write import PAINT_ORDER, WriteOptions, label_map, write_phantom
from hilum.text.vocabulary import ORGAN_CHANNELS, REGIONS, SLUGS

COARSE = (5.0, 5.0, 5.0)
FINDINGS = ("lung_nodule", "pleural_effusion", "coronary_calcification")


@pytest.fixture(scope="module")
def made():
    return make_phantom(draw_plan(3, findings=FINDINGS, spacing_mm=COARSE), work_mm=5.0)


@pytest.fixture(scope="module")
def folders(made, tmp_path_factory):
    out = tmp_path_factory.mktemp("written")
    truths = {
        name: write_phantom(made, out / name, WriteOptions(dicom=name == "dicom", languages=("en", "de")))
        for name in ("nifti", "dicom")
    }
    return out, truths


def test_dicom_and_nifti_hold_the_same_scan(folders):
    out, truths = folders
    nifti = open_volume(out / "nifti" / "ct.nii.gz")
    dicom = open_volume(out / "dicom" / "dicom")
    assert np.array_equal(nifti.hu, dicom.hu)
    assert nifti.shape == dicom.shape
    assert np.abs(nifti.geometry.affine_ras - dicom.geometry.affine_ras).max() < 1e-3
    assert dicom.provenance.series_number == truths["dicom"]["image"]["series_number"]


def test_references_name_written_slices(folders):
    out, truths = folders
    volume = open_volume(out / "dicom" / "dicom")
    heights = {s.instance_number: s.position_mm[2] for s in volume.provenance.slices}
    lesions = {lesion["slug"]: lesion for lesion in truths["dicom"]["lesions"]}
    for lesion in lesions.values():
        assert abs(heights[lesion["instance"]] - lesion["z_mm"]) < 0.1
        low, high = lesion["box_mm"][0][2], lesion["box_mm"][1][2]
        assert low - 0.1 <= heights[lesion["instance"]] <= high + 0.1
    told = [s for r in truths["dicom"]["reports"].values() for s in r["sentences"] if s["image"]]
    for s in told:
        assert s["image"] == lesions[s["slug"]]["instance"] and s["series"] == volume.provenance.series_number


def test_masks_lie_on_the_scan(folders, made):
    out, truths = folders
    scan = open_volume(out / "nifti" / "ct.nii.gz")
    for lesion in truths["nifti"]["lesions"]:
        mask = read_mask(out / "nifti" / lesion["path"])
        assert mask[0].shape == scan.shape and np.allclose(mask[1], scan.source.affine_ras, atol=1e-3)
        assert mask[0].sum() * scan.geometry.voxel_ml == pytest.approx(
            lesion["volume_ml"], rel=0.01, abs=2e-3
        )
    organs = read_mask(out / "nifti" / "organs.nii.gz")[0]
    assert set(np.unique(organs)) <= set(range(len(REGIONS) + 1))
    channels = {c: read_mask(out / "nifti" / "organs" / f"{c}.nii.gz")[0] for c in ORGAN_CHANNELS}
    assert np.array_equal(channels["global"] > 0, organs > 0)
    assert channels["lung"].sum() > channels["heart"].sum() > channels["oesophagus"].sum() > 0


def read_mask(path):
    import nibabel

    image = nibabel.load(path)
    return np.asarray(image.dataobj), image.affine


def test_every_text_says_synthetic(folders):
    out, _ = folders
    for name in ("nifti", "dicom"):
        for path in (out / name).rglob("*"):
            if path.suffix in (".txt", ".json"):
                assert "SYNTHETIC" in path.read_text(encoding="utf-8"), path


def test_truth_is_json_and_complete(folders):
    out, truths = folders
    stored = json.loads((out / "nifti" / "truth.json").read_text(encoding="utf-8"))
    assert stored == json.loads(json.dumps(truths["nifti"]))
    assert stored["synthetic"] is True and set(stored["labels"]) == set(SLUGS)
    assert {s for s, v in stored["labels"].items() if v} == {le["slug"] for le in stored["lesions"]}
    assert stored["image"]["sha256"] == sha256_of(out / "nifti" / "ct.nii.gz")


def test_existing_folder_is_kept(folders, made):
    out, _ = folders
    with pytest.raises(OutputError):
        write_phantom(made, out / "nifti")


def test_label_map_priority():
    masks = {name: np.ones((1, 1, 1), dtype=bool) for name in REGIONS}
    assert REGIONS[label_map(masks)[0, 0, 0] - 1] == "airways" == PAINT_ORDER[-1]
    assert set(PAINT_ORDER) == set(REGIONS)


def tiny(**changes):
    return BatchRequest(
        **({"seed": 20, "spacing_mm": (6.0, 6.0, 6.0), "work_mm": 6.0, "findings": ()} | changes)
    )


def test_batch_resumes_and_refuses_other_requests(tmp_path):
    first = make_batch(1, tmp_path, tiny())
    before = (tmp_path / first.made[0] / "truth.json").stat().st_mtime_ns
    second = make_batch(2, tmp_path, tiny())
    assert second.kept == first.made and len(second.made) == 1
    assert (tmp_path / first.made[0] / "truth.json").stat().st_mtime_ns == before
    with pytest.raises(OutputError, match="OUTPUT_EXISTS"):
        make_batch(1, tmp_path, tiny(degrees="severe"))
    with pytest.raises(UsageError):
        make_batch(0, tmp_path, tiny())
    rows = list(csv.DictReader(second.table.read_text(encoding="utf-8").splitlines()))
    assert [r["key"] for r in rows] == ["synthetic-000020", "synthetic-000021"]
    for row in rows:
        truth = json.loads((tmp_path / row["key"] / "truth.json").read_text(encoding="utf-8"))
        assert sha256_of(tmp_path / row["path"]) == row["sha256"] == truth["image"]["sha256"]
        assert {s: int(row[s]) for s in SLUGS} == truth["labels"]
        assert (tmp_path / row["report"]).is_file()


def test_equal_requests_make_equal_bytes(tmp_path):
    tables = []
    for name in ("a", "b"):
        tables.append(make_batch(1, tmp_path / name, tiny(findings=FINDINGS)).table.read_text())
    assert tables[0] == tables[1]


def test_command(tmp_path):
    arguments = [
        "1",
        "--out",
        str(tmp_path / "o"),
        "--spacing",
        "6,6,6",
        "--work-mm",
        "6",
        "--language",
        "both",
    ]
    arguments += ["--findings", "none", "--seed", "20", "--dicom"]
    result = CliRunner().invoke(command, [*arguments, "--json"], catch_exceptions=False)
    assert result.exit_code == 0 and json.loads(result.stdout)["made"] == ["synthetic-000020"]
    again = CliRunner().invoke(command, arguments, catch_exceptions=False)
    assert "0 SYNTHETIC phantoms made, 1 kept" in again.stdout
    assert {p.name for p in (tmp_path / "o" / "synthetic-000020").glob("report.*")} == {
        "report.en.txt",
        "report.de.txt",
    }


@pytest.mark.parametrize("bad", [["--spacing", "a"], ["--spacing", "1,2"], ["--language", "fr"]])
def test_command_usage(tmp_path, bad):
    assert CliRunner().invoke(command, ["1", "--out", str(tmp_path / "o"), *bad]).exit_code == 2
    assert not (tmp_path / "o").exists()


def test_dicom_axes_are_the_usual_ones(made):
    from hilum.phantom.write import dicom_axes

    assert isinstance(made.scan.geometry, Geometry)
    assert dicom_axes(made.scan.geometry).geometry(made.scan.geometry).axcodes == "LPS"
