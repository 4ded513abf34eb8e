"""Findings learnt in boxes of siblings: where boxes lie, what they hold, and that voxels are found."""

import dataclasses
from itertools import pairwise

import pytest
import torch
from safetensors.torch import save_file

from hilum.cohort.prep import Prep
from hilum.cohort.samples import load
from hilum.errors import UsageError, WeightsError
from hilum.io.weights import save_weights
from hilum.model.fold import unfold, unrows
from hilum.model.preset import Preset, build_network
from hilum.model.ynet import YNetConfig
from hilum.text.vocabulary import GATES, INDEX, ORGAN_CHANNELS
from hilum.train.boxes import SIDE, Siblings, draw_boxes
from hilum.train.methods.exact_small import voxel_scale
from hilum.train.phantom_task import family_labels, make_siblings, phase_of, scans_of, shared_of, train
from hilum.train.recipe import OptimRecipe, Recipe
from hilum.train.run import write_card
from hilum.train.start_organs import take_organs

NET = YNetConfig(widths=(8, 8, 8, 8), depth=(1, 1, 1, 1), abn_width=8, abn_stem=4)
PRESET = Preset("tiny", "ynet", NET, Prep(), (0.5,) * 18)
NODULE, STONE = INDEX["lung_nodule"], INDEX["coronary_calcification"]
LUNG, HEART = ORGAN_CHANNELS.index("lung"), ORGAN_CHANNELS.index("heart")
BALL = (slice(20, 26), slice(30, 36), slice(8, 14))


