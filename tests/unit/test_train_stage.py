"""Stages: a step sees a function of seed and step, stages follow each other, every part is exported."""

import json
import os
import signal
from dataclasses import replace

import numpy as np
import pytest
import torch
from _stages import NET, REPORTS, tiny_recipe, tiny_store, tiny_task

from hilum.errors import RunError, RunStopped, UsageError, WeightsError
from hilum.io.encoder_file import load_encoder
from hilum.model.vit import ViT
from hilum.train import stage_export
from hilum.train.loop import train
from hilum.train.recipe import load_recipe
from hilum.train.stage_data import StageStream, patch_of, stack_samples
from hilum.train.stage_export import export_stage
from hilum.train.stage_start import Start

METHODS = ("flexict-2d", "flexict-3d", "flexict-text")


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return tiny_store(tmp_path_factory.mktemp("store"), scans=4)


def run(store, out, recipe, *, stop=None, **start):
    """Losses of every step and the teacher's tensors."""
    seen = []

    def report(progress):
        seen.append(progress.losses)
        if stop is not None and progress.step + 1 == stop:
            raise KeyboardInterrupt

    return train(tiny_task(store, recipe, **start), out, report=report).tensors(), seen


def stream(store, recipe, **where):
    task = tiny_task(store, recipe)
    return StageStream(recipe, task.parts, texts=task.texts, patients=task.patients, **where)


def take(samples, count):
    return [sample for sample, _ in zip(samples, range(count), strict=False)]


@pytest.mark.parametrize("method", METHODS)
def test_ranks_and_a_later_start_see_the_same_samples(store, method):
    recipe = tiny_recipe(method)
    whole = take(stream(store, recipe), 8)
    ranks = [take(stream(store, recipe, rank=rank, ranks=2, start=1), 2) for rank in range(2)]
    spread = [ranks[0][0], ranks[1][0], ranks[0][1], ranks[1][1]]
    for one, other in zip(whole[4:], spread, strict=True):
        assert (one.key, one.caption, one.pairs, one.patch) == (
            other.key,
            other.caption,
            other.pairs,
            other.patch,
        )
        assert torch.equal(one.views.whole, other.views.whole) and torch.equal(one.masks, other.masks)
    assert not torch.equal(whole[0].views.whole, whole[4].views.whole)


def test_processes_that_prepare_views_change_nothing(store):
    import itertools

    seen = []
    for workers in (0, 2):
        task = tiny_task(store, tiny_recipe("flexict-text", workers=workers))
        seen.append(list(itertools.islice(task.batches(1, torch.device("cpu")), 3)))
    for one, other in zip(*seen, strict=True):
        assert one.keys == other.keys and one.captions == other.captions and one.pairs == other.pairs
        assert torch.equal(one.views.parts, other.views.parts) and torch.equal(one.masks, other.masks)


def test_a_step_has_one_patch_size_and_both_come_as_often(store):
    recipe = tiny_recipe("flexict-3d")
    assert {s.patch for s in take(stream(store, recipe), 4)} == {patch_of(recipe, 0)}
    drawn = [patch_of(recipe, step) for step in range(400)]
    assert set(drawn) == {4, 8} and 160 < drawn.count(4) < 240


def test_half_of_the_views_hide_patches_and_ratios_are_dealt_over_the_step(store):
    recipe = tiny_recipe("flexict-3d", patches=[4])
    batch = stack_samples(take(stream(store, recipe), 4))
    shares = batch.masks.flatten(0, 1).float().mean(1)
    assert int((shares > 0).sum()) == 4
    # 0.1, 0.23, 0.37, 0.5 of 64 patches
    assert sorted(round(64 * float(s)) for s in shares if s) == [6, 15, 23, 32]


def test_text_tells_of_the_own_scan_and_of_others_only_what_is_denied(store):
    samples = take(stream(store, tiny_recipe("flexict-text")), 16)
    assert {s.caption for s in samples} > {""} - {""} and all(s.caption == s.caption.lower() for s in samples)
    for sample in samples:
        report = REPORTS[int(sample.key.removeprefix("scan"))].lower()
        assert sample.caption.split()[-1].strip(".") in report
        for pair in sample.pairs:
            assert (pair.truth == -1) == (pair.sentence == "")
    assert {pair.truth for s in samples for pair in s.pairs} == {1, 0, -1}


@pytest.mark.parametrize("method", METHODS)
def test_a_run_cut_after_its_checkpoint_goes_on_bit_for_bit(store, tmp_path, method):
    recipe = tiny_recipe(method, steps=5)
    whole, losses = run(store, tmp_path / "whole", recipe)
    with pytest.raises(KeyboardInterrupt):
        run(store, tmp_path / "cut", recipe, stop=3)
    resumed, later = run(store, tmp_path / "cut", recipe)
    assert later == losses[2:]
    assert whole.keys() == resumed.keys() and all(torch.equal(whole[k], resumed[k]) for k in whole)


