"""Y-Mamba: shapes, the one way between its decoders, and what it refuses."""

import pytest
import torch

from hilum.errors import InputRefused, WeightsError
from hilum.io.weights import preset_data
from hilum.model.preset import ExactPreset, build_exact, preset_from
from hilum.model.ymamba import YMamba, YMambaConfig

TINY = YMambaConfig(widths=(4, 6, 8, 10), hidden=12, depth=(1, 1, 1, 1), d_state=3)


def a_scan(*shape, seed=0):
    return torch.rand(1, 1, *shape, generator=torch.Generator().manual_seed(seed))


def test_logits_at_both_resolutions():
    torch.manual_seed(0)
    out = YMamba(TINY)(a_scan(16, 32, 16))
    assert out.organs.shape == (1, 7, 16, 32, 16)
    assert out.low.shape == (1, 18, 8, 16, 8) and out.high.shape == (1, 18, 16, 32, 16)
    assert out.organs.min() < 0, "logits, not probabilities"


def test_organs_flow_into_anomalies_and_not_back():
    torch.manual_seed(0)
    model, scan = YMamba(TINY), a_scan(16, 16, 32)
    out = model(scan)
    out.high.square().sum().backward()
    assert all(p.grad is not None for p in model.seg.parameters())
    model.zero_grad()
    model(scan).organs.square().sum().backward()
    assert all(p.grad is None for part in (model.abn, model.abn_last) for p in part.parameters())


def test_detach_stops_the_anomalies_gradient():
    torch.manual_seed(0)
    model = YMamba(YMambaConfig(**{**vars(TINY), "detach": True}))
    model(a_scan(16, 16, 32)).high.square().sum().backward()
    assert all(p.grad is None for p in model.seg.parameters())
    assert all(p.grad is not None for p in model.skips.parameters())


def test_checkpointing_changes_no_number():
    torch.manual_seed(0)
    plain = YMamba(TINY)
    again = YMamba(YMambaConfig(**{**vars(TINY), "checkpoint": True}))
    again.load_state_dict(plain.state_dict())
    for model in (plain, again):
        model(a_scan(16, 16, 32)).low.square().sum().backward()
    for a, b in zip(plain.parameters(), again.parameters(), strict=True):
        assert (a.grad is None and b.grad is None) or torch.equal(a.grad, b.grad)


def test_what_it_refuses():
    for shape in ((16, 20, 16), (16, 16, 16)):
        with pytest.raises(InputRefused, match="MODEL_INPUT"):
            YMamba(TINY)(a_scan(*shape))
    with pytest.raises(WeightsError, match="CONFIG_VALUE"):
        YMambaConfig(mixer="v3")


def test_a_preset_of_its_own_kind():
    good = preset_data("exact-ymamba")
    preset = preset_from(good)
    assert isinstance(preset, ExactPreset)
    assert preset.pipeline.squash_vox == (64, 128, 128) and preset.pipeline.clip_hu is None
    assert (preset.pool_vox.low, preset.pool_vox.high, preset.pool_vox.inference) == (6, 48, 3)
    for key, value in (("convention", "ours"), ("pool_vox", {"low": 0, "high": 1, "inference": 1})):
        with pytest.raises(WeightsError, match="CONFIG_VALUE"):
            preset_from({**good, key: value})
    with pytest.raises(WeightsError, match="CONFIG_KEY"):
        preset_from({**good, "net": {**good["net"], "widhts": 4}})


def test_the_small_one_takes_its_own_grid():
    preset = preset_from(preset_data("exact-nano"))
    assert preset.pipeline.fit == "shape" and not any(n % 16 for n in preset.pipeline.fit_vox)
    assert isinstance(build_exact(preset), YMamba)
