"""The frozen-feature suite on twenty tiny chests: nothing leaks, nothing unmeasured gets a number."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from _cohort_layouts import plain_cohort
from _encoders import file_of, stand_in

from hilum.cli import run
from hilum.cohort.manifest import MANIFEST
from hilum.cohort.prep_presets import PIPELINES
from hilum.cohort.prepare import PrepareOptions, prepare
from hilum.cohort.store_write import StoreJob, prepare_store
from hilum.errors import ContainerError, InputRefused, LeakError, UsageError
from hilum.exam.features import FeatureView, centre_field, scan_features
from hilum.exam.frozen import examine_frozen
from hilum.exam.frozen_cohort import FrozenCohort, open_cohort, require_untrained_on
from hilum.exam.frozen_measure import Bench, Seeds, differences
from hilum.exam.frozen_models import Looking, features_of, load_all, passes, scan_features_of
from hilum.exam.frozen_table import UNMEASURED, as_markdown, as_text
from hilum.exam.frozen_text import PROMPTS, zero_shot
from hilum.exam.plain_features import EDGES_HU, histogram_features
from hilum.exam.probe_linear import fit_linear
from hilum.exam.probes import known_auroc
from hilum.io.encoder_file import EncoderConfig, EncoderFile, save_encoder
from hilum.model.encoder import tensors_of
from hilum.model.vit import ViT
from hilum.model.vit_config import ViTConfig
from hilum.text.vocabulary import INDEX

SPLITS = ["train"] * 10 + ["val"] * 5 + ["test"] * 5
TINY = replace(PIPELINES["flexict-3d-4mm"], name="tiny", spacing_mm=(24.0, 24.0, 24.0), fit_vox=(16, 16, 16))
NET = {"width": 24, "depth": 1, "heads": 2, "mlp": 2, "patch": 4}


def made(root: Path, twin: bool = False) -> Path:
    """Prepared cohort: two scans per patient; a nodule in every other scan; effusion only ever absent,
    emphysema not in the test split, cardiomegaly sometimes unknown. `twin`: the last test scan is the first
    training scan again."""
    plain_cohort(
        root / "data", len(SPLITS), split=SPLITS.__getitem__, patient=lambda i: f"p{i // 2}x{SPLITS[i]}",
        lung_nodule=lambda i: i % 2, pleural_effusion=lambda i: 0,
        emphysema=lambda i: int(i % 3 == 0 and SPLITS[i] != "test"),
        cardiomegaly=lambda i: "" if i % 5 == 0 else i // 2 % 2,
    )  # fmt: skip
    if twin:
        shutil.copy(root / "data/scans/000.nii.gz", root / f"data/scans/{len(SPLITS) - 1:03d}.nii.gz")
    manifest = prepare(root / "data", root / "out", PrepareOptions(workers=0)).manifest
    jobs = [StoreJob(row.record.key, str(root / "data" / row.record.path)) for row in manifest.rows()]
    prepare_store(jobs, root / "out/store-tiny", TINY, where="here")
    return root / "out"


@pytest.fixture(scope="module")
def prepared(tmp_path_factory) -> Path:
    return made(tmp_path_factory.mktemp("cohort"))


@pytest.fixture(scope="module")
def cohort(prepared) -> FrozenCohort:
    return open_cohort(prepared)


def encoder(folder: Path, kind: str, seed: int = 0, prep=TINY, recipe=None, **facts_of) -> Path:
    vision = ViT(ViTConfig(**NET))
    vision.reset(torch.Generator().manual_seed(seed))
    facts = dict(prep.facts()) | ({"values": "zscore-slice"} if kind == "2d" else {})
    backbone = {"name": "tiny", "network": "vit", "net": NET}
    config = EncoderConfig.from_dict(
        {"kind": kind, "backbone": backbone, "prep": facts, "patch": 4} | facts_of
    )
    tensors = {f"vision.{name}": array for name, array in tensors_of(vision).items()}
    card = {"name": f"tiny-{kind}", "synthetic": True, "trained_on": "nothing", "licence": "Apache-2.0"}
    save_encoder(folder, EncoderFile(config, tensors, None, card | ({"recipe": recipe} if recipe else {})))
    return folder


def test_every_encoder_and_its_baselines_in_one_run(prepared, tmp_path):
    folders = [encoder(tmp_path / "a", "2d", 1), encoder(tmp_path / "b", "3d", 2)]
    looking, seeds = Looking(every=2, cache=tmp_path / "cache"), Seeds(draws=50)
    said = []
    first = examine_frozen(
        folders, prepared, looking=looking, fractions=(1.0,), seeds=seeds,
        steps=lambda what, done, total: said.append((what, done, total)),
    )  # fmt: skip
    names = [f["name"] for f in first.facts["features"]]
    assert names == [
        "densities", "untrained tiny: slices", "untrained tiny: volume", "tiny-2d: slices",
        "tiny-2d: inflated", "tiny-3d: volume",
    ]  # fmt: skip
    assert len(first.rows) == 1 + 6 * 2
    assert {w: sum(d for a, d, _ in said if a == w) for w, _, _ in said} == {w: t for w, _, t in said}
    again = examine_frozen(folders, prepared, looking=looking, fractions=(1.0,), seeds=seeds)
    told = json.dumps(first.as_dict()["rows"], allow_nan=False)
    assert told == json.dumps(again.as_dict()["rows"], allow_nan=False)
    assert first.facts["encoders"][0]["sha256"] and len(list((tmp_path / "cache").iterdir())) == 5
    assert first.positives["emphysema"] == {"train": 4, "val": 1, "test": 0}


def test_what_cannot_be_measured_has_no_number(prepared, tmp_path):
    result = examine_frozen(
        [encoder(tmp_path / "a", "3d")], prepared, fractions=(1.0,), seeds=Seeds(draws=20)
    )
    for row in result.as_dict()["rows"]:
        assert row["findings_measured"] == 2
        for slug in ("pleural_effusion", "emphysema", "bronchiectasis"):
            assert row["auroc"][slug] is None and row["average_precision"][slug] is None
        assert row["auroc"]["lung_nodule"] is not None and row["auroc"]["cardiomegaly"] is not None
    constant = result.rows[0]
    assert constant.macro.value == constant.macro.low == constant.macro.high == 0.5
    for text in (as_text(result), as_markdown(result)):
        assert UNMEASURED in text and "nan" not in text and "0.500 [0.500, 0.500]" in text


def test_features_are_those_of_a_plain_forward(cohort):
    vision = ViT(ViTConfig(**NET)).train()
    keys = cohort.keys[:3]
    got = scan_features(vision, cohort.store, keys, FeatureView(patch=4))
    assert vision.training
    vision.eval()
    with torch.inference_mode():
        out = vision(centre_field(cohort.store, keys[2])[None, None], patch=4)
    np.testing.assert_allclose(got.blocks["cls"][2], out.cls[0], atol=1e-5)
    np.testing.assert_allclose(got.blocks["mean"][2], out.patches[0].mean(0), atol=1e-5)
    np.testing.assert_allclose(got.blocks["max"][2], out.patches[0].amax(0), atol=1e-5)
    assert got.pooled("cls+mean").shape == (3, 48) and got.pooled("cls+mean+max").shape == (3, 72)


def test_a_field_is_shown_with_the_voxels_of_training_as_loading_shows_it(cohort, tmp_path):
    """The exam reads the store, `hilum.load` the scan: the same tokens but for the store's whole HU."""
    file = encoder(tmp_path / "a", "3d", view_vox=(8, 8, 8))
    (one,) = load_all([file], cohort, "cpu")
    got = scan_features_of(one, cohort, Looking()).blocks
    scan = next(row for row in cohort.manifest.rows() if row.record.key == cohort.keys[1])
    loaded = one.model.encode_volume(cohort.manifest.open(scan))
    assert loaded.patches.shape == (8, 24)
    np.testing.assert_allclose(got["cls"][1], loaded.cls, atol=0.02)
    np.testing.assert_allclose(got["mean"][1], loaded.patches.mean(0), atol=0.02)
    whole = scan_features(one.vision, cohort.store, cohort.keys[:2], FeatureView(patch=4)).blocks
    assert np.abs(whole["mean"][1] - loaded.patches.mean(0)).max() > 0.05