def test_a_run_of_other_scans_or_another_start_is_refused(store, tmp_path):
    recipe = tiny_recipe("flexict-3d", steps=2)
    run(store, tmp_path, recipe)
    task = tiny_task(store, recipe)
    task.parts = [replace(task.parts[0], keys=("scan0", "scan1"))]
    fewer = type(task)(recipe, task.parts, task.start)
    with pytest.raises(WeightsError, match="RESUME_CHANGED"):
        train(fewer, tmp_path)
    with pytest.raises(WeightsError, match="RESUME_CHANGED"):
        run(store, tmp_path, tiny_recipe("flexict-3d", steps=2, seed=5))


def test_sigterm_ends_the_step_saves_and_the_run_goes_on(store, tmp_path):
    recipe = tiny_recipe("flexict-2d", steps=4, checkpoint_every=100)
    whole, _ = run(store, tmp_path / "whole", recipe)

    def report(progress):
        if progress.step == 0:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(RunStopped, match="RUN_STOPPED") as stopped:
        train(tiny_task(store, recipe), tmp_path / "cut", report=report)
    assert stopped.value.exit_code == 4 and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    resumed, later = run(store, tmp_path / "cut", recipe)
    assert len(later) == 3 and all(torch.equal(whole[k], resumed[k]) for k in whole)


def test_a_loss_that_is_no_number_stops_and_names_the_scans(store, tmp_path):
    recipe = tiny_recipe("flexict-3d", steps=3, checkpoint_every=1)
    task = tiny_task(store, recipe)
    backward = task.backward

    def spoiled(model, average, batch, step):
        if step == 1:
            batch.views.whole[0, 0] = float("nan")
        return backward(model, average, batch, step)

    task.backward = spoiled
    with pytest.raises(RunError, match=r"LOSS_NONFINITE.*scan"):
        train(task, tmp_path)
    failed = json.loads((tmp_path / "failed-batch.json").read_text())
    assert failed["step"] == 1 and len(failed["scans"]) == 4 and set(failed["losses"]) >= {"ibot", "dino"}
    # the checkpoint of step 1 is as it was: the run goes on from there
    again, seen = run(store, tmp_path, recipe)
    assert len(seen) == 2 and all(torch.isfinite(value).all() for value in again.values())


def exported(store, folder, recipe, **start):
    """A run and its encoder."""
    task = tiny_task(store, recipe, **start)
    teacher = train(task, folder).tensors()
    path = export_stage(folder, "encoder", teacher, recipe, task.start, task.parts, recipe.steps)
    return load_encoder(path), teacher


def test_a_3d_embedding_is_inflated_once_and_every_part_is_the_averages(store, tmp_path):
    flat, _ = exported(store, tmp_path / "a", tiny_recipe("flexict-2d", steps=1))
    assert flat.config.kind == "2d" and flat.card["synthetic"] is True
    first = tiny_task(store, tiny_recipe("flexict-3d"), file=flat).student()
    averaged = flat.tensors["vision.patch_2d.weight"][..., None] / 4
    assert np.allclose(first.vision.patch_3d.weight.detach().numpy(), np.repeat(averaged, 4, -1))
    deep, _ = exported(store, tmp_path / "b", tiny_recipe("flexict-3d", steps=1), file=flat)
    assert deep.config.kind == "3d" and deep.config.prep_2d == flat.config.prep
    again = tiny_task(store, tiny_recipe("flexict-3d"), file=deep).student()
    assert np.array_equal(
        again.vision.patch_3d.weight.detach().numpy(), deep.tensors["vision.patch_3d.weight"]
    )
    told, teacher = exported(store, tmp_path / "c", tiny_recipe("flexict-text", steps=1), file=deep)
    assert told.config.kind == "3d-vlm" and told.config.embedding == 12 and told.tokenizer
    for part in ("projection.weight", "temperature.log_scale", "text.table.weight", "vision.cls"):
        assert np.array_equal(told.tensors[part], teacher[part].numpy()), part
    assert not any(name.startswith(("dino", "ibot")) for name in told.tensors)


def test_an_export_says_how_whole_fields_were_shown(store):
    views = {"side_vox": 16, "field_vox": 20, "part_side_vox": 8, "part_vox": [4, 8]}
    for whole, shown in (("middle", (16,) * 3), ([8, 16], None)):
        recipe = tiny_recipe("flexict-3d", volumes={**views, "whole_vox": whole})
        task = tiny_task(store, recipe)
        config = stage_export._config(recipe, task.start, task.parts, {})
        assert config.field_vox == (20,) * 3 and config.view_vox == shown


