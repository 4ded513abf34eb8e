"""A planted leak of each kind is found; nothing is found where nothing is shared."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
from _cohort_layouts import AFFINE, chest, plain_cohort, save, table

from hilum.cli import run
from hilum.cohort.audit import KINDS, audit, audit_splits, phantom_patients, require_apart, require_clean
from hilum.cohort.audit_text import Text, near_duplicates
from hilum.cohort.audit_voxels import THRESHOLD_HU, distances_hu
from hilum.cohort.manifest import read_manifest
from hilum.cohort.prepare import PrepareOptions, prepare
from hilum.errors import LeakError
from hilum.geometry import Geometry
from hilum.io.dicom_write import SeriesHeader, write_ct_series
from hilum.io.open import open_volume

HERE = PrepareOptions(workers=0)


@pytest.fixture(scope="module")
def train(tmp_path_factory):
    root = plain_cohort(tmp_path_factory.mktemp("train"), 8, patient=lambda i: f"a{i}")
    return root, prepare(root, root.parent / "train-out", HERE).manifest


def cohort(tmp_path, rows, name="test"):
    root = tmp_path / name
    root.mkdir(exist_ok=True)
    table(root / "cohort.csv", rows)
    return prepare(root, tmp_path / f"{name}-out", HERE).manifest


def kinds_of(found):
    return set(found.counts())


def test_nothing_is_found_where_nothing_is_shared(train, tmp_path):
    for seed in (100, 101, 102, 103):
        save(tmp_path / f"test/{seed}.nii.gz", seed=seed)
    rows = [{"path": f"{seed}.nii.gz", "patient": f"b{seed}"} for seed in (100, 101, 102, 103)]
    found = audit(train[1], cohort(tmp_path, rows))
    assert found.clean and found.counts() == {}
    found.refuse()


def test_the_same_patient_in_another_scan(train, tmp_path):
    save(tmp_path / "test/x.nii.gz", seed=50)
    other = cohort(tmp_path, [{"path": "x.nii.gz", "patient": "a3"}])
    found = audit(train[1], other)
    assert [(k.kind, k.what) for k in found.leaks] == [("patient", "table:a3")]
    with pytest.raises(LeakError) as refused:
        require_clean(train[1], other)
    assert refused.value.code == "PATIENT_LEAK" and refused.value.exit_code == 3
    assert refused.value.rows[0]["right"] == "x-000001" and "table:a3" in str(refused.value)


def test_the_same_file_under_another_name(train, tmp_path):
    (tmp_path / "test").mkdir()
    shutil.copy(train[0] / "scans/002.nii.gz", tmp_path / "test/copy.nii.gz")
    found = audit(train[1], cohort(tmp_path, [{"path": "copy.nii.gz", "patient": "b"}]))
    assert kinds_of(found) == {"file", "voxels"}
    assert {k.left for k in found.leaks} == {"002-000003"}


def respaced(values, affine, factor):
    index = [np.arange(0, n - 1 + 1e-6, factor).round().astype(int) for n in values.shape]
    return values[np.ix_(*index)], affine @ np.diag([factor, factor, factor, 1.0])


RE_EXPORTS = {
    "float": lambda v, a: (v.astype(np.float32), a),
    "other order": lambda v, a: (np.ascontiguousarray(v.transpose(2, 0, 1)[::-1]), a @ _order(v.shape)),
    "origin lost": lambda v, a: (v, np.diag([*np.diag(a)[:3], 1.0])),
    "border cut": lambda v, a: (v[2:-2, 2:-2, 1:-1], a @ _start(2, 2, 1)),
    "base cut": lambda v, a: (v[:, :, 3:], a @ _start(0, 0, 3)),
    "padded": lambda v, a: (np.pad(v, 3, constant_values=-2000), a @ _start(-3, -3, -3)),
    "mirrored": lambda v, a: (v[::-1].copy(), a),
    "upside down": lambda v, a: (v[:, :, ::-1].copy(), a),
    "noise": lambda v, a: (v + np.random.default_rng(1).normal(0, 20, v.shape).astype(np.int16), a),
}


def _start(x, y, z):
    step = np.eye(4)
    step[:3, 3] = (x, y, z)
    return step


def _order(shape):
    """Voxel of the array turned to Z, X, Y with Z reversed -> voxel of the old one."""
    turn = np.zeros((4, 4))
    turn[2, 0], turn[2, 3] = -1, shape[2] - 1
    turn[0, 1] = turn[1, 2] = turn[3, 3] = 1
    return turn


@pytest.mark.parametrize("change", RE_EXPORTS)
def test_voxels_are_found_in_a_re_export(train, tmp_path, change):
    values, affine = RE_EXPORTS[change](chest(4), AFFINE)
    save(tmp_path / "test/x.nii.gz", values, affine)
    found = audit(train[1], cohort(tmp_path, [{"path": "x.nii.gz", "patient": "b"}]))
    assert [(k.kind, k.left) for k in found.leaks] == [("voxels", "004-000005")]


def dicom(folder, number, *, seed="s", patient="P", values=None):
    hu = (chest(number) if values is None else values).astype(np.float32)[::1, ::-1]
    affine = np.diag([-8.0, -9.0, 7.5, 1.0])
    affine[:3, 3] = [180.0, 201.0, -300.0]
    header = SeriesHeader(seed=seed, patient_id=patient)
    write_ct_series(folder, np.ascontiguousarray(hu), Geometry(hu.shape, affine), header=header)


def test_voxels_are_found_in_another_format(train, tmp_path):
    dicom(tmp_path / "test/a", 5)
    other = prepare(tmp_path / "test", tmp_path / "out", HERE).manifest
    assert other.source == "dicom"
    assert [(k.kind, k.left) for k in audit(train[1], other).leaks] == [("voxels", "005-000006")]


def test_study_series_and_images_are_found_by_uid(tmp_path):
    from pydicom import dcmread

    dicom(tmp_path / "one/a", 1, seed="s1", patient="P1")
    shutil.copytree(tmp_path / "one", tmp_path / "two")

    def edited(name, change):
        for file in (tmp_path / name).rglob("*.dcm"):
            ds = dcmread(file)
            change(ds)
            ds.save_as(file)

    def other_person(ds):
        ds.PatientID = "P2"

    edited("two", other_person)
    manifests = {}
    for name in ("one", "two"):
        manifests[name] = prepare(tmp_path / name, tmp_path / f"{name}-out", HERE).manifest
    found = audit(manifests["one"], manifests["two"])
    assert kinds_of(found) == {"study", "series", "image", "voxels"}

    # another series of the study, other images: the study alone, and what the voxels say
    def other_series(ds):
        ds.SeriesInstanceUID += ".9"
        ds.SOPInstanceUID += ".9"
        ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID

    edited("two", other_series)
    again = prepare(tmp_path / "two", tmp_path / "two-again", HERE).manifest
    assert kinds_of(audit(manifests["one"], again)) == {"study", "voxels"}


FINDING = (
    "There is a spiculated nodule of 17 mm in the apical segment of the left upper lobe that touches "
    "the fissure. Two calcified granulomas lie in the lingula. The ascending aorta measures 41 mm. A small "
    "hiatal hernia is seen. Degenerative changes of the thoracic spine with an old compression of the eighth "
    "vertebra are noted."
)
NORMAL = (
    "The trachea and both main bronchi are open. The heart is of normal size and there is no "
    "pericardial effusion. No enlarged lymph nodes are seen in the mediastinum. Both lungs are "
    "normally aerated and no nodule or infiltrate is seen. There is no pleural effusion. The upper "
    "abdominal organs that are seen are normal."
)


def test_a_report_is_found_with_typos_and_other_case(train, tmp_path):
    near = FINDING.replace("spiculated", "spiculate").upper().replace(". ", ".\n")
    one = plain_cohort(tmp_path / "one", 3, report=lambda i: (FINDING, NORMAL, "Normal.")[i])
    rows = []
    for i in range(3):
        save(tmp_path / f"test/{i}.nii.gz", seed=200 + i)
        text = (NORMAL + " The spleen is enlarged to 15 cm.", "Normal.", near)[i]
        rows.append({"path": f"{i}.nii.gz", "patient": f"b{i}", "report": text})
    found = audit(prepare(one, tmp_path / "one-out", HERE).manifest, cohort(tmp_path, rows))
    assert [(k.kind, k.left, k.right) for k in found.leaks if k.left.startswith("000")] == [
        ("report", "000-000001", "2-000003")
    ]


def test_normal_reports_are_no_leak_however_long():
    a = [Text(f"a{i}", f"pa{i}", NORMAL) for i in range(5)] + [Text("a9", "pa9", "Normal chest CT.")]
    b = [Text(f"b{i}", f"pb{i}", NORMAL) for i in range(5)] + [Text("b9", "pb9", "Normal chest CT.")]
    assert near_duplicates(a, b) == []
    planted = near_duplicates(
        [*a, Text("x", "px", NORMAL + FINDING)], [*b, Text("y", "py", NORMAL + FINDING)]
    )
    assert [(i, j) for i, j, _ in planted] == [(6, 6)]
    # many reconstructions of one person do not make a report common
    many = [Text(f"r{i}", "one", FINDING) for i in range(20)]
    assert len(near_duplicates(many, [Text("y", "py", FINDING)])) == 20
    assert near_duplicates([], b) == [] == near_duplicates(a, [])


def test_phantoms_share_nothing_and_copies_are_found(tmp_path):
    from hilum.phantom.batch import BatchRequest, make_batch

    normal = {"findings": (), "spacing_mm": (6.0, 6.0, 6.0), "work_mm": 6.0}
    make_batch(3, tmp_path / "a", BatchRequest(**normal | {"findings": None}))
    make_batch(2, tmp_path / "b", BatchRequest(seed=50, **normal))
    make_batch(2, tmp_path / "c", BatchRequest(seed=70, **normal))
    held = {n: prepare(tmp_path / n, tmp_path / f"{n}-out", HERE).manifest for n in "abc"}
    assert audit(held["a"], held["b"]).clean and audit(held["b"], held["c"]).clean
    volume = open_volume(tmp_path / "a" / next(held["a"].rows()).record.path)
    save(tmp_path / "test/x.nii.gz", volume.hu[1:, 1:, 1:].astype(np.int16), np.diag([6.0, 6, 6, 1]))
    found = audit(held["a"], cohort(tmp_path, [{"path": "x.nii.gz", "patient": "b"}]))
    assert kinds_of(found) == {"voxels"} and len(found.leaks) == 1


def test_splits_of_one_manifest_are_held_against_each_other(tmp_path, capsys):
    root = plain_cohort(tmp_path / "data", 4, split=lambda i: ("train", "val", "test", "train")[i])
    shutil.copy(root / "scans/000.nii.gz", root / "scans/002.nii.gz")
    assert run(["prepare", str(root), "--out", str(tmp_path / "out"), "--json"]) == 4
    told = json.loads(capsys.readouterr().out)
    assert [(a["left"], a["right"], a["counts"]) for a in told["audits"] if a["leaks"]] == [
        ("test", "train", {"file": 1, "voxels": 1})
    ]
    lines = (tmp_path / "out/leaks.csv").read_text().splitlines()
    assert lines[1].startswith("test,train,file,002-000003,000-000001,") and len(lines) == 3
    with pytest.raises(LeakError):
        for one in audit_splits(read_manifest(tmp_path / "out")):
            one.refuse()


def test_prepare_against_another_cohort_prints_the_rows(train, tmp_path, capsys):
    root = plain_cohort(tmp_path / "data", 2, patient=lambda i: ("new", "a1")[i])
    save(root / "scans/000.nii.gz", seed=300)
    save(root / "scans/001.nii.gz", seed=301)
    against = ["--against", str(train[0].parent / "train-out")]
    assert run(["prepare", str(root), "--out", str(tmp_path / "out"), *against]) == 4
    shown = capsys.readouterr().out
    assert "share scans" in shown and "table:a1" in shown and "2 of 2 scans are fit" in shown


def test_phantoms_by_seed_are_kept_apart():
    require_apart(phantom_patients(0, 10), phantom_patients(10, 5), ("training", "exam"))
    with pytest.raises(LeakError, match="phantom:9") as refused:
        require_apart(phantom_patients(0, 10), phantom_patients(9, 5), ("training", "exam"))
    assert len(refused.value.rows) == 1


def test_distances_are_symmetric_and_zero_to_oneself(train):
    prints = [(r.judged.print_top, r.judged.print_base) for r in train[1].rows()]
    near = distances_hu(prints, prints)
    np.testing.assert_allclose(near, near.T, atol=0.5)
    assert np.diag(near).max() < 0.5 and near[~np.eye(8, dtype=bool)].min() > 1.5 * THRESHOLD_HU
    blank = distances_hu([(b"", b"")], prints)
    assert np.isinf(blank).all() and distances_hu([], prints).shape == (0, 8)
    plain = _plain_distance(prints[0], prints[1])
    assert abs(plain - distances_hu(prints[:1], prints[1:2], mirrored=False)[0, 0]) < 0.05


def _plain_distance(a, b):
    """The slow twin: voxel by voxel, both cubes."""
    best = np.inf
    for one, other in zip(a, b, strict=True):
        x, y = (np.frombuffer(p, dtype=np.uint8).astype(float) for p in (one, other))
        both = (x != 255) & (y != 255)
        if both.sum() >= 2048:
            best = min(best, float(np.sqrt(np.mean((5.2 * (x - y)[both]) ** 2))))
    return best


def test_every_kind_has_its_finder():
    from hilum.cohort.audit import FINDERS

    assert tuple(FINDERS) == KINDS


def test_training_and_exam_across_a_leak_are_refused(tmp_path):
    from hilum.exam.unseen import require_unseen
    from hilum.io.weights import preset_data
    from hilum.model.preset import Preset
    from hilum.train.recipe import Recipe
    from hilum.train.run import fresh_card, refuse_leak

    def recipe(**data):
        return Recipe.model_validate(
            {"name": "x", "method": "exact_small", "preset": "phantom-small", "data": {"train": 6, **data}}
        )

    refuse_leak(recipe(siblings=3, seed=10, validation_seed=12, validation=4))
    with pytest.raises(LeakError, match="phantom:11"):
        refuse_leak(recipe(siblings=3, seed=10, validation_seed=11, validation=4))
    with pytest.raises(LeakError, match="phantom:12"):
        refuse_leak(recipe(siblings=3, organ_patients=1, seed=10, validation_seed=12, validation=4))
    apart = recipe(siblings=3, organ_patients=1, seed=9, validation_seed=12, validation=4)
    card = fresh_card(apart, Preset.from_dict(preset_data("phantom-small")), "0" * 64)
    require_unseen(card, 16, 100)
    require_unseen({"name": "imported"}, 0, 100)
    for first in (11, 15):
        with pytest.raises(LeakError):
            require_unseen(card, first, 1)


def test_loading_across_a_leak_is_refused(tmp_path):
    from hilum.cohort.parts import split_parts
    from hilum.cohort.store import open_store

    root = plain_cohort(tmp_path / "data", 4, split=lambda i: ("train", "val", "train", "test")[i])
    shutil.copy(root / "scans/000.nii.gz", root / "scans/003.nii.gz")
    assert run(["prepare", str(root), "--out", str(tmp_path / "out"), "--prep", "radfinder"]) == 4
    manifest, store = read_manifest(tmp_path / "out"), open_store(tmp_path / "out/store-radfinder")
    parts = split_parts(manifest, store, ["train", "val"])
    assert {k: p.keys for k, p in parts.items()} == {
        "train": ("000-000001", "002-000003"), "val": ("001-000002",)
    }  # fmt: skip
    with pytest.raises(LeakError) as refused:
        split_parts(manifest, store, ["train", "val", "test"])
    assert {row["kind"] for row in refused.value.rows} == {"file", "voxels"}