def test_slices_are_axial_and_padding_is_none_of_them(cohort):
    vision = ViT(ViTConfig(**NET)).eval()
    key = cohort.keys[0]
    view = FeatureView("slices", patch=4, every=1, by_slice=True)
    got = scan_features(vision, cohort.store, [key], view).blocks
    field = centre_field(cohort.store, key)
    slices = [s for s in field.unbind(2) if s.max() > s.min()]
    assert 0 < len(slices) < field.shape[2]
    with torch.inference_mode():
        outs = [vision(((s - s.mean()) / s.std(correction=0))[None, None], patch=4) for s in slices]
    np.testing.assert_allclose(got["cls"][0], torch.stack([o.cls[0] for o in outs]).mean(0), atol=1e-5)
    means = torch.stack([o.patches[0].mean(0) for o in outs])
    np.testing.assert_allclose(got["mean"][0], means.mean(0), atol=1e-5)
    np.testing.assert_allclose(got["max"][0][24:], means.amax(0), atol=1e-5)


def test_a_field_is_cut_and_padded_about_the_middle(cohort):
    store, key = cohort.store, cohort.keys[0]
    row = store.row(key)
    values = store.read(key).astype(np.float32) * row.slope + row.intercept
    small = centre_field(store, key, (8, 16, 20)).numpy()
    np.testing.assert_allclose(small[:, :, 2:18], values[4:12], rtol=1e-6)
    np.testing.assert_allclose(small[:, :, [0, 1, 18, 19]], values.min(), rtol=1e-6)


