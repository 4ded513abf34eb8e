"""The loop: it learns, it is deterministic, it resumes bit for bit, it stops on a bad loss."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from hilum.cohort.prep import Prep
from hilum.cohort.samples import Sample, load
from hilum.errors import RunError, UsageError, WeightsError
from hilum.geometry import Geometry
from hilum.model.fold import unfold, unrows
from hilum.model.preset import Preset
from hilum.model.ynet import YNetConfig
from hilum.text.vocabulary import ORGAN_CHANNELS
from hilum.train.augment import WHOLE, Fat, augment, augment_finer, augment_siblings, draw_fat, random_affine
from hilum.train.methods.exact_small import organ_rows
from hilum.train.phantom_task import learning_rate, patients_of, pick, pick_box, pick_scans, train
from hilum.train.recipe import AugmentRecipe, OptimRecipe, Recipe, load_recipe

NET = YNetConfig(widths=(8, 8, 8, 8), depth=(1, 1, 1, 1), abn_width=8)
PRESET = Preset("tiny", "ynet", NET, Prep(), (0.5,) * 18)


def recipe(steps: int, **changes) -> Recipe:
    base = {"name": "tiny", "method": "exact_small", "preset": "tiny", "threads": 1, "checkpoint_every": 2}
    # oneDNN (torch 2.13): bfloat16 gradients of grids this small differ from run to run with AVX512_BF16
    base["precision"] = "fp32"
    return Recipe.model_validate(base | {"optim": {"steps": steps, "warmup": 2, "ema": 0.5}} | changes)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("set")
    generator = torch.Generator().manual_seed(0)
    patients = []
    for i in range(3):
        organs = torch.zeros((7, 32, 32, 32), dtype=torch.uint8)
        organs[:, 6:26, 6:26, 6:26] = 255
        scan = torch.full((32, 32, 32), -900, dtype=torch.int16)
        scan[organs[0] > 0] = 40
        labels = torch.zeros(18)
        labels[i] = 1.0
        scan += (torch.randn(scan.shape, generator=generator) * 20).to(torch.int16)
        patients.append([folder / f"{i}-{k}.safetensors" for k in range(2)])
        for k, path in enumerate(patients[-1]):
            save_file(
                {"scan": scan + 10 * k, "organs": organs, "labels": labels if k == 0 else 1 - labels},
                path,
                metadata={"affine_ras": str(np.diag([4.0, 4, 4, 1]).tolist()), "degrees": "{}"},
            )
    return patients


def newest(out):
    """Tensors of the newest checkpoint of a run."""
    return load_file(next(sorted((out / "checkpoints").iterdir())[-1].glob("*.safetensors")))


def run(tmp_path, files, steps, name, stop=None, **changes):
    out = tmp_path / name
    out.mkdir(exist_ok=True)
    seen = []

    def report(progress):
        seen.append(progress.losses)
        if stop is not None and progress.step + 1 == stop:
            raise KeyboardInterrupt

    network = train(recipe(steps, **changes), PRESET, files, out, report=report)
    return network.state_dict(), seen


def test_same_seed_same_bits_and_another_seed_differs(tmp_path, files):
    a, _ = run(tmp_path, files, 3, "a")
    b, _ = run(tmp_path, files, 3, "b")
    c, _ = run(tmp_path, files, 3, "c", seed=1)
    assert all(torch.equal(a[k], b[k]) for k in a)
    assert any(not torch.equal(a[k], c[k]) for k in a)


def test_a_run_cut_after_its_checkpoint_goes_on_bit_for_bit(tmp_path, files):
    whole, losses = run(tmp_path, files, 5, "whole")
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, files, 5, "cut", stop=3)
    resumed, later = run(tmp_path, files, 5, "cut")
    # the checkpoint was written after step 2; steps 2 to 4 run again
    assert later == losses[2:]
    assert all(torch.equal(whole[k], resumed[k]) for k in whole)


def test_a_checkpoint_of_another_recipe_is_refused(tmp_path, files):
    run(tmp_path, files, 2, "x")
    with pytest.raises(WeightsError, match="RESUME_CHANGED"):
        run(tmp_path, files, 3, "x")


def test_the_organ_loss_falls(tmp_path, files):
    _, seen = run(tmp_path, files, 40, "learn", optim={"steps": 40, "lr": 0.02, "warmup": 2})
    weight = np.array([s["organs"] for s in seen])
    # the weight decays from 2 to 0.5 too, so the fall must be larger than that
    assert weight[-1] < weight[0] / 4 * 0.7


def test_a_loss_that_is_not_a_number_stops_and_names_the_scan(tmp_path, files):
    bad = dataclasses.replace(PRESET, net=dataclasses.replace(NET, windows_hu=((0.0, 0.0),) * 3))
    with pytest.raises(RunError, match="LOSS_NONFINITE"):
        train(recipe(2), bad, files, tmp_path)
    assert not list((tmp_path / "checkpoints").glob("*"))
    failed = json.loads((tmp_path / "failed-batch.json").read_text())
    assert failed["step"] == 0 and len(failed["scans"]) == 1 and failed["losses"]["organs"] == "nan"


def test_every_sample_is_seen_once_an_epoch():
    assert sorted(pick(step, 7, 3) for step in range(7)) == list(range(7))
    assert [pick(s, 7, 3) for s in range(7)] != [pick(s + 7, 7, 3) for s in range(7)]


def test_learning_rate_warms_up_and_falls():
    optim = OptimRecipe(steps=100, lr=1.0, warmup=10)
    rates = [learning_rate(s, optim) for s in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert max(rates) == pytest.approx(1.0)
    assert rates[-1] < 0.02


def test_each_phase_has_its_own_schedule():
    optim = OptimRecipe(steps=100, organ_steps=60, lr=1.0, finding_lr=3.0, warmup=10)
    rates = [learning_rate(s, optim) for s in range(100)]
    assert max(rates[:60]) == pytest.approx(1.0) and rates[59] < 0.02
    assert max(rates[60:]) == pytest.approx(3.0) and rates[60] == pytest.approx(0.3) and rates[-1] < 0.1


def test_a_misspelt_key_is_refused_with_the_nearest(tmp_path):
    path = tmp_path / "r.toml"
    path.write_text('name = "x"\nmethod = "cam"\npreset = "p"\n[optim]\nstepps = 3\n')
    with pytest.raises(UsageError, match="steps"):
        load_recipe(path)


def test_overrides_reach_nested_keys(tmp_path):
    path = tmp_path / "r.toml"
    path.write_text('name = "x"\nmethod = "cam"\npreset = "p"\n')
    assert load_recipe(path, ("optim.steps=7", "device=cpu")).optim.steps == 7
    with pytest.raises(UsageError, match="CONFIG_VALUE"):
        load_recipe(path, ("optim.steps=-1",))
    with pytest.raises(UsageError, match="key=value"):
        load_recipe(path, ("optim.steps",))


def test_organs_rest_while_findings_are_learnt(tmp_path, files):
    optim = {"steps": 6, "organ_steps": 4, "warmup": 2, "ema": 0.0}
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, files, 6, "phases", stop=5, optim=optim)
    organs = newest(tmp_path / "phases")
    after, seen = run(tmp_path, files, 6, "phases", optim=optim)
    assert [sorted(losses) for losses in seen] == [["anomaly"]] * 2
    moved = {k.split(".")[0] for k in after if not torch.equal(after[k], organs[f"average/{k}"])}
    assert moved == {"abn", "anomaly_heads"}


def test_siblings_are_ranked_against_each_other(tmp_path, files):
    optim = {"steps": 2, "warmup": 2, "ema": 0.5, "scans": 2}
    plain, _ = run(tmp_path, files, 2, "plain", optim=optim)
    ranked, seen = run(tmp_path, files, 2, "ranked", optim=optim, objective={"rank_weight": 1.0})
    assert all(np.isfinite(list(losses.values())).all() for losses in seen)
    assert any(not torch.equal(plain[k], ranked[k]) for k in plain)


def test_a_patient_without_siblings_teaches_organs_alone():
    family, alone = [Path("0-0"), Path("0-1")], [Path("1-0")]
    both = [family, alone]
    assert patients_of(both, "organs") == patients_of(both, "outlines") == both
    assert patients_of(both, "findings") == patients_of(both, "both") == [family]
    assert patients_of([alone], "findings") == [alone]


def test_a_step_sees_as_many_scans_as_asked(files):
    assert len(pick_scans(files[0], 1, 5, 0)) == 1
    assert sorted(pick_scans(files[0], 7, 5, 0)) == sorted(files[0])
    assert {tuple(pick_scans(files[0], 1, step, 0)) for step in range(20)} == {(p,) for p in files[0]}


def test_augmentation_is_the_same_for_siblings():
    scan = torch.full((16, 16, 16), 40, dtype=torch.int16)
    shares = torch.full((7, 16, 16, 16), 255, dtype=torch.uint8)
    twin = scan.clone()
    twin[8, 8, 8] = 900
    image, organs = augment(scan, shares, 4.0, AugmentRecipe(), torch.Generator().manual_seed(3))
    other, same = augment(twin, shares, 4.0, AugmentRecipe(), torch.Generator().manual_seed(3))
    assert torch.equal(organs, same)
    differs = ((image - other).abs() > 1e-4).sum()
    assert 0 < differs <= 125


def test_siblings_look_alike_but_for_what_differs():
    sample, generator = load_pair(), torch.Generator().manual_seed(2)
    theta = random_affine((32, 48, 32), 4.0, AugmentRecipe(), generator)
    scans, organs = augment_siblings(sample, theta, WHOLE, AugmentRecipe(), generator)
    apart = (scans[0] - scans[1]).abs()[0]
    assert apart.max() > 0.5 and (apart > 1e-6).float().mean() < 0.02
    alone, shares = augment(
        sample[0].scan, sample[0].organs, 4.0, AugmentRecipe(), torch.Generator().manual_seed(2)
    )
    assert torch.equal(alone, scans[:1]) and torch.equal(shares, organs)


def load_pair():
    """Two scans that differ in a ball."""
    generator = torch.Generator().manual_seed(4)
    scan = (torch.randn((32, 48, 32), generator=generator) * 100 - 800).to(torch.int16)
    other = scan.clone()
    other[10:14, 20:24, 10:14] = 50
    organs = torch.zeros((7, 32, 48, 32), dtype=torch.uint8)
    organs[0, 4:28, 4:44, 4:28] = 255
    grid = Geometry((32, 48, 32), np.diag([4.0, 4, 4, 1]))
    return [Sample(s, organs, None, torch.zeros(18), grid, str(k)) for k, s in enumerate((scan, other))]


def test_fat_takes_the_hearts_surface_and_joins_the_mediastinum():
    heart, mediastinum = (ORGAN_CHANNELS.index(n) for n in ("heart", "mediastinum"))
    organs = torch.zeros((7, 24, 24, 24))
    organs[heart, 4:20, 4:20, 4:20] = 1.0
    organs[heart, 4] = 0.5 * organs[heart, 4]
    whole = organs[heart] > 0
    scan = torch.where(whole, 0.05, -0.9)
    recipe = AugmentRecipe(fat_chance=1.0, fat_mm=16.0)
    drawn = draw_fat(recipe, torch.Generator().manual_seed(2))
    assert isinstance(drawn, Fat)
    image, moved = drawn.grow(scan, organs, drawn.share(organs[heart], 4.0))
    fat = moved[mediastinum] > 0
    assert 0 < fat.sum() < whole.sum() / 2
    assert torch.equal(moved[heart] + moved[mediastinum], organs[heart])
    # the middle of the heart and everything outside it stay as they were
    assert torch.equal(image[9:15, 9:15, 9:15], scan[9:15, 9:15, 9:15])
    assert torch.equal(image[~whole], scan[~whole])
    assert image[fat].mean() < 0.0
    assert draw_fat(AugmentRecipe(fat_chance=0.0), torch.Generator().manual_seed(2)) is None


def test_organ_rows_are_the_shares():
    shares = torch.rand((1, 7, 4, 6, 8))
    assert torch.equal(unfold(unrows(organ_rows(shares).flatten(2), (2, 3, 4))), shares)


def test_clipping_by_module_bounds_each_module_alone(tmp_path, files):
    together, _ = run(tmp_path, files, 2, "t")
    apart, _ = run(
        tmp_path, files, 2, "p", optim={"steps": 2, "warmup": 2, "ema": 0.5, "clip_by_module": True}
    )
    assert any(not torch.equal(together[k], apart[k]) for k in together)


def finer(paths):
    """The same patients with their first scan at half the voxel too."""
    made = []
    for patient in paths:
        first = load_file(patient[0])
        fine = first["scan"].repeat_interleave(2, 0).repeat_interleave(2, 1).repeat_interleave(2, 2)
        bits = (fine > -500).to(torch.uint8) * 127
        path = patient[0].with_name("finer-" + patient[0].name)
        with safe_open(patient[0], framework="pt") as file:
            save_file(first | {"fine": fine, "fine_organs": bits}, path, metadata=file.metadata())
        made.append([path, *patient[1:]])
    return made


def test_outlines_are_learnt_last_and_alone(tmp_path, files):
    preset = dataclasses.replace(PRESET, net=dataclasses.replace(NET, outline=8))
    optim = {"steps": 60, "organ_steps": 2, "outline_steps": 56, "warmup": 2, "ema": 0.0, "lr": 0.01}
    seen = []
    (tmp_path / "o").mkdir()

    def go_on(stop):
        def report(progress):
            seen.append(progress.losses)
            if progress.step + 1 == stop:
                raise KeyboardInterrupt

        return train(recipe(60, optim=optim), preset, finer(files), tmp_path / "o", report=report)

    with pytest.raises(KeyboardInterrupt):
        go_on(5)
    before = newest(tmp_path / "o")
    after = go_on(None).state_dict()
    assert [sorted(s) for s in seen[:5]] == [["organs"]] * 2 + [["anomaly"]] * 2 + [["outlines"]]
    moved = {k.split(".")[0] for k in after if not torch.equal(after[k], before[f"average/{k}"])}
    assert moved == {"outliner"}
    losses = [s["outlines"] for s in seen if "outlines" in s]
    assert np.mean(losses[-5:]) < 0.8 * np.mean(losses[:5])


def test_outlines_need_a_network_and_finer_scans(tmp_path, files):
    optim = {"steps": 2, "outline_steps": 2}
    with pytest.raises(UsageError, match="outline_steps"):
        train(recipe(2, optim=optim), PRESET, files, tmp_path)
    preset = dataclasses.replace(PRESET, net=dataclasses.replace(NET, outline=8))
    with pytest.raises(RunError, match="MASK_MISSING"):
        train(recipe(2, optim=optim), preset, files, tmp_path)


def test_a_finer_look_is_the_same_look(files):
    """Warped, shifted, brighter and fatter alike: the finer box, averaged, is that part of the scan."""
    sample = load(finer(files)[0][0])
    smooth = AugmentRecipe(noise_hu=0.0, blur_chance=0.0, fat_chance=1.0)
    box = (slice(8, 40), slice(0, 64), slice(16, 48))
    for seed in range(3):
        scan, near, masks = augment_finer(sample, box, 4.0, smooth, torch.Generator().manual_seed(seed))
        look = torch.Generator().manual_seed(seed)
        twin, shares = augment(sample.scan, sample.organs, 4.0, smooth, look, organs_alone=True)
        assert torch.equal(scan, twin)
        part = tuple(slice(b.start // 2, b.stop // 2) for b in box)
        coarse = torch.nn.functional.avg_pool3d(near, 2)[0, 0]
        assert (coarse - twin[0, 0][part]).abs().median() < 0.03
        for organ in ("heart", "mediastinum", "lung"):
            index = ORGAN_CHANNELS.index(organ)
            both = torch.nn.functional.avg_pool3d(masks, 2)[0, index], shares[0, index][part]
            assert (both[0] - both[1]).abs().mean() < 0.08, organ


def test_boxes_of_outlines_lie_in_the_scan_and_move():
    seen = set()
    for step in range(40):
        start, size = pick_box((80, 48, 96), step, 0)
        assert size == (32, 24, 32)
        assert all(a >= 0 and 2 * (a + b) <= n for a, b, n in zip(start, size, (80, 48, 96), strict=True))
        seen.add(start)
    assert len(seen) > 20 and pick_box((80, 48, 96), 3, 0) == pick_box((80, 48, 96), 3, 0)
