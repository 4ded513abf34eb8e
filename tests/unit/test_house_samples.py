"""Public samples: the registry, masks on the scan's grid, contours, and scores."""

from __future__ import annotations

import re
import sqlite3
from pathlib import Path

import nibabel
import nrrd
import numpy as np
import pytest

from hilum.errors import HeaderError, UsageError
from hilum.exam.samples import as_text, dice, examine_samples, peak_distance_mm, score_sample
from hilum.geometry import Geometry
from hilum.io.fetch import is_cached
from hilum.read.sample_truth import contour_mask, label_masks
from hilum.read.samples import DEMO_SAMPLE, SAMPLES, Sample, load_sample

GRID = Geometry((10, 12, 8), np.diag([2.0, 2.0, 3.0, 1.0]))


def _archives(sample: Sample) -> list:
    return [sample.volume.archive, *(t.member.archive for t in sample.truths)]


@pytest.mark.parametrize("sample", SAMPLES.values(), ids=list(SAMPLES))
def test_every_sample_is_pinned_and_credited(sample: Sample) -> None:
    assert sample.licence and sample.citation and sample.truths
    for member in [sample.volume, *(t.member for t in sample.truths)]:
        assert re.fullmatch(r"[0-9a-f]{64}", member.sha256)
        assert re.fullmatch(r"[0-9a-f]{64}", member.archive.sha256)
        assert member.size > 0
        assert member.archive.version in member.archive.filename


def test_the_demo_needs_no_source_archive() -> None:
    assert not any(archive.is_source for archive in _archives(SAMPLES[DEMO_SAMPLE]))


def test_an_unknown_sample_names_the_known_ones() -> None:
    with pytest.raises(UsageError, match="lidc-idri-0001"):
        load_sample("lidc")


def test_labels_land_on_the_ras_grid_whatever_their_axes(tmp_path: Path) -> None:
    ras = np.zeros(GRID.shape, dtype=np.uint8)
    ras[2:4, 5:9, 1:3], ras[7, 1, 6] = 1, 2
    # The same labels stored as LPS with swapped axes.
    stored = ras[::-1, ::-1].transpose(2, 0, 1)
    affine = np.zeros((4, 4))
    affine[2, 0], affine[0, 1], affine[1, 2], affine[3, 3] = 3.0, -2.0, -2.0, 1.0
    affine[:3, 3] = [18.0, 22.0, 0.0]
    path = tmp_path / "labels.nii.gz"
    nibabel.save(nibabel.Nifti1Image(stored, affine), path)
    masks = label_masks(path, {"one": (1,), "both": (1, 2)}, GRID)
    np.testing.assert_array_equal(masks["one"], ras == 1)
    np.testing.assert_array_equal(masks["both"], ras > 0)


def test_labels_on_a_crop_are_put_back(tmp_path: Path) -> None:
    path = tmp_path / "crop.nrrd"
    header = {
        "space": "left-posterior-superior",
        "space directions": np.diag([-2.0, -2.0, 3.0]),
        "space origin": np.array([-4.0, -6.0, 9.0]),
    }
    nrrd.write(str(path), np.ones((3, 2, 2), dtype=np.uint8), header)
    mask = label_masks(path, {"it": (1,)}, GRID)["it"]
    expected = np.zeros(GRID.shape, dtype=bool)
    expected[2:5, 3:5, 3:5] = True
    np.testing.assert_array_equal(mask, expected)


def test_masks_in_an_unknown_space_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "odd.nrrd"
    nrrd.write(str(path), np.ones((3, 2, 2), dtype=np.uint8), {"space": "scanner-xyz"})
    with pytest.raises(HeaderError, match="NRRD_HEADER"):
        label_masks(path, {"it": (1,)}, GRID)


def _database(path: Path, contours: list[tuple[int, bool, float, str]]) -> Path:
    connection = sqlite3.connect(path)
    connection.executescript(
        "CREATE TABLE scans (id INTEGER, patient_id TEXT);"
        "CREATE TABLE annotations (id INTEGER, scan_id INTEGER);"
        "CREATE TABLE contours (id INTEGER, annotation_id INTEGER, inclusion BOOLEAN,"
        " image_z_position FLOAT, coords TEXT);"
        "INSERT INTO scans VALUES (7, 'P1');"
    )
    for reader in sorted({c[0] for c in contours}):
        connection.execute("INSERT INTO annotations VALUES (?, 7)", (reader,))
    for number, contour in enumerate(contours):
        connection.execute("INSERT INTO contours VALUES (?, ?, ?, ?, ?)", (number, *contour))
    connection.commit()
    connection.close()
    return path


def _square(low: int, high: int) -> str:
    return f"{low},{low}\n{high},{low}\n{high},{high}\n{low},{high}"