def test_kept_features_belong_to_weights_store_scans_and_view(cohort, tmp_path):
    vision, view = ViT(ViTConfig(**NET)), FeatureView(patch=4)
    first = scan_features(vision, cohort.store, cohort.keys[:2], view, cache=tmp_path)
    (file,) = tmp_path.iterdir()
    file.write_bytes(file.read_bytes()[:-8])
    again = scan_features(vision, cohort.store, cohort.keys[:2], view, cache=tmp_path)
    assert (first.pooled() == again.pooled()).all() and len(list(tmp_path.iterdir())) == 1
    other = ViT(ViTConfig(**NET))
    scan_features(other, cohort.store, cohort.keys[:2], view, cache=tmp_path)
    scan_features(vision, cohort.store, cohort.keys[1:3], view, cache=tmp_path)
    scan_features(vision, cohort.store, cohort.keys[:2], replace(view, patch=8), cache=tmp_path)
    assert len(list(tmp_path.iterdir())) == 4


def test_features_that_are_not_finite_are_refused(cohort, tmp_path):
    vision = ViT(ViTConfig(**NET))
    with torch.no_grad():
        vision.cls[0, 0, 0] = torch.nan
    with pytest.raises(InputRefused, match="MODEL_OUTPUT"):
        scan_features(vision, cohort.store, cohort.keys[:1], FeatureView(patch=4), cache=tmp_path)
    assert not list(tmp_path.iterdir())


