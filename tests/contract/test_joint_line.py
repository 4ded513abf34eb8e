"""The whole line of a space of scans and texts, as a user walks it: DICOM phantoms whose reports point at
their images, kept windows, training, exam, places, search."""

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from hilum.cli import run
from hilum.cohort.joint_samples import SAMPLES, read_samples
from hilum.errors import WeightsError
from hilum.exam import joint_suite
from hilum.io.encoder_file import CONFIG, load_encoder
from hilum.phantom.write import read_truth
from hilum.read.encoder import load

sys.path.insert(0, str(Path(__file__).parents[1] / "unit"))
from _text_folders import tiny_qwen

RECIPE = Path(__file__).parents[2] / "recipes" / "radfinder-nano.toml"
SPLIT = "train=0.6,val=0.2,test=0.2"


@pytest.fixture(scope="module")
def line(tmp_path_factory):
    """Folders: phantoms, kept windows at two depths, a run."""
    root = tmp_path_factory.mktemp("line")
    made, prepared, kept = (str(root / name) for name in ("made", "prepared", "kept"))
    phantoms = ["phantom", "5", "--out", made, "--spacing", "6", "--work-mm", "6", "--dicom"]
    assert run([*phantoms, "--seed", "41"]) == 0
    assert run(["prepare", made, "--out", prepared, "--split", SPLIT]) == 0
    read = ["features", prepared, "--model", "reader:phantom-small", "--out", kept]
    assert run([*read, "--depth-mm", "12", "--depth-mm", "24"]) == 0
    folders = {load_facts(f)["depth_mm"]: f for f in Path(kept).iterdir()}
    # a tower as wide as MiniLM: nothing is fetched here
    tower = tiny_qwen(root / "tower", 384)
    given = [f"features={folders[12.0]}", f'text.encoder="{tower}"', "text.max_tokens=48"]
    given += ["steps=2", "batch=2"]
    out = str(root / "run")
    assert run(["train", str(RECIPE), *given, "--out", out]) == 0
    return {
        "root": root,
        "read": read,
        "folders": folders,
        "encoder": root / "run" / "encoder",
        "tower": tower,
    }


def load_facts(folder: Path) -> dict:
    return json.loads((folder / "facts.json").read_text())


def test_reports_teach_where_their_images_lie(line, capfd):
    samples = read_samples(line["folders"][12.0] / SAMPLES)
    assert samples == read_samples(line["folders"][24.0] / SAMPLES) and len(samples) == 5
    placed = 0
    for folder in sorted((line["root"] / "made").iterdir()):
        truth = read_truth(folder)
        if truth is None:
            continue
        sample = next(s for s in samples if s.key == truth["key"])
        heights = [s["z_mm"] for s in truth["reports"]["en"]["sentences"] if s["z_mm"] is not None]
        for snippet in sample.snippets:
            # a range of images is told by its middle
            assert min(abs(snippet.z_mm - z) for z in heights) < 60
            placed += 1
    assert placed > 0


def test_what_is_there_is_not_read_again(line, capfd):
    assert run([*line["read"], "--depth-mm", "12", "--json"]) == 0
    told = json.loads(capfd.readouterr().out)
    assert told["added"] == 0 and told["scans"] == 5 and told["refused"] == []


def test_the_run_leaves_a_model_that_places_sentences(line, capfd, tmp_path):
    file = load_encoder(line["encoder"])
    assert file.config.kind == "3d-joint" and file.config.reader.name == "phantom-small"
    assert file.config.text.encoder is None, "a tower that cannot be fetched by name is in the folder"
    scan = next(p for p in sorted((line["root"] / "made").iterdir()) if p.is_dir()) / "dicom"
    assert run(["locate", str(scan), "a b c", "--model", str(line["encoder"]), "--json"]) == 0
    (told,) = json.loads(capfd.readouterr().out)["answers"]
    assert told["image"]["instance_number"] and np.isclose(sum(told["share"]), 1, atol=1e-3)
    index = str(tmp_path / "index")
    cohort, model = str(line["root"] / "prepared"), str(line["encoder"])
    assert run(["index", cohort, "--model", model, "--out", index, "--split", "train", "--json"]) == 0
    assert len(json.loads(capfd.readouterr().out)["added"]) == 2
    assert run(["search", index, "--model", model, "--text", "a b", "--json"]) == 0
    assert len(json.loads(capfd.readouterr().out)["rows"]) == 2


def test_the_exam_measures_it_beside_what_needs_no_model(line, capfd, monkeypatch, tmp_path):
    monkeypatch.setattr(joint_suite, "PRIOR_TOWER", str(line["tower"]))
    monkeypatch.setattr(joint_suite, "PRIOR_TOKENS", 32)
    monkeypatch.setenv("HILUM_CACHE", str(tmp_path))
    given = [str(line["encoder"]), "--suite", "joint", "--test-part", "train"]
    assert run(["exam", *given, "--features", str(line["folders"][12.0]), "--json"]) == 0
    told = json.loads(capfd.readouterr().out)
    assert set(told["figures"]) == {"run", "middle", "text alone", "random"}
    own = told["figures"]["run"]
    for name in ("text-scan all R@1", "scan-text first median rank", "MAE mm", "scan-scan MAP@5"):
        assert own[name][1] <= own[name][0] <= own[name][2], name


def test_a_model_is_only_read_with_the_reader_of_its_training(line, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(line["encoder"], other)
    config = json.loads((other / CONFIG).read_text())
    config["reader"]["sha256"] = "1" * 64
    (other / CONFIG).write_text(json.dumps(config))
    with pytest.raises(WeightsError, match=r"CACHE_STALE.*reader|CACHE_STALE.*training"):
        load(other)


def test_it_is_saved_as_it_was(line, tmp_path):
    model = load(line["encoder"])
    model.save(tmp_path / "again")
    first, again = (load_encoder(f) for f in (line["encoder"], tmp_path / "again"))
    assert first.config == again.config and first.tensors.keys() == again.tensors.keys()
    assert all(np.array_equal(first.tensors[n], again.tensors[n]) for n in first.tensors)
    assert not torch.is_grad_enabled() or model.encoder.training is False


def test_features_of_patches_are_refused(line):
    from hilum.errors import UsageError

    scan = next(p for p in sorted((line["root"] / "made").iterdir()) if p.is_dir()) / "dicom"
    with pytest.raises(UsageError, match=r"MODEL_INPUT.*backbone"):
        load(line["encoder"]).encode_volume(str(scan))
