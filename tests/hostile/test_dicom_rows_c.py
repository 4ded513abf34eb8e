"""Rows C of the catalogue: where the slices of a series lie."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pydicom
import pytest
from dicom_cases import Case, judge
from fixtures_dicom import (
    STEP_MM,
    chest,
    copy_as,
    edit,
    enhanced,
    files,
    good,
    grid,
    moved,
    setting,
    stored,
    without,
)

from hilum.errors import SeriesError, UsageError
from hilum.geometry import Geometry
from hilum.io.dicom_series import inspect_series, read_series
from hilum.io.dicom_write import SeriesHeader, uid_from, write_ct_series
from hilum.io.limits import Answers
from hilum.volume import CTVolume, Level


def do(*_done: object) -> None:
    """Its arguments were the work, one after another; a case builder returns nothing."""


def same_as_good(volume: CTVolume) -> None:
    assert np.array_equal(volume.hu, chest())
    assert volume.source.same_grid(grid(frame=volume.geometry.frame_uid))


def _missing(folder: Path, *, drop: tuple[int, ...] = (4,)) -> None:
    """File k (by name) is image k + 1 from the top."""
    good(folder)
    for index in drop:
        (folder / f"IM{index + 1:05d}.dcm").unlink()


def _filled(volume: CTVolume) -> None:
    """Instance 5 from the top is slice 11 from the bottom: interpolated, not valid, everything else
    untouched."""
    truth = chest()
    assert volume.valid_mask is not None
    assert np.flatnonzero(~volume.valid_mask.all(axis=(0, 1))).tolist() == [11]
    keep = [z for z in range(16) if z != 11]
    assert np.array_equal(volume.hu[:, :, keep], truth[:, :, keep])
    assert np.allclose(volume.hu[:, :, 11], (truth[:, :, 10] + truth[:, :, 12]) / 2, atol=1e-3)
    assert volume.geometry.same_grid(grid_ras(volume))
    assert len(volume.provenance.slices) == 16
    assert not volume.valid_mask[:, :, 11].any()


def grid_ras(volume: CTVolume):
    return volume.axes.geometry(grid(frame=volume.geometry.frame_uid))


def _split(volume: CTVolume) -> None:
    """The longer run is the lower 11 slices."""
    assert np.array_equal(volume.hu, chest()[:, :, :11])
    assert [s.instance_number for s in volume.provenance.slices] == list(range(16, 5, -1))


def _tilted(folder: Path, degrees: float = 12.0, tag: float | None = None) -> None:
    geometry = grid()
    affine = geometry.affine_ras.copy()
    affine[1, 2] = STEP_MM * np.tan(np.radians(degrees))
    tilted = Geometry(geometry.shape, affine)
    # The scene is smooth and given in mm, so that straightening can be checked against it.
    index = np.stack(np.meshgrid(*(np.arange(n) for n in tilted.shape), indexing="ij"), -1).reshape(-1, 3)
    hu = scene(tilted.to_mm(index)).reshape(tilted.shape)
    write_ct_series(folder, hu.astype(np.float32), tilted, header=SeriesHeader(seed="tilt"))
    if tag is not None:
        edit(files(folder), setting(GantryDetectorTilt=tag))


def scene(mm: np.ndarray) -> np.ndarray:
    """A smooth body in mm RAS: 40 HU inside, air outside, lungs as smooth dips."""
    x, y, z = (mm - [4.0, 10.0, -320.0]).T
    body = 1 / (1 + np.exp(((x / 110) ** 2 + (y / 90) ** 2 - 1) * 5))
    lungs = np.exp(-((np.abs(x) - 50) ** 2 / 900 + y**2 / 1600))
    return -1000 + 1040 * body - 890 * lungs * body + 0 * z


def _straight(volume: CTVolume) -> None:
    assert np.allclose(volume.geometry.affine_ras[:3, :3], np.diag(volume.spacing_mm), atol=1e-4)
    index = np.stack(np.meshgrid(*(np.arange(n) for n in volume.shape), indexing="ij"), -1).reshape(-1, 3)
    truth = scene(volume.geometry.to_mm(index)).reshape(volume.shape)
    assert volume.valid_mask is not None and 0.5 < volume.valid_mask.mean() < 1
    error = np.abs(volume.hu - truth)[volume.valid_mask]
    assert error.mean() < 6 and error.max() < 60, (error.mean(), error.max())
    for ref in volume.provenance.slices:
        nearest = volume.nearest_slice(np.array(ref.position_mm))
        assert nearest is not None and nearest.sop_uid == ref.sop_uid


def _duplicate(folder: Path) -> None:
    good(folder)
    copy_as(files(folder)[3], folder / "twin.dcm", setting(InstanceNumber=99))


def _duplicate_recoded(folder: Path) -> None:
    good(folder)
    copy_as(files(folder)[3], folder / "twin.dcm", lambda ds: ds.compress(pydicom.uid.RLELossless))


def _phases(folder: Path, *, shift_mm: float = 0.0, tell: str = "AcquisitionNumber", values=(1, 2)) -> None:
    """Two acquisitions under one SeriesInstanceUID."""
    good(folder, series_uid=uid_from("both"))
    good(folder.parent / "second", seed="second", series_uid=uid_from("both"), noise=7)
    for path in files(folder.parent / "second"):
        path.rename(folder / f"B{path.name}")

    def tag(value, shift: float):
        def change(ds: pydicom.FileDataset) -> None:
            ds.AcquisitionNumber, ds.FrameOfReferenceUID = 1, uid_from("frame")
            setattr(ds, tell, value)
            x, y, z = ds.ImagePositionPatient
            ds.ImagePositionPatient = [x, y, z + shift]

        return change

    edit(sorted(folder.glob("IM*")), tag(values[0], 0.0))
    edit(sorted(folder.glob("BIM*")), tag(values[1], shift_mm))


def _first_phase(volume: CTVolume) -> None:
    assert np.array_equal(volume.hu, chest())


def _localizer(folder: Path, *, tagged: bool = True) -> None:
    good(folder)

    def scout(ds: pydicom.FileDataset) -> None:
        ds.ImageType = ["ORIGINAL", "PRIMARY", "LOCALIZER" if tagged else "AXIAL"]
        ds.ImageOrientationPatient = [1, 0, 0, 0, 0, -1]
        ds.ImagePositionPatient = [-144, 0, -100]
        ds.InstanceNumber = 0

    copy_as(files(folder)[3], folder / "scout.dcm", scout)


def _many(folder: Path) -> None:
    good(folder / "a", seed="a", series_number=2)
    good(folder / "b", seed="b", series_number=3, kernel="LUNG", noise=5)


def _irregular(folder: Path) -> None:
    """10 mm apart below, 17 mm above: two scans joined."""
    good(folder)
    moved(lambda k, p: np.array([p[0], p[1], -400.0 + 10 * k + 7 * max(0, k - 8)]))(folder)


def _regridded(volume: CTVolume) -> None:
    z = volume.geometry.affine_ras[2, 3] + volume.spacing_mm[2] * np.arange(volume.shape[2])
    assert z[0] == pytest.approx(-400) and z[-1] == pytest.approx(-400 + 150 + 49)
    assert volume.valid_mask is not None and not volume.valid_mask.all()
    # A slice that an image shows is that image.
    assert np.allclose(volume.hu[:, :, 0], chest()[:, :, 0])
    assert np.allclose(volume.hu[:, :, -1], chest()[:, :, -1])


def _matrix(folder: Path) -> None:
    good(folder)
    small = np.zeros((16, 16), dtype=np.uint16)

    def shrink(ds: pydicom.FileDataset) -> None:
        ds.Rows = ds.Columns = 16
        ds.PixelData = small.tobytes()
        ds.ImagePositionPatient = [-144, -153, -300.0 + 3.0]

    copy_as(files(folder)[3], folder / "odd.dcm", shrink)


def _jitter(folder: Path, angle: float) -> None:
    good(folder)
    for k, path in enumerate(files(folder)):
        a = angle * (-1) ** k
        edit(
            path,
            setting(
                ImageOrientationPatient=[
                    f"{np.cos(a):.9f}",
                    f"{np.sin(a):.9f}",
                    0,
                    f"{-np.sin(a):.9f}",
                    f"{np.cos(a):.9f}",
                    0,
                ]
            ),
        )


def _extra_jittered(folder: Path) -> None:
    good(folder)
    a = 1e-3

    def turn(ds: pydicom.FileDataset) -> None:
        ds.ImageOrientationPatient = [
            f"{np.cos(a):.9f}",
            f"{np.sin(a):.9f}",
            0,
            f"{-np.sin(a):.9f}",
            f"{np.cos(a):.9f}",
            0,
        ]

    copy_as(files(folder)[3], folder / "odd.dcm", turn)


def _coronal(folder: Path, image_type: tuple[str, ...] = ("DERIVED", "SECONDARY", "MPR")) -> None:
    """A coronal reformat: columns to the left, rows down, slices to the back."""
    ras = chest((32, 18, 16))
    hu = np.ascontiguousarray(ras[::-1, ::-1, ::-1].transpose(0, 2, 1))
    affine = np.zeros((4, 4))
    affine[:, 3] = [144, 80, 150, 1]
    affine[0, 0], affine[2, 1], affine[1, 2] = -9, -9, -9
    write_ct_series(
        folder, hu, Geometry(hu.shape, affine), header=SeriesHeader(seed="cor", image_type=image_type)
    )


def _coronal_read(volume: CTVolume) -> None:
    assert np.array_equal(volume.hu, chest((32, 18, 16)))
    assert volume.source.axcodes in ("LIP", "LIA")


def _position(folder: Path, position: str) -> None:
    good(folder, patient_position=position)


def _not_enhanced(folder: Path) -> Path:
    good(folder)
    edit(files(folder), setting(NumberOfFrames=2))
    return folder


def _enhanced(folder: Path, **spoil) -> Path:
    folder.mkdir()
    enhanced(folder / "multi.dcm", **spoil)
    return folder


def _few(folder: Path, count: int) -> None:
    good(folder)
    for path in files(folder)[count:]:
        path.unlink()


S = SeriesError
CASES = [
    Case("C01 fill", "SLICE_MISSING", Level.ASK, _missing, S, Answers(fill=1), _filled),
    Case("C01 split", "SLICE_MISSING", Level.ASK, _missing, S, Answers(split=True), _split),
    Case(
        "C01 two, fill 1 is not enough",
        "SLICE_MISSING",
        Level.ASK,
        lambda f: _missing(f, drop=(4, 5)),
        S,
        given=Answers(fill=1),
    ),
    Case("C02 tilt", "GANTRY_TILT", Level.ASK, _tilted, S, Answers(rectify=True), _straight),
    Case(
        "C02 tag says 0",
        "GANTRY_TILT",
        Level.ASK,
        lambda f: _tilted(f, -9, tag=0.0),
        S,
        Answers(rectify=True),
        _straight,
    ),
    Case("C03 twin", "SLICE_DUPLICATE", Level.REPAIR, _duplicate, S, again=same_as_good),
    Case("C03 twin, recoded", "SLICE_DUPLICATE", Level.REPAIR, _duplicate_recoded, S, again=same_as_good),
    Case("C04 by number", "PHASES_MIXED", Level.ASK, _phases, S, Answers(series="#1"), _first_phase),
    Case(
        "C04 interleaved",
        "PHASES_MIXED",
        Level.ASK,
        lambda f: _phases(f, shift_mm=4.1),
        S,
        Answers(series="#1"),
        _first_phase,
    ),
    Case(
        "C04 by time",
        "PHASES_MIXED",
        Level.ASK,
        lambda f: _phases(f, tell="AcquisitionTime", values=("101500", "101530")),
        S,
        Answers(series="#1"),
        _first_phase,
    ),
    Case("C04 nothing tells", "PHASES_MIXED", Level.REFUSE, lambda f: _phases(f, values=(1, 1)), S),
    Case("C05 tagged", "LOCALIZER", Level.NOTE, _localizer, S, again=same_as_good),
    Case(
        "C05 by orientation",
        "LOCALIZER",
        Level.NOTE,
        lambda f: _localizer(f, tagged=False),
        S,
        again=same_as_good,
    ),
    Case("C06 number", "SERIES_MANY", Level.ASK, _many, S, Answers(series=2), _first_phase),
    Case("C06 uid", "SERIES_MANY", Level.ASK, _many, S, Answers(series=uid_from("a/series/2")), _first_phase),
    Case("C07 joined", "SPACING_IRREGULAR", Level.ASK, _irregular, S, Answers(regrid=True), _regridded),
    Case(
        "C07 off the line",
        "SPACING_IRREGULAR",
        Level.REFUSE,
        lambda f: do(good(f), moved(lambda k, p: np.add(p, [0, 5.0 * (k == 7), 0]))(f)),
        S,
    ),
    Case(
        "C08 one place",
        "POSITION_CONSTANT",
        Level.REFUSE,
        lambda f: do(good(f), moved(lambda k, p: np.array([p[0], p[1], -400.0]))(f)),
        S,
    ),
    Case(
        "C09 shuffled",
        "ORDER",
        Level.NOTE,
        lambda f: do(
            good(f), [edit(p, setting(InstanceNumber=(7 * k) % 16 + 1)) for k, p in enumerate(files(f))]
        ),
        S,
        again=same_as_good,
    ),
    Case(
        "C10 tag wrong",
        "THICKNESS_TRAP",
        Level.NOTE,
        lambda f: do(good(f), edit(files(f), setting(SpacingBetweenSlices=7.5))),
        S,
        again=same_as_good,
    ),
    Case(
        "C10 overlap",
        "THICKNESS_TRAP",
        Level.NOTE,
        lambda f: do(good(f, thickness_mm=15.0)),
        S,
        again=same_as_good,
    ),
    Case("C11 odd one", "MATRIX_CHANGE", Level.REPAIR, _matrix, S, again=same_as_good),
    Case(
        "C12 one slice",
        "PIXELSPACING_CHANGE",
        Level.REFUSE,
        lambda f: do(good(f), edit(files(f)[6], setting(PixelSpacing=[9.5, 9.5]))),
        S,
    ),
    Case("C13 rounding", "IOP_JITTER", Level.NOTE, lambda f: _jitter(f, 2e-5), S),
    Case("C13 one odd copy", "IOP_JITTER", Level.REPAIR, _extra_jittered, S, again=same_as_good),
    Case("C13 one odd slice leaves a gap", "SLICE_MISSING", Level.ASK, lambda f: _one_off(f), S),
    Case(
        "C14 slices of two frames",
        "FRAME_OF_REFERENCE",
        Level.REFUSE,
        lambda f: do(good(f), edit(files(f)[6], setting(FrameOfReferenceUID="1.2.3"))),
        S,
    ),
    Case("C15 no groups", "MULTIFRAME", Level.REFUSE, _not_enhanced, S),
    Case(
        "C15 no positions",
        "MULTIFRAME",
        Level.REFUSE,
        lambda f: _enhanced(f, drop="PlanePositionSequence"),
        S,
    ),
    Case("C15 frames disagree", "MULTIFRAME", Level.REFUSE, lambda f: _enhanced(f, frames=15), S),
    *(Case(f"C16 {n}", "TOO_FEW", Level.REFUSE, lambda f, n=n: _few(f, n), S) for n in (1, 2, 3)),
    Case("C18 coronal", "REFORMAT", Level.NOTE, _coronal, S, again=_coronal_read),
    Case(
        "C18 MIP",
        "REFORMAT",
        Level.ASK,
        lambda f: do(good(f, image_type=("DERIVED", "SECONDARY", "MIP"))),
        S,
        Answers(allow_mip=True),
        same_as_good,
    ),
    *(
        Case(f"C19 {p}", "POSITION_PRONE", Level.NOTE, lambda f, p=p: _position(f, p), S, again=same_as_good)
        for p in ("HFP", "FFS", "HFDR")
    ),
    Case(
        "C20 no position",
        "NO_GEOMETRY",
        Level.REFUSE,
        lambda f: do(good(f), edit(files(f), without("ImagePositionPatient"))),
        S,
    ),
    Case(
        "C20 no orientation in one",
        "NO_GEOMETRY",
        Level.REFUSE,
        lambda f: do(good(f), edit(files(f)[2], without("ImageOrientationPatient"))),
        S,
    ),
    Case(
        "C20 spacing 0",
        "NO_GEOMETRY",
        Level.REFUSE,
        lambda f: do(good(f), edit(files(f), setting(PixelSpacing=[0, 0]))),
        S,
    ),
    Case(
        "C20 position is text",
        "NO_GEOMETRY",
        Level.REFUSE,
        lambda f: do(good(f), edit(files(f)[2], lambda ds: ds.add_new(0x00200032, "DS", [""]))),
        S,
    ),
]


def _one_off(folder: Path) -> None:
    """One of sixteen slices is turned by 1e-3 rad: it is split off and leaves a gap, which is refused."""
    good(folder)
    a = 1e-3
    edit(
        files(folder)[6],
        setting(
            ImageOrientationPatient=[
                f"{np.cos(a):.9f}",
                f"{np.sin(a):.9f}",
                0,
                f"{-np.sin(a):.9f}",
                f"{np.cos(a):.9f}",
                0,
            ]
        ),
    )


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
def test_row(case: Case, tmp_path: Path) -> None:
    judge(case, tmp_path / "series")


def test_enhanced_reads_like_single_frames(tmp_path: Path) -> None:
    """C15: frames stored from the top, geometry from the functional groups."""
    folder = tmp_path / "multi"
    folder.mkdir()
    hu = enhanced(folder / "multi.dcm")
    for path in (folder, folder / "multi.dcm"):
        volume = read_series(path, mode="refuse")
        assert np.array_equal(volume.to_source(volume.hu), hu)
        assert volume.source.same_grid(grid(frame=volume.geometry.frame_uid))
        assert [s.instance_number for s in volume.provenance.slices] == list(range(16, 0, -1))


def test_candidates_are_listed(tmp_path: Path) -> None:
    """C06: the table names what tells the candidates apart, and the flag."""
    _many(tmp_path)
    seen = inspect_series(tmp_path)
    assert [c["series_number"] for c in seen.candidates] == [2, 3]
    assert [c["kernel"] for c in seen.candidates] == ["STANDARD", "LUNG"]
    with pytest.raises(SeriesError) as caught:
        read_series(tmp_path)
    assert "series 2" in (caught.value.hint or "") and "series 3" in (caught.value.hint or "")
    with pytest.raises(UsageError) as usage:
        read_series(tmp_path, answers=Answers(series="99"))
    assert usage.value.code == "ANSWER_INVALID"


def test_small_series_is_passed_over(tmp_path: Path) -> None:
    """Two scouts in a series of their own are no candidate, and are named."""
    good(tmp_path / "a", seed="a")
    good(tmp_path / "b", seed="b", series_number=9)
    for path in files(tmp_path / "b")[2:]:
        path.unlink()
    volume = read_series(tmp_path)
    same_as_good(volume)
    assert [(f.code, f.level) for f in volume.provenance.findings] == [("TOO_FEW", Level.NOTE)]


def test_step_and_shoot_is_not_two_phases(tmp_path: Path) -> None:
    """C04: acquisition numbers that follow one another along the body are one scan."""
    good(tmp_path / "s")
    for k, path in enumerate(files(tmp_path / "s")):
        edit(path, setting(AcquisitionNumber=k // 8 + 1))
    assert read_series(tmp_path / "s", mode="refuse").provenance.findings == ()


def test_info_and_slices(tmp_path: Path) -> None:
    refs = good(tmp_path / "s", kernel="B31f", contrast="agent", kvp=100.0, numbering="bottom")
    volume = read_series(tmp_path / "s")
    info = dict(volume.provenance.info)
    assert info == {
        "kernel": "B31f",
        "contrast": "yes",
        "patient_position": "HFS",
        "thickness_mm": "10.0",
        "kvp": "100.0",
        "manufacturer": "Hilum phantom",
    }
    for written, read in zip(refs, volume.provenance.slices, strict=True):
        assert (written.sop_uid, written.instance_number) == (read.sop_uid, read.instance_number)
        assert np.allclose(written.position_mm, read.position_mm, atol=1e-6)


def test_frame_of_reference_is_kept(tmp_path: Path) -> None:
    """C14: two grids at one place in two frames are not the same grid."""
    good(tmp_path / "a", seed="a")
    good(tmp_path / "b", seed="b")
    a, b = read_series(tmp_path / "a"), read_series(tmp_path / "b")
    assert a.geometry.frame_uid != b.geometry.frame_uid
    assert not a.geometry.same_grid(b.geometry)
    assert a.geometry.same_grid(read_series(tmp_path / "a").geometry)


def test_report_only_reads_on(tmp_path: Path) -> None:
    """report-only stops at nothing that can be decoded, and keeps the truth about where voxels are."""
    _tilted(tmp_path / "t")
    tilted = read_series(tmp_path / "t", mode="report-only")
    assert tilted.geometry.affine_ras[1, 2] == pytest.approx(STEP_MM * np.tan(np.radians(12)), abs=1e-4)
    _missing(tmp_path / "m")
    assert read_series(tmp_path / "m", mode="report-only", answers=Answers(accept_fov=True)).shape[2] == 11


def test_equal_input_equal_hash(tmp_path: Path) -> None:
    """File names and their order do not matter; bytes do."""
    good(tmp_path / "a")
    good(tmp_path / "b")
    for k, path in enumerate(files(tmp_path / "b")):
        path.rename(tmp_path / "b" / f"{(k * 5) % 16:02d}.bin")
    a, b = read_series(tmp_path / "a"), read_series(tmp_path / "b")
    assert a.provenance.sha256 == b.provenance.sha256
    assert np.array_equal(a.hu, b.hu)
    assert stored(chest()).shape == a.source.shape
