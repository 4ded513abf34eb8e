"""Training a space of scans and texts: what a step sees, leaks, going on, what is exported."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))
from _joint import BANK, NUMBERS, PRESET, TEXT, features, frozen, recipe_of, scans_of, task_of
from _text_folders import tiny_qwen

from hilum.cohort.joint_samples import SAMPLES, read_samples, write_samples
from hilum.errors import RunError, WeightsError
from hilum.objective.depth import depth_target
from hilum.train import joint_run
from hilum.train.ema import Average
from hilum.train.joint_data import JointStream, pad_windows, read_joint, tensors_of
from hilum.train.joint_run import joint_file
from hilum.train.joint_student import Shake, chosen_prompts, fill_in
from hilum.train.joint_task import JointRun, JointTower, shown_depths
from hilum.train.loop import train
from hilum.train.text_source import load_text_tower

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return features(tmp_path_factory.mktemp("features"))


def test_a_sample_is_a_function_of_seed_and_place(folder):
    task = task_of(folder)
    first = [next(task.batches(2, CPU)) for _ in range(2)]
    assert first[0].keys == first[1].keys and torch.equal(first[0].variants, first[1].variants)
    steps = task.batches(0, CPU)
    later = [next(steps) for _ in range(3)][2]
    assert later.keys == first[0].keys and torch.equal(later.snippets, first[0].snippets)
    # every scan once in every epoch
    stream = JointStream(recipe_of(folder, batch=7), scans_of(folder))
    for epoch in range(3):
        assert len({stream.sample(7 * epoch + k).key for k in range(7)}) == 7


def test_sentences_are_placed_in_the_first_scans_of_a_step(folder):
    some, all_ = (next(task_of(folder, **{"placed": n} if n else {}).batches(1, CPU)) for n in (2, None))
    assert some.keys == all_.keys and set(some.of_scan.tolist()) <= {0, 1}
    kept = all_.of_scan < 2
    assert torch.equal(some.snippets, all_.snippets[kept]) and torch.equal(some.at_mm, all_.at_mm[kept])


def test_parts_joined_are_the_whole(folder):
    batch = next(task_of(folder).batches(0, CPU))
    parts = batch.parts(3)
    assert [len(p) for p in parts] == [3, 1]
    same = ("both", "depths", "present", "variants", "reports", "snippets", "at_mm", "prompts")
    for name in same:
        whole = torch.cat([getattr(p, name) for p in parts])
        assert torch.equal(whole, getattr(batch, name)), name
    rebuilt = torch.cat([p.of_scan + first for p, first in zip(parts, (0, 3), strict=True)])
    assert torch.equal(rebuilt, batch.of_scan)


def test_the_target_sums_to_one_at_every_valid_depth_of_a_padded_batch(folder):
    batch = next(task_of(folder, batch=6).batches(0, CPU))
    assert batch.there.sum(1).unique().numel() > 1, "scans of different height"
    for i in range(len(batch)):
        for at in batch.depth_mm[i][batch.there[i]]:
            row = slice(i, i + 1)
            share = depth_target(batch.depth_mm[row], batch.there[row], at[None])
            assert share.sum() == pytest.approx(1.0, abs=1e-6)
            assert not share[0][~batch.there[i]].any()


def test_padding_keeps_every_number(folder):
    scans = scans_of(folder)
    both = [tensors_of(scans.cache.get(f"scan{i}")) for i in (0, 1)]
    padded = pad_windows(both)
    for i, scan in enumerate(both):
        u, v, w = scan["both"].shape[:3]
        assert torch.equal(padded["both"][i, :u, :v, :w], scan["both"])
        assert int(padded["present"][i].sum()) == u * v * w
        assert torch.equal(padded["there"][i][: 2 * w], scan["there"].bool())
        assert not padded["there"][i][2 * w :].any()


def test_reports_that_say_the_same_have_one_number(folder):
    scans = scans_of(folder)
    told = {s.key: scans.number_of()[s.reports[0].text] for s in scans.samples}
    assert told["scan1"] == told["scan2"] and len(set(told.values())) == len(told) - 1


def test_unknown_answers_stay_unknown(folder):
    scans = scans_of(folder)
    for row, sample in zip(scans.answers(), scans.samples, strict=True):
        for value, question in zip(row, BANK.questions, strict=True):
            assert (
                value.isnan() if question.name not in sample.labels else value == sample.labels[question.name]
            )


def test_prompts_are_those_that_were_drawn():
    rows = torch.arange(2 * 2 * 3, dtype=torch.float32)[:, None]
    variants = torch.tensor([[[0, 2], [1, 1]]])
    present, absent = chosen_prompts(rows, variants)
    assert present[0, :, 0].tolist() == [0, 7] and absent[0, :, 0].tolist() == [5, 10]


def test_a_hidden_depth_is_no_answer_and_one_is_left(folder):
    batch = next(task_of(folder).batches(0, CPU))
    hidden = torch.zeros_like(batch.present)
    hidden[..., 0] = batch.present[..., 0]
    shown = shown_depths(batch, hidden)
    assert not shown[:, :2].any() and shown[:, 2:4].all()
    assert (shown_depths(batch, batch.present.clone()) & batch.there).any(1).all()
    task = task_of(folder, hide=0.9)
    drawn = task._hidden(batch, 3)
    assert drawn.any() and torch.equal(drawn, task._hidden(batch, 3))
    assert (batch.present & ~drawn).flatten(1).any(1).all()


def test_a_patient_of_another_split_is_refused(folder, tmp_path):
    samples = read_samples(folder / SAMPLES)
    leaky = [s.model_copy(update={"patient": "p0"}) if s.split == "test" else s for s in samples]
    own = tmp_path / folder.name
    own.mkdir()
    for file in folder.iterdir():
        (own / file.name).write_bytes(file.read_bytes())
    write_samples(own / SAMPLES, leaky)
    with pytest.raises(RunError, match="PATIENT_LEAK"):
        read_joint(own, BANK, "train", ("test",), 5)
    with pytest.raises(RunError, match="REPORT_EMPTY"):
        read_joint(folder, BANK, "val", (), 5)
    with pytest.raises(RunError, match="REPORT_EMPTY"):
        read_joint(folder, BANK, "train", (), 99)
    renamed = own.rename(tmp_path / "features-of-another")
    with pytest.raises(WeightsError, match="CACHE_STALE"):
        read_joint(renamed, BANK, "train", (), 5)


def test_a_run_that_goes_on_is_the_run_that_was_not_stopped(folder, tmp_path):
    whole = train(task_of(folder), tmp_path / "whole").tensors()

    class Stopped(JointRun):
        def batches(self, start, device):
            for n, batch in enumerate(super().batches(start, device)):
                if start + n == 2:
                    raise KeyboardInterrupt
                yield batch

    scans = scans_of(folder)
    with pytest.raises(KeyboardInterrupt):
        train(Stopped(recipe_of(folder), PRESET, scans, frozen(scans)), tmp_path / "cut")
    resumed = train(task_of(folder), tmp_path / "cut").tensors()
    assert whole.keys() == resumed.keys() and all(torch.equal(whole[k], resumed[k]) for k in whole)
    with pytest.raises(WeightsError, match="RESUME_CHANGED"):
        train(task_of(folder, snippets=1), tmp_path / "cut")


@pytest.mark.parametrize(
    ("off", "resting"),
    [
        ({"snippets": 0.0}, {"text_copy", "combiner.depth_proj"}),
        ({"snippets": 0.0, "prompts": 0.0}, {"text_copy", "combiner.depth_proj", "image_copy"}),
    ],
)
def test_what_no_loss_reaches_rests_and_is_filled_in(folder, off, resting):
    task = task_of(folder, losses=off)
    student = task.student()
    asleep = {n for n, p in student.joint.named_parameters() if not p.requires_grad}
    assert asleep and all(any(n.startswith(part) for part in resting) for n in asleep)
    task.backward(student, Average(student), next(task.batches(0, CPU)), 0)
    for name, parameter in student.joint.named_parameters():
        assert (parameter.grad is None) == (name in asleep), name
    with torch.no_grad():
        for parameter in student.joint.parameters():
            parameter.add_(torch.randn_like(parameter))
    fill_in(student, task.recipe.losses)
    joint, width = student.joint, NUMBERS.window_width
    assert torch.equal(joint.combiner.depth_proj.weight, joint.combiner.window_proj.weight[:, width:])
    assert torch.equal(joint.text_copy.last.weight, joint.text_head.last.weight)
    assert torch.equal(student.snippets.mean, student.reports.mean)
    same = torch.equal(joint.image_copy.last.weight, joint.image_head.last.weight)
    assert same == ("image_copy" in resting)


def test_with_all_losses_nothing_is_filled_in(folder):
    task = task_of(folder)
    student = task.student()
    with torch.no_grad():
        student.joint.text_head.last.weight.add_(1.0)
    fill_in(student, task.recipe.losses)
    assert not torch.equal(student.joint.text_copy.last.weight, student.joint.text_head.last.weight)


def test_standards_are_folded_into_the_first_maps(folder):
    """The exported model reads rows as they come, and says what the student says."""
    task = task_of(folder, hide=0.0)
    student = task.student().eval()
    assert student.windows.deviation.max() != 1 and student.reports.mean.abs().max() > 0
    batch = next(task.batches(0, CPU))
    with torch.no_grad():
        for parameter in student.joint.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
        seen = student(batch, task._texts(batch), batch.present, torch.ones(()))
        joint = student.folded()
        scans = joint.scans(batch.both, batch.present)
        depths, _ = joint.depths(batch.depths, batch.present)
        said = [task.tower.rows[n] for n in (batch.reports, batch.snippets)]
        told = (scans.report, scans.disease, depths, joint.reports(said[0]), joint.snippets(said[1]))
    for found, wanted in zip(told, seen[:5], strict=True):
        assert torch.allclose(found, wanted, atol=1e-5)


def test_the_effective_weights_are_those_of_the_recipe(folder):
    plain = {"report": 1.0, "prompts": 1.0, "snippets": 1.0}
    heavy = {"report": 2.0, "prompts": 8.0, "snippets": 0.5}
    told = []
    for weights in (plain, heavy):
        task = task_of(folder, losses=weights)
        student = task.student()
        told.append(task.backward(student, Average(student), next(task.batches(0, CPU)), 0))
    for name, weight in heavy.items():
        assert told[1][name].item() == pytest.approx(weight * told[0][name].item(), rel=1e-6)


def test_what_is_exported_names_what_it_does_not_hold(folder, monkeypatch):
    task = task_of(folder)
    tower = torch.nn.Linear(2, 2)
    tower.pooling = "mean"
    monkeypatch.setattr(
        joint_run,
        "load_text_tower",
        lambda name: (tower, type("T", (), {"text": "{}"}), {"hidden_size": TEXT}),
    )
    tensors = task.student().state_dict()
    file = joint_file(task, tensors, 4)
    assert file.config.reader.name == "phantom-small" and file.config.reader.sha256 == "0" * 64
    assert file.config.text.encoder == "minilm" and file.config.depth_mm == 48.0
    assert not [n for n in file.tensors if n.startswith(("text.", "vision."))]
    assert file.card["synthetic"] is True and "synthetic" in file.card["trained_on"]
    assert file.card["placed_sentences"] == sum(len(s.snippets) for s in task.scans.samples)
    json.dumps(file.card)


def test_lora_learns_and_is_merged_into_what_is_exported(folder, tmp_path):
    pytest.importorskip("peft")
    name = str(tiny_qwen(tmp_path / "qwen", TEXT + 1))
    text = {"encoder": name, "max_tokens": 16, "lora": {"rank": 2, "alpha": 4, "dropout": 0.1}}
    recipe, scans = recipe_of(folder, text=text, micro=2), scans_of(folder)
    tower, tokens, _ = load_text_tower(name)
    preset = replace(PRESET, net=replace(NUMBERS, text_width=tower.width))
    task = JointRun(recipe, preset, scans, JointTower(name, tower.width, None, tower, tokens))
    average = train(task, tmp_path / "run")
    tensors = average.tensors()
    moved = [n for n in tensors if ".lora_B." in n and tensors[n].abs().max() > 0]
    assert moved, "LoRA begins at zero and moved"
    file = joint_file(task, tensors, 4)
    merged, _, _ = load_text_tower(name)
    own = {
        n.removeprefix("text."): torch.from_numpy(t) for n, t in file.tensors.items() if n.startswith("text.")
    }
    merged.load_state_dict(own)
    ids, mask = (torch.from_numpy(np.asarray(a)) for a in tokens(["a b", "c d e"], 8))
    with torch.no_grad():
        learnt = average.module.text.eval()(ids, mask)
        assert torch.allclose(merged.eval()(ids, mask), learnt, atol=1e-5)
        assert not torch.allclose(tower.eval()(ids, mask), learnt, atol=1e-5)


def test_windows_of_another_encoder_are_not_exported(folder, tmp_path):
    task = task_of(features(tmp_path / "other", source=str(tmp_path / "gone")))
    tensors = task.student().state_dict()
    with pytest.raises(WeightsError):
        joint_file(task, tensors, 1)


def test_shaking_drops_a_number_from_all_windows_of_a_scan():
    torch.manual_seed(0)
    rows = torch.ones(6, 2, 3, 40)
    dropped = Shake(drop=0.5).windows(rows)
    assert (dropped == dropped[:, :1, :1]).all(), "alike in every window"
    assert set(dropped.unique().tolist()) == {0.0, 2.0} and not (dropped[0] == dropped[1]).all()
    noisy = Shake(noise=0.3).windows(torch.zeros(4, 50, 50))
    assert abs(float(noisy.std()) - 0.3) < 0.01
    assert (Shake().windows(rows) == rows).all() and (Shake(drop=0.5).texts(rows) == rows).all()