def test_contours_are_columns_and_rows_and_half_the_readers_decide(tmp_path: Path) -> None:
    path = _database(
        tmp_path / "c.sqlite",
        [(1, True, 6.0, _square(1, 5)), (2, True, 6.0, "1,1\n4,1\n4,9\n1,9"), (3, True, 9.0, _square(6, 9))],
    )
    mask = contour_mask(path, "P1", GRID, share=0.5)
    # Readers 1 and 2 agree on columns 2..3 and rows 2..4 of slice 2; RAS+ counts columns and rows backwards.
    expected = np.zeros(GRID.shape, dtype=bool)
    expected[10 - 1 - 3 : 10 - 1 - 1, 12 - 1 - 4 : 12 - 1 - 1, 2] = True
    np.testing.assert_array_equal(mask, expected)
    assert contour_mask(path, "P1", GRID, share=0.1)[:, :, 3].any()
    assert not contour_mask(path, "nobody", GRID).any()


def test_a_hole_in_a_contour_is_a_hole(tmp_path: Path) -> None:
    path = _database(tmp_path / "c.sqlite", [(1, False, 3.0, _square(3, 6)), (1, True, 3.0, _square(1, 8))])
    mask = contour_mask(path, "P1", GRID)[:, :, 1]
    assert mask.sum() == 36 - 4


def test_dice_and_peak() -> None:
    truth = np.zeros(GRID.shape, dtype=bool)
    truth[2:4, 2:4, 2:4] = True
    half = truth.copy()
    half[3] = False
    assert dice(half, truth) == pytest.approx(2 / 3)
    assert dice(~truth & False, truth & False) == 1.0
    heat = np.zeros(GRID.shape, dtype=np.float32)
    assert peak_distance_mm(heat, truth, GRID) is None
    heat[3, 3, 3] = 0.4
    assert peak_distance_mm(heat, truth, GRID) == 0.0
    heat[3, 3, 6] = 0.9
    assert peak_distance_mm(heat, truth, GRID) == pytest.approx(9.0)


def test_scores_say_what_they_found_whatever_it_is() -> None:
    truth = np.zeros(GRID.shape, dtype=bool)
    truth[2:4, 2:4, 2:4] = True
    heat = truth.astype(np.float32)
    rows = score_sample(
        "x",
        {"lung": truth, "lung_nodule": truth},
        GRID,
        organ_of=lambda _: heat,
        map_of=lambda _: np.roll(heat, 4, axis=0),
        probability=0.25,
        made_by="test",
    )
    assert [(r.target, r.dice, r.peak_inside) for r in rows] == [
        ("lung", 1.0, None),
        ("lung_nodule", None, False),
    ]
    assert rows[0].sentence() == "Dice lung 1.000"
    assert "mm from the nodule (probability 0.25)" in rows[1].sentence()
    assert rows[1].as_dict()["truth"] == "test"
    assert as_text(rows).splitlines()[:2] == ["x", "  Dice lung 1.000   [against: test]"]


class _Oracle:
    """Answers with the truth itself, on the scan's own grid: every score must be perfect."""

    name = trained_on = "its own truth"
    sha256, calibrated = "0" * 64, False

    def __init__(self, truth: dict[str, np.ndarray], shape: tuple[int, int, int]) -> None:
        self.truth, self.shape = truth, shape
        self.thresholds: dict[str, float] = {}
        self.map_thresholds: dict[str, float] = {}

    def run(self, volume: object) -> _Oracle:
        from hilum.text.vocabulary import INDEX, ORGAN_CHANNELS, SLUGS

        empty = np.zeros(self.shape, dtype=np.float32)
        self.organs = np.stack([self.truth.get(n, empty).astype(np.float32) for n in ORGAN_CHANNELS])
        self.maps = np.zeros((len(SLUGS), *self.shape), dtype=np.float32)
        if "lung_nodule" in self.truth:
            self.maps[INDEX["lung_nodule"]] = self.truth["lung_nodule"]
        self.probabilities = np.ones(len(SLUGS), dtype=np.float32)
        self.trace = self.outline_trace = self
        self.outlines = self.organs
        return self

    def invert(self, values: np.ndarray) -> np.ndarray:
        return values


def test_ctchest4_scores_perfectly_with_its_own_truth() -> None:
    if not is_cached(SAMPLES["ctchest4"].volume.archive):
        pytest.skip("the sample is not in the cache")
    loaded = load_sample("ctchest4")
    lung = loaded.truth["lung"]
    assert np.median(loaded.volume.hu[lung]) < -700
    # The left lung lies to the left: at smaller x in RAS+.
    assert np.argwhere(loaded.truth["left lung"])[:, 0].mean() < np.argwhere(lung)[:, 0].mean()
    rows = examine_samples(_Oracle(dict(loaded.truth), loaded.volume.shape), ["ctchest4"])
    assert [(r.target, r.dice) for r in rows] == [("lung", 1.0)]


@pytest.mark.slow
def test_the_nodule_of_lidc_lies_in_the_left_lower_lobe() -> None:
    if not all(is_cached(archive) for archive in _archives(SAMPLES[DEMO_SAMPLE])):
        pytest.skip("the sample is not in the cache")
    loaded = load_sample(DEMO_SAMPLE)
    nodule = loaded.truth["lung_nodule"]
    assert 5.5 < nodule.sum() * loaded.volume.geometry.voxel_ml < 7.5
    assert (nodule & loaded.truth["left lower lobe"]).sum() > 0.99 * nodule.sum()
    assert np.median(loaded.volume.hu[nodule]) > -100
    assert np.median(loaded.volume.hu[loaded.truth["heart"]]) > 0
