"""The network: sizes, shapes, strict loading."""

import pytest
import torch

from hilum.errors import UsageError, WeightsError
from hilum.io.weights import load_weights, preset_data, save_weights
from hilum.model.fold import fold, rows, unfold, unrows
from hilum.model.local import LocalDecoder
from hilum.model.preset import Preset, build_network, load_state
from hilum.model.ynet import BOX_REACH, InstanceNorm, YNet, YNetConfig

TINY = YNetConfig(widths=(8, 8, 8, 8), depth=(1, 1, 1, 1), abn_width=8)


@pytest.mark.parametrize("batch", [1, 2])
def test_instance_norm_is_torch_instance_norm(batch):
    x = torch.randn(batch, 4, 3, 5, 7, dtype=torch.float64)
    ours, theirs = InstanceNorm(4).double(), torch.nn.InstanceNorm3d(4, affine=True).double()
    assert torch.allclose(ours(x), theirs(x))


def test_rows_are_undone_by_unrows():
    x = torch.randn(2, 3, 4, 6, 8)
    assert torch.equal(unrows(rows(x), (4, 6, 8)), x)


def test_fold_is_undone_by_unfold():
    x = torch.randn(2, 3, 4, 6, 8)
    assert torch.equal(unfold(fold(x)), x)


def test_fold_keeps_neighbours_together():
    x = torch.zeros(1, 1, 4, 4, 4)
    x[0, 0, 2:, 2:, 2:] = 1
    assert fold(x)[0, :, 1, 1, 1].eq(1).all()
    assert fold(x).sum() == 8


def test_shapes_at_both_scales():
    out = YNet(TINY)(torch.zeros(1, 1, 32, 16, 48))
    assert out.organs.shape == (1, 7, 32, 16, 48)
    assert out.low.shape == (1, 18, 16, 8, 24)
    assert out.high.shape == (1, 18, 32, 16, 48)


def test_organ_features_reach_the_anomaly_maps_but_not_back():
    net = YNet(TINY)
    x = torch.randn(1, 1, 32, 32, 32)
    net(x).high.sum().backward()
    assert net.seg[1].mix.weight.grad.abs().sum() > 0
    net.zero_grad()
    net(x).organs.sum().backward()
    assert all(p.grad is None or p.grad.abs().sum() == 0 for p in net.abn.parameters())


def test_the_anomaly_decoder_knows_nothing_of_elsewhere():
    decoder = LocalDecoder(3, 8)
    x = torch.randn(1, 3, 12, 12, 12)
    decoder(x)
    decoder.eval()
    other = x.clone()
    other[0, :, 6, 6, 6] += 1.0
    moved = (decoder(x) - decoder(other)).abs().sum((0, 1)) > 0
    assert moved[6, 6, 6] and moved[4, 6, 8]
    moved[4:9, 4:9, 4:9] = False
    assert not moved.any()


