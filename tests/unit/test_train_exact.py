"""A run of EXACT: data, schedule, recipe, validation, adaptation, reading; on small chests."""

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from _exact import PREP, TinyDense, tiny_network, tiny_recipe, tiny_scans, tiny_stores, tiny_task

from hilum.cohort.prep_presets import Pipeline
from hilum.errors import UsageError
from hilum.io.open import open_volume
from hilum.objective.dense_rule import DenseRule
from hilum.objective.roc import auroc
from hilum.read.scan_dense import DenseWay, placed, replaced
from hilum.text.vocabulary import ORGAN_CHANNELS, SLUGS
from hilum.train.ema import Average
from hilum.train.exact_data import ExactStream, mean_organs, varied
from hilum.train.exact_keep import keeper
from hilum.train.exact_recipe import ExactAugment
from hilum.train.exact_scans import parted
from hilum.train.exact_student import ExactStudent, adapt, merge
from hilum.train.exact_task import OUTPUTS, learning_rate, steps_of
from hilum.train.exact_valid import Record, choose
from hilum.train.loop import train
from hilum.train.recipe import load_recipe

RECIPES = Path(__file__).parents[2] / "recipes"


@pytest.fixture(scope="module")
def stores(tmp_path_factory):
    return tiny_stores(tmp_path_factory.mktemp("store"))


@pytest.fixture(scope="module")
def scans(stores):
    return tiny_scans(*stores)


def test_every_epoch_shows_every_scan_once_on_any_number_of_ranks(scans):
    recipe = tiny_recipe(batch=2)
    whole = [ExactStream(recipe, scans).index(k) for k in range(8)]
    assert sorted(whole[:4]) == sorted(whole[4:]) == [0, 1, 2, 3] and whole[:4] != whole[4:]
    ranks = [iter(ExactStream(recipe, scans, rank=r, ranks=2)) for r in range(2)]
    assert [next(ranks[k % 2]).key for k in range(8)] == [scans.keys[i] for i in whole]
    late = iter(ExactStream(recipe, scans, start=2))
    assert next(late).key == scans.keys[whole[4]]


def test_a_scan_without_masks_knows_no_organ_and_the_others_three(scans):
    assert scans.known(3).tolist() == [False] * 7
    assert [c for c, k in zip(ORGAN_CHANNELS, scans.known(0), strict=True) if k] == [
        "lung",
        "heart",
        "global",
    ]
    sample = scans.sample(0, None)
    assert sample.bits.any() and not scans.sample(3, None).bits.any()
    box = scans.sample(0, (8, 24, 16))
    assert box.scan.shape == (1, 8, 24, 16) and torch.equal(box.scan[0, :, 4:20], sample.scan[0, 4:12])
    assert torch.equal(box.bits[:, 4:20], sample.bits[4:12]) and not box.bits[:, :4].any()


def test_prevalence_is_that_of_known_labels_and_a_prior_is_the_mean_mask(scans):
    known = ~torch.isnan(scans.labels)
    share = [float((scans.labels[known[:, d], d].sum() + 0.5) / (known[:, d].sum() + 1)) for d in range(18)]
    assert scans.prevalence() == pytest.approx(share)
    prior = mean_organs(scans, edge=4)
    lung = torch.stack([(scans.sample(i, None).bits & 1).float() for i in range(3)])
    assert float(prior[0].mean()) == pytest.approx(float(lung.mean()), abs=1e-6) and not prior[2].any()


def test_augmentation_moves_masks_with_the_scan_and_is_off_by_default(scans):
    sample = scans.sample(0, None)
    generator = torch.Generator().manual_seed(0)
    assert varied(sample, ExactAugment.model_validate({}), generator) is not sample
    same = varied(sample, ExactAugment.model_validate({}), generator)
    assert torch.equal(same.scan, sample.scan) and torch.equal(same.bits, sample.bits)
    moved = varied(sample, ExactAugment.model_validate({"shift_vox": 3}), torch.Generator().manual_seed(2))
    assert not torch.equal(moved.bits, sample.bits)
    # a voxel and its mask went together
    values = {int(b): set() for b in sample.bits.unique()}
    for s in (sample, moved):
        for bit, of in values.items():
            of.update(s.scan[0][s.bits == bit].tolist())
    before = {int(b): set(sample.scan[0][sample.bits == b].tolist()) for b in sample.bits.unique()}
    assert all(values[b] == before[b] for b in before if b)