def chest() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Two scans (HU / 1000) that differ in a ball in the lung, organ shares, and their labels."""
    generator = torch.Generator().manual_seed(1)
    organs = torch.zeros(1, len(ORGAN_CHANNELS), 64, 48, 64)
    organs[:, LUNG, 4:40, 4:44, 4:60] = 1
    organs[:, HEART, 42:58, 10:40, 10:50] = 1
    scan = torch.where(organs[:, LUNG] > 0, -0.85, 0.05)[:, None].repeat(2, 1, 1, 1, 1)
    scan += 0.004 * torch.randn(scan.shape, generator=generator)
    scan[(1, 0, *BALL)] = 0.05
    labels = torch.zeros(2, 18)
    labels[1, NODULE] = 1
    labels[:, STONE] = 1
    return scan, organs, labels


def siblings() -> Siblings:
    scan, organs, labels = chest()
    return Siblings.of(scan, organs, labels)


def test_what_differs_and_what_is_told():
    two = siblings()
    assert two.told == [NODULE]
    differs = unfold(unrows(two.differs.flatten(0, 2)[None].float(), two.differs.shape[:3]))[0, 0].bool()
    assert differs[BALL].all()
    differs[19:27, 29:37, 7:15] = False
    assert not differs.any()


def test_boxes_lie_where_siblings_differ_and_hold_the_scans_own_voxels():
    two = siblings()
    boxes = list(draw_boxes(two, 40, torch.Generator().manual_seed(0)))
    again = list(draw_boxes(two, 40, torch.Generator().manual_seed(0)))
    assert all(torch.equal(a.scan, b.scan) for a, b in zip(boxes, again, strict=True))
    hit = [bool(box.differs.any()) for box in boxes]
    assert 20 < sum(hit) < 40, "most, and some ordinary lung"
    for box in boxes:
        cells = [min(SIDE, n // 2) for n in two.scan.shape[2:]]
        assert [at.stop - at.start for at in box.inner] == cells
        assert box.gates.shape == (torch.tensor(cells).prod(), 18, 8) and box.shares.shape[1] == 7
        own = tuple(slice(2 * at.start, 2 * at.stop) for at in box.inner)
        ball = (box.scan[1, 0][own] - box.scan[0, 0][own]) > 0.5
        marked = unfold(unrows(box.differs[None].float(), cells))[0, 0].bool()
        assert marked[ball].all()


def test_nothing_is_drawn_where_nothing_came_or_went():
    scan, organs, labels = chest()
    same = Siblings.of(scan, organs, labels[:1].repeat(2, 1))
    assert list(draw_boxes(same, 5, torch.Generator())) == []


def test_phases_come_one_after_the_other():
    optim = OptimRecipe(
        steps=20, organ_steps=5, box_steps=7, outline_steps=3, lr=1.0, box_lr=2.0, finding_lr=3.0
    )
    told = [phase_of(step, optim) for step in range(20)]
    assert [p.learns for p in told] == ["organs"] * 5 + ["boxes"] * 7 + ["findings"] * 5 + ["outlines"] * 3
    assert [told[i].lr for i in (0, 5, 12, 17)] == [1.0, 2.0, 3.0, 1.0]
    assert phase_of(0, OptimRecipe(steps=3)).learns == "both"
    assert phase_of(0, OptimRecipe(steps=3, organs_from="phantom-small")).learns == "findings"
    short = OptimRecipe(steps=6, organ_steps=9, box_steps=2, outline_steps=3)
    assert {phase_of(step, short).learns for step in range(6)} == {"organs"}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("boxes")
    scan, organs, labels = chest()
    paths = []
    for k in range(2):
        paths.append(folder / f"0-{k}.safetensors")
        tensors = {
            "scan": (1000 * scan[k, 0]).round().to(torch.int16),
            "organs": (255 * organs[0]).to(torch.uint8),
            "labels": labels[k],
        }
        meta = {
            "affine_ras": str([[4.0, 0, 0, 0], [0, 4.0, 0, 0], [0, 0, 4.0, 0], [0, 0, 0, 1.0]]),
            "degrees": "{}",
        }
        save_file(tensors, paths[-1], metadata=meta)
    return [paths]


def recipe(**optim) -> Recipe:
    base = {"name": "tiny", "method": "exact_small", "preset": "tiny", "threads": 1, "precision": "fp32"}
    return Recipe.model_validate(base | {"optim": {"warmup": 2, "ema": 0.0, "lr": 0.01} | optim})


def test_voxels_of_a_finding_are_found_from_scan_labels(tmp_path, files):
    seen = []
    network = train(
        recipe(steps=40, box_steps=40), PRESET, files, tmp_path, report=lambda p: seen.append(p.losses)
    )
    assert all(set(losses) == {"boxes"} for losses in seen)
    scan, organs, _ = chest()
    with torch.no_grad():
        features = network.organ_features(scan[1:])
        shares = torch.nn.functional.avg_pool3d(organs, 2)
        cells = network.anomaly_box(scan[1:], shares, [slice(0, n // 2) for n in scan.shape[2:]])[0]
        _, high = network.anomaly_heads.rows(cells)
    maps = unfold(unrows(high.flatten(1)[None], features.logits.shape[2:]))[0, NODULE]
    inside = torch.zeros_like(maps, dtype=torch.bool)
    inside[BALL] = True
    lung = organs[0, LUNG] > 0
    best = maps.masked_fill(~lung, -99).argmax()
    assert inside.flatten()[best], "the peak lies in the ball"
    assert maps[inside].mean() > maps[lung & ~inside].mean() + 1


def test_the_first_scan_is_what_a_step_compares_with(files):
    patient = [*files[0], *[p.with_name(f"more-{i}") for i, p in enumerate(files[0])]]
    for step in range(8):
        seen = scans_of(patient, step, recipe(steps=9, box_steps=9))
        assert len(seen) == 2 and seen[0] == patient[0] and seen[1] in patient[1:]


def test_a_finding_that_siblings_always_share_is_unknown_in_boxes(files):
    shared = shared_of(family_labels(files))
    assert not shared[NODULE] and shared[STONE]
    samples = [load(path) for path in files[0]]
    made = make_siblings(samples, 0, recipe(steps=1, box_steps=1), PRESET, (0.5,) * 18, shared)
    labels = torch.cat([batch.labels for batch in made.values()])
    assert labels[:, NODULE].tolist() == [0.0, 1.0] and labels[:, STONE].isnan().all()


def test_a_step_whose_scans_say_the_same_teaches_nothing(tmp_path, files):
    twins = [[files[0][1], tmp_path / "0-2.safetensors"]]
    twins[0][1].write_bytes(files[0][1].read_bytes())
    seen = []
    train(
        recipe(steps=1, box_steps=1), PRESET, twins, tmp_path / "run", report=lambda p: seen.append(p.losses)
    )
    assert seen == [{"boxes": 0.0}]


def test_boxes_need_a_stem_of_their_own(tmp_path, files):
    preset = dataclasses.replace(PRESET, net=dataclasses.replace(NET, abn_stem=0))
    with pytest.raises(UsageError, match="abn_stem"):
        train(recipe(steps=1, box_steps=1), preset, files, tmp_path)


def test_a_run_begins_with_the_organs_of_another(tmp_path, files):
    torch.manual_seed(5)
    other = build_network(PRESET)
    folder = tmp_path / "model"
    folder.mkdir()
    arrays = {k: v.numpy() for k, v in other.state_dict().items()}
    digest = save_weights(folder / "model.safetensors", arrays, {})
    write_card(folder, {"sha256": digest})
    network = train(recipe(steps=1, box_steps=1, organs_from=str(folder)), PRESET, files, tmp_path / "run")
    same = {k: torch.equal(v, other.state_dict()[k]) for k, v in network.state_dict().items()}
    assert all(same[k] for k in same if k.startswith(("encoder", "seg", "organ_head")))
    assert not all(same.values())
    wider = dataclasses.replace(PRESET, net=dataclasses.replace(NET, widths=(16, 8, 8, 8)))
    with pytest.raises(WeightsError, match="WEIGHTS_KEYS"):
        train(recipe(steps=1, box_steps=1, organs_from=str(folder)), wider, files, tmp_path / "wide")
    for name in ("nobody", "phantom-small/.."):
        with pytest.raises(UsageError, match="MODEL_UNKNOWN"):
            train(recipe(steps=1, box_steps=1, organs_from=name), PRESET, files, tmp_path / "none")


def test_a_network_without_organs_begins_with_their_encoder(tmp_path):
    torch.manual_seed(6)
    other = build_network(PRESET)
    arrays = {k: v.numpy() for k, v in other.state_dict().items()}
    write_card(tmp_path, {"sha256": save_weights(tmp_path / "model.safetensors", arrays, {})})
    cam = build_network(dataclasses.replace(PRESET, network="cam"))
    head = cam.head.weight.clone()
    take_organs(cam, str(tmp_path))
    own, theirs = cam.encoder.state_dict(), other.encoder.state_dict()
    assert all(torch.equal(own[k], theirs[k]) for k in theirs) and torch.equal(cam.head.weight, head)


def test_votes_of_small_findings_weigh_more():
    scale = voxel_scale(dataclasses.replace(PRESET, pool_ml=tuple(0.5 + i for i in range(18))))
    assert scale.shape == (len(GATES),) and bool((scale > 0).all())
    lung = [f for f, gate in enumerate(GATES) if gate == (LUNG,)]
    assert all(scale[a] > scale[b] for a, b in pairwise(lung))