@pytest.mark.parametrize(
    ("start", "size"),
    [((8, 20, 4), (6, 6, 8)), ((0, 2, 12), (4, 6, 12)), ((9, 1, 0), (12, 30, 24)), ((3, 14, 17), (6, 6, 6))],
)
def test_a_box_is_read_as_in_the_whole_scan(start, size):
    net = YNet(YNetConfig(widths=(8, 8, 8, 8), depth=(1, 1, 1, 1), abn_width=8, abn_stem=4))
    generator = torch.Generator().manual_seed(0)
    scan = torch.rand(1, 1, 48, 64, 48, generator=generator) - 0.7
    organs = net.organ_features(scan)
    # statistics of more than their start
    net.anomaly_cells(scan, organs)
    net.eval()
    whole = net.anomaly_cells(scan, organs)
    low = [max(0, a - BOX_REACH) // 2 * 2 for a in start]
    high = [
        min(n // 2, (a + b + BOX_REACH + 1) // 2 * 2)
        for a, b, n in zip(start, size, scan.shape[2:], strict=True)
    ]
    cells = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
    voxels = tuple(slice(2 * a, 2 * b) for a, b in zip(low, high, strict=True))
    inner = [slice(a - b, a - b + n) for a, b, n in zip(start, low, size, strict=True)]
    (box,) = net.anomaly_box(scan[:, :, *voxels], organs.shares()[:, :, *cells], inner)
    own = tuple(slice(a, a + n) for a, n in zip(start, size, strict=True))
    for ours, theirs in zip((box.decoded, box.context), (whole.decoded, whole.context), strict=True):
        assert torch.allclose(ours, theirs.T.unflatten(1, (24, 32, 24))[:, *own].flatten(1).T, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "parameters"), [("phantom-small", 3_721_252), ("phantom-small-cam", 3_740_922)]
)
def test_presets_have_their_stated_size(name, parameters):
    network = build_network(Preset.from_dict(preset_data(name)))
    assert sum(p.numel() for p in network.parameters()) == parameters
    assert parameters * 2 < 20e6


def test_an_unknown_preset_names_the_known():
    with pytest.raises(UsageError, match="phantom-small"):
        preset_data("nope")


def test_a_preset_with_a_strange_key_is_refused():
    with pytest.raises(WeightsError, match="CONFIG_KEY"):
        Preset.from_dict(preset_data("phantom-small") | {"target": "os.system"})


def test_weights_load_strictly(tmp_path):
    net = YNet(TINY)
    arrays = {k: v.numpy() for k, v in net.state_dict().items()}
    facts = {name: name for name in "abcdefgh"}
    digest = save_weights(tmp_path / "w.safetensors", arrays, facts)
    assert all(save_weights(tmp_path / "again.safetensors", arrays, facts) == digest for _ in range(8))
    back, meta = load_weights(tmp_path / "w.safetensors", sha256=digest)
    assert meta == facts
    tensors = {k: torch.tensor(v) for k, v in back.items()}
    load_state(YNet(TINY), tensors)
    tensors.popitem()
    with pytest.raises(WeightsError, match="WEIGHTS_KEYS"):
        load_state(YNet(TINY), tensors)


def test_damaged_weights_are_refused(tmp_path):
    path = tmp_path / "w.safetensors"
    digest = save_weights(path, {k: v.numpy() for k, v in YNet(TINY).state_dict().items()}, {})
    body = path.read_bytes()
    path.write_bytes(body[:-100])
    with pytest.raises(WeightsError, match="WEIGHTS_HASH"):
        load_weights(path, sha256=digest)
    with pytest.raises(WeightsError, match="WEIGHTS_TRUNCATED"):
        load_weights(path)
    pickle = tmp_path / "w.pt"
    pickle.write_bytes(b"\x80\x04")
    with pytest.raises(WeightsError, match="WEIGHTS_PICKLE"):
        load_weights(pickle)


def test_nonfinite_weights_are_refused(tmp_path):
    import numpy as np

    save_weights(tmp_path / "w.safetensors", {"x": np.array([1.0, np.nan], dtype=np.float32)}, {})
    with pytest.raises(WeightsError, match="WEIGHTS_NONFINITE"):
        load_weights(tmp_path / "w.safetensors")


def test_a_deep_network_has_coarse_heads():
    net = YNet(YNetConfig(widths=(8, 8, 8, 8), depth=(1, 1, 1, 1), abn_width=8, deep=True))
    shapes = [c.shape[2:] for c in net.organ_features(torch.zeros(1, 1, 32, 16, 48)).coarse]
    assert shapes == [(4, 2, 6), (8, 4, 12)]


def test_detached_organs_feel_no_anomaly_gradient():
    net = YNet(YNetConfig(widths=(8, 8, 8, 8), depth=(1, 1, 1, 1), abn_width=8, detach=True))
    net(torch.randn(1, 1, 32, 32, 32)).high.sum().backward()
    assert all(p.grad is None or p.grad.abs().sum() == 0 for p in net.seg.parameters())
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in net.encoder.parameters())
