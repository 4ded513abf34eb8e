"""What is built on a model of EXACT: a classifier of its maps, a segmentation; loaded, trained, read back."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from _exact import PREP, tiny_recipe, tiny_scans, tiny_stores

from hilum.cohort.mask_sources import LESION, MaskJob, MaskPreparation
from hilum.cohort.records import ScanRecord
from hilum.cohort.store import open_store
from hilum.cohort.store_write import prepare_store
from hilum.io.open import open_volume
from hilum.io.weights import load_weights
from hilum.model import preset as presets
from hilum.model.map_heads import LEVEL, MapHeads, MaskNet, map_features
from hilum.model.ymamba import YMamba, YMambaConfig
from hilum.read.mask_model import MaskModel
from hilum.read.scan_model import ScanModel
from hilum.train.adapt_classify import ClassifyRun
from hilum.train.adapt_recipe import ClassifyRecipe, SegmentRecipe
from hilum.train.adapt_segment import SegmentRun, dice_curve, few_of
from hilum.train.ema import Average
from hilum.train.exact_data import ExactScans
from hilum.train.exact_keep import card_at, fill, keeper
from hilum.train.exact_run import ExactRun
from hilum.train.loop import train

DEEP = replace(PREP, squash_vox=(16, 16, 32))
"""A network of four halvings needs two voxels after them."""
NET = {"widths": [4, 6, 8, 8], "hidden": 8, "depth": [1, 1, 1, 1], "d_state": 2, "organs": 7, "findings": 18}
PRESET = {"name": "tiny", "network": "ymamba", "net": NET, "prep": "exact", "convention": "hilum",
          "pool_vox": {"low": 2, "high": 9, "inference": 9}}  # fmt: skip
COMMON = {"name": "tiny", "data": [{"cohort": "."}], "steps": 2, "batch": 2, "precision": "fp32",
          "threads": 1,
          "checkpoint_every": 1, "lr": 0.01, "lr_end": 0.001, "start": "base"}  # fmt: skip


@pytest.fixture
def tiny_preset(monkeypatch):
    """A preset of the test's own, wherever presets are looked up by name."""
    for place in ("hilum.read.scan_model", "hilum.read.mask_model", "hilum.train.adapt_classify"):
        monkeypatch.setattr(f"{place}.preset_data", lambda name: PRESET)


def network(seed=0):
    torch.manual_seed(seed)
    return presets.build_exact(presets.preset_from(PRESET))


@pytest.fixture(scope="module")
def stores(tmp_path_factory):
    return tiny_stores(tmp_path_factory.mktemp("store"), prep=DEEP)


@pytest.fixture(scope="module")
def base(stores, tmp_path_factory):
    """A model of EXACT, trained for two steps."""
    folder = tmp_path_factory.mktemp("base")
    scans = tiny_scans(*stores)
    task = ExactRun(tiny_recipe(steps=2, batch=2, micro=1), scans, network())
    train(task, folder, export=keeper(task, scans, folder))
    return folder


def test_heads_are_eighteen_of_their_own_and_small():
    heads = MapHeads(192)
    assert sum(p.numel() for p in heads.heads[0].parameters()) == 192 * 384 + 384 + 384 * 768 + 768 + 769
    random = torch.Generator().manual_seed(0)
    features = torch.randn(1, 18, 192, 2, 2, 2, generator=random)
    before = heads.eval()(features)
    # differs from voxel to voxel: what is the same everywhere, the norm takes away
    features[:, 4] += torch.randn(192, 2, 2, 2, generator=random)
    changed = ((heads(features) - before).abs() > 1e-4)[0]
    assert changed.tolist() == [d == 4 for d in range(18)]


def test_features_of_a_map_are_those_of_it_as_a_scan():
    net = network().eval()
    maps = torch.rand(2, 18, 16, 16, 32)
    found = map_features(net, maps)
    assert found.shape == (2, 18, 8, 4, 4, 8)
    assert torch.equal(found[:, 5], net.skip_features(maps[:, 5:6])[LEVEL])


def classify(stores, base, **changes):
    recipe = ClassifyRecipe.model_validate({**COMMON, "method": "exact-classify", "lr": 0.05, **changes})
    net = network(9)
    fill(net, base, "tiny")
    return ClassifyRun(recipe, tiny_scans(*stores), net, card_at(base))


