"""Every preset that ships: it builds, has its stated size, and its weights go in and out whole."""

import json

import pytest
import torch

from hilum.errors import WeightsError
from hilum.io.weights import load_weights, preset_data, preset_names, save_weights
from hilum.model.preset import NETWORKS, build, load_state, preset_from

PARAMETERS = {
    "colipri": 144_085_536,
    "exact-flexict": 146_989_315,
    "exact-nano": 1_341_835,
    "exact-ymamba": 87_206_443,
    "exact-ymamba-tri": 87_719_083,
    "flexict-base": 143_999_424,
    "flexict-large": 383_212_800,
    "flexict-nano": 1_587_744,
    "flexict-small": 27_189_216,
    "phantom-small": 3_721_252,
    "phantom-small-cam": 3_740_922,
    "phantom-small-clip": 3_739_618,
    "phantom-small-organ-clip": 3_740_567,
    "radfinder": 92_014_330,
    "radfinder-nano": 878_458,
}
SMALL = [name for name, count in PARAMETERS.items() if count < 5_000_000]


def on_meta(name):
    with torch.device("meta"):
        return build(preset_from(preset_data(name)))


def test_every_preset_has_a_stated_size():
    assert sorted(PARAMETERS) == preset_names()
    assert {preset_data(name)["network"] for name in PARAMETERS} == set(NETWORKS)


@pytest.mark.parametrize("name", PARAMETERS)
def test_a_preset_is_itself(name):
    data = preset_data(name)
    assert data["name"] == name and json.loads(json.dumps(data)) == data
    assert preset_from(data) == preset_from(data)


@pytest.mark.parametrize("name", PARAMETERS)
def test_it_builds_without_memory_and_has_its_size(name):
    model = on_meta(name)
    assert all(tensor.is_meta for tensor in model.parameters())
    assert sum(p.numel() for p in model.parameters()) == PARAMETERS[name]


def test_radfinder_is_its_layers():
    """RadFinder §1.2: what is trained beside the two towers."""
    e = 1080
    block = 4 * (e * e + e) + (8 * e * e + 5 * e) + 4 * e + 2 * e
    combiner = (2 * e * e + e) + (e * e + e) + e + 4 * block + 2 * e

    def head(width):
        return (width * 2048 + 2048) + (2048 * 2048 + 2048) + (2048 * 256 + 256) + 256 * 512

    assert combiner + 2 * head(2 * e) + 2 * head(1024) + 2 == PARAMETERS["radfinder"]


def test_colipri_is_its_layers():
    """COLIPRI (radfinder.md §2.1): Primus-M. Keys have no bias, branches a norm inside and a scale behind."""
    w, hidden = 864, 2304
    attention = 4 * w * w + 3 * w + 2 * w
    mlp = 3 * w * hidden + 2 * hidden + w + 2 * hidden
    block = attention + mlp + 2 * 2 * w + 2 * w
    assert (8**3 + 1) * w + 16 * block + 2 * w == PARAMETERS["colipri"]


@pytest.mark.parametrize("name", PARAMETERS)
def test_no_tensor_may_be_missing_strange_or_of_another_shape(name):
    model = on_meta(name)
    state = dict(model.state_dict())
    load_state(model, state)
    first = next(iter(state))
    for wrong in (
        {k: v for k, v in state.items() if k != first},
        {**state, "stranger": state[first]},
        {**state, first: state[first][..., None]},
    ):
        with pytest.raises(WeightsError, match=r"WEIGHTS_KEYS"):
            load_state(model, wrong)


@pytest.mark.parametrize("name", SMALL)
def test_its_weights_survive_a_file(name, tmp_path):
    torch.manual_seed(0)
    model = build(preset_from(preset_data(name)))
    arrays = {key: tensor.detach().numpy() for key, tensor in model.state_dict().items()}
    digest = save_weights(tmp_path / "w.safetensors", arrays, {"preset": name})
    back, facts = load_weights(tmp_path / "w.safetensors", sha256=digest)
    other = build(preset_from(preset_data(facts["preset"])))
    load_state(other, {key: torch.from_numpy(array) for key, array in back.items()})
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))
    assert list(model.state_dict()) == list(other.state_dict())
