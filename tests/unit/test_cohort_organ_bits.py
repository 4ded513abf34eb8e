"""Organ masks beside prepared scans: the nearest voxel, the published way, bits, sources."""

import itertools
import json
from dataclasses import replace

import numpy as np
import pytest
from _store_scans import write_scans

from hilum.cohort.mask_sources import LESION, MaskJob, OwnFindings, OwnRegions, mask_jobs
from hilum.cohort.organ_bits import nearest, packed, touched, unpacked
from hilum.cohort.pipeline import grid_of
from hilum.cohort.prep_presets import PIPELINES, Pipeline, pipeline
from hilum.cohort.records import MaskRef, ScanRecord
from hilum.cohort.store import open_store, verify_store
from hilum.cohort.store_write import StoreJob
from hilum.errors import ContainerError
from hilum.geometry import Geometry
from hilum.io.nifti import write_nifti
from hilum.io.open import open_volume
from hilum.text.vocabulary import ORGAN_CHANNELS, REGIONS
from hilum.volume import CTVolume, Provenance


def volume_of(mask, affine):
    hu = np.where(mask, 40.0, -1000.0).astype(np.float32)
    return CTVolume.from_source(hu, Geometry(mask.shape, affine), Provenance("test", "mask"))


def blob(shape, seed=0):
    rng = np.random.default_rng(seed)
    index = np.stack(np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij"), -1)
    return (((index - rng.uniform(-0.2, 0.2, 3)) / (0.5, 0.7, 0.6)) ** 2).sum(-1) < 1


@pytest.fixture(scope="module")
def scan(tmp_path_factory):
    (path,) = write_scans(tmp_path_factory.mktemp("scan"), 1)
    return open_volume(path)


@pytest.mark.parametrize("name", PIPELINES)
def test_the_grid_is_known_without_the_values(name, scan):
    _, trace = PIPELINES[name].apply(scan)
    assert grid_of(PIPELINES[name], scan.geometry).same_grid(trace.grid, 1e-6)


@pytest.mark.parametrize("axes", ["RAS", "SRA", "LPI"])
def test_a_mask_goes_to_the_nearest_voxel(axes, scan):
    mask = blob(scan.shape)
    grid = grid_of(Pipeline("t", axes=axes, spacing_mm=(7.0, 9.0, 8.0), fit="at-least", fit_vox=(60, 60, 60)),
                   scan.geometry)  # fmt: skip
    found = nearest(mask, scan.geometry, grid)
    assert found.shape == grid.shape
    for corner in itertools.product(*(range(0, n, 5) for n in grid.shape)):
        at = scan.geometry.to_vox(grid.to_mm(np.array(corner)))[0]
        index = np.floor(at + 0.5 + 1e-6).astype(int)
        inside = bool((index >= 0).all() and (index < scan.shape).all())
        assert found[corner] == (inside and mask[tuple(index)])


def test_all_orders_of_stored_axes_give_the_same_bits():
    mask = blob((24, 20, 16))
    made = []
    for order in itertools.permutations(range(3)):
        for signs in itertools.product((1.0, -1.0), repeat=3):
            affine = np.eye(4)
            affine[:3, :3] = np.diag([5.0, 6.0, 7.0])
            stored, columns, origin = mask.transpose(order), affine[:3, :3][:, order], np.zeros(3)
            for axis, sign in enumerate(signs):
                if sign < 0:
                    stored = np.flip(stored, axis)
                    origin = origin + columns[:, axis] * (stored.shape[axis] - 1)
            flipped = np.eye(4)
            flipped[:3, :3], flipped[:3, 3] = columns * np.array(signs), origin
            volume = volume_of(np.ascontiguousarray(stored), flipped)
            inside = volume.hu > 0
            made.append(packed({"lung": inside}, ORGAN_CHANNELS, volume, PIPELINES["exact"])[0])
    assert len(made) == 48 and all(np.array_equal(one, made[0]) for one in made) and made[0].any()


def test_the_published_way_dilates_and_the_nearest_voxel_does_not():
    volume = volume_of(blob((100, 90, 40)), np.diag([3.0, 3.0, 3.0, 1.0]))
    mask = volume.hu > 0
    exact = pipeline("exact", convention="paper")
    wide, near = touched(mask, volume, exact), packed({"lung": mask}, ("lung",), volume, exact)[0] > 0
    assert not (near & ~wide).any() and wide.sum() > 1.05 * near.sum()
    fraction = mask.mean()
    assert near.mean() == pytest.approx(fraction, rel=0.02)


def test_bits_are_the_masks():
    volume = volume_of(blob((30, 30, 20)), np.diag([4.0, 4.0, 4.0, 1.0]))
    masks = {name: blob((30, 30, 20), seed) for seed, name in enumerate(("lung", "heart", "global"))}
    bits, grid = packed(masks, ORGAN_CHANNELS, volume, replace(PIPELINES["native"], name="n"))
    back = unpacked(bits, len(ORGAN_CHANNELS))
    for o, name in enumerate(ORGAN_CHANNELS):
        assert np.array_equal(back[o], masks.get(name, np.zeros(grid.shape, bool)))


def radgenome(folder, names):
    """A scan with a file per region."""
    (path,) = write_scans(folder, 1)
    volume = open_volume(path)
    refs = []
    for n, name in enumerate(names):
        file = folder / f"{name}.nii.gz"
        mask = np.zeros(volume.source.shape, np.uint8)
        mask[5 * n + 2 : 5 * n + 7, 10:20, 10:20] = 1
        write_nifti(file, mask, volume.source)
        refs.append(MaskRef(f"region/{name}", file.name))
    return path, volume, ScanRecord("a", path.name, "x:a", masks=tuple(refs))


NINE = ("lung", "trachea and bronchie", "pleura", "mediastinum", "heart", "esophagus", "bone", "thyroid",
        "abdomen")  # fmt: skip


def test_radgenomes_regions_become_seven_channels(tmp_path):
    path, volume, record = radgenome(tmp_path, NINE)
    job = MaskJob("a", str(path), record=record, root=str(tmp_path))
    found = OwnRegions().masks(volume, job)
    assert set(found) == set(ORGAN_CHANNELS)
    union = np.zeros(volume.shape, bool)
    union[2:47, :, :] = True
    assert found["global"].sum() == 47 * 100 - 2 * 100 and found["airways"].any()
    # one missing region is unknown, and so is the union
    fewer = replace(record, masks=record.masks[:-1])
    found = OwnRegions().masks(volume, replace(job, record=fewer))
    assert set(found) == set(ORGAN_CHANNELS) - {"global"}
    without = replace(record, masks=tuple(m for m in record.masks if "heart" not in m.name))
    assert "heart" not in OwnRegions().masks(volume, replace(job, record=without))
    assert len(REGIONS) == len(NINE)


def test_scans_without_masks_are_no_jobs_and_findings_are_one_mask(tmp_path):
    path, volume, record = radgenome(tmp_path, NINE[:2])
    lesions = replace(
        record, masks=tuple(replace(m, name=f"finding/{i}") for i, m in enumerate(record.masks))
    )
    rows = [(StoreJob("a", str(path)), record), (StoreJob("b", str(path)), ScanRecord("b", "b", "x:b"))]
    assert [job.key for job in mask_jobs(rows, OwnRegions(), tmp_path)] == ["a"]
    assert mask_jobs(rows, OwnFindings(), tmp_path) == []
    job = MaskJob("a", str(path), record=lesions, root=str(tmp_path))
    assert OwnFindings().masks(volume, job)[LESION].sum() == 1000


def test_the_command_prepares_masks_beside_scans(tmp_path, capfd):
    from hilum.cli import run

    made, out = str(tmp_path / "phantoms"), tmp_path / "prepared"
    assert run(["phantom", "2", "--out", made, "--spacing", "8", "--work-mm", "8"]) == 0
    capfd.readouterr()
    told = ["prepare", made, "--out", str(out), "--prep", "exact", "--masks", "own"]
    assert run([*told, "--json"]) == 0
    said = json.loads(capfd.readouterr().out)
    assert said["masks"]["made"] == 2 and said["masks"]["without"] == 0
    scans, masks = open_store(out / "store-exact"), open_store(out / "store-exact-masks")
    assert masks.prep["channels"] == list(ORGAN_CHANNELS) and masks.prep["how"] == "nearest"
    for key in scans.keys:
        assert np.allclose(scans.row(key).affine, masks.row(key).affine)
        organs = unpacked(masks.read(key), 7)
        values = scans.read(key) * scans.row(key).slope
        assert values[organs[0]].mean() < 0.5 * values[organs[4]].mean(), "lungs are darker than the heart"
    assert verify_store(out / "store-exact-masks") == []
    assert run([*told, "--json"]) == 0
    # another source into the same store
    assert run([*told[:-1], "model:phantom-small"]) == 2
    assert "RESUME_CHANGED" in capfd.readouterr().err
    assert run([*told[:-1], "nonsense"]) == 2
    assert "own | findings" in capfd.readouterr().err


def test_a_mask_that_holds_nothing_is_refused(tmp_path, scan):
    from hilum.cohort.mask_sources import MaskPreparation

    path, volume, record = radgenome(tmp_path, NINE[:1])
    write_nifti(tmp_path / "lung.nii.gz", np.zeros(volume.source.shape, np.uint8), volume.source)
    job = MaskJob("a", str(path), record=record, root=str(tmp_path))
    with pytest.raises(ContainerError, match="MASK_MISSING"):
        MaskPreparation(PIPELINES["exact"], OwnRegions()).to_store(volume, job)


def test_totalsegmentators_masks_say_what_they_do_not_know(tmp_path, scan):
    from hilum.read.mask_sources import TotalSegmentatorMasks

    folder = tmp_path / "masks" / "a"
    folder.mkdir(parents=True)
    for at, name in ((10, "lung_upper_lobe_left"), (30, "heart"), (50, "trachea"), (60, "rib_left_1")):
        mask = np.zeros(scan.source.shape, np.uint8)
        mask[at : at + 6, 15:25, 10:20] = 1
        write_nifti(folder / f"{name}.nii.gz", mask, scan.source)
    source, record = TotalSegmentatorMasks(str(tmp_path / "masks")), ScanRecord("a", "a.nii.gz", "x:a")
    assert source.has(record) and not source.has(replace(record, key="b"))
    found = source.masks(scan, MaskJob("a", "a.nii.gz", record=record, root=str(tmp_path)))
    # bronchi and the rest of the mediastinum are not in the file, and are not claimed to be absent
    assert set(found) == {"lung", "heart", "pleura"}
    assert found["lung"].sum() == found["heart"].sum() == 600
    write_nifti(folder / "vertebrae_T5.nii.gz", np.ones(scan.source.shape, np.uint8), scan.source)
    whole = source.masks(scan, MaskJob("a", "a.nii.gz", record=record, root=str(tmp_path)))
    assert whole["global"].all() and set(whole) == {*found, "global"}
    own = replace(record, masks=(MaskRef("totalsegmentator", "ts.nii.gz", "labels"),))
    labels = np.zeros(scan.source.shape, np.uint8)
    labels[10:16, 15:25, 10:20] = 10
    write_nifti(tmp_path / "ts.nii.gz", labels, scan.source)
    job = MaskJob("a", "a.nii.gz", record=own, root=str(tmp_path))
    assert TotalSegmentatorMasks().masks(scan, job)["lung"].sum() == 600
