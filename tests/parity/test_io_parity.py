"""On good files our reader, nibabel and SimpleITK say the same: voxels and where they are."""

from __future__ import annotations

import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk

sys.path.insert(0, str(Path(__file__).parents[1] / "hostile"))
from fixtures_files import AFFINE, chest, save_nifti

from hilum.geometry import LPS_FROM_RAS
from hilum.io.open import open_volume


def rotated(degrees: float) -> np.ndarray:
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    return np.array([[c, -s, 0, 0], [s, c, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1.0]]) @ AFFINE


def sitk_affine_ras(image: sitk.Image) -> np.ndarray:
    affine = np.eye(4)
    affine[:3, :3] = np.array(image.GetDirection()).reshape(3, 3) * image.GetSpacing()
    affine[:3, 3] = image.GetOrigin()
    return LPS_FROM_RAS @ affine


@pytest.mark.parametrize("dtype", ["u1", "i2", "i4", "f4", "f8"])
@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
@pytest.mark.parametrize("angle", [0.0, 7.5])
def test_nifti(tmp_path: Path, dtype: str, suffix: str, angle: float) -> None:
    values = chest() if dtype != "u1" else np.clip((chest() + 1024) / 8, 0, 255).round()
    path = save_nifti(tmp_path / f"x{suffix}", values, rotated(angle), dtype)
    if dtype == "u1":
        image = nib.load(path)
        image.header.set_slope_inter(8.0, -1024.0)
        stored = nib.Nifti1Image(values.astype(dtype), image.affine, image.header)
        stored.header.set_slope_inter(8.0, -1024.0)
        nib.save(stored, path)
    volume = open_volume(path)
    theirs = nib.load(path)
    itk = sitk.ReadImage(str(path))
    on_source = volume.to_source(volume.hu)
    assert np.allclose(on_source, theirs.get_fdata(), atol=1e-3)
    assert np.allclose(on_source, sitk.GetArrayFromImage(itk).T, atol=1e-3)
    assert np.allclose(volume.source.affine_ras, theirs.affine, atol=1e-3)
    assert np.allclose(volume.source.affine_ras, sitk_affine_ras(itk), atol=1e-2)
    closest = nib.as_closest_canonical(theirs)
    assert np.allclose(volume.hu, closest.get_fdata(), atol=1e-3)
    assert np.allclose(volume.geometry.affine_ras, closest.affine, atol=1e-3)


@pytest.mark.parametrize("compress", [True, False])
def test_nrrd_written_by_simpleitk(tmp_path: Path, compress: bool) -> None:
    image = sitk.GetImageFromArray(chest().T.astype(np.int16))
    image.SetSpacing((8.0, 9.0, 7.5))
    image.SetOrigin((-180.0, 150.0, -300.0))
    image.SetDirection((1, 0, 0, 0, -1, 0, 0, 0, 1))
    sitk.WriteImage(image, str(tmp_path / "x.nrrd"), compress)
    volume = open_volume(tmp_path / "x.nrrd")
    assert np.allclose(volume.source.affine_ras, sitk_affine_ras(image))
    assert np.array_equal(volume.to_source(volume.hu), chest())


def test_nifti_written_by_simpleitk(tmp_path: Path) -> None:
    image = sitk.GetImageFromArray(chest().T.astype(np.int16))
    image.SetSpacing((8.0, 9.0, 7.5))
    sitk.WriteImage(image, str(tmp_path / "x.nii.gz"), True)
    volume = open_volume(tmp_path / "x.nii.gz")
    assert np.allclose(volume.source.affine_ras, sitk_affine_ras(image)) and volume.provenance.findings == ()
    assert np.array_equal(volume.to_source(volume.hu), chest())