def test_a_start_of_another_size_is_refused(store, tmp_path):
    flat, _ = exported(store, tmp_path, tiny_recipe("flexict-2d", steps=1))
    start = Start({}, replace(NET, width=48, heads=2), file=flat)
    task = tiny_task(store, tiny_recipe("flexict-3d"))
    task.start = start
    with pytest.raises(WeightsError, match="WEIGHTS_KEYS"):
        task.student()


def test_the_gram_teacher_sees_views_undistorted_and_larger(store, tmp_path):
    losses = {"dino": 1.0, "ibot": 1.0, "gram": 1.5}
    sides = {"parts": 2, "sides": [{"whole": 16, "parts": 8, "anchor": 32}]}
    recipe = tiny_recipe("flexict-2d", steps=2, losses=losses, slices=sides, gram_teacher=".")
    task = tiny_task(store, recipe)
    torch.manual_seed(3)
    anchor = ViT(NET)
    before = {k: v.clone() for k, v in anchor.state_dict().items()}
    task.start.anchor = lambda: anchor
    seen = []
    train(task, tmp_path, report=lambda p: seen.append(p.losses["gram"]))
    assert all(value > 0 for value in seen)
    assert all(torch.equal(before[k], v) for k, v in anchor.state_dict().items())


def test_a_stage_learns_from_another_teacher_and_goes_on_bit_for_bit(store, tmp_path):
    middle = {"side_vox": 16, "part_side_vox": 8, "whole_vox": "middle", "part_vox": [4, 8], "parts": 2}
    distil = {"teachers": [{"teacher": "blocks"}], "fit_scans": 4}
    recipe = tiny_recipe("flexict-3d", steps=5, volumes=middle, distil=distil)
    whole, losses = run(store, tmp_path / "whole", recipe)
    assert all(row["blocks/patches"] > 0 and row["blocks/summary"] > 0 for row in losses)
    before = tiny_task(store, recipe).student().state_dict()
    moved = {name for name in whole if not torch.equal(whole[name], before[name])}
    heads = {name for name in whole if name.startswith("distil.heads")}
    standards = {name for name in whole if name.startswith("distil.standards")}
    assert heads and heads <= moved and standards and not standards & moved
    with pytest.raises(KeyboardInterrupt):
        run(store, tmp_path / "cut", recipe, stop=3)
    resumed, later = run(store, tmp_path / "cut", recipe)
    assert later == losses[2:] and all(torch.equal(whole[k], resumed[k]) for k in whole)
    with pytest.raises(ValueError, match="middle"):
        tiny_recipe("flexict-3d", distil=distil)


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("steps = 3", "CONFIG_VALUE.*batch"),
        ("steps = 3\nbatch = 2\nbatsh = 3", "CONFIG_KEY.*batch"),
        ("steps = 3\nbatch = 2\n[losses]\nclip = 1.0", "flexict-text"),
        ("steps = 3\nbatch = 2\npatches = [12]", "whole number of patches"),
        ("steps = 3\nbatch = 2\n[volumes]\nside_vox = 160", "slices"),
        ('steps = 3\nbatch = 2\n[[data]]\ncohort = "x"\nprpe = "y"', "CONFIG_KEY.*prep"),
    ],
)
def test_a_recipe_that_makes_no_sense_is_refused(tmp_path, text, match):
    path = tmp_path / "r.toml"
    data = "" if "[[data]]" in text else '[[data]]\ncohort = "x"\n'
    head = 'name = "x"\nmethod = "flexict-2d"\nbackbone = "flexict-nano"\n'
    top = text.split("\n[")[0]
    rest = text[len(top) :]
    slices = "" if "[volumes]" in text else "[slices]\n[[slices.sides]]\nwhole = 32\nparts = 16\n"
    path.write_text(f"{head}{top}\n[rates]\nlr = {{ peak = 1e-3 }}\n{slices}{data}{rest}\n")
    with pytest.raises(UsageError, match=match):
        load_recipe(path)


def test_paths_of_a_recipe_are_beside_it_and_those_of_the_command_line_are_not(tmp_path):
    path = tmp_path / "r.toml"
    path.write_text(
        'name = "x"\nmethod = "flexict-2d"\nbackbone = "flexict-nano"\nsteps = 1\n'
        'batch = 1\nstart = "before"\n'
        "[rates]\nlr = { peak = 1e-3 }\n[slices]\n[[slices.sides]]\nwhole = 32\nparts = 16\n"
        '[[data]]\ncohort = "scans"\n'
    )
    recipe = load_recipe(path)
    assert recipe.start == tmp_path / "before" and recipe.data[0].cohort == tmp_path / "scans"
    assert str(load_recipe(path, ("start=other",)).start) == "other"
