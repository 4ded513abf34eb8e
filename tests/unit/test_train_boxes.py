"""Findings learnt in boxes of siblings: where boxes lie, what they hold, and that voxels are found."""

import dataclasses
from itertools import pairwise

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from hilum.cohort.prep import Prep
from hilum.cohort.samples import Sample
from hilum.errors import UsageError, WeightsError
from hilum.geometry import Geometry
from hilum.io.weights import save_weights
from hilum.model.fold import unfold, unrows
from hilum.model.preset import Preset, build_network
from hilum.model.ynet import YNetConfig
from hilum.text.vocabulary import GATES, INDEX, ORGAN_CHANNELS
from hilum.train.augment import augment_siblings, moved, random_affine, sampled_at, warp
from hilum.train.boxes import SIDE, Box, box_of, draw_box, largest_around, seats_of, told
from hilum.train.ema import Average
from hilum.train.methods.exact_small import THIN, asked_cells, voxel_scale
from hilum.train.phantom_task import PhantomTask, family_labels, make_boxes, phase_of, shared_of, train
from hilum.train.recipe import AugmentRecipe, OptimRecipe, Recipe
from hilum.train.run import write_card
from hilum.train.start_organs import take_organs

NET = YNetConfig(widths=(8, 8, 8, 8), depth=(1, 1, 1, 1), abn_width=8, abn_stem=4)
PRESET = Preset("tiny", "ynet", NET, Prep(), (0.5,) * 18)
NODULE, STONE = INDEX["lung_nodule"], INDEX["coronary_calcification"]
LUNG, HEART = ORGAN_CHANNELS.index("lung"), ORGAN_CHANNELS.index("heart")
AFFINE = str([[4.0, 0, 0, 0], [0, 4.0, 0, 0], [0, 0, 4.0, 0], [0, 0, 0, 1.0]])
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


