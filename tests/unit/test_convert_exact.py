"""`hilum import exact` on a checkpoint in the public layout, made here with the sizes of `exact-nano`."""

import json
import re

import numpy as np
import pytest
import torch

from hilum.cli import run
from hilum.convert.exact import import_exact
from hilum.errors import OutputError, UsageError, WeightsError
from hilum.io.weights import load_weights, preset_data
from hilum.model.preset import build_exact, load_state, preset_from
from hilum.read.scan_model import ScanModel
from hilum.text.vocabulary import SLUGS

OTHERS = {"first": "conv1", "second": "conv2", "skip": "conv3"}
MIXTURE = {"first": "proj", "second": "proj2", "point": "proj3", "mix": "proj4"}


def public_name(name):
    """Ours -> the public code's, part by part: the table of `convert.exact` read the other way."""
    part = name.split(".")
    if part[0] == "encoder":
        n, what, rest = part[2], part[3], part[4:]
        if what == "step":
            return f"vit.downsample_layers.{n}.{0 if n == '0' else 1}.{rest[0]}"
        if what == "mixture":
            return f"vit.gscs.{n}.{MIXTURE[rest[0]]}.{rest[1]}"
        if what == "layers":
            return f"vit.stages.{n}.{'.'.join(rest)}"
        return f"vit.mlps.{n}.{'fc1' if what == 'up' else 'fc2'}.{rest[0]}"
    if part[0] == "skips":
        return f"encoder{int(part[1]) + 1}.layer.{OTHERS[part[2]]}.conv.weight"
    if match := re.fullmatch(r"(seg|abn)_last\.(\w+)\.weight", name):
        return f"{match[1]}_decoder1.layer.{OTHERS[match[2]]}.conv.weight"
    if part[0] in ("seg", "abn"):
        block = f"{part[0]}_decoder{5 - int(part[1])}"
        if part[2] == "up":
            return f"{block}.transp_conv.conv.weight"
        return f"{block}.conv_block.{OTHERS[part[3]]}.conv.weight"
    head = {"organ_head": "segmentation", "low_head": "abnormal_low", "high_head": "abnormal_high"}[part[0]]
    return f"final_conv_{head}.conv.conv.{part[1]}"


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return build_exact(preset_from(preset_data("exact-nano")))


def checkpoint(network, prefix=""):
    """What the public training saves, figures of NumPy's and the optimiser's numbered states among it."""
    state = {prefix + public_name(name): tensor for name, tensor in network.state_dict().items()}
    return {
        "epoch": 7,
        "avg_auroc": np.float64(0.75),
        "loss": np.float32(0.5),
        "model_state_dict": state,
        "optimizer_state_dict": {"state": {0: {"step": torch.tensor(1.0)}}, "param_groups": [{"lr": 1e-4}]},
        "scheduler_state_dict": {"T_max": 50, "_last_lr": [1e-4]},
        "best_thresholds": np.linspace(0.1, 0.9, 18),
    }


def saved(path, content):
    torch.save(content, path)
    return path


@pytest.mark.parametrize("prefix", ["", "module."])
def test_weights_and_thresholds_are_the_published_ones(tmp_path, network, prefix, capsys):
    path = saved(tmp_path / "best.pth", checkpoint(network, prefix))
    command = ["import", "exact", str(path), str(tmp_path / "out"), "--preset", "exact-nano", "--json"]
    assert run(command) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["kind"] == "exact-nano" and report["filled"] == []
    card = json.loads((tmp_path / "out" / "card.json").read_text())
    tensors, facts = load_weights(tmp_path / "out" / "model.safetensors", sha256=card["sha256"])
    assert facts == {"preset": "exact-nano"} and card["preset"] == "exact-nano"
    other = build_exact(preset_from(preset_data(card["preset"])))
    load_state(other, {name: torch.from_numpy(array) for name, array in tensors.items()})
    assert all(torch.equal(a, b) for a, b in zip(network.parameters(), other.parameters(), strict=True))
    model = ScanModel.load(str(tmp_path / "out"))
    assert model.name == "exact-nano" and not model.calibrated
    assert model.map_thresholds == model.thresholds == card["thresholds"]
    assert list(card["thresholds"]) == list(SLUGS)
    assert card["thresholds"]["medical_material"] == 0.1 and card["thresholds"]["septal_thickening"] == 0.9
    assert card["licence"] == "none stated" and "no licence" in card["terms"] and not card["synthetic"]
    values = card["source"]["values"]
    assert values["epoch"] == "7" and values["avg_auroc"] == "0.75"
    assert values["optimizer_state_dict"] == values["scheduler_state_dict"] == "left out"


def test_a_bare_state_has_no_thresholds(tmp_path, network):
    path = saved(tmp_path / "state.pth", checkpoint(network)["model_state_dict"])
    import_exact(path, tmp_path / "out", preset="exact-nano")
    assert json.loads((tmp_path / "out" / "card.json").read_text())["thresholds"] == {}


def changed(network, **changes):
    content = checkpoint(network)
    content["model_state_dict"].update(changes.pop("state", {}))
    for name in changes.pop("without", ()):
        del content["model_state_dict"][name]
    return {**content, **changes}


WRONG = {
    "a tensor that is missing": ({"without": ["encoder5.layer.conv2.conv.weight"]}, "skips.4.second.weight"),
    "a stranger": ({"state": {"vit.norm9.weight": torch.ones(3)}}, "vit.norm9.weight"),
    "another size": ({"state": {"final_conv_abnormal_low.conv.conv.bias": torch.ones(16)}}, "low"),
    "sixteen findings": ({"best_thresholds": np.full(16, 0.5)}, "best_thresholds"),
    "no probability": ({"best_thresholds": np.full(18, np.inf)}, "best_thresholds"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_not_the_public_layout_is_refused_by_name(tmp_path, network, name):
    change, words = WRONG[name]
    path = saved(tmp_path / "best.pth", changed(network, **change))
    with pytest.raises(WeightsError, match=rf"WEIGHTS_KEYS.*{re.escape(words)}"):
        import_exact(path, tmp_path / "out", preset="exact-nano")
    assert [p.name for p in tmp_path.iterdir()] == ["best.pth"]


def test_arrays_of_things_are_refused(tmp_path, network):
    path = saved(tmp_path / "best.pth", {**checkpoint(network), "names": np.array(["a"], dtype=object)})
    with pytest.raises(WeightsError, match="WEIGHTS_PICKLE"):
        import_exact(path, tmp_path / "out", preset="exact-nano")


def test_the_call_is_checked(tmp_path, network):
    (tmp_path / "there").mkdir()
    with pytest.raises(OutputError, match="OUTPUT_EXISTS"):
        import_exact(tmp_path / "x.pth", tmp_path / "there")
    with pytest.raises(UsageError, match="CONFIG_VALUE"):
        import_exact(tmp_path / "x.pth", tmp_path / "out", preset="flexict-nano")
