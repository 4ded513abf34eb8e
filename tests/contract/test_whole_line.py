"""The main job with the model that ships: the same phantom as DICOM and as NIfTI gives the same reading."""

from __future__ import annotations

import json

import numpy as np
import pytest

import hilum
from hilum.phantom.draw import draw_plan
from hilum.phantom.make import make_phantom
from hilum.phantom.write import WriteOptions, write_phantom
from hilum.read.scan_model import ScanModel
from hilum.text.vocabulary import INDEX, ORGAN_OF, SLUGS


@pytest.fixture(scope="module")
def readings(tmp_path_factory):
    root = tmp_path_factory.mktemp("line")
    phantom = make_phantom(draw_plan(321, spacing_mm=(3.0, 3.0, 4.0)), work_mm=4.0)
    write_phantom(phantom, root / "n", WriteOptions(dicom=False))
    write_phantom(phantom, root / "d", WriteOptions(dicom=True))
    nifti, dicom = hilum.read(root / "n" / "ct.nii.gz"), hilum.read(root / "d" / "dicom")
    return root, nifti, dicom


def test_dicom_and_nifti_give_the_same_reading(readings):
    _, nifti, dicom = readings
    for a, b in zip(nifti.findings, dicom.findings, strict=True):
        assert a.slug == b.slug
        assert a.probability == pytest.approx(b.probability, abs=2e-3)
        assert a.present == b.present
        if a.where and b.where:
            assert np.allclose(a.where.peak_mm_ras, b.where.peak_mm_ras, atol=0.1)
    for a, b in zip(nifti.organs, dicom.organs, strict=True):
        assert a.volume_ml == pytest.approx(b.volume_ml, rel=5e-3, abs=1.0)


def test_where_names_the_nearest_image_of_the_series(readings):
    import pydicom

    root, _, dicom = readings
    heights, series = {}, set()
    for path in (root / "d" / "dicom").iterdir():
        dataset = pydicom.dcmread(path, stop_before_pixels=True)
        heights[int(dataset.InstanceNumber)] = float(dataset.ImagePositionPatient[2])
        series.add((str(dataset.SeriesInstanceUID), int(dataset.SeriesNumber)))
    placed = [f for f in dicom.findings if f.where is not None]
    assert placed, "the phantom has findings that are called present"
    for finding in placed:
        image, z_mm = finding.where.image, finding.where.peak_mm_ras[2]
        nearest = min(abs(h - z_mm) for h in heights.values())
        assert abs(heights[image.instance_number] - z_mm) <= nearest + 1e-3
        assert (image.series_uid, image.series_number) in series


def test_a_run_writes_maps_on_the_input_grid_and_they_give_the_probability_back(readings, tmp_path):
    import nibabel

    root, nifti, _ = readings
    out = nifti.save(tmp_path / "out")
    source = nibabel.load(root / "n" / "ct.nii.gz")
    record = json.loads((out / "reading.json").read_text())
    assert record["model"]["synthetic"] is True
    for finding in record["findings"]:
        if finding["map"]:
            image = nibabel.load(out / finding["map"])
            assert image.shape == source.shape
            assert np.allclose(image.affine, source.affine, atol=1e-4)
            assert image.get_fdata().min() >= 0 and image.get_fdata().max() <= 1


def test_the_scan_probability_can_be_recomputed_from_its_map(readings):
    from hilum.io.open import open_volume

    root, _, _ = readings
    model = ScanModel.load("phantom-small")
    output = model.run(open_volume(root / "n" / "ct.nii.gz"))
    assert np.allclose(model.pool(output.maps), output.pooled, atol=1e-6)
    assert np.all((output.probabilities >= 0) & (output.probabilities <= 1))


def test_maps_stay_in_their_organ_and_runs_repeat_bit_for_bit(readings):
    from hilum.io.open import open_volume

    root, _, _ = readings
    volume = open_volume(root / "n" / "ct.nii.gz")
    model = ScanModel.load("phantom-small")
    a, b = model.run(volume), model.run(volume)
    assert np.array_equal(a.maps, b.maps)
    lung = a.organs[ORGAN_OF[INDEX["lung_nodule"]]] > 0.5
    if lung.sum() > 1000:
        assert not a.maps[INDEX["lung_nodule"]][~lung].any()


def test_the_shipped_model_says_what_it_is():
    model = ScanModel.load("phantom-small")
    assert "synthetic" in model.trained_on and "no real patient" in model.trained_on
    assert set(model.thresholds) == set(SLUGS)
    assert model.card["sha256"] == model.sha256
