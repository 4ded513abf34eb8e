"""EXACT's decoders on a backbone of patches."""

import pytest
import torch

from hilum.errors import InputRefused, WeightsError
from hilum.io.weights import preset_data
from hilum.model.exact_vit import ExactViT, ExactViTConfig
from hilum.model.preset import preset_from
from hilum.model.vit import ViT
from hilum.model.vit_config import ViTConfig

BACKBONE = ViTConfig(width=48, depth=1, heads=2, drop_path=0.0, rescale=1.0, layer_scale=0.5)
TINY = ExactViTConfig(BACKBONE, widths=(12, 8, 4))


def a_scan(*shape):
    return torch.rand(1, 1, *shape, generator=torch.Generator().manual_seed(0))


def test_logits_at_both_resolutions():
    torch.manual_seed(0)
    out = ExactViT(TINY)(a_scan(16, 8, 24))
    assert out.organs.shape == (1, 7, 16, 8, 24)
    assert out.low.shape == (1, 18, 8, 4, 12) and out.high.shape == (1, 18, 16, 8, 24)
    with pytest.raises(InputRefused, match="PATCH_GRID"):
        ExactViT(TINY)(a_scan(16, 12, 16))


def test_organs_flow_one_way_and_every_trained_weight_is_used():
    torch.manual_seed(0)
    model, scan = ExactViT(TINY), a_scan(16, 16, 16)
    out = model(scan)
    (out.high.square().mean() + out.low.square().mean() + out.organs.square().mean()).backward()
    assert [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None] == []
    model.zero_grad()
    model(scan).organs.square().mean().backward()
    assert all(p.grad is None for p in model.abn.parameters())
    model.zero_grad()
    model(scan).high.square().mean().backward()
    assert all(p.grad is not None for p in model.seg.parameters())
    stopped = ExactViT(ExactViTConfig(BACKBONE, widths=(12, 8, 4), detach=True))
    stopped(scan).high.square().mean().backward()
    assert all(p.grad is None for p in stopped.seg.parameters())


def test_a_pretrained_backbone_goes_in_as_it_is():
    torch.manual_seed(0)
    model, backbone = ExactViT(TINY), ViT(BACKBONE)
    given = {f"vision.{name}": tensor for name, tensor in backbone.state_dict().items()}
    own = {name for name in model.state_dict() if name.startswith("vision.")}
    assert set(given) == own
    model.load_state_dict(given, strict=False)
    assert torch.equal(model.vision.blocks[0].mlp.up.weight, backbone.blocks[0].mlp.up.weight)


def test_what_makes_no_network():
    with pytest.raises(WeightsError, match="CONFIG_VALUE"):
        ExactViTConfig(ViTConfig(width=48, depth=1, heads=2, patch=16))
    good = preset_data("exact-flexict")
    with pytest.raises(WeightsError, match="CONFIG_KEY"):
        preset_from({**good, "net": {k: v for k, v in good["net"].items() if k != "backbone"}})
    with pytest.raises(WeightsError, match="CONFIG_KEY"):
        preset_from({**good, "net": {**good["net"], "backbone": {"widht": 1}}})
    assert preset_from(good).pipeline.fit_vox == (160, 160, 160)
