"""Outputs: no patient identifier anywhere (G08), input untouched (G09), odd names (G11), refused input
writes nothing."""

from __future__ import annotations

import gzip
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest
from click.testing import CliRunner

sys.path.insert(0, str(Path(__file__).parents[1] / "unit"))
from readshow_standin import NODULE_MM, Standin, chest, straight_grid

import hilum
from hilum.cli.read import read as read_command
from hilum.errors import OutputError
from hilum.geometry import LPS_FROM_RAS, Geometry
from hilum.io.dicom_write import SeriesHeader, write_ct_series
from hilum.read import scan_model
from hilum.show import album

CANARY = "CANARY^PHI"
IDENTIFYING = (
    *("PatientName", "PatientID", "PatientBirthDate", "PatientAddress", "OtherPatientIDs", "AccessionNumber"),
    *("InstitutionName", "ReferringPhysicianName", "OperatorsName", "StudyDescription", "SeriesDescription"),
    *("PatientComments", "StudyID"),
)


@pytest.fixture(autouse=True)
def standin(monkeypatch: pytest.MonkeyPatch) -> None:
    """The command line reads with the stand-in; pictures are small."""
    monkeypatch.setattr(album, "WIDTH_PX", 48)
    monkeypatch.setattr(scan_model.ScanModel, "load", staticmethod(lambda name: Standin()))


def nifti(path: Path, grid: Geometry | None = None) -> Path:
    known = grid or straight_grid()
    image = nib.Nifti1Image(chest(known).hu.astype(np.int16), known.affine_ras)
    image.header["descrip"] = b"CANARY^PHI"
    image.header["aux_file"] = b"CANARY^PHI"
    nib.save(image, path)
    return path


@pytest.fixture
def series(tmp_path: Path) -> Path:
    """A DICOM series of the chest that says who the patient is in many places."""
    folder = tmp_path / f"{CANARY} Müller"
    ras = straight_grid((64, 52, 44), (5.5, 5.5, 6.0))
    flips = np.diag([-1.0, -1.0, 1.0, 1.0])
    flips[:2, 3] = np.array(ras.shape[:2]) - 1
    grid = Geometry(ras.shape, ras.affine_ras @ flips)  # axes L, P, S as scanners store them
    hu = chest(grid).to_source(chest(grid).hu)
    write_ct_series(folder, hu, grid, header=SeriesHeader(seed="canary", series_number=3))
    for number, path in enumerate(sorted(folder.iterdir())):
        data = pydicom.dcmread(path)
        for keyword in IDENTIFYING:
            setattr(data, keyword, "19010203" if keyword.endswith("Date") else CANARY)
        data.save_as(path)
        path.rename(folder / f"{CANARY}_{number}.dcm")
    return folder


def test_no_patient_in_any_output_byte(series: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    result = CliRunner().invoke(read_command, [str(series), "--out", str(out), "--json", "--all-maps"])
    assert result.exit_code == 0, result.output
    assert "CANARY" not in result.output
    for path in out.rglob("*"):
        assert "CANARY" not in path.name
        if path.is_file():
            raw = path.read_bytes()
            if path.suffix == ".gz":
                raw += gzip.decompress(raw)
            assert b"CANARY" not in raw and "Müller".encode() not in raw and b"19010203" not in raw, path.name


def test_dicom_place_names_the_nearest_image(series: Path) -> None:
    reading = hilum.read(series, model=Standin())
    where = next(f for f in reading.findings if f.slug == "lung_nodule").where
    assert where is not None and where.image is not None
    assert where.image.series_number == 3 and where.image.series_uid == reading.scan.series_uid
    files = [pydicom.dcmread(p, stop_before_pixels=True) for p in series.iterdir()]
    apart_mm = {d.SOPInstanceUID: abs(float(d.ImagePositionPatient[2]) - where.peak_mm_ras[2]) for d in files}
    assert apart_mm[where.image.sop_uid] <= min(apart_mm.values()) + 0.01
    named = next(d for d in files if d.SOPInstanceUID == where.image.sop_uid)
    assert where.image.instance_number == named.InstanceNumber
    assert f"series 3, image {named.InstanceNumber}" in reading.report.text
    assert np.linalg.norm(np.array(where.centroid_mm_ras) - NODULE_MM) < 1.0


def test_nifti_and_dicom_of_one_chest_give_one_reading(series: Path, tmp_path: Path) -> None:
    dicom = hilum.read(series, model=Standin())
    volume = hilum.io.open.open_volume(series)
    source = volume.source
    image = nib.Nifti1Image(volume.to_source(volume.hu).astype(np.int16), LPS_FROM_RAS @ source.affine_lps)
    nib.save(image, tmp_path / "same.nii.gz")
    plain = hilum.read(tmp_path / "same.nii.gz", model=Standin())
    for one, other in zip(dicom.findings, plain.findings, strict=True):
        assert (one.probability, one.volume_ml) == (other.probability, other.volume_ml)
        if one.where is not None and other.where is not None:
            assert one.where.model_copy(update={"image": None}) == other.where


def test_input_folder_is_untouched(tmp_path: Path) -> None:
    folder = tmp_path / "read only"
    folder.mkdir()
    path = nifti(folder / "scan.nii.gz")
    before = (path.read_bytes(), path.stat().st_mtime_ns, sorted(folder.iterdir()))
    path.chmod(0o444)
    folder.chmod(0o555)
    try:
        hilum.read(path, model=Standin()).save(tmp_path / "out")
    finally:
        folder.chmod(0o755)
    assert before == (path.read_bytes(), path.stat().st_mtime_ns, sorted(folder.iterdir()))


def test_output_inside_the_input_is_refused(series: Path) -> None:
    with pytest.raises(OutputError) as caught:
        CliRunner().invoke(read_command, [str(series), "--out", str(series / "out")], catch_exceptions=False)
    assert caught.value.code == "OUTPUT_INSIDE_INPUT"
    assert not (series / "out").exists()


@pytest.mark.parametrize("name", ["with space", "ümläut-ß", "дом", "a.nii.gz", "-dash", "x" * 180])
def test_odd_names(name: str, tmp_path: Path) -> None:
    grid = straight_grid((42, 32, 28), (9.0, 9.0, 10.0))
    path = nifti(tmp_path / f"{name}.nii.gz", grid)
    out = tmp_path / f"out {name}"
    result = CliRunner().invoke(read_command, ["--out", str(out), "--", str(path)])
    assert result.exit_code == 0, result.output
    assert (out / "maps" / "lung_nodule.nii.gz").is_file()


def test_refused_input_writes_nothing(tmp_path: Path) -> None:
    path = nifti(tmp_path / "scan.nii.gz")
    path.write_bytes(path.read_bytes()[:-2000])
    with pytest.raises(hilum.errors.InputRefused) as caught:
        CliRunner().invoke(read_command, [str(path), "--out", str(tmp_path / "out")], catch_exceptions=False)
    assert caught.value.exit_code == 3
    assert [p.name for p in tmp_path.iterdir()] == ["scan.nii.gz"]


def test_existing_output_stops_before_any_work(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with pytest.raises(OutputError) as caught:
        CliRunner().invoke(
            read_command, [str(tmp_path / "missing"), "--out", str(tmp_path / "out")], catch_exceptions=False
        )
    assert caught.value.code == "OUTPUT_EXISTS"