def test_a_classifier_reads_the_maps_of_the_loaded_encoder(stores, base, tmp_path, tiny_preset):
    task = classify(stores, base, keep_features=True)
    stored, _ = load_weights(base / "model.safetensors")
    # the published class never loads its encoder
    assert all(np.array_equal(v.numpy(), stored[k]) for k, v in task.base.state_dict().items())
    assert not any(p.requires_grad for p in task.base.parameters())
    train(task, tmp_path, export=keeper(task, task.scans, tmp_path))
    card = json.loads((tmp_path / "card.json").read_text())
    assert card["base"]["sha256"] == card_at(base)["sha256"] and len(card["thresholds"]) == 18
    model = ScanModel.load(str(tmp_path))
    volume = open_volume(stores[0].parent / "scans" / "scan1.nii.gz")
    output = model.run(volume)
    # maps are the base's, probabilities the heads', and these follow from the maps
    plain = ScanModel.load(str(base)).run(volume)
    assert np.array_equal(output.maps, plain.maps) and not np.allclose(output.pooled, plain.pooled)
    with torch.inference_mode():
        assert np.allclose(model.pool(output.maps, output.grid), output.pooled, atol=1e-5)
    # and the base can be started from again
    again = network(4)
    fill(again, tmp_path, "tiny")
    assert all(np.array_equal(v.numpy(), stored[k]) for k, v in again.state_dict().items())


def test_features_that_are_kept_are_those_that_are_made(stores, base):
    kept, made = classify(stores, base, keep_features=True), classify(stores, base, micro=None)
    batch = next(kept.batches(0, torch.device("cpu")))
    grads = []
    for task in (kept, kept, made):
        heads = task.student().eval()
        losses = task.backward(heads, Average(heads), batch, 0)
        grads.append([losses["findings"], *(p.grad for p in heads.parameters())])
    for other in grads[1:]:
        assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(grads[0], other, strict=True))
    f = task.scans.prevalence()
    assert kept.positives == pytest.approx([(1 - x) / x for x in f], rel=1e-5)


def lesions(folder, stores):
    """A store of one mask: what is soft."""

    class Soft:
        channels = (LESION,)

        def facts(self):
            return {"kind": "soft"}

        def has(self, record):
            return True

        def masks(self, volume, job):
            return {LESION: volume.hu > -200}

    paths = [stores[0].parent / "scans" / f"scan{i}.nii.gz" for i in range(3)]
    jobs = [MaskJob(f"scan{i}", str(p), record=ScanRecord(f"scan{i}", "", "")) for i, p in enumerate(paths)]
    prepare_store(jobs, folder / "lesions", MaskPreparation(DEEP, Soft()), where="here")
    opened, beside = open_store(stores[0]), open_store(folder / "lesions")
    held = tuple(beside if key in beside.rows else None for key in opened.keys)
    labels = torch.full((4, 18), float("nan"))
    patients = tuple(f"phantom:{k}" for k in opened.keys)
    return ExactScans(opened.keys, (opened,) * 4, held, labels, patients, (LESION,))


def segment(scans, base=None, **changes):
    told = {**COMMON, "method": "exact-seg", "preset": "tiny", **changes}
    recipe = SegmentRecipe.model_validate(told if base else {**told, "start": None, "transfer": "none"})
    net = network(1)
    sha256 = fill(net, base, "tiny") if base else None
    return SegmentRun(recipe, scans, MaskNet(net, recipe.head), sha256)


@pytest.mark.parametrize("head", ["findings", "organs"])
@pytest.mark.parametrize("adapted", ["full", "head", "lora"])
def test_a_segmentation_trains_what_its_mask_depends_on(stores, base, tmp_path, head, adapted, tiny_preset):
    scans = lesions(tmp_path, stores)
    few = scans.pick(few_of(scans, 2, 0))
    assert len(few) == 2 and all(few.masked(i) for i in range(2))
    task = segment(few, base, head=head, adapt=adapted, lora_rank=2)
    names = {n for n, p in task.student().named_parameters() if p.requires_grad}
    other = ("organ_head",) if head == "findings" else ("low_head", "high_head", "abn")
    assert names and not any(o in n for o in other for n in names)
    assert (adapted == "head") == (names == {"mask_head.weight", "mask_head.bias"})
    out = tmp_path / "run"
    train(task, out, export=keeper(task, few, out))
    model = MaskModel.load(out)
    volume = open_volume(stores[0].parent / "scans" / "scan0.nii.gz")
    found = model.run(volume)
    assert found.shape == volume.shape and 0 < model.threshold < 1 and 0 <= found.min() <= found.max() <= 1
    card = json.loads((out / "card.json").read_text())
    assert card["validation"]["dice"] is not None and card["mask"]["reads"] == head