WHOLE = tuple(slice(0, n // 2) for n in (64, 48, 64))


def whole() -> Box:
    scan, organs, labels = chest()
    return box_of(scan, organs, labels, WHOLE)


def on_grid(rows_: torch.Tensor, cells: tuple[slice, ...]) -> torch.Tensor:
    """(N, 8) of cells -> their voxels."""
    return unfold(unrows(rows_[None].float(), [at.stop - at.start for at in cells]))[0, 0].bool()


def test_what_differs_and_what_is_told():
    box = whole()
    assert told(box.labels) == [NODULE]
    differs = on_grid(box.differs, WHOLE)
    assert differs[BALL].all()
    differs[BALL] = False
    assert not differs.any(), "what lies beside the ball is as it was"
    lung = on_grid(box.gates[:, NODULE], WHOLE)
    assert torch.equal(lung, chest()[1][0, LUNG] > 0)


def samples() -> list[Sample]:
    scan, organs, labels = chest()
    grid = Geometry((64, 48, 64), np.diag([4.0, 4, 4, 1]))
    return [
        Sample(
            (1000 * scan[k, 0]).round().to(torch.int16),
            (255 * organs[0]).to(torch.uint8),
            None,
            labels[k],
            grid,
            str(k),
        )
        for k in range(2)
    ]


def drawn(seed: int, two: list[Sample] | None = None) -> Box | None:
    known = torch.zeros(18, dtype=torch.bool)
    generator = torch.Generator().manual_seed(seed)
    two = two or samples()
    return draw_box(two, seats_of(two, known), 4.0, AugmentRecipe(noise_hu=5.0), generator)


def test_boxes_lie_where_siblings_differ_and_hold_the_scans_own_voxels():
    boxes = [drawn(seed) for seed in range(40)]
    assert torch.equal(drawn(7).scan, boxes[7].scan) and not torch.equal(drawn(8).scan, boxes[7].scan)
    hit = [bool(box.differs.any()) for box in boxes]
    assert 20 < sum(hit) < 40, "most, and some ordinary lung"
    for box in boxes:
        assert [at.stop - at.start for at in box.inner] == [SIDE] * 3
        assert box.gates.shape == (SIDE**3, 18, 8) and box.shares.shape[1] == 7
        own = tuple(slice(2 * at.start, 2 * at.stop) for at in box.inner)
        ball = (box.scan[1, 0][own] - box.scan[0, 0][own]).abs() > 0.5
        # turned, the ball has soft edges
        assert not ball.any() or on_grid(box.differs, box.inner)[ball].float().mean() > 0.9


def test_a_box_is_a_part_of_the_turned_scan():
    """Cut before it is turned, or turned before it is cut."""
    theta = random_affine((64, 48, 64), 4.0, AugmentRecipe(), torch.Generator().manual_seed(5))
    calm = AugmentRecipe(noise_hu=0.0, blur_chance=0.0, organ_offset_hu=0.0)
    cut = (slice(8, 40), slice(12, 44), slice(20, 56))

    def looks(box):
        return augment_siblings(samples(), theta, box, calm, torch.Generator().manual_seed(6))

    (scans, organs), (part, shares) = looks((slice(None),) * 3), looks(cut)
    assert torch.allclose(shares, organs[:, :, *cut], atol=1e-5)
    # organs' offsets have soft edges: at the cut they see less
    inside = tuple(slice(1, -1) for _ in range(3))
    assert torch.allclose(part[:, :, *inside], scans[:, :, *cut][:, :, *inside], atol=1e-5)


def test_a_voxel_is_found_again_in_the_turned_scan():
    shape = (40, 48, 56)
    for seed in range(6):
        theta = random_affine(shape, 4.0, AugmentRecipe(), torch.Generator().manual_seed(seed))
        mark = torch.zeros(1, 1, *shape)
        mark[0, 0, 18:23, 22:27, 30:35] = 1
        turned = warp(mark, theta, fill=0.0)[0, 0]
        middle = (turned > 0.5).nonzero().float().mean(0)
        assert (torch.tensor(moved((20, 24, 32), theta, shape)) - middle).abs().max() < 1


def test_a_part_of_the_sampling_grid_is_the_whole_ones():
    shape = (6, 8, 10)
    theta = random_affine(shape, 4.0, AugmentRecipe(), torch.Generator().manual_seed(3))
    box = (slice(1, 4), slice(2, 8), slice(3, 5))
    whole_ = torch.nn.functional.affine_grid(theta, [1, 1, *shape], align_corners=False)
    assert torch.allclose(sampled_at(theta, shape, box), whole_[:, *box], atol=1e-6)


def test_nothing_is_drawn_where_nothing_came_or_went():
    one, other = samples()
    assert drawn(0, [one, dataclasses.replace(other, labels=one.labels)]) is None


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
        save_file(tensors, paths[-1], metadata={"affine_ras": AFFINE, "degrees": "{}"})
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


def test_a_step_draws_every_box_from_another_patient(files):
    first, second = files[0]
    patients, tensors = [], load_file(second)
    for n in range(4):
        patients.append([first, second.with_name(f"9{n}-1.safetensors")])
        meta = {"affine_ras": AFFINE, "degrees": "{}"}
        save_file(tensors | {"labels": tensors["labels"] * (n > 0)}, patients[-1][1], metadata=meta)
    asked = recipe(steps=2, box_steps=2)
    shared = torch.zeros(18, dtype=torch.bool)
    shared[STONE] = True
    known = {}
    seen = make_boxes(patients, 1, asked, PRESET, shared, torch.device("cpu"), known)
    assert len(known) == 4
    assert asked.objective.boxes == 6 and len(seen.boxes) == len(seen.keys) / 2 < 6, "one has nothing to say"
    assert {"91-1", "92-1", "93-1"} < set(seen.keys) and "90-1" not in seen.keys
    again = make_boxes(patients, 1, asked, PRESET, shared, torch.device("cpu"), known)
    assert all(torch.equal(a.scan, b.scan) for a, b in zip(seen.boxes, again.boxes, strict=True))


def test_a_finding_that_siblings_always_share_is_unknown_in_boxes(files):
    shared = shared_of(family_labels(files))
    assert not shared[NODULE] and shared[STONE]
    asked = recipe(steps=1, box_steps=1)
    box = make_boxes(files, 0, asked, PRESET, shared, torch.device("cpu"), {}).boxes[0]
    assert box.labels[:, NODULE].tolist() == [0.0, 1.0] and box.labels[:, STONE].isnan().all()


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


def test_cells_that_look_alike_are_thinned_and_stand_for_all_of_them():
    box = whole()
    where, counts = asked_cells(box)
    opened, differs = box.gates.flatten(1).any(1), box.differs.any(1)
    assert opened[where].all() and bool(opened[differs].any())
    assert set(where[counts == 1].tolist()) == set((opened & differs).nonzero().flatten().tolist())
    assert (counts[~differs[where]] == THIN).all()
    assert abs(float(counts.sum()) - int(opened.sum())) < THIN


def test_the_largest_around_is_that_of_max_pooling():
    x = torch.randn(1, 1, 5, 1, 7, generator=torch.Generator().manual_seed(2))
    assert torch.equal(largest_around(x), torch.nn.functional.max_pool3d(x, 3, stride=1, padding=1))


def test_votes_of_small_findings_weigh_more():
    scale = voxel_scale(dataclasses.replace(PRESET, pool_ml=tuple(0.5 + i for i in range(18))))
    assert scale.shape == (len(GATES),) and bool((scale > 0).all())
    lung = [f for f, gate in enumerate(GATES) if gate == (LUNG,)]
    assert all(scale[a] > scale[b] for a, b in pairwise(lung))


def test_statistics_rest_when_whole_scans_are_learnt(tmp_path, files):
    told_ = recipe(steps=4, box_steps=2, organs_from=None)
    task = PhantomTask(told_, PRESET, files)
    model = task.student().train()
    average, before = Average(model), []
    for step, batch in enumerate(task.batches(0, torch.device("cpu"))):
        task.backward(model, average, batch, step)
        before.append(model.abn.norms[0].mean.clone())
    assert not torch.equal(before[0], before[1]) and torch.equal(before[1], before[3])
