"""Series and image number -> place -> depth, on series as scanners and archives spoil them."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "hostile"))

import fixtures_dicom as fx

from hilum.errors import SeriesError
from hilum.geometry import Geometry, axis_map
from hilum.io.dicom_place import ImagePlace, Study, depth_in, read_study
from hilum.io.dicom_write import SeriesHeader, uid_from, write_ct_series
from hilum.io.open import open_volume
from hilum.text.snippet_places import resolve
from hilum.text.snippets import mine
from hilum.volume import SliceRef

FRAME = uid_from("place/frame")
STUDY = uid_from("place/study")
SHAPE = (12, 14, 20)


def turned(degrees: float, axis: str = "x") -> np.ndarray:
    """A rotation about x, y or z."""
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    first, second = {"x": (1, 2), "y": (2, 0), "z": (0, 1)}[axis]
    matrix = np.eye(3)
    matrix[first, first] = matrix[second, second] = c
    matrix[first, second], matrix[second, first] = -s, s
    return matrix


def axial(shape: tuple[int, int, int] = SHAPE, origin: tuple = (60.0, 80.0, -300.0)) -> Geometry:
    affine = np.diag([-9.0, -9.0, 2.5, 1.0])
    affine[:3, 3] = origin
    return Geometry(shape, affine, FRAME)


def tilted(degrees: float = 18.0) -> Geometry:
    """Slices that keep their orientation but are stacked along a sheared axis."""
    affine = axial().affine_ras.copy()
    affine[1, 2] = 2.5 * np.tan(np.radians(degrees))
    return Geometry(SHAPE, affine, FRAME)


def oblique() -> Geometry:
    affine = axial().affine_ras.copy()
    affine[:3, :3] = turned(23) @ turned(11, "y") @ affine[:3, :3]
    return Geometry(SHAPE, affine, FRAME)


def downward() -> Geometry:
    """Stored from the head down."""
    affine = axial().affine_ras.copy()
    affine[2, 2], affine[2, 3] = -2.5, -250.0
    return Geometry(SHAPE, affine, FRAME)


def coronal() -> Geometry:
    affine = np.zeros((4, 4))
    affine[0, 0], affine[2, 1], affine[1, 2] = -9.0, -9.0, 2.5
    affine[:, 3] = [60.0, -60.0, -100.0, 1.0]
    return Geometry(SHAPE, affine, FRAME)


def write(folder: Path, geometry: Geometry, name: str = "a", **header) -> list[SliceRef]:
    hu = np.full(geometry.shape, -500.0, dtype=np.float32)
    settings = {"seed": f"place {name}", "study_uid": STUDY, "series_number": 4, "frame_uid": FRAME} | header
    return write_ct_series(folder / name, hu, geometry, header=SeriesHeader(**settings))


GRIDS = {"axial": axial, "down": downward, "tilted": tilted, "oblique": oblique, "coronal": coronal}


@pytest.mark.parametrize("numbering", ["top", "bottom"])
@pytest.mark.parametrize("grid", GRIDS.values(), ids=GRIDS.keys())
def test_every_image_lies_where_its_position_says(tmp_path: Path, grid, numbering: str) -> None:
    geometry = grid()
    refs = write(tmp_path, geometry, numbering=numbering)
    study = read_study(tmp_path)
    assert {r.instance_number for r in refs} == set(range(1, SHAPE[2] + 1))
    for k, ref in enumerate(refs):
        place = study.find(4, ref.instance_number)
        assert place.sop_uid == ref.sop_uid
        assert np.allclose(place.centre_mm, ref.position_mm, atol=0.01)
        depth = depth_in(place, geometry)
        assert (depth.axis, depth.index) == (2, k)
        assert abs(depth.exact_vox - k) < 0.01


def lesion_mm(geometry: Geometry, k: int, rng: np.random.Generator) -> np.ndarray:
    """A point in slice k."""
    return geometry.to_mm(np.array([[rng.uniform(2, 9), rng.uniform(2, 11), k]]))


def grid_of(shape: tuple[int, int, int], *rows: list[float]) -> Geometry:
    return Geometry(shape, np.array([*rows, [0.0, 0.0, 0.0, 1.0]]), FRAME)


TARGETS = {
    "finer": grid_of((30, 40, 90), [4, 0, 0, -60], [0, 4, 0, -80], [0, 0, 0.8, -310]),
    "from above": grid_of((30, 40, 20), [-4, 0, 0, 60], [0, 4, 0, -80], [0, 0, -5, -240]),
    "other axes": grid_of((90, 30, 40), [0, 4, 0, -60], [0, 0, 4, -80], [0.8, 0, 0, -310]),
}


@pytest.mark.parametrize("target", TARGETS.values(), ids=TARGETS.keys())
@pytest.mark.parametrize("numbering", ["top", "bottom"])
def test_depth_in_another_grid_is_that_of_the_lesion(
    tmp_path: Path, target: Geometry, numbering: str
) -> None:
    source, rng = axial(), np.random.default_rng(5)
    refs = write(tmp_path, source, numbering=numbering)
    study = read_study(tmp_path)
    for k, ref in enumerate(refs):
        depth = depth_in(study.find(4, ref.instance_number), target)
        assert depth.axis == axis_map(target).order[2]
        truth = target.to_vox(lesion_mm(source, k, rng))[0, depth.axis]
        assert abs(depth.index - truth) <= 0.5 + 1e-6 and depth.low_vox == pytest.approx(depth.high_vox)


@pytest.mark.parametrize("grid", [tilted, oblique], ids=["tilted", "oblique"])
def test_a_slanted_image_says_between_which_slices_it_lies(tmp_path: Path, grid) -> None:
    source, rng = grid(), np.random.default_rng(6)
    refs = write(tmp_path, source)
    study = read_study(tmp_path)
    affine = np.diag([3.0, 3.0, 1.5, 1.0])
    affine[:3, 3] = [-120.0, -160.0, -420.0]
    target = Geometry((120, 120, 200), affine, FRAME)
    for k, ref in enumerate(refs):
        depth = depth_in(study.find(4, ref.instance_number), target)
        truth = target.to_vox(lesion_mm(source, k, rng))[0, 2]
        assert depth.low_vox - 0.5 <= truth <= depth.high_vox + 0.5


@pytest.mark.parametrize("numbering", ["top", "bottom"])
def test_the_depth_is_the_slice_of_the_volume_that_the_reader_makes(tmp_path: Path, numbering: str) -> None:
    refs = fx.good(tmp_path / "a", series_number=4, numbering=numbering)
    study, volume = read_study(tmp_path), open_volume(tmp_path)
    for place in (study.find(4, r.instance_number) for r in refs):
        depth = depth_in(place, volume.geometry)
        assert volume.geometry.to_mm(np.array([[0, 0, depth.index]]))[0, 2] == pytest.approx(place.z_mm)
        assert volume.provenance.slices[depth.index].sop_uid == place.sop_uid


def test_a_gapped_series_keeps_its_places(tmp_path: Path) -> None:
    refs = write(tmp_path, axial())
    for path in fx.files(tmp_path / "a"):
        if int(path.stem[2:]) in (5, 6, 7, 13):
            path.unlink()
    study = read_study(tmp_path)
    for k, ref in enumerate(refs):
        if ref.instance_number in (5, 6, 7, 13):
            assert refused(study, 4, ref.instance_number) == "IMAGE_UNKNOWN"
        else:
            assert depth_in(study.find(4, ref.instance_number), axial()).index == k


def test_shuffled_numbers_change_nothing(tmp_path: Path) -> None:
    write(tmp_path, axial())
    order = np.random.default_rng(3).permutation(SHAPE[2])
    truth = {}
    for path, number in zip(fx.files(tmp_path / "a"), order, strict=True):
        fx.edit(path, lambda ds, n=number: truth.update({int(n) + 1: float(ds.ImagePositionPatient[2])}))
        fx.edit(path, fx.setting(InstanceNumber=int(number) + 1))
    study = read_study(tmp_path)
    assert all(study.find(4, n).z_mm == pytest.approx(z) for n, z in truth.items())


def refused(study: Study, series: int | None, image: int, **more) -> str:
    with pytest.raises(SeriesError) as caught:
        study.find(series, image, **more)
    assert caught.value.expected and caught.value.got and caught.value.exit_code == 3
    return caught.value.code


def test_two_series_of_one_number_are_refused(tmp_path: Path) -> None:
    write(tmp_path, axial(), "a")
    write(tmp_path, axial(), "b")
    study = read_study(tmp_path)
    assert refused(study, 4, 7) == "IMAGE_AMBIGUOUS"


def test_two_images_of_one_number_are_refused_and_the_others_found(tmp_path: Path) -> None:
    refs = write(tmp_path, axial())
    paths = fx.files(tmp_path / "a")
    fx.edit(paths[3], fx.setting(InstanceNumber=9))
    study = read_study(tmp_path)
    assert refused(study, 4, 9) == "IMAGE_AMBIGUOUS" and refused(study, 4, 4) == "IMAGE_UNKNOWN"
    assert all(study.find(4, r.instance_number) for r in refs if r.instance_number not in (4, 9))


def test_the_same_file_twice_is_one_image(tmp_path: Path) -> None:
    write(tmp_path, axial())
    path = fx.files(tmp_path / "a")[6]
    (tmp_path / "copy.dcm").write_bytes(path.read_bytes())
    study = read_study(tmp_path)
    assert study.find(4, 7).number == 7
    fx.edit(tmp_path / "copy.dcm", lambda ds: setattr(ds, "ImagePositionPatient", ["0", "0", "0"]))
    assert refused(read_study(tmp_path), 4, 7) == "IMAGE_AMBIGUOUS"


def test_acquisitions_that_share_numbers_are_refused_and_others_found(tmp_path: Path) -> None:
    series = uid_from("place/two phases")
    write(tmp_path, axial(), "a", series_uid=series, acquisition_number=1)
    write(tmp_path, axial(), "b", series_uid=series, acquisition_number=2)
    with pytest.raises(SeriesError, match="acquisitions 1, 2") as caught:
        read_study(tmp_path).find(4, 7)
    assert caught.value.code == "IMAGE_AMBIGUOUS"
    for path in fx.files(tmp_path / "b"):
        fx.edit(path, lambda ds: setattr(ds, "InstanceNumber", int(ds.InstanceNumber) + SHAPE[2]))
    study = read_study(tmp_path)
    assert (study.find(4, 7).acquisition, study.find(4, 7 + SHAPE[2]).acquisition) == (1, 2)
    assert study.find(4, 7).z_mm == study.find(4, 7 + SHAPE[2]).z_mm


def test_localizers_are_refused_and_never_hide_a_slice(tmp_path: Path) -> None:
    write(tmp_path, axial(), "scan")
    write(tmp_path, coronal(), "scout", series_number=1, image_type=("ORIGINAL", "PRIMARY", "LOCALIZER"))
    fx.copy_as(fx.files(tmp_path / "scan")[0], tmp_path / "scan" / "scout.dcm",
               fx.setting(InstanceNumber=7, ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"]))  # fmt: skip
    study = read_study(tmp_path)
    assert refused(study, 1, 3) == "LOCALIZER"
    assert study.find(4, 7).sop_uid != uid_from("scout.dcm")


def test_a_scout_that_does_not_say_so_is_known_by_its_orientation(tmp_path: Path) -> None:
    write(tmp_path, axial())
    upright = ["1", "0", "0", "0", "0", "-1"]
    fx.copy_as(fx.files(tmp_path / "a")[0], tmp_path / "a" / "scout.dcm",
               fx.setting(InstanceNumber=99, ImageOrientationPatient=upright))  # fmt: skip
    assert refused(read_study(tmp_path), 4, 99) == "LOCALIZER"


def test_without_a_series_one_series_must_be_meant(tmp_path: Path) -> None:
    write(tmp_path, axial(), "a")
    assert read_study(tmp_path).find(None, 7).series_number == 4
    write(tmp_path, axial(shape=(12, 14, 8)), "b", series_number=5)
    study = read_study(tmp_path)
    assert refused(study, None, 7) == "IMAGE_AMBIGUOUS"
    assert study.find(None, 17).series_number == 4


def test_what_is_not_there_is_said_with_what_is(tmp_path: Path) -> None:
    write(tmp_path, axial())
    study = read_study(tmp_path)
    with pytest.raises(SeriesError, match="images 1 to 20") as caught:
        study.find(4, 21)
    assert caught.value.code == "IMAGE_UNKNOWN"
    with pytest.raises(SeriesError, match="series 4"):
        study.find(5, 1)
    assert refused(study, None, 21) == "IMAGE_UNKNOWN"
    assert refused(study, 4, 7, total=240) == "IMAGE_AMBIGUOUS" and study.find(4, 7, total=20)


def test_an_image_without_position_is_refused(tmp_path: Path) -> None:
    write(tmp_path, axial())
    fx.edit(fx.files(tmp_path / "a")[6], fx.without("ImagePositionPatient"))
    assert refused(read_study(tmp_path), 4, 7) == "NO_GEOMETRY"


def test_two_studies_in_one_folder_are_refused(tmp_path: Path) -> None:
    write(tmp_path, axial(), "a")
    write(tmp_path, axial(), "b", study_uid=uid_from("another"), series_number=5)
    with pytest.raises(SeriesError) as caught:
        read_study(tmp_path)
    assert caught.value.code == "IMAGE_AMBIGUOUS"


def test_frames_of_an_enhanced_file_are_images(tmp_path: Path) -> None:
    fx.enhanced(tmp_path / "enhanced.dcm")
    study = read_study(tmp_path)
    series = next(iter(study.series.values()))[0].series_number
    heights = [study.find(series, n).z_mm for n in range(1, fx.SHAPE[2] + 1)]
    assert heights == sorted(heights, reverse=True) and study.find(series, 3).frame == 3


def place_of(tmp_path: Path) -> ImagePlace:
    write(tmp_path, axial())
    return read_study(tmp_path).find(4, 7)


def test_another_frame_of_reference_is_refused(tmp_path: Path) -> None:
    place, grid = place_of(tmp_path), axial()
    for frame in (uid_from("other"), None):
        with pytest.raises(SeriesError) as caught:
            depth_in(place, Geometry(grid.shape, grid.affine_ras, frame))
        assert caught.value.code == "FRAME_OF_REFERENCE"
    with pytest.raises(SeriesError):
        depth_in(place, Geometry(grid.shape, grid.affine_ras, uid_from("other")), same_frame=True)
    assert depth_in(place, Geometry(grid.shape, grid.affine_ras), same_frame=True).index == 13


def test_a_slice_beyond_the_target_is_refused(tmp_path: Path) -> None:
    place = place_of(tmp_path)
    for origin in ((60.0, 80.0, 500.0), (900.0, 80.0, -300.0)):
        with pytest.raises(SeriesError) as caught:
            depth_in(place, axial(origin=origin))
        assert caught.value.code == "IMAGE_OUTSIDE"
    assert depth_in(place, axial(shape=(12, 14, 14))).index == 13


def test_a_snippet_is_resolved_image_by_image_and_prior_ones_never(tmp_path: Path) -> None:
    write(tmp_path, axial())
    study = read_study(tmp_path)
    now, then = mine("Nodule (series 4, images 19-21), previously (series 4, image 7).")
    found = resolve(now, study, axial())
    assert [r.depth.index if r.depth else r.refusal.code for r in found] == [1, 0, "IMAGE_UNKNOWN"]
    assert found[0].as_dict()["sop_uid"] and found[2].as_dict()["refused"]["code"] == "IMAGE_UNKNOWN"
    (refusal,) = resolve(then, study)
    assert refusal.place is None and refusal.refusal.code == "PRIOR_REFERENCE"