def test_what_the_publication_takes_is_encoder_and_organ_decoder(base):
    net, fresh = network(7), network(7).state_dict()
    from hilum.train.adapt_segment import PUBLISHED

    fill(net, base, "tiny", PUBLISHED)
    stored, _ = load_weights(base / "model.safetensors")
    for name, value in net.state_dict().items():
        taken = name.startswith(PUBLISHED)
        assert np.array_equal(value.numpy(), stored[name] if taken else fresh[name].numpy()), name
    assert isinstance(net, YMamba) and YMambaConfig(**{k: tuple(v) if isinstance(v, list) else v
                                                       for k, v in NET.items()}) == net.config  # fmt: skip


def test_dice_is_dice():
    truth = np.zeros((4, 4, 4), bool)
    truth[:2] = True
    assert dice_curve(np.where(truth, 0.52, 0.12), truth)[:11] == [2 / 3] * 2 + [1.0] * 8 + [0.0]
    assert dice_curve(np.zeros((2, 2, 2)), np.zeros((2, 2, 2), bool)) == [1.0] * 19


def test_published_maps_can_be_read_back(stores, base, tmp_path, tiny_preset):
    import nibabel

    from hilum.objective.dense_rule import DenseRule
    from hilum.read.reader import read
    from hilum.show.aamaps import write_aamaps

    model = ScanModel.load(str(base))
    path = stores[0].parent / "scans" / "scan1.nii.gz"
    output, reading = model.run(open_volume(path)), read(path, model=model)
    files = write_aamaps(tmp_path, reading, {"emphysema": 1})
    assert len(files) == 2 * 18 + 2
    present = int(next(f.present for f in reading.findings if f.slug == "emphysema"))
    emphysema = [f.name for f in files if f.name.startswith("Emphysema")]
    assert emphysema == [
        f"Emphysema_GT1_PD{present}_{r}_combined_pred.nii.gz" for r in ("high-res", "low-res")
    ]
    rule = DenseRule.from_facts(model.card["rule"])
    for d, finding in enumerate(reading.findings):
        image = nibabel.load(next(f for f in files if f.name.startswith(f"{finding.name}_GTN")
                                  or f.name.startswith(f"{finding.name}_GT1")))  # fmt: skip
        assert np.allclose(image.affine, output.grid.affine_ras, atol=1e-4)
        highest = np.sort(image.get_fdata().ravel())[::-1][: rule.k_high]
        assert float(highest.mean()) == pytest.approx(float(output.pooled[d]), abs=1e-5)
    shown = nibabel.load(tmp_path / "original_image.nii.gz").get_fdata()
    assert np.allclose(shown, output.shown, atol=1e-6)
    told = (tmp_path / "prediction_info.txt").read_text()
    assert f"Emphysema\t1\t{present}" in told and "Cardiomegaly\tNA" in told and "ynthetic" in told


def test_probes_read_the_encoder_of_whole_scans(stores, base, tiny_preset):
    from hilum.exam.exact_probes import dense_features, fresh, is_dense
    from hilum.read.scan_model import ScanModel as Model

    model = Model.load(str(base))
    store = open_store(stores[0])
    found = dense_features(model.network, store, store.keys)
    assert found.shape == (4, 8 + 8 + 8) and is_dense(base) and not is_dense(stores[0])
    scan = open_volume(stores[0].parent / "scans" / "scan2.nii.gz")
    tensor, _ = model.way.pipeline.apply(scan)
    with torch.inference_mode():
        levels = model.network.skip_features(tensor)[-3:]
    assert np.allclose(found[2], torch.cat([x.mean((2, 3, 4))[0] for x in levels]).numpy(), atol=1e-3)
    assert not np.allclose(dense_features(fresh(model, 5), store, store.keys), found, atol=1e-2)