def test_the_rate_falls_once_and_as_published_goes_up_again():
    ours = tiny_recipe(steps=None, epochs=150, batch=1, lr=1e-4, lr_end=1e-5)
    rates = [learning_rate(ours, s, 1500, 10) for s in range(0, 1501, 10)]
    assert rates[0] == 1e-4 and rates[-1] == pytest.approx(1e-5) and rates == sorted(rates, reverse=True)
    paper = tiny_recipe(steps=None, epochs=150, batch=1, lr=1e-4, lr_end=1e-5, convention="paper")
    published = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1e-4)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(published, T_max=50, eta_min=1e-5)
    for epoch in range(120):
        assert learning_rate(paper, 10 * epoch, 1500, 10) == pytest.approx(cosine.get_last_lr()[0], rel=1e-6)
        published.step()
        cosine.step()
    assert learning_rate(paper, 1000, 1500, 10) == pytest.approx(1e-4)
    assert steps_of(ours, 10) == 1500 and steps_of(tiny_recipe(steps=7), 10) == 7


def test_the_papers_convention_is_below_what_a_recipe_says():
    recipe = tiny_recipe(convention="paper", rule={"k_read": 5})
    assert recipe.rule == DenseRule(opened_by="paper", guard=False, k_read=5)
    assert recipe.losses.prevalence == "paper" and recipe.decay_all and recipe.lr_period_epochs == 50
    with pytest.raises(ValueError, match="epochs or steps"):
        tiny_recipe(epochs=3)
    with pytest.raises(ValueError, match="start from"):
        tiny_recipe(adapt="head")


def test_the_recipes_of_adaptation_are_read():
    classify, segment = (load_recipe(RECIPES / f"exact-{name}.toml") for name in ("classify", "seg"))
    assert (
        classify.keep_features and classify.start == segment.start == RECIPES.parent / "runs" / "exact-nano"
    )
    with pytest.raises(UsageError, match="no start"):
        load_recipe(RECIPES / "exact-seg.toml", ("transfer=none",))
    with pytest.raises(UsageError, match="features are kept"):
        load_recipe(RECIPES / "exact-classify.toml", ("augment.noise=0.1",))


@pytest.mark.parametrize("name", ["exact-nano", "exact-ymamba"])
def test_the_recipes_are_read(name):
    recipe = load_recipe(RECIPES / f"{name}.toml")
    assert recipe.method == "exact" and recipe.lr_period_epochs == "run"
    with pytest.raises(UsageError, match="CONFIG_KEY"):
        load_recipe(RECIPES / f"{name}.toml", ("rule.gates=hard",))
    assert load_recipe(RECIPES / f"{name}.toml", ("rule.gate=soft",)).rule.gate == "soft"


def test_patients_are_on_one_side(scans):
    twice = replace(scans, patients=("phantom:1", "phantom:2", "phantom:1", "phantom:3"))
    for seed in range(20):
        learn, pick = parted(twice, 0.5, seed)
        assert not set(learn.patients) & set(pick.patients)
        assert sorted([*learn.keys, *pick.keys]) == sorted(scans.keys)


def test_choices_are_youdens_and_unknown_labels_do_not_count():
    answers = np.tile(np.array([[0.1], [0.2], [0.6], [0.9]], dtype=np.float32), (1, 18))
    labels = torch.full((4, 18), float("nan"))
    labels[:, 0] = torch.tensor([0.0, 0.0, 1.0, 1.0])
    labels[:, 1] = torch.tensor([0.0, 1.0, float("nan"), 0.0])
    found = choose(answers, labels)
    assert found.auroc[SLUGS[0]] == 1 and found.thresholds[SLUGS[0]] == pytest.approx(0.4)
    assert found.auroc[SLUGS[1]] == auroc(np.array([0.1, 0.2, 0.9]), np.array([False, True, False]))
    assert math.isnan(found.auroc[SLUGS[2]]) and found.thresholds[SLUGS[2]] == 0.5
    assert found.macro == pytest.approx((1 + 0.5) / 2)


def run(scans, out, recipe, chosen=None, stop=None):
    """A run into `out`; with `stop` it is asked to end there."""
    task = tiny_task(scans, recipe)
    out.mkdir(exist_ok=True)
    keep = keeper(task, chosen, out)

    def report(state):
        if stop is not None and state.step == stop:
            raise KeyboardInterrupt

    return train(task, out, exports=(2,), export=keep, report=report)


def test_a_run_that_stopped_goes_on_bit_for_bit_and_keeps_the_best(scans, tmp_path):
    recipe = tiny_recipe(steps=4, augment={"noise": 0.01, "shift_vox": 1})
    run(scans, tmp_path / "whole", recipe, scans)
    with pytest.raises(KeyboardInterrupt):
        run(scans, tmp_path / "torn", recipe, scans, stop=2)
    run(scans, tmp_path / "torn", recipe, scans)
    for name in ("model.safetensors", "validation.json"):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "torn" / name).read_bytes()
    card = json.loads((tmp_path / "whole" / "card.json").read_text())
    told = json.loads((tmp_path / "whole" / "validation.json").read_text())["validations"]
    best = max(told, key=lambda row: (row["macro_auroc"], -row["step"]))
    assert card["steps"] == best["step"] == card["validation"]["step"]
    assert set(card["thresholds"]) == set(SLUGS) == set(card["map_thresholds"])
    assert card["synthetic"] and "3 with masks" in card["trained_on"] and len(card["phantoms"]) == 4
    assert DenseRule.from_facts(card["rule"]) == recipe.rule and Pipeline.from_facts(card["prep"]) == PREP


