"""On good series our reader and SimpleITK's say the same: HU, and where every voxel lies."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "hostile"))

from fixtures_dicom import good, stored

from hilum.geometry import Geometry
from hilum.io.dicom_series import read_series
from hilum.io.dicom_write import SeriesHeader, write_ct_series

sitk = pytest.importorskip("SimpleITK")


def read_with_itk(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """Array [columns, rows, slices] and affine LPS."""
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(folder)))
    image = reader.Execute()
    affine = np.eye(4)
    affine[:3, :3] = np.array(image.GetDirection()).reshape(3, 3) * np.array(image.GetSpacing())
    affine[:3, 3] = image.GetOrigin()
    return sitk.GetArrayFromImage(image).transpose(2, 1, 0), affine


@pytest.mark.parametrize("syntax", ["explicit", "implicit", "bigendian", "deflated", "rle", "jpegls", "j2k"])
def test_same_voxels_same_place(syntax: str, tmp_path: Path) -> None:
    good(tmp_path / "s", syntax=syntax)
    _compare(tmp_path / "s")


def test_oblique(tmp_path: Path) -> None:
    from fixtures_dicom import chest, grid

    geometry = grid()
    a = np.radians(11)
    turn = np.array([[1, 0, 0], [0, np.cos(a), -np.sin(a)], [0, np.sin(a), np.cos(a)]])
    affine = geometry.affine_ras.copy()
    affine[:3, :3] = turn @ affine[:3, :3]
    write_ct_series(tmp_path / "s", stored(chest()), Geometry(geometry.shape, affine), header=SeriesHeader())
    _compare(tmp_path / "s")


def _compare(folder: Path) -> None:
    volume = read_series(folder)
    array, affine = read_with_itk(folder)
    assert np.array_equal(volume.to_source(volume.hu), array)
    assert np.allclose(volume.source.affine_lps, affine, atol=1e-5)