def test_densities_are_shares_of_bands(cohort):
    rows = np.exp(histogram_features(cohort.store, cohort.keys[:2])) - 1e-4
    assert rows.shape == (2, 3 * (len(EDGES_HU) + 1))
    np.testing.assert_allclose(rows.reshape(2, 3, -1).sum(2), 1.0, atol=1e-4)
    hu = cohort.store.read(cohort.keys[0])
    x, y = (max(0, n - 16) // 2 for n in hu.shape[:2])
    assert hu.shape[2] <= 16  # else the field would be cut there too
    lowest = hu[x : x + 16, y : y + 16, : -(-hu.shape[2] // 3)]
    np.testing.assert_allclose(rows[0, 0], (lowest < EDGES_HU[0]).mean(), atol=1e-4)


def test_a_cohort_whose_splits_share_a_scan_is_refused(tmp_path):
    crossing = made(tmp_path, twin=True)
    with pytest.raises(LeakError, match="train and test") as refused:
        open_cohort(crossing)
    assert {row["kind"] for row in refused.value.rows} == {"file", "voxels"}


def test_an_encoder_that_saw_the_test_split_is_refused(prepared, cohort, tmp_path):
    def recipe(split: str) -> dict:
        return {"data": [{"cohort": str(prepared), "split": split}]}

    saw = encoder(tmp_path / "saw", "3d", recipe=recipe("test"))
    with pytest.raises(LeakError, match="tiny-3d"):
        load_all([saw], cohort, "cpu")
    (fine,) = load_all([encoder(tmp_path / "fine", "3d", recipe=recipe("train"))], cohort, "cpu")
    assert "shares nothing" in fine.seen
    assert "not compared" in require_untrained_on({"recipe": {"data": [{"cohort": "elsewhere"}]}}, cohort)
    assert "names no cohort" in require_untrained_on({}, cohort)


def test_another_grid_is_refused(cohort, tmp_path):
    finer = replace(TINY, spacing_mm=(2.0, 2.0, 2.0))
    with pytest.raises(UsageError, match="GRID_MISMATCH"):
        load_all([encoder(tmp_path / "a", "3d", prep=finer)], cohort, "cpu")


def test_names_are_never_shared(cohort, tmp_path):
    folders = [encoder(tmp_path / "a", "3d"), encoder(tmp_path / "b", "3d", 1, view_vox=(8, 8, 8))]
    loaded = load_all(folders, cohort, "cpu")
    assert [one.name for one in loaded] == ["tiny-3d", "tiny-3d (2)"]
    names = [named.name for named in features_of(loaded, cohort, Looking(), 0)]
    assert names == [
        "densities", "untrained tiny: volume", "untrained tiny: volume of 8 × 8 × 8", "tiny-3d: volume",
        "tiny-3d (2): volume",
    ]  # fmt: skip
    assert passes(loaded, cohort, Looking(), 0) == 5


def test_a_manifest_without_a_store_is_refused(prepared, tmp_path):
    (tmp_path / MANIFEST).write_bytes((prepared / MANIFEST).read_bytes())
    with pytest.raises(ContainerError, match="NOT_FOUND"):
        open_cohort(tmp_path)


def test_smaller_shares_lie_in_larger_ones_and_patients_stay_whole(cohort):
    bench = Bench.of(cohort, Seeds(draws=5))
    (everyone,) = bench.shares(1.0)
    assert set(everyone) == set(cohort.rows("train"))
    for small, large in zip(bench.shares(0.4), bench.shares(0.8), strict=True):
        assert set(small) < set(large) < set(everyone)
        assert len(small) == 4 and len(set(cohort.patients_of(small))) == 2
    assert len({tuple(rows) for rows in bench.shares(0.4)}) > 1


def test_a_share_is_the_mean_over_its_repeats(cohort):
    bench = Bench.of(cohort, Seeds(draws=5))
    features = np.random.default_rng(0).normal(size=(len(cohort.keys), 4))
    linear, neighbours = bench.probed("noise", features, (0.6,))
    nodule = INDEX["lung_nodule"]
    val, test = cohort.rows("val"), cohort.rows("test")
    alone = []
    for rows in bench.shares(0.6):
        fitted = fit_linear((features[rows], cohort.labels[rows]), (features[val], cohort.labels[val]))
        alone.append(known_auroc(fitted.scores(features[test])[:, nodule], cohort.labels[test][:, nodule]))
    assert linear.auroc[nodule].value == pytest.approx(np.mean(alone))
    assert len(linear.chosen) == len(neighbours.chosen) == 3 and linear.findings >= 1


def test_paired_differences_are_narrower_than_unpaired_ones(cohort):
    bench = Bench.of(cohort, Seeds(draws=400))
    labels = cohort.labels[cohort.rows("test")]
    truth = labels[:, INDEX["lung_nodule"]]
    scores = np.zeros_like(labels) + bench.learnable()
    scores[:, INDEX["lung_nodule"]] = truth + np.array([0.0, 0.9, 1.5, 0.2, 0.0])
    same = bench.measured("a", "given", 1.0, [scores]), bench.measured("b", "given", 1.0, [scores * 2])
    (difference,) = differences(same)
    assert difference.value == (0.0, 0.0, 0.0) and (difference.first, difference.second) == ("b", "a")
    assert same[0].macro.high > same[0].macro.low


def test_a_model_of_reports_is_asked_without_a_probe(cohort, prepared, tmp_path, monkeypatch):
    stand_in(monkeypatch)
    file = file_of("3d-vlm", prep=TINY.facts(), prep_2d=None, net={"patch": 4}, patch=4)
    save_encoder(tmp_path / "vlm", file)
    (one,) = load_all([tmp_path / "vlm"], cohort, "cpu")
    features = scan_features_of(one, cohort, Looking())
    scores = zero_shot(one, features.pooled(), PROMPTS["plain prompts"])
    embedding = one.model.encoder.projection(torch.from_numpy(features.pooled())).detach()
    embedding = (embedding / embedding.norm(dim=1, keepdim=True)).numpy()
    questions = [text for pair in PROMPTS["plain prompts"] for text in pair]
    assert questions[:2] == ["Medical material .", "No Medical material."]
    logits = one.model.similarity(embedding, one.model.encode_text(questions))
    scale = float(one.model.encoder.temperature().detach())
    np.testing.assert_allclose(scores * scale, logits[:, ::2] - logits[:, 1::2], atol=1e-4)
    result = examine_frozen([tmp_path / "vlm"], prepared, fractions=(1.0,), seeds=Seeds(draws=5))
    asked = [row for row in result.rows if row.probe == "zero-shot"]
    assert [row.name for row in asked] == ["tiny: plain prompts", "tiny: told sentences"]
    assert all(row.findings == 2 for row in asked)
    (plain,) = load_all([encoder(tmp_path / "b", "3d")], cohort, "cpu")
    with pytest.raises(UsageError, match="MODEL_INPUT"):
        zero_shot(plain, features.pooled(), PROMPTS["told sentences"])


def test_the_command_prints_and_writes(prepared, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("HILUM_CACHE", str(tmp_path / "cache"))
    folder = encoder(tmp_path / "a", "3d")
    base = ["exam", str(folder), "--suite", "frozen"]
    assert run([*base, "--cohort", str(prepared), "--fraction", "1", "--out", str(tmp_path / "out")]) == 0
    assert "Macro figures on 5 test scans" in capsys.readouterr().out
    told = json.loads((tmp_path / "out/frozen.json").read_text())
    assert told["suite"] == "frozen" and told["cohort"]["patients"]["test"] == 3
    assert (tmp_path / "out/frozen.md").read_text().count("| tiny-3d: volume |") >= 2
    assert run(base) == 2
    assert run(["exam", "a", "b", "--suite", "samples"]) == 2