def test_records_of_another_run_are_forgotten(tmp_path):
    record = Record(tmp_path, "a")
    labels = torch.tensor([[0.0, 1.0]] * 9).reshape(2, 9).repeat(1, 2)
    record.add(3, choose(np.random.default_rng(0).random((2, 18), dtype=np.float32), labels))
    assert Record(tmp_path, "a").rows and not Record(tmp_path, "b").rows


def test_the_organs_are_learned_in_a_few_steps(scans):
    task = tiny_task(scans, tiny_recipe(steps=30, lr=0.03))
    model = task.student()
    optim = torch.optim.Adam(model.parameters(), lr=0.03)
    average, losses = Average(model), []
    batches = task.batches(0, torch.device("cpu"))
    for _ in range(30):
        optim.zero_grad()
        found = task.backward(model, average, next(batches), 0)
        losses.append(float(found["organs"]))
        optim.step()
    assert losses[-1] < 0.7 * losses[0]


@pytest.mark.parametrize("how", ["head", "lora"])
def test_adaptation_trains_what_it_says_and_merges_to_the_same_network(how):
    network = tiny_network()
    plain = {name: value.clone() for name, value in network.state_dict().items()}
    adapt(network, how, 2, OUTPUTS)
    student = ExactStudent(network)
    trained = {name for name, p in student.named_parameters() if p.requires_grad}
    heads = {f"network.{h}_head.{p}" for h in ("organ", "low", "high") for p in ("weight", "bias")}
    low = {f"network.mix.parametrizations.weight.0.{p}" for p in ("up", "down")}
    assert trained == (heads | low if how == "lora" else heads)
    scan = torch.rand((1, 1, 8, 8, 8))
    before = [x.detach() for x in student(scan)]
    reference = TinyDense()
    reference.load_state_dict(plain)
    assert all(torch.equal(a, b) for a, b in zip(before, vars(reference(scan)).values(), strict=True))
    optim = torch.optim.SGD([p for p in student.parameters() if p.requires_grad], lr=0.1)
    for _ in range(2):
        sum(x.square().mean() for x in student(scan)).backward()
        optim.step()
    changed = [x.detach() for x in student(scan)]
    merged = merge(network)
    assert set(merged.state_dict()) == set(plain)
    after = vars(merged(scan)).values()
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(changed, after, strict=True))
    moved = {n for n, v in merged.state_dict().items() if not torch.equal(v, plain[n])}
    assert moved == {n.removeprefix("network.") for n in heads} | ({"mix.weight"} if how == "lora" else set())


@pytest.mark.parametrize("shape", [None, (8, 24, 16)])
def test_a_scan_is_read_as_it_was_trained(stores, shape):
    scans = tiny_scans(*stores)
    rule = DenseRule(k_low=2, k_high=9)
    way = DenseWay(tiny_network(), PREP, rule, shape)
    folder = stores[0].parent / "scans"
    with torch.inference_mode():
        found = way.run(open_volume(folder / "scan0.nii.gz"))
        from hilum.train.exact_valid import scan_probabilities

        trained = scan_probabilities(tiny_network(), scans, rule, torch.device("cpu"), shape)[0]
    # a store keeps whole HU
    assert np.allclose(found.pooled, trained, atol=2e-4)
    assert found.maps.shape == (18, 16, 16, 16) and found.grid.same_grid(found.trace.grid)
    assert np.allclose(way.pool(found.maps, found.grid), found.pooled, atol=1e-5)
    for d, organs in enumerate(way.gates):
        outside = ~(found.organs[list(organs)] > 0.5).any(0)
        kept = found.maps[d][outside] > 0
        # the guard keeps a few voxels of an organ that was not found, and no more
        assert kept.sum() == 0 or (found.organs[list(organs)] > 0.5).sum((1, 2, 3)).min() < 9
    back = found.trace.invert(np.ascontiguousarray(found.maps[9]))
    assert back.shape == open_volume(folder / "scan0.nii.gz").shape


def test_crops_and_pads_undo_each_other():
    values = torch.arange(6 * 7 * 8, dtype=torch.float32).reshape(6, 7, 8)
    for shape in [(6, 7, 8), (10, 9, 11), (8, 10, 9)]:
        assert torch.equal(replaced(placed(values, shape), values.shape), values)
    assert placed(values, (3, 4, 5)).shape == (3, 4, 5)
    assert torch.equal(placed(values, (3, 4, 5)), values[1:4, 1:5, 1:6])
